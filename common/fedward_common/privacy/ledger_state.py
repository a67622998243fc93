"""What a ledger's entries add up to, and which entry may come next: the decisions, without I/O.

A ledger implementation keeps the entries that `LedgerState` hands out, in order, and gives them
back unchanged; see `ledger` for the values and the port.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dp_accounting import ComposedDpEvent, DpEvent

from fedward_common.errors import BudgetExceeded, ConfigError, LedgerError, ProtocolError
from fedward_common.ids import Digest, StudyId
from fedward_common.privacy.accounting import (
    ORDERS,
    Curve,
    epsilon_admission,
    epsilon_as,
    filter_epsilon,
    filter_order,
    renyi_curve,
)
from fedward_common.privacy.ledger import FORMAT, Charge, Entry, Purpose, Reservation, StudyAccount
from fedward_common.privacy.ledger_values import Limits
from fedward_common.privacy.mechanism import decode_event, encode_event, leaf_counts


@dataclass(kw_only=True, slots=True)
class _Account:
    reservation: Reservation
    reserved_at: str
    left: Counter[str]
    left_alone: Counter[str]
    charges: list[Charge] = field(default_factory=list)


class LedgerState:
    """What the entries so far add up to, and which entry may come next. No I/O.

    Guarantees: an entry is handed out only after everything about it was checked; handing it out
    changes nothing until `apply` gets it back, so a failed write leaves the state as it was.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._slots: dict[str, Charge] = {}
        self._curve: Curve = renyi_curve([])
        self._order: float | None = None
        self._alone_curve: Curve = renyi_curve([])
        self._alone_order: float | None = None

    @property
    def order(self) -> float | None:
        """The Renyi order of the hospital's filter; None before the first reservation.

        Also None in a ledger of an earlier version until its next reservation: what was chosen
        before that, after seeing results, is covered by no theorem.
        """
        return self._order

    @property
    def alone_order(self) -> float | None:
        """The order of the filter for the case that all others collude.

        Fixed with the first reservation where that case has a limit of its own; otherwise `order`.
        """
        return self._order if self._alone_order is None else self._alone_order

    def apply(self, entry: Entry) -> None:
        """Adds an entry that is in the ledger.

        Raises:
            LedgerError: not an entry that this module hands out.
        """
        try:
            match entry["kind"]:
                case "open" if entry["format"] == FORMAT:
                    return
                case "reserve":
                    self._apply_reserve(entry)
                case "charge":
                    self._apply_charge(entry)
                case _:
                    raise LedgerError("ledger: expected an entry of a known kind, found another")
        except (KeyError, ValueError, TypeError, AttributeError, ConfigError) as error:
            raise LedgerError("ledger: expected a complete entry, found a damaged one") from error

    def _apply_reserve(self, entry: Entry) -> None:
        event = decode_event(entry["event"])
        reservation = Reservation(
            study=Digest(entry["study"]),
            study_id=StudyId(entry["study_id"]),
            unit=entry["unit"],
            event=event,
            delta=float(entry["delta"]),
            epsilon=float(entry["epsilon"]),
            epsilon_is=entry["epsilon_is"],
            rounds=entry["rounds"],
            releases=entry["releases"],
            alone=decode_event(entry["alone"]) if "alone" in entry else None,
        )
        if reservation.study in self._accounts:
            raise LedgerError("ledger: expected one reservation per study, found a second")
        if "order" in entry:
            if self._order is not None or entry["order"] not in ORDERS:
                raise LedgerError("ledger: expected one known Renyi order, found another")
            self._order = float(entry["order"])
        if "alone_order" in entry:
            if "order" not in entry or entry["alone_order"] not in ORDERS:
                raise LedgerError("ledger: expected one known Renyi order, found another")
            self._alone_order = float(entry["alone_order"])
        self._alone_curve = self._alone_curve + renyi_curve([reservation.alone_or_event])
        self._curve = self._curve + renyi_curve([event])
        self._accounts[reservation.study] = _Account(
            reservation=reservation,
            reserved_at=entry["time"],
            left=leaf_counts([event]),
            left_alone=leaf_counts([reservation.alone_or_event]),
        )

    def _apply_charge(self, entry: Entry) -> None:
        charge = Charge(
            study=Digest(entry["study"]),
            slot=entry["slot"],
            key=Digest(entry["key"]),
            purpose=entry["purpose"],
            event=decode_event(entry["event"]),
            time=entry["time"],
            alone=decode_event(entry["alone"]) if "alone" in entry else None,
        )
        account = self._accounts.get(charge.study)
        costs = leaf_counts([charge.event])
        alone = costs if charge.alone is None else leaf_counts([charge.alone])
        if (
            account is None
            or charge.slot in self._slots
            or (charge.alone is None) != (account.reservation.alone is None)
            or not (costs <= account.left and alone <= account.left_alone)
        ):
            raise LedgerError("ledger: expected a charge that its reservation covers, found none")
        account.left = account.left - costs
        account.left_alone = account.left_alone - alone
        account.charges.append(charge)
        self._slots[charge.slot] = charge

    def admit(self, reservation: Reservation, *, limits: Limits, time: str) -> Entry | None:
        """The entry that admits the study, or None when it was admitted before.

        Raises:
            BudgetExceeded: the study declares too little, or a limit would be passed.
            LedgerError: the digest was admitted with another mechanism.
        """
        known = self._accounts.get(reservation.study)
        if known is not None:
            if _identity(known.reservation) != _identity(reservation):
                raise LedgerError(
                    f"ledger: expected the reservation that study {reservation.study_id} was "
                    "admitted with, found another under the same digest"
                )
            return None
        check_declared(reservation)
        _check_one(reservation, limits=limits)
        curve = self._curve + renyi_curve([reservation.event])
        entry = {"kind": "reserve", "time": time, **_identity(reservation)}
        order = self._order
        if order is None:
            order = filter_order(curve, epsilon=limits.max_epsilon_total, delta=limits.delta)
            entry["order"] = order
        alone_curve = self._alone_curve + renyi_curve([reservation.alone_or_event])
        alone_order = self.alone_order
        if alone_order is None:
            alone_order = order
            if limits.max_epsilon_if_all_others_collude is not None:
                alone_order = filter_order(
                    alone_curve, epsilon=limits.colluding, delta=limits.delta
                )
                entry["alone_order"] = alone_order
        studies = len(self._accounts) + 1
        self._check_total(curve, order=order, studies=studies, limits=limits)
        self._check_alone(alone_curve, order=alone_order, limits=limits)
        return entry

    def draw(
        self,
        events: Sequence[DpEvent],
        *,
        study: Digest,
        slot: str,
        key: Digest,
        purpose: Purpose,
        limits: Limits,
        time: str,
        alone: Sequence[DpEvent] = (),
    ) -> Entry | Charge:
        """The entry that charges `events`, or the charge of before when it is the same.

        Raises:
            ProtocolError: the slot was charged under another key or for something else.
            BudgetExceeded: no reservation, not enough left of it, or a limit has been lowered.
        """
        event = ComposedDpEvent(list(events))
        costs, costs_alone = leaf_counts(events), leaf_counts(alone or events)
        if not costs:
            raise ProtocolError("charge: expected at least one mechanism, found none")
        before = self._slots.get(slot)
        if before is not None:
            if (before.study, before.key, before.purpose) != (study, key, purpose) or (
                leaf_counts([before.event]) != costs
                or leaf_counts([before.alone or before.event]) != costs_alone
            ):
                raise ProtocolError(
                    f"charge: expected the instruction that {slot} was charged for, found another. "
                    "A round is answered once; its number is burnt"
                )
            return _again(before)
        account = self._accounts.get(study)
        if account is None:
            raise BudgetExceeded("charge: expected a study that was admitted, found another")
        if (account.reservation.alone is None) != (not alone):
            raise ProtocolError(
                f"study {account.reservation.study_id}: expected a charge for the case that all "
                "others collude exactly where the study reserved it, found otherwise"
            )
        if not (costs <= account.left and costs_alone <= account.left_alone):
            raise BudgetExceeded(
                f"study {account.reservation.study_id}: expected a charge within what it reserved "
                f"({account.reservation.rounds} rounds and {account.reservation.releases} "
                f"releases), found one {purpose} too many"
            )
        # Again at each charge: a hospital that lowers a limit stops what still runs.
        self._check_total(
            self._curve, order=self._order, studies=len(self._accounts), limits=limits
        )
        self._check_alone(self._alone_curve, order=self.alone_order, limits=limits)
        entry = {
            "kind": "charge",
            "time": time,
            "study": study,
            "slot": slot,
            "key": key,
            "purpose": purpose,
            "event": encode_event(event),
        }
        if alone:
            entry["alone"] = encode_event(ComposedDpEvent(list(alone)))
        return entry

    def find(self, slot: str) -> Charge | None:
        """The charge of a slot, or None."""
        return self._slots.get(slot)

    def accounts(self) -> tuple[StudyAccount, ...]:
        """Every study, in order of admission."""
        return tuple(
            StudyAccount(
                reservation=account.reservation,
                reserved_at=account.reserved_at,
                charges=tuple(account.charges),
            )
            for account in self._accounts.values()
        )

    @staticmethod
    def _check_total(curve: Curve, *, order: float | None, studies: int, limits: Limits) -> None:
        """Returns when everything reserved is within the total limit, by the fixed order's filter.

        Raises:
            BudgetExceeded: it is not.
        """
        if order is None:  # a ledger of an earlier version, before its next reservation
            order = filter_order(curve, epsilon=limits.max_epsilon_total, delta=limits.delta)
        total = filter_epsilon(curve, order=order, delta=limits.delta)
        # `not a <= b`: a figure that is no number is refused, too.
        if not total <= limits.max_epsilon_total:
            raise BudgetExceeded(
                f"this hospital's budget: expected at most epsilon {limits.max_epsilon_total:g} "
                f"over all its studies (policy.max_epsilon_total), found {total:.4g} at delta "
                f"{limits.delta:g} (admission figure, filter of order {order:g}) with {studies} "
                "studies. Nothing is ever refunded; the data steward may raise the limit"
            )

    def _check_alone(self, curve: Curve, *, order: float | None, limits: Limits) -> None:
        """Returns when everything reserved is within the limit also if all others collude.

        Raises:
            BudgetExceeded: it is not.
        """
        if order is None:  # as in `_check_total`
            order = filter_order(curve, epsilon=limits.colluding, delta=limits.delta)
        total = filter_epsilon(curve, order=order, delta=limits.delta)
        if not total <= limits.colluding:
            raise BudgetExceeded(
                f"this hospital's budget: expected at most epsilon {limits.colluding:g} over all "
                "its studies if all others collude (policy.max_epsilon_if_all_others_collude), "
                f"found {total:.4g} at delta {limits.delta:g} (admission figure, filter of order "
                f"{order:g}). Of distributed noise only this hospital's own share protects then; "
                "set that limit, or choose a study with local noise"
            )


def _check_one(reservation: Reservation, *, limits: Limits) -> None:
    """Returns when one study alone is within the limits per study.

    Raises:
        BudgetExceeded: its delta or its epsilon is above.
    """
    if not reservation.delta <= limits.delta:
        raise BudgetExceeded(
            f"study {reservation.study_id}: expected a delta of at most {limits.delta:g} "
            f"(policy.delta), found {reservation.delta:g}"
        )
    one = epsilon_admission([reservation.event], delta=reservation.delta)
    if not one <= limits.max_epsilon_per_study:
        raise BudgetExceeded(
            f"study {reservation.study_id}: expected at most epsilon "
            f"{limits.max_epsilon_per_study:g} (policy.max_epsilon_per_study), found "
            f"{one:.4g} at delta {reservation.delta:g} (admission figure)"
        )


def check_declared(reservation: Reservation) -> None:
    """Returns when what the study runs costs no more than it declares.

    Raises:
        BudgetExceeded: the recomputed epsilon is above the declared one.
    """
    real = epsilon_as(reservation.epsilon_is, reservation.event, delta=reservation.delta)
    if not real <= reservation.epsilon:
        raise BudgetExceeded(
            f"study {reservation.study_id}: expected its noise to keep the declared epsilon "
            f"{reservation.epsilon:g}, found {real:.4g} at delta {reservation.delta:g} "
            f"({reservation.epsilon_is} figure, training and every release). Ask the study lead "
            "to sign it with more noise"
        )


def _identity(reservation: Reservation) -> dict[str, Any]:
    alone = reservation.alone
    return {
        **({} if alone is None else {"alone": encode_event(alone)}),
        "study": reservation.study,
        "study_id": reservation.study_id,
        "unit": reservation.unit,
        "event": encode_event(reservation.event),
        "delta": reservation.delta,
        "epsilon": reservation.epsilon,
        "epsilon_is": reservation.epsilon_is,
        "rounds": reservation.rounds,
        "releases": reservation.releases,
    }


def _again(charge: Charge) -> Charge:
    return Charge(
        study=charge.study,
        slot=charge.slot,
        key=charge.key,
        purpose=charge.purpose,
        event=charge.event,
        time=charge.time,
        repeated=True,
        alone=charge.alone,
    )
