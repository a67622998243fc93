"""`budget explain`, `budget verify` and the plot, over a real ledger and journal."""

import json
import sqlite3
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fedward_client.adapters.sqlite_ledger import SqliteLedger
from fedward_client.budget import budget_report, site_ledger, site_limits, total_after
from fedward_client.budget_explain import NOT_COVERED, explain_report, explain_text
from fedward_client.budget_plot import budget_history, budget_svg, write_budget_plot
from fedward_client.budget_verify import verify_budget
from fedward_client.policy import SitePolicy
from fedward_common.errors import BudgetExceeded, ConfigError
from fedward_common.log.events import EventLog
from fedward_common.privacy.accounting import epsilon_admission, epsilon_pld
from fedward_common.privacy.ledger import Reservation
from fedward_common.privacy.mechanism import release_event, round_event, study_event
from fedward_common.study.spec import StudySpec
from tests.support.guard_site import GuardSite, a_study, make_site
from tests.support.ledger_fakes import Ticking, digest
from tests.support.statistics import statistics_study

HEART, LUNG = a_study(), a_study(id="lung", epsilon=2.0, noise_multiplier=2.0)


def spend(site: GuardSite, study: StudySpec, *, rounds: int) -> None:
    """Reserves and charges as the guard does, journal included."""
    log = EventLog(site.settings.audit_path)
    limits = SitePolicy.of(site.settings).limits
    ledger = SqliteLedger(site.settings.ledger_path, limits=limits, clock=Ticking())
    reservation = Reservation.of(study)
    ledger.reserve(reservation)
    head = ledger.head()
    log.append(
        "study.reserved",
        study=study.digest,
        study_id=study.id,
        epsilon=epsilon_admission([reservation.event], delta=reservation.delta),
        delta=reservation.delta,
        ledger_seq=head.seq,
        head_sha256=head.sha256,
    )
    for number in range(1, rounds + 1):
        ledger.charge(
            [round_event(study)],
            study=study.digest,
            slot=f"{study.digest}/train/{number}",
            key=digest(f"{number}"),
            purpose="round",
        )
        head = ledger.head()
        log.append("round.charged", ledger_seq=head.seq, head_sha256=head.sha256)
    ledger.close()
    log.close()


@pytest.fixture
def site(tmp_path: Path) -> GuardSite:
    site = make_site(tmp_path, HEART, LUNG)
    spend(site, HEART, rounds=5)
    spend(site, LUNG, rounds=2)
    return site


def test_every_study_is_named_with_its_mechanisms_and_both_figures(site: GuardSite) -> None:
    report = explain_report(site.settings)

    text = explain_text(report)

    for study in (HEART, LUNG):
        event, delta = study_event(study), 1e-4
        assert f"{epsilon_pld(event, delta=delta):.3f} by PLD" in text
        assert f"{epsilon_admission([event], delta=delta):.3f} by RDP" in text
    assert "20 times: a sum over patients who are each drawn with probability 0.1" in text
    assert "Gaussian noise of 20 times" in text
    for line in NOT_COVERED:
        assert line in text
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_shares_of_the_studies_add_up_to_the_share_of_all(site: GuardSite) -> None:
    report = explain_report(site.settings)

    shares = [study["share"] for study in report["studies"]]

    assert all(0 < share < 1 for share in shares)
    assert sum(shares) == pytest.approx(report["total"]["share"])


def test_as_many_more_studies_fit_as_it_says_and_not_one_more(site: GuardSite) -> None:
    view, limits = site_ledger(site.settings), site_limits(site.settings)
    times = explain_report(site.settings)["like_the_last"]["times"]
    more = view.accounts[-1]

    fits = total_after(
        [*view.accounts, *[more] * (times - 1)],
        more.reservation,
        limits=limits,
        order=view.order,
    )
    too_many = total_after(
        [*view.accounts, *[more] * times], more.reservation, limits=limits, order=view.order
    )

    assert fits <= limits.max_epsilon_total < too_many


@pytest.mark.parametrize(
    ("study", "fits", "why"),
    [
        (a_study(id="third"), True, ""),
        (statistics_study(), True, ""),
        (HEART, False, "admitted before"),
        (a_study(id="loud", noise_multiplier=0.8, epsilon=9.0), False, "limit of 3 per study"),
    ],
    ids=["one more", "statistics", "the same again", "too much"],
)
def test_one_more_study_is_priced_and_its_fate_is_that_of_an_admission(
    site: GuardSite, study: StudySpec, fits: bool, why: str
) -> None:
    report = explain_report(site.settings, study=study)
    one = report["one_more"]

    assert one["fits"] is fits
    assert why in one["why"]
    assert ("It fits." in explain_text(report)) is fits
    ledger = SqliteLedger(
        site.settings.ledger_path, limits=site_limits(site.settings), clock=Ticking()
    )
    if fits:
        ledger.reserve(Reservation.of(study))
        assert explain_report(site.settings)["total"]["share"] == pytest.approx(
            report["total"]["share"] + one["share"]
        )
    elif "limit" in why:
        with pytest.raises(BudgetExceeded):
            ledger.reserve(Reservation.of(study))
    ledger.close()


def test_before_the_first_study_nothing_is_reserved(tmp_path: Path) -> None:
    site = make_site(tmp_path)

    text = explain_text(explain_report(site.settings, study=HEART))

    assert "No study was admitted yet." in text
    assert "It fits." in text
    assert verify_budget(site.settings).passed


def test_an_honest_ledger_verifies(site: GuardSite) -> None:
    found = verify_budget(site.settings)

    assert found.passed
    assert found.exit_code == 0
    assert "9 heads that the journal noted" in found.text()
    assert len(found.as_json()["checks"]) == 7


def test_a_changed_row_is_found(site: GuardSite) -> None:
    with sqlite3.connect(site.settings.ledger_path) as database:
        database.execute("DROP TRIGGER entries_no_update")
        database.execute("UPDATE entries SET body = replace(body, 'heart', 'hearx')")

    found = verify_budget(site.settings)

    assert found.exit_code == 10
    assert not found.passed
    assert "FAIL  ledger" in found.text()


def test_a_ledger_put_back_with_its_mark_is_found_by_the_journal(
    site: GuardSite, tmp_path: Path
) -> None:
    path = site.settings.ledger_path
    mark = path.with_name(path.name + ".mark")
    older, older_mark = path.read_bytes(), mark.read_bytes()
    spend(site, a_study(id="third"), rounds=1)
    path.write_bytes(older)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    mark.write_bytes(older_mark)

    found = verify_budget(site.settings)

    assert not found.passed
    assert "an older ledger was put back" in found.text()


def test_a_changed_journal_is_found(site: GuardSite) -> None:
    path = site.settings.audit_path
    path.write_text(path.read_text().replace('"epsilon":', '"epsilon":1'))

    assert "FAIL  journal" in verify_budget(site.settings).text()


def test_a_limit_below_what_is_reserved_is_said(site: GuardSite) -> None:
    limits = {"max_epsilon_per_study": 0.6, "max_epsilon_total": 0.6}
    policy = site.settings.policy.model_copy(update=limits)
    lowered = site.settings.model_copy(update={"policy": policy})

    found = verify_budget(lowered)

    assert not found.passed
    assert "the limit was lowered since" in found.text()
    assert budget_report(lowered)["total"]["share"] is None


def test_the_history_ends_at_the_figures_of_the_report(site: GuardSite) -> None:
    history, total = budget_history(site.settings), budget_report(site.settings)["total"]

    assert history.reserved[-1][1] == pytest.approx(total["epsilon_admission"])
    assert history.charged[-1][1] == pytest.approx(total["epsilon_used_admission"])
    assert [e for _, e in history.charged] == sorted(e for _, e in history.charged)
    assert (len(history.reserved), len(history.charged)) == (2, 7)


def test_the_plot_is_one_svg_that_states_delta_and_limit(site: GuardSite, tmp_path: Path) -> None:
    path = tmp_path / "budget.svg"

    write_budget_plot(site.settings, path)

    text = path.read_text()
    ET.fromstring(text)
    assert "at delta 0.0002" in text
    assert "limit 6" in text
    with pytest.raises(ConfigError, match=r"\.svg"):
        write_budget_plot(site.settings, tmp_path / "budget.png")


def test_the_plot_of_an_unused_budget_says_so(tmp_path: Path) -> None:
    assert "no study was admitted" in budget_svg(budget_history(make_site(tmp_path).settings))


def test_releases_without_training_are_charged_against_their_reservation(tmp_path: Path) -> None:
    study = statistics_study()
    site = make_site(tmp_path, max_epsilon_per_study=9.0, max_epsilon_total=9.0)
    site.settings.folders.state.mkdir(exist_ok=True)
    ledger = SqliteLedger(
        site.settings.ledger_path, limits=site_limits(site.settings), clock=Ticking()
    )
    ledger.reserve(Reservation.of(study))
    ledger.charge(
        [release_event(study.releases[0])],
        study=study.digest,
        slot=f"{study.digest}/statistics/1",
        key=digest("1"),
        purpose="release",
    )

    with pytest.raises(BudgetExceeded, match="0 rounds and 1 releases"):
        ledger.charge(
            [release_event(study.releases[0])],
            study=study.digest,
            slot=f"{study.digest}/statistics/2",
            key=digest("2"),
            purpose="release",
        )

    ledger.close()
    (found,) = budget_report(site.settings)["studies"]
    assert found["epsilon_used_admission"] == found["epsilon_admission"]
