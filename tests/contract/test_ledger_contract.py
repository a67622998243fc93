"""What every ledger promises. An implementation inherits the suite and says how it is opened."""

import abc
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NonPrivateDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)

from fedward_client.adapters.sqlite_ledger import SqliteLedger
from fedward_common.errors import BudgetExceeded, ConfigError, LedgerError, ProtocolError
from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.ledger import Charge, Ledger
from fedward_common.privacy.ledger_values import Limits
from tests.support.ledger_fakes import (
    GAUSSIAN,
    LAPLACE,
    ROUND,
    STEP,
    InMemoryLedger,
    Ticking,
    digest,
    reservation,
)

WEAK = PoissonSampledDpEvent(0.1, GaussianDpEvent(2.0))
WEAK_ROUND = SelfComposedDpEvent(WEAK, 4)
WEAK_WHOLE = ComposedDpEvent([SelfComposedDpEvent(WEAK, 20), GaussianDpEvent(3.5)])
WIDE = Limits(max_epsilon_per_study=10.0, max_epsilon_total=20.0, delta=1e-4)


def charge_round(ledger: Ledger, number: int, *, key: str = "key", study: str = "heart") -> Charge:
    return ledger.charge(
        [ROUND],
        study=digest(study),
        slot=f"{digest(study)}/train/{number}",
        key=digest(f"{key} {number}"),
        purpose="round",
    )


class LedgerContract(abc.ABC):
    """The suite."""

    @abc.abstractmethod
    def open(self, folder: Path, *, limits: Limits) -> Ledger:
        """A new ledger in an empty folder."""

    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Ledger:
        return self.open(tmp_path, limits=WIDE)

    @pytest.mark.parametrize(
        "event",
        [
            GAUSSIAN,
            LAPLACE,
            ROUND,
            ComposedDpEvent([GAUSSIAN, LAPLACE, SelfComposedDpEvent(GAUSSIAN, 2)]),
        ],
        ids=["gaussian", "laplace", "sampled", "composed"],
    )
    def test_any_known_mechanism_can_be_reserved_and_charged(
        self, ledger: Ledger, event: DpEvent
    ) -> None:
        ledger.reserve(reservation(event=event))

        charge = ledger.charge(
            [event], study=digest("heart"), slot="s", key=digest("k"), purpose="release"
        )

        assert not charge.repeated
        used = ledger.accounts()[0].used_event
        assert used is not None
        assert epsilon_admission([used], delta=1e-4) == epsilon_admission([event], delta=1e-4)

    @pytest.mark.parametrize(
        "event",
        [NonPrivateDpEvent(), ComposedDpEvent([GAUSSIAN, NonPrivateDpEvent()]), GaussianDpEvent(0)],
        ids=["non-private", "non-private inside", "no noise"],
    )
    def test_an_unknown_mechanism_is_refused_before_anything_is_written(
        self, ledger: Ledger, event: DpEvent
    ) -> None:
        before = ledger.head()

        with pytest.raises(ConfigError):
            ledger.reserve(reservation(event=event))

        assert ledger.head() == before

    def test_it_holds_every_row_that_it_ever_showed_and_no_other(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())
        first = ledger.head()
        charge_round(ledger, 1)

        assert ledger.holds(first.sha256)
        assert ledger.holds(ledger.head().sha256)
        assert not ledger.holds("0" * 64)

    def test_charges_up_to_the_reservation_pass_and_one_more_is_refused(
        self, ledger: Ledger
    ) -> None:
        ledger.reserve(reservation())
        for number in range(1, 6):
            charge_round(ledger, number)

        with pytest.raises(BudgetExceeded, match="one round too many"):
            charge_round(ledger, 6)

        assert ledger.accounts()[0].charged("round") == 5

    def test_a_round_of_several_steps_counts_as_that_many_compositions(
        self, ledger: Ledger
    ) -> None:
        ledger.reserve(reservation(event=SelfComposedDpEvent(STEP, 7)))
        charge_round(ledger, 1)

        with pytest.raises(BudgetExceeded):
            charge_round(ledger, 2)

    def test_a_repeated_charge_writes_nothing(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())
        first = charge_round(ledger, 1)
        head = ledger.head()

        again = charge_round(ledger, 1)

        assert (first.repeated, again.repeated) == (False, True)
        assert ledger.head() == head

    def test_the_same_slot_under_another_key_is_refused(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())
        charge_round(ledger, 1)

        with pytest.raises(ProtocolError, match="burnt"):
            charge_round(ledger, 1, key="another")

    def test_the_same_slot_and_key_for_another_mechanism_is_refused(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())
        charge = charge_round(ledger, 1)

        with pytest.raises(ProtocolError):
            ledger.charge(
                [GAUSSIAN],
                study=charge.study,
                slot=charge.slot,
                key=charge.key,
                purpose="round",
            )

    def test_a_study_that_was_not_admitted_is_not_charged(self, ledger: Ledger) -> None:
        with pytest.raises(BudgetExceeded, match="admitted"):
            charge_round(ledger, 1)

    def test_a_mechanism_outside_the_reservation_is_not_charged(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())

        with pytest.raises(BudgetExceeded):
            ledger.charge(
                [LaplaceDpEvent(100.0)],
                study=digest("heart"),
                slot="s",
                key=digest("k"),
                purpose="release",
            )

    def test_nothing_is_no_charge(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())

        with pytest.raises(ProtocolError):
            ledger.charge([], study=digest("heart"), slot="s", key=digest("k"), purpose="round")

    def test_admitting_twice_changes_nothing(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())
        head = ledger.head()

        ledger.reserve(reservation())

        assert ledger.head() == head

    def test_the_same_digest_with_another_mechanism_is_refused(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())

        with pytest.raises(LedgerError):
            ledger.reserve(reservation(event=GAUSSIAN))

    @pytest.mark.parametrize("kind", ["admission", "pld"])
    def test_a_study_that_declares_less_than_it_costs_is_refused(
        self, ledger: Ledger, kind: str
    ) -> None:
        with pytest.raises(BudgetExceeded, match=f"declared epsilon 0.5.*{kind}"):
            ledger.reserve(reservation(epsilon=0.5, epsilon_is=kind))

    def test_the_limit_per_study_is_enforced(self, tmp_path: Path) -> None:
        limits = Limits(max_epsilon_per_study=0.6, max_epsilon_total=20.0, delta=1e-4)
        ledger = self.open(tmp_path, limits=limits)

        with pytest.raises(BudgetExceeded, match="max_epsilon_per_study"):
            ledger.reserve(reservation())

    def test_the_limit_on_delta_is_enforced(self, ledger: Ledger) -> None:
        with pytest.raises(BudgetExceeded, match=r"policy\.delta"):
            ledger.reserve(reservation(delta=2e-4))

    def test_studies_compose_up_to_the_total_and_what_is_unused_is_not_given_back(
        self, tmp_path: Path
    ) -> None:
        one = epsilon_admission([reservation().event], delta=1e-4)
        two = epsilon_admission([reservation().event] * 2, delta=1e-4)
        limits = Limits(max_epsilon_per_study=one, max_epsilon_total=(two + one), delta=1e-4)
        ledger = self.open(tmp_path, limits=limits)
        ledger.reserve(reservation("heart"))
        ledger.reserve(reservation("lung"))

        # Not one round was charged; the reservations count all the same.
        while True:
            try:
                ledger.reserve(reservation(f"more-{len(ledger.accounts())}"))
            except BudgetExceeded as error:
                refused = error
                break

        assert "max_epsilon_total" in str(refused)
        reserved = [account.reservation.event for account in ledger.accounts()]
        assert epsilon_admission(reserved, delta=1e-4) <= two + one
        with pytest.raises(BudgetExceeded):
            ledger.reserve(reservation("another"))

    def test_a_study_that_fits_only_at_an_order_chosen_in_hindsight_is_refused(
        self, tmp_path: Path
    ) -> None:
        """The theorem for studies chosen after results wants one order, fixed before the first."""
        limits = Limits(max_epsilon_per_study=3.0, max_epsilon_total=3.0, delta=1e-4)
        ledger = self.open(tmp_path, limits=limits)
        quiet, pure = GaussianDpEvent(100.0), LaplaceDpEvent(1 / 2.8)
        ledger.reserve(reservation("heart", event=quiet))

        assert epsilon_admission([quiet, pure], delta=1e-4) <= 3.0
        with pytest.raises(BudgetExceeded, match=r"filter of order \d"):
            ledger.reserve(reservation("lung", event=pure))

    def test_the_order_is_that_of_the_first_study_whatever_the_limits_become(
        self, tmp_path: Path
    ) -> None:
        ledger = self.open(tmp_path, limits=WIDE)
        ledger.reserve(reservation("heart"))
        first = ledger.order()

        ledger.reserve(reservation("lung", event=LAPLACE))

        assert first is not None
        assert ledger.order() == first

    def test_a_first_study_is_admitted_up_to_exactly_the_total_limit(self, tmp_path: Path) -> None:
        one = epsilon_admission([reservation().event], delta=1e-4)
        limits = Limits(max_epsilon_per_study=one, max_epsilon_total=one * (1 + 1e-9), delta=1e-4)
        ledger = self.open(tmp_path, limits=limits)

        ledger.reserve(reservation())

        assert charge_round(ledger, 1).study == reservation().study

    def test_a_charge_can_be_found_by_its_slot(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())
        charge = charge_round(ledger, 1)

        assert ledger.find(charge.slot) == charge
        assert ledger.find("another") is None

    def test_threads_that_ask_for_the_same_slot_charge_it_once(self, ledger: Ledger) -> None:
        ledger.reserve(reservation())
        outcomes: list[str] = []

        def ask(key: str) -> None:
            try:
                outcomes.append("again" if charge_round(ledger, 1, key=key).repeated else "charged")
            except ProtocolError:
                outcomes.append("refused")

        threads = [threading.Thread(target=ask, args=(key,)) for key in "aabb"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(outcomes) == ["again", "charged", "refused", "refused"]
        assert ledger.accounts()[0].charged("round") == 1

    def test_both_cases_of_distributed_noise_are_charged_once(self, ledger: Ledger) -> None:
        """`declared` and `alone`: the same slot and key again gives both and costs nothing."""
        ledger.reserve(replace(reservation("heart"), alone=WEAK_WHOLE))

        first = ledger.charge(
            [ROUND],
            alone=[WEAK_ROUND],
            study=digest("heart"),
            slot="r1",
            key=digest("k"),
            purpose="round",
        )
        again = ledger.charge(
            [ROUND],
            alone=[WEAK_ROUND],
            study=digest("heart"),
            slot="r1",
            key=digest("k"),
            purpose="round",
        )

        assert again.repeated
        assert again.alone == first.alone
        (account,) = ledger.accounts()
        assert account.charged("round") == 1
        assert account.reservation.alone is not None

    @pytest.mark.parametrize("alone", [[], [ROUND]])
    def test_a_charge_without_the_reserved_case_of_collusion_is_refused(
        self, ledger: Ledger, alone: list[DpEvent]
    ) -> None:
        ledger.reserve(replace(reservation("heart"), alone=WEAK_WHOLE))

        with pytest.raises((ProtocolError, BudgetExceeded)):
            ledger.charge(
                [ROUND],
                alone=alone,
                study=digest("heart"),
                slot="r1",
                key=digest("k"),
                purpose="round",
            )

    def test_a_study_whose_own_share_protects_too_little_is_refused(self, ledger: Ledger) -> None:
        """Without a limit for that case the total's limit is the limit, over all studies."""
        ledger.reserve(reservation("lung"))
        none_left = SelfComposedDpEvent(PoissonSampledDpEvent(0.1, GaussianDpEvent(0.2)), 21)

        with pytest.raises(BudgetExceeded, match="if all others collude"):
            ledger.reserve(replace(reservation("heart"), alone=none_left))
        assert len(ledger.accounts()) == 1


class TestInMemoryLedger(LedgerContract):
    """The fake that other tests use."""

    def open(self, folder: Path, *, limits: Limits) -> Ledger:
        return InMemoryLedger(limits=limits)


class TestSqliteLedger(LedgerContract):
    """The ledger that ships."""

    def open(self, folder: Path, *, limits: Limits) -> Ledger:
        return SqliteLedger(folder / "ledger.sqlite", limits=limits, clock=Ticking())
