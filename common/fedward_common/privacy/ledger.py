"""The budget of one hospital's patients: what is reserved, what is charged, what may still run.

The population is every person of the hospital, whatever the source, study or federation: all
reservations compose (rules 3). `ledger_state` decides and does no I/O: a ledger implementation
keeps the entries that it hands out, in order, and gives them back unchanged.

Entries: `open` (once), `reserve` (a study at admission, its declared T_max), `charge` (one round or
one release against a reservation). There is no entry that takes anything back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from dp_accounting import ComposedDpEvent, DpEvent

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.ids import Digest, StudyId
from fedward_common.privacy.accounting import (
    EpsilonKind,
)
from fedward_common.privacy.ledger_values import Head
from fedward_common.privacy.mechanism import (
    alone_event,
    study_event,
)
from fedward_common.study.harmonisation import harmonisation_of
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import ReleasesOnly, declared, statistics_releases

FORMAT: Final = "fedward-ledger/1"
Purpose = Literal["round", "release"]
Entry = Mapping[str, Any]
"""One ledger entry as a JSON object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """What a study may cost at most: its whole T_max and every release, whatever happens later.

    `event` is recomputed by the site from the study's parameters; `epsilon` is what the study
    declares at `delta` by the accountant `epsilon_is`, and is checked, never believed. `alone` is
    what it costs if all others collude; None where that is the same.
    """

    study: Digest
    study_id: StudyId
    unit: str
    event: DpEvent
    delta: float
    epsilon: float
    epsilon_is: EpsilonKind
    rounds: int
    releases: int
    alone: DpEvent | None = None

    @property
    def alone_or_event(self) -> DpEvent:
        """What counts if all others collude."""
        return self.event if self.alone is None else self.alone

    @classmethod
    def of(cls, study: StudySpec) -> "Reservation":
        """The reservation that `study` needs at each of its sites.

        Raises:
            ConfigError: a plan or a release without known accounting.
        """
        dp = declared(study)
        if isinstance(dp, ReleasesOnly):
            statistics_releases(study)  # refuses what is not a whole statistics study
        harmonisation_of(study)  # refuses where sites cannot be made alike rightly
        return cls(
            study=study.digest,
            study_id=StudyId(study.id),
            unit=dp.unit,
            event=study_event(study),
            delta=dp.delta,
            epsilon=dp.epsilon,
            epsilon_is=dp.epsilon_is,
            rounds=study.rounds if isinstance(dp, DpSgd) else 0,
            releases=sum(getattr(release, "times", 1) for release in study.releases),
            alone=alone_event(study),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """A durable charge. `repeated` says that it was there before: nothing was charged now.

    `alone` is what the same answer costs if all others collude; None where that is the same.
    """

    study: Digest
    slot: str
    key: Digest
    purpose: Purpose
    event: DpEvent
    time: str
    repeated: bool = False
    alone: DpEvent | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyAccount:
    """One study's reservation and the charges against it, oldest first."""

    reservation: Reservation
    reserved_at: str
    charges: tuple[Charge, ...]

    def charged(self, purpose: Purpose) -> int:
        """How many charges of this purpose there are."""
        return sum(charge.purpose == purpose for charge in self.charges)

    @property
    def used_event(self) -> DpEvent | None:
        """What has really been charged, as one event; None before the first charge."""
        if not self.charges:
            return None
        return ComposedDpEvent([charge.event for charge in self.charges])


class Ledger(Protocol):
    """Append-only charges of one hospital. Every implementation passes the same contract suite."""

    def reserve(self, reservation: Reservation) -> None:
        """Admits a study, durably; admitting the same again changes nothing.

        Raises:
            BudgetExceeded: the study declares too little, or a limit would be passed.
            LedgerError: the ledger is damaged, or holds another reservation for this digest.
        """
        ...

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
        """Charges `events` against the study's reservation; durable when it returns.

        `alone` is what they cost if all others collude: given exactly where the reservation has it.
        The same slot and key again: the charge of the first time, nothing more.

        Raises:
            ProtocolError: the slot was charged under another key or for something else.
            BudgetExceeded: no reservation, not enough left of it, or a limit has been lowered.
            LedgerError: the ledger is damaged.
        """
        ...

    def find(self, slot: str) -> Charge | None:
        """The charge of a slot, or None."""
        ...

    def accounts(self) -> tuple[StudyAccount, ...]:
        """Every study, in order of admission."""
        ...

    def head(self) -> Head:
        """The last row."""
        ...

    def holds(self, row_sha256: str) -> bool:
        """Whether a row with this hash is in it: what was shown once stays in a true ledger."""
        ...

    def order(self) -> float | None:
        """The Renyi order of the filter over all studies; None before the first reservation."""
        ...


def row_sha256(*, seq: int, previous: str, body: bytes) -> str:
    """The hash of a row: over its number, the hash before it and its canonical entry."""
    return sha256_hex(b"fedward/ledger/v1|%d|%s|" % (seq, previous.encode()) + body)


def entry_body(entry: Entry) -> bytes:
    """The bytes of an entry as they are hashed and kept."""
    return canonical_json(dict(entry))
