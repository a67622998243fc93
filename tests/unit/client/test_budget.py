"""`fedward-client budget show`: what was promised, what was used up, at which delta."""

import json
from pathlib import Path

import pytest

from fedward_client.adapters.sqlite_ledger import SqliteLedger
from fedward_client.budget import budget_report, budget_text
from fedward_client.policy import SitePolicy
from fedward_common.errors import LedgerError
from fedward_common.ids import Digest
from fedward_common.privacy.accounting import epsilon_admission, epsilon_pld
from fedward_common.privacy.ledger import Reservation
from fedward_common.privacy.mechanism import release_event, round_event, study_event
from fedward_common.study.spec import StudySpec
from tests.support.guard_site import GuardSite, a_study, make_site
from tests.support.ledger_fakes import Ticking, digest


def charge(
    site: GuardSite, study: StudySpec, *, rounds: int, evaluated: bool = False
) -> SqliteLedger:
    """The site's ledger after `rounds` rounds (and the evaluation) of `study`."""
    site.settings.folders.state.mkdir(exist_ok=True)
    limits = SitePolicy.of(site.settings).limits
    ledger = SqliteLedger(site.settings.ledger_path, limits=limits, clock=Ticking())
    ledger.reserve(Reservation.of(study))
    for number in range(1, rounds + 1):
        ledger.charge(
            [round_event(study)],
            study=study.digest,
            slot=f"{study.digest}/train/{number}",
            key=digest(f"{number}"),
            purpose="round",
        )
    if evaluated:
        ledger.charge(
            [release_event(study.releases[0])],
            study=study.digest,
            slot=f"{study.digest}/evaluate/{rounds}",
            key=Digest(digest("evaluate")),
            purpose="release",
        )
    ledger.close()
    return ledger


def test_before_the_first_study_the_budget_is_untouched_and_no_ledger_is_made(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)

    report = budget_report(site.settings)

    assert report["studies"] == []
    assert report["total"]["epsilon_admission"] == 0.0
    assert report["total"]["left"] == 6.0
    assert not site.settings.ledger_path.exists()


def test_a_study_that_stopped_early_is_reported_at_its_full_length(tmp_path: Path) -> None:
    study = a_study()
    site = make_site(tmp_path, study)
    charge(site, study, rounds=2)

    report = budget_report(site.settings)

    (found,) = report["studies"]
    whole = study_event(study)
    assert found["digest"] == study.digest
    assert found["epsilon_pld"] == epsilon_pld(whole, delta=1e-4)
    assert found["epsilon_admission"] == epsilon_admission([whole], delta=1e-4)
    assert (found["rounds_charged"], found["rounds_reserved"]) == (2, 5)
    assert (found["releases_charged"], found["releases_reserved"]) == (0, 1)
    assert 0 < found["epsilon_used_pld"] < found["epsilon_pld"]
    assert (found["unit"], found["delta"], found["epsilon_is"]) == ("patient", 1e-4, "admission")


def test_a_study_that_ran_to_its_end_used_up_what_it_reserved(tmp_path: Path) -> None:
    study = a_study()
    site = make_site(tmp_path, study)
    charge(site, study, rounds=5, evaluated=True)

    (found,) = budget_report(site.settings)["studies"]

    assert found["epsilon_used_pld"] == found["epsilon_pld"]
    assert found["epsilon_used_admission"] == found["epsilon_admission"]
    assert found["releases_charged"] == 1


def test_the_total_composes_every_reservation_at_the_policy_s_delta(tmp_path: Path) -> None:
    heart, lung = a_study(), a_study(id="lung")
    site = make_site(tmp_path, heart, lung)
    charge(site, heart, rounds=1)
    charge(site, lung, rounds=0)

    total = budget_report(site.settings)["total"]

    expected = epsilon_admission([study_event(heart), study_event(lung)], delta=2e-4)
    assert total["epsilon_admission"] == expected
    assert total["delta"] == 2e-4
    assert total["left"] == pytest.approx(6.0 - expected)
    assert 0 < total["epsilon_used_admission"] < expected


def test_the_report_is_json_and_its_text_states_every_delta(tmp_path: Path) -> None:
    study = a_study()
    site = make_site(tmp_path, study)
    charge(site, study, rounds=2)
    report = budget_report(site.settings)

    text = budget_text(report)

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for line in text.splitlines():
        assert "epsilon" not in line or "delta" in line or "declares" in line
    assert "every person of north" in text
    assert "Nothing is refunded" in text


def test_a_damaged_ledger_is_not_reported(tmp_path: Path) -> None:
    study = a_study()
    site = make_site(tmp_path, study)
    charge(site, study, rounds=2)
    site.settings.ledger_path.write_bytes(b"0" * 4096)

    with pytest.raises(LedgerError):
        budget_report(site.settings)
