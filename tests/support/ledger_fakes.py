"""A ledger in memory that is the real interface, and what ledger tests reserve and charge."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)

from fedward_common.canonical import sha256_hex
from fedward_common.ids import Digest, StudyId
from fedward_common.log.fields import checked
from fedward_common.privacy.ledger import (
    Charge,
    Purpose,
    Reservation,
    StudyAccount,
    entry_body,
    row_sha256,
)
from fedward_common.privacy.ledger_state import LedgerState
from fedward_common.privacy.ledger_values import Head, Limits


@dataclass(kw_only=True)
class Ticking:
    """A clock that moves one second at each look, or by hand."""

    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time

    def skip(self, **duration: float) -> None:
        self.time += timedelta(**duration)


class InMemoryLedger:
    """A `Ledger` without a disk: the same decisions, rows in a list."""

    def __init__(self, *, limits: Limits) -> None:
        self._limits = limits
        self._clock = Ticking()
        self._state = LedgerState()
        self._head = Head()
        self._rows: set[str] = set()
        self._lock = threading.Lock()

    def reserve(self, reservation: Reservation) -> None:
        with self._lock:
            entry = self._state.admit(reservation, limits=self._limits, time=self._now())
            if entry is not None:
                self._append(dict(entry))

    def charge(
        self,
        events: Sequence[DpEvent],
        *,
        study: Digest,
        slot: str,
        key: Digest,
        purpose: Purpose,
        alone: Sequence[DpEvent] = (),
    ) -> Charge:
        with self._lock:
            result = self._state.draw(
                events,
                study=study,
                slot=slot,
                key=key,
                purpose=purpose,
                limits=self._limits,
                time=self._now(),
                alone=alone,
            )
            if isinstance(result, Charge):
                return result
            self._append(dict(result))
            charge = self._state.find(slot)
        assert charge is not None
        return charge

    def find(self, slot: str) -> Charge | None:
        return self._state.find(slot)

    def accounts(self) -> tuple[StudyAccount, ...]:
        return self._state.accounts()

    def head(self) -> Head:
        return self._head

    def holds(self, row_sha256: str) -> bool:
        return row_sha256 in self._rows

    def order(self) -> float | None:
        return self._state.order

    def _append(self, entry: dict[str, object]) -> None:
        self._state.apply(entry)
        seq, body = self._head.seq + 1, entry_body(entry)
        self._head = Head(
            seq=seq, sha256=row_sha256(seq=seq, previous=self._head.sha256, body=body)
        )
        self._rows.add(self._head.sha256)

    def _now(self) -> str:
        return self._clock().isoformat()


@dataclass(kw_only=True)
class MemoryJournal:
    """A `Journal` that keeps what it is told, after the same check of fields."""

    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def append(self, action: str, **fields: object) -> None:
        self.events.append((action, checked(fields)))

    def actions(self) -> list[str]:
        return [action for action, _ in self.events]


def digest(name: str) -> Digest:
    """A digest that stands for `name`."""
    return Digest(sha256_hex(name.encode()))


GAUSSIAN = GaussianDpEvent(5.0)
LAPLACE = LaplaceDpEvent(10.0)
STEP = PoissonSampledDpEvent(0.1, GaussianDpEvent(3.0))
ROUND = SelfComposedDpEvent(STEP, 4)


def reservation(
    name: str = "heart",
    *,
    event: DpEvent | None = None,
    epsilon: float = 3.0,
    epsilon_is: str = "admission",
    delta: float = 1e-4,
    rounds: int = 5,
) -> Reservation:
    """A reservation of five rounds of four steps and one Gaussian release, or of `event`."""
    whole = ComposedDpEvent([SelfComposedDpEvent(STEP, 4 * rounds), GAUSSIAN])
    return Reservation(
        study=digest(name),
        study_id=StudyId(name),
        unit="patient",
        event=whole if event is None else event,
        delta=delta,
        epsilon=epsilon,
        epsilon_is="pld" if epsilon_is == "pld" else "admission",
        rounds=rounds,
        releases=1,
    )
