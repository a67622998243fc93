"""How a round of training goes: replies in the open, or secret sums; the caller commits it.

Both keep the coordinator's optimiser, which a checkpoint takes along.
"""

from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import BLOCK, Array, Tensors, is_finite, tensors_from_bytes
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.models.registry import model_shapes
from fedward_common.study.kept import released_shapes, round_tensors
from fedward_common.study.spec import StudySpec
from fedward_common.wire import Octets
from fedward_server.aggregation import plain_sum, server_optimiser
from fedward_server.exchange import RETURN_SECONDS, Ask, Exchanges
from fedward_server.fleet import Kept, MappedTensors, Tray
from fedward_server.progress import Numbers, Opened
from fedward_server.round_state import RoundState
from fedward_server.secure_round import SecureRounds

MAX_MAGNITUDE: Final = 1e30


class Rounds(Protocol):
    """How the rounds of a study go."""

    def train(self, number: int, model: Tensors) -> tuple[RoundState, Tensors] | None:
        """The round, to be committed, and the model after it; None for an abandoned one."""
        ...

    def state(self) -> Numbers:
        """What the coordinator's optimiser remembers."""
        ...

    def restore(self, state: Numbers) -> None:
        """Goes on where `state` was taken."""
        ...


class OpenRounds:
    """Rounds whose replies the coordinator sees: each enters a sum and is dropped."""

    def __init__(
        self,
        study: StudySpec,
        exchanges: Exchanges,
        *,
        inputs: int,
        opened: Opened | None,
        tray: Tray,
    ) -> None:
        self._study, self._exchanges, self._opened = study, exchanges, opened
        self._tray = tray
        self._kept: Kept | None = None
        self._shapes = released_shapes(study, model_shapes(study.model, inputs=inputs))
        self._optimiser = server_optimiser(study)

    def train(self, number: int, model: Tensors) -> tuple[RoundState, Tensors] | None:
        """The server optimiser's step towards the mean of the sites' models."""
        total = plain_sum(self._study)

        def take(site: SiteId, payload: Octets) -> None:
            tensors = tensors_from_bytes(payload, shapes=self._shapes)
            _require_bounded(tensors)
            total.add(site, tensors)

        asked = self._asked(model)
        ask = Ask(kind="train", round=number, model=asked.octets, model_sha256=asked.sha256)
        state = self._exchanges.run(again(ask, self._opened), take)
        if not state.has_quorum:
            self._exchanges.abandon(state)
            return None
        before, share = self._optimiser.state(), share_of(self._study, state)
        with np.errstate(over="ignore", invalid="ignore"):
            following = self._optimiser.step(model, total.mean(), share=share)
            asked_next = (*following.values(), *self._optimiser.shared().values())
        if not all(is_finite(tensor) for tensor in asked_next):
            self._optimiser.restore(before)
            self._exchanges.abandon(state, reason="expected a finite model, found another")
            return None
        state.aggregate()
        self._kept = self._tray.keep(following)
        return state, self._kept.tensors

    def _asked(self, model: Tensors) -> Kept:
        """What goes to the sites, and its bytes: those of the model are kept already."""
        shared = self._optimiser.shared()
        if not shared and self._kept is not None and self._kept.tensors is model:
            return self._kept
        if not shared and isinstance(model, MappedTensors):
            return Kept(tensors=model, octets=model.octets)
        return self._tray.keep(round_tensors(model, shared))

    def state(self) -> Numbers:
        """The server optimiser's."""
        return self._optimiser.state()

    def restore(self, state: Numbers) -> None:
        """The server optimiser goes on."""
        self._optimiser.restore(state)


class SecretRounds:
    """Rounds of secret sums; the server optimiser of the study acts on what was opened."""

    def __init__(self, secure: SecureRounds) -> None:
        self._secure = secure
        self._optimiser = server_optimiser(secure.study)

    def train(self, number: int, model: Tensors) -> tuple[RoundState, Tensors] | None:
        """The server optimiser's step towards the opened mean."""
        trained = self._secure.mean(number, model, shared=self._optimiser.shared())
        if trained is None:
            return None
        state, mean = trained
        share = share_of(self._secure.study, state)
        return state, self._optimiser.step(model, mean, share=share)

    def state(self) -> Numbers:
        """The server optimiser's, and that of the pooled descent."""
        server = {f"server/{name}": value for name, value in self._optimiser.state().items()}
        return server | {f"pooled/{k}": v for k, v in self._secure.descent.state().items()}

    def restore(self, state: Numbers) -> None:
        """Both go on."""
        groups: dict[str, dict[str, npt.NDArray[Any]]] = {"server": {}, "pooled": {}}
        for name, value in state.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = value
        self._optimiser.restore(groups["server"])
        self._secure.descent.restore(groups["pooled"])


def _require_bounded(tensors: Tensors) -> None:
    """Returns when an update can be summed and divided. Raises ProtocolError: a site's fault.

    What is clipped and noised is far below; numbers near the end of float32 would make a model, or
    SCAFFOLD's shared variate, that every site is charged for and refuses.
    """
    if not all(_is_bounded(tensor) for tensor in tensors.values()):
        raise ProtocolError(
            f"update: expected numbers up to {MAX_MAGNITUDE:.0e}, found a larger one"
        )


def _is_bounded(tensor: Array) -> bool:
    flat = tensor.reshape(-1)
    slices = (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))
    return all(max(one.max(), -one.min()) <= MAX_MAGNITUDE for one in slices)


def share_of(study: StudySpec, state: RoundState) -> float:
    """The public patients of the sites in a round, of all the study's."""
    return sum(study.weight(site) for site in state.accepted)


def again(ask: Ask, opened: Opened | None) -> Ask:
    """`ask`, with the cohort and attempt under which an earlier run asked the same (rules 5)."""
    if opened is None or (opened.kind, opened.round) != (ask.kind, ask.round):
        return ask
    return replace(
        ask,
        attempt=opened.attempt,
        cohort=opened.cohort,
        patience_seconds=RETURN_SECONDS,
    )
