"""The result of a run, schema fedward-result/1, as typed figures."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedward_common.errors import ConfigError


class _Value(BaseModel):
    """A frozen part of a result; keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SiteFacts(_Value):
    """A hospital of the study with its public planning constant."""

    id: str
    patients: int


class StudyFacts(_Value):
    """The public facts of the study that ran. `task`, `model`, `aggregation`: a name or a table."""

    id: str
    title: str
    digest: str
    task: Any
    model: Any
    rounds: int
    local_steps: int
    unit: str
    noise_multiplier: float
    clip_norm: float
    sampling_probability: float
    steps: int
    placement: str
    aggregation: Any
    sites: tuple[SiteFacts, ...]
    max_records_per_patient: int | None = None


class Scores(_Value):
    """One metric of the compared models; None where it does not exist."""

    federated: float | None = None
    federated_interval: tuple[float, float] | None = None
    federated_private: float | None = None
    federated_private_interval: tuple[float, float] | None = None
    alone_mean: float | None = None
    alone_no_privacy_mean: float | None = None
    pooled_no_privacy: float | None = None
    majority: float | None = None
    standard_error: float | None = None
    federated_site_mean: float | None = None
    alone_site_mean: float | None = None
    alone_no_privacy_site_mean: float | None = None
    pooled_no_privacy_site_mean: float | None = None


class SiteScores(_Value):
    """What the parent knows of one site after the run."""

    held_out: int
    auc: float | None
    accuracy: float | None
    figures: dict[str, float] = Field(default_factory=dict)
    figures_private: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    alone_auc: float | None
    alone_accuracy: float | None
    epsilon_admission: float
    epsilon_pld: float
    bytes_sent: int
    rounds_charged: int


class Rounds(_Value):
    """How the rounds ended."""

    committed: int
    abandoned: int
    stopped_after: int | None = None
    validations: tuple[tuple[int, float | None], ...] = ()

    @property
    def said(self) -> str:
        """The same in words."""
        text = f"{self.committed} rounds committed, {self.abandoned} abandoned"
        if self.stopped_after is not None:
            text += (
                f"; stopped early after round {self.stopped_after}, by the same held-out patients "
                "that the private figures are of: these flatter a little, and ε is that of every "
                "round"
            )
        return text


class CurvePoint(_Value):
    """The model after one committed round, scored by the parent."""

    round: int
    auc: float | None = None
    accuracy: float | None = None


class Roc(_Value):
    """Points (false positive rate, true positive rate)."""

    exact: tuple[tuple[float, float], ...] = ()
    private: tuple[tuple[float, float], ...] = ()


Shown = tuple[float, float, float]
"""A figure with both ends of its interval."""


class GroupRow(_Value):
    """A group of patients; `figures` is None where a class may be under 10."""

    by: str
    group: str
    figures: dict[str, Shown] | None


class ClinicalEvaluation(_Value):
    """What the noised counts of a `grouped-scores` release say."""

    threshold: float
    everybody: GroupRow
    groups: tuple[GroupRow, ...]
    fairness: tuple[tuple[str, str, float, float, float], ...]
    calibration: tuple[tuple[float, float, float, float], ...]
    decision: tuple[tuple[float, float, float, float, float], ...]


class RunFigures(_Value):
    """A result of format fedward-result/1."""

    format: Literal["fedward-result/1"]
    study: StudyFacts
    auc: Scores
    accuracy: Scores
    figures: dict[str, Scores] = Field(default_factory=dict)
    clinical: ClinicalEvaluation | None = None
    per_site: dict[str, SiteScores]
    epsilon: dict[str, float]
    epsilon_is: str
    epsilon_pld: dict[str, float] = Field(default_factory=dict)
    delta: float
    unit: str
    bytes_sent: dict[str, int]
    seconds: float
    timings: dict[str, float] = Field(default_factory=dict)
    rounds: Rounds
    curve: tuple[CurvePoint, ...] = ()
    roc: Roc = Roc()
    environment: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    @property
    def site_ids(self) -> tuple[str, ...]:
        """The study's sites in its order, then any other site with figures."""
        named = [site.id for site in self.study.sites]
        return tuple(dict.fromkeys([*named, *self.per_site]))

    @property
    def evaluated(self) -> bool:
        """Whether the sites' noised bins arrived."""
        return self.auc.federated_private is not None or self.accuracy.federated_private is not None

    @property
    def highest_epsilon(self) -> float | None:
        """The epsilon of the site whose patients paid most."""
        return max(self.epsilon.values(), default=None)

    @property
    def total_bytes_sent(self) -> int:
        """What all sites sent together."""
        return sum(self.bytes_sent.values())


def parse_result(result: Mapping[str, Any]) -> RunFigures:
    """`result` as typed figures.

    Raises:
        ConfigError: it is not a result of format fedward-result/1; names the first wrong key.
    """
    try:
        return RunFigures.model_validate(dict(result))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "result"
        raise ConfigError(
            f"result: expected format fedward-result/1, found at {key}: {first['msg']}. "
            "Write it again with the same version of Fedward"
        ) from error
