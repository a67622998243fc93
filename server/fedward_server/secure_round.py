"""Rounds whose sum alone the coordinator learns: three exchanges, and a set-up where one is due.

Mask, sign the survivor list, unmask; keys and shares of the next sum ride on the last two (rules
13). A site that comes back after a loss gets a full set-up with all others. What cannot be unmasked
is abandoned by name: its number is burnt, the next sum begins with a set-up.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from fedward_common.arrays import Array, Tensors, tensors_to_bytes
from fedward_common.errors import ProtocolError, StudyFailed
from fedward_common.ids import SiteId
from fedward_common.models.pooled_descent import PooledDescent
from fedward_common.secagg.coordinator import Coordinator
from fedward_common.secagg.fixedpoint import Ring
from fedward_common.secagg.messages import (
    Advert,
    Adverts,
    Boxes,
    Envelopes,
    Keys,
    Member,
    Message,
    Opened,
    Opening,
    Session,
    Signed,
    Survivors,
)
from fedward_common.secagg.refusals import SecAggRefused
from fedward_common.secagg.sums import (
    Float64Array,
    Shapes,
    SumPlan,
    is_distributed,
    kind_of_sum,
    last_sum,
    sum_number,
    sum_plan,
    survivor_patients,
    unflat,
)
from fedward_common.study.kept import round_tensors
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.trust.signing import key_sha256
from fedward_common.wire import Kind, Octets
from fedward_server.exchange import Ask, Exchanges, Take
from fedward_server.round_state import RoundState


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSum:
    """What one secret sum gave: real numbers, the sites in them, and the noise of each number.

    `noise_std` is that of all survivors' shares together; 0.0 where the noise was in the numbers.
    `state` is the round, to be committed when what became of it is durable.
    """

    values: Float64Array
    survivors: tuple[SiteId, ...]
    noise_std: float
    state: RoundState


@dataclass(kw_only=True)
class SecureRounds:
    """The secret sums of one run. `keys` are the sites' Ed25519 keys in hexadecimal, from the
    registry; each site checks them against the digests in the signed study. `attempts` counts the
    set-ups so far, those of earlier runs of the study included: none is asked twice.
    """

    study: StudySpec
    exchanges: Exchanges
    keys: Mapping[SiteId, str]
    shapes: Shapes
    _ready: Coordinator | None = None
    _room: Ring | None = None
    attempts: int = 0
    descent: PooledDescent = field(init=False)

    def __post_init__(self) -> None:
        """Refuses keys that are not those of the study.

        Raises:
            StudyFailed: names the site without its key.
        """
        for site in self.study.sites:
            key = self.keys.get(SiteId(site.id))
            if key is None or key_sha256(key) != site.key_sha256:
                raise StudyFailed(
                    f"study {self.study.id}: expected the key of {site.id} that the study names "
                    "among the registry's, found none; enrol it again or sign the study anew"
                )
        self.descent = PooledDescent(self.study.training)

    def mean(
        self, number: int, model: Tensors, *, shared: Tensors | None = None
    ) -> tuple[RoundState, dict[str, Array]] | None:
        """The round and the model after it, or None for an abandoned round.

        `shared` goes to the sites beside the model.

        Distributed noise: one step along the pooled gradient over q times the public patients of
        the sites in it. Local noise: the mean of the sites' models by their public weights.
        """
        asked = round_tensors(model, {} if shared is None else shared)
        opened = self.total("train", number, tensors_to_bytes(asked))
        if opened is None:
            return None
        patients, dp = survivor_patients(self.study, opened.survivors), self.study.dp
        if is_distributed(self.study) and isinstance(dp, DpSgd):
            gradient = opened.values / (dp.sampling_probability * patients)
            trained = unflat(self.study, gradient, shapes=self.shapes)
            rate = self.study.learning_rate(number)
            return opened.state, self.descent.step(model, trained, rate=rate)
        share = patients / self.study.public_patients
        moved = unflat(self.study, opened.values / share, shapes=self.shapes)
        return opened.state, {
            name: (value + moved[name]).astype(np.float32) if name in moved else value
            for name, value in model.items()
        }

    def total(self, kind: Kind, round_number: int, model: Octets) -> OpenedSum | None:
        """The opened sum of what the sites answer to one instruction; None where it is abandoned.

        Raises:
            StudyFailed: so many sites refuse for good that the quorum is out of reach.
        """
        plan = sum_plan(self.study, kind, round_number, shapes=self.shapes)
        ready = self._set_up(sum_number(self.study, kind, round_number))
        if isinstance(ready, RoundState):
            self.exchanges.abandon(ready, round_number=round_number, reason="set-up")
            return None
        sharers = tuple(SiteId(site) for site in ready.sharers)
        boxes = {s: {"boxes": Boxes(boxes=ready.boxes_for(s)).canonical} for s in sharers}
        ask = Ask(kind=kind, round=round_number, model=model, cohort=sharers, own=boxes)
        ready.bound = ask.instruction(self.study, sharers).key
        ready.room, self._room = self._room, None
        state = self.exchanges.run(
            ask, lambda site, payload: ready.take_masked(site, _residues(plan, payload))
        )
        if not state.has_quorum:
            self.exchanges.abandon(state, reason="mask")
            return None
        try:
            opened = self._open(ready, sharers)
        except SecAggRefused as error:
            self.exchanges.abandon(state, reason=str(error))
            return None
        values, self._room = plan.grid.from_ring(opened), opened
        survivors = tuple(SiteId(site) for site in ready.close())
        state.aggregate()
        noise = plan.noise_std * len(survivors) ** 0.5
        return OpenedSum(values=values, survivors=survivors, noise_std=noise, state=state)

    def _open(self, ready: Coordinator, sharers: tuple[SiteId, ...]) -> Ring:
        """The residues of the sum, after the last two exchanges; readies the next sum on the way.

        Raises:
            SecAggRefused: too few signatures or shares, or a secret that nobody committed to.
        """
        survivors = tuple(SiteId(site) for site in ready.close())
        number = ready.session.round
        following = self._coordinator(number + 1) if number < last_sum(self.study) else None

        def signed(site: SiteId, payload: Octets) -> None:
            reply = Signed.parse(bytes(payload))
            _require_own(site, reply.signature.site)
            ready.take_signature(reply.signature)
            if following is not None and reply.advert is not None:
                with suppress(SecAggRefused):
                    _require_own(site, reply.advert.site)
                    following.take_advert(reply.advert)

        message = Survivors(survivors=survivors)
        self._step("sign", number, message, sharers, take=signed, to=survivors)
        adverts = () if following is None else _adverts(following)

        def opened(site: SiteId, payload: Octets) -> None:
            reply = Opened.parse(bytes(payload))
            _require_own(site, reply.unmasking.site)
            ready.take_unmasking(reply.unmasking)
            if following is not None and reply.envelopes is not None:
                with suppress(SecAggRefused):
                    _require_own(site, reply.envelopes.site)
                    following.take_envelopes(reply.envelopes)

        opening = Opening(signatures=ready.signatures(), adverts=adverts)
        self._step("unmask", number, opening, sharers, take=opened, to=ready.signers)
        self._ready = following
        total = ready.sum()
        for site in ready.liars:
            self.exchanges.events.emit("site.wrong-shares", round=number, site=site)
        return total

    def _set_up(self, number: int) -> Coordinator | RoundState:
        """A sum that is set up among all sites that are there; the exchange that failed, if not.

        What rode on the sum before is taken when nobody is missing in it who is online.
        """
        ready, self._ready = self._ready, None
        cohort = self.exchanges.cohort()
        if ready is not None and ready.session.round == number and self._complete(ready, cohort):
            return ready
        self.attempts += 1
        fresh = self._coordinator(number)
        keys = Keys(keys={site.id: self.keys[SiteId(site.id)] for site in self.study.sites})

        def advert(site: SiteId, payload: Octets) -> None:
            found = Advert.parse(bytes(payload))
            _require_own(site, found.site)
            fresh.take_advert(found)

        state = self._step("advertise", number, keys, cohort, take=advert)
        if not state.has_quorum:
            return state
        adverts = fresh.adverts()
        to = tuple(SiteId(one.site) for one in adverts)

        def envelopes(site: SiteId, payload: Octets) -> None:
            found = Envelopes.parse(bytes(payload))
            _require_own(site, found.site)
            fresh.take_envelopes(found)

        state = self._step("share", number, Adverts(adverts=adverts), cohort, take=envelopes, to=to)
        return fresh if state.has_quorum else state

    def _complete(self, ready: Coordinator, cohort: tuple[SiteId, ...]) -> bool:
        enough = len(ready.sharers) >= self.study.thresholds.fewest_survivors
        return enough and set(cohort) <= set(ready.sharers)

    def _step(
        self,
        kind: Kind,
        number: int,
        message: Message,
        cohort: tuple[SiteId, ...],
        *,
        take: Take,
        to: Sequence[str] | None = None,
    ) -> RoundState:
        thresholds = self.study.thresholds
        opening = kind in ("sign", "unmask")
        ask = Ask(
            kind=kind,
            round=number,
            model=message.canonical,
            attempt=self.attempts,
            cohort=cohort,
            to=cohort if to is None else tuple(SiteId(site) for site in to),
            quorum=thresholds.threshold if opening else thresholds.fewest_survivors,
        )
        return self.exchanges.run(ask, take)

    def _coordinator(self, number: int) -> Coordinator:
        plan = self._plan(number)
        members = tuple(
            Member(site=SiteId(s.id), public_key=self.keys[SiteId(s.id)]) for s in self.study.sites
        )
        return Coordinator(
            session=Session(study=self.study.digest, round=number, members=members),
            thresholds=self.study.thresholds,
            size=plan.size,
            dtype=plan.grid.dtype,
        )

    def _plan(self, number: int) -> SumPlan:
        kind = kind_of_sum(self.study, number)
        return sum_plan(self.study, kind, number, shapes=self.shapes)


def _adverts(following: Coordinator) -> tuple[Advert, ...]:
    """The adverts of the next sum; none where too few came: it gets a set-up of its own."""
    try:
        return following.adverts()
    except SecAggRefused:
        return ()


def _require_own(site: SiteId, named: str) -> None:
    """Returns when a site speaks of itself. Raises ProtocolError: in another's name."""
    if named != site:
        raise ProtocolError(f"step: expected {site} to speak for itself, found another site's name")


def _residues(plan: SumPlan, payload: Octets) -> Ring:
    if len(payload) != plan.masked_bytes:
        raise ProtocolError(
            f"sum: expected {plan.masked_bytes} bytes of a masked vector, found {len(payload)}"
        )
    wire = np.dtype(plan.grid.dtype).newbyteorder("<")
    return np.frombuffer(payload, dtype=wire).astype(plan.grid.dtype, copy=False)
