"""The task about the time until an event, and which models are for which of its likelihoods."""

from itertools import pairwise
from typing import Final, Literal

from pydantic import Field, model_validator

from fedward_common.errors import ConfigError
from fedward_common.study.registry import TaskSpec, register
from fedward_common.study.spec import StudySpec

HAZARDS: Final = "proportional-hazards"
"""The likelihood, and the only model with a risk score and baselines that it can be learned by."""


@register
class Survival(TaskSpec):
    """The time until an event, with patients who were only followed so far.

    Time is cut at `cuts` (days; the last one ends the follow-up). `discrete-hazard`: one logit for
    each interval, the chance of the event there (Gensheimer and Narasimhan 2019).
    `proportional-hazards`: one risk score and one baseline for each interval, Cox's model with a
    hazard that is constant within intervals (Holford 1980). Cox's partial likelihood itself is not
    offered: a patient's gradient there depends on who else is at risk, so that clipping it bounds
    no patient's influence. Either likelihood here is a sum with one term per patient.

    Evaluation is about the event by `horizon_days`; who was lost before counts as absent there.
    """

    kind: Literal["survival"] = "survival"
    likelihood: Literal["discrete-hazard", "proportional-hazards"]
    cuts: tuple[float, ...] = Field(min_length=1, max_length=64, strict=False)
    horizon_days: float = Field(gt=0, le=40_000)

    @model_validator(mode="after")
    def _ordered(self) -> "Survival":
        if not all(one < other for one, other in pairwise((0.0, *self.cuts))):
            raise ValueError("cuts: expected days above 0, each later than the one before")
        if self.horizon_days not in self.cuts:
            raise ValueError("horizon_days: expected one of the cuts")
        return self


def is_proportional(task: TaskSpec) -> bool:
    """Whether one risk score and baselines are learned."""
    return isinstance(task, Survival) and task.likelihood == HAZARDS


def check_hazards(study: StudySpec) -> None:
    """Returns when model and likelihood are both proportional hazards, or neither is.

    The scores of another model have no baseline; those of this one are no logits.

    Raises:
        ConfigError: one is and the other is not.
    """
    if (study.model.name == HAZARDS) == is_proportional(study.task):
        return
    if isinstance(study.task, Survival):
        raise ConfigError(
            f"model.name: expected one for {study.task.likelihood}, found {study.model.name!r}; "
            f"the model {HAZARDS} and the likelihood {HAZARDS} go together"
        )
    raise ConfigError(
        f"model.name: expected {HAZARDS} of survival with this likelihood and of nothing else, "
        f"found it of {study.task.kind}"
    )
