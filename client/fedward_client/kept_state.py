"""A round as this site begins it: what came, and what the site kept from its last answer."""

from dataclasses import dataclass, field
from typing import Self

from fedward_client.tasks.registry import task_of
from fedward_common.arrays import Array, Tensors, tensors_from_bytes, tensors_to_bytes
from fedward_common.models.registry import model_shapes
from fedward_common.study.kept import (
    correction,
    keeps_state,
    new_state,
    opened_round,
    own_model,
    round_shapes,
    state_shapes,
)
from fedward_common.study.spec import StudySpec
from fedward_common.wire import Octets


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenedRound:
    """The model to start from, and what is added to every noisy gradient; public or noised."""

    study: StudySpec
    weights: Tensors
    shared: Tensors = field(default_factory=dict)
    state: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, study: StudySpec, model: Octets, state: bytes) -> Self:
        """The round of an instruction to train.

        Raises:
            ProtocolError: its tensors are not those of the study.
        """
        came = tensors_from_bytes(model, shapes=round_shapes(study, study_shapes(study)))
        weights, shared = opened_round(came)
        kept = _kept(study, state)
        return cls(study=study, weights=own_model(study, weights, kept), shared=shared, state=kept)

    @property
    def correction(self) -> Tensors:
        """By the model's names; empty in all studies but SCAFFOLD."""
        return correction(self.shared, self.state)

    def state_after(self, after: Tensors) -> bytes:
        """What the site keeps when its update is `after`; empty in most studies."""
        if not keeps_state(self.study):
            return b""
        return tensors_to_bytes(
            new_state(
                self.study, before=self.weights, after=after, shared=self.shared, state=self.state
            )
        )


def own_weights(study: StudySpec, model: Octets, state: bytes) -> dict[str, Array]:
    """The model that came, as this site uses it.

    Raises:
        ProtocolError: its tensors are not those of the study.
    """
    weights = tensors_from_bytes(model, shapes=study_shapes(study))
    return own_model(study, weights, _kept(study, state))


def study_shapes(study: StudySpec) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the study's model, as it writes them out: the guard takes the same.

    To build a model only to look at it costs a second for every 100 MB, in every task. Studies
    signed before 2026-11-27 write out those of plugins only.
    """
    if study.model.tensors:
        return {tensor.name: tensor.shape for tensor in study.model.tensors}
    return model_shapes(study.model, inputs=task_of(study).inputs)


def _kept(study: StudySpec, state: bytes) -> Tensors:
    if not state:
        return {}
    return tensors_from_bytes(state, shapes=state_shapes(study, study_shapes(study)))
