"""What people read before they decide, and how their decision reaches the guard."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedward_client.adapters.key_files import write_signing_key
from fedward_client.decisions import (
    Person,
    approve,
    approve_bundle,
    new_approver,
    pause,
    resume,
    revoke,
    revoke_bundle,
)
from fedward_client.guard.client import Grant
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_client.policy import NotApproved, Paused
from fedward_client.studies import (
    find_named,
    find_study,
    list_studies,
    read_signed,
    study_diff,
    study_report,
)
from fedward_client.study_text import diff_text, list_text, study_text
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError, FedwardError, StartError
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.words import words
from tests.support.guard_site import (
    STEWARD,
    STEWARD_NAME,
    GuardSite,
    a_study,
    about,
    carry,
    instruction,
    make_site,
    object_ids,
    signed,
    update_shapes,
)

STUDY = a_study()
NEXT = a_study(noise_multiplier=4.0, clip_norm=2.0)
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path) -> GuardSite:
    return make_site(tmp_path)


@pytest.fixture
def guard(site: GuardSite) -> Iterator[RunningGuard]:
    running = start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)
    yield running
    running.close()


@pytest.fixture
def steward(tmp_path: Path) -> Person:
    write_signing_key(tmp_path / "steward.pem", STEWARD)
    return Person(name=STEWARD_NAME, key_file=tmp_path / "steward.pem")


def written(folder: Path, study: StudySpec) -> str:
    path = folder / f"{study.digest[:8]}.json"
    path.write_bytes(signed(study))
    return str(path)


def ask(site: GuardSite, study: StudySpec, number: int = 1) -> object:
    return site.worker.begin(instruction(study, number), signed(study))


@pytest.mark.usefixtures("guard")
def test_a_study_goes_from_asked_for_to_approved_to_revoked(
    site: GuardSite, steward: Person
) -> None:
    with pytest.raises(NotApproved):
        ask(site, STUDY)
    (waiting,) = list_studies(site.settings)
    known = find_study(site.settings, waiting["digest"][:12])
    approve(site.settings, known, steward, now=datetime.now(UTC))
    (approved,) = list_studies(site.settings)
    granted = ask(site, STUDY)
    digest, study_id = find_named(site.settings, STUDY.digest[:12])
    revoke(site.settings, digest, study_id, steward, now=datetime.now(UTC))
    (revoked,) = list_studies(site.settings)

    assert (waiting["status"], waiting["by"]) == ("waiting", None)
    assert (approved["status"], approved["by"]) == ("approved", STEWARD_NAME)
    assert revoked["status"] == "revoked"
    assert isinstance(granted, Grant)
    with pytest.raises(NotApproved):
        ask(site, STUDY, 2)
    assert "revoked" in list_text([revoked])


@pytest.mark.usefixtures("guard")
def test_a_study_may_be_approved_from_its_file_before_anybody_asks(
    site: GuardSite, steward: Person, tmp_path: Path
) -> None:
    known = read_signed(Path(written(tmp_path, STUDY)))

    approve(site.settings, known, steward, now=datetime.now(UTC))

    assert isinstance(ask(site, STUDY), Grant)
    assert find_study(site.settings, STUDY.digest).study == STUDY


@pytest.mark.usefixtures("guard")
def test_pause_and_resume_from_the_command_line(site: GuardSite, steward: Person) -> None:
    carried = about(STUDY)
    site.admin.record(carried.canonical)
    pause(site.settings, steward, now=datetime.now(UTC))
    with pytest.raises(Paused):
        ask(site, STUDY)

    resume(site.settings, steward, now=datetime.now(UTC))

    assert isinstance(ask(site, STUDY), Grant)


@pytest.mark.usefixtures("guard")
def test_a_bundle_is_approved_and_revoked_by_a_person(site: GuardSite, steward: Person) -> None:
    other = sha256_hex(b"another bundle")
    found = [site.gateway.bundle_allowed(other)]
    approve_bundle(site.settings, other, steward, now=datetime.now(UTC))
    found.append(site.gateway.bundle_allowed(other))

    revoke_bundle(site.settings, other, steward, now=datetime.now(UTC))

    assert [*found, site.gateway.bundle_allowed(other)] == [False, True, False]


def test_without_a_guard_nothing_is_approved(site: GuardSite, steward: Person) -> None:
    with pytest.raises(StartError, match="fedward-client run"):
        pause(site.settings, steward, now=NOW)

    assert not site.settings.approvals_folder.exists()


def test_a_key_that_is_not_under_approvers_signs_nothing(site: GuardSite, tmp_path: Path) -> None:
    write_signing_key(tmp_path / "other.pem", SigningKey.generate())

    for person in (
        Person(name=STEWARD_NAME, key_file=tmp_path / "other.pem"),
        Person(name="Somebody", key_file=tmp_path / "other.pem"),
    ):
        with pytest.raises(ConfigError, match="under \\[\\[approvers\\]\\]"):
            pause(site.settings, person, now=NOW)


def test_a_new_approver_gets_a_private_key_and_the_lines_for_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "bo.pem"

    lines = new_approver("Bo Privacy", path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert lines.startswith('[[approvers]]\nname = "Bo Privacy"\npublic_key = "')
    with pytest.raises(ConfigError, match="expected no file"):
        new_approver("Bo Privacy", path)
    with pytest.raises(ConfigError, match="printable"):
        new_approver('Bo"\nevil = true', tmp_path / "evil.pem")


def test_the_report_says_what_is_read_what_leaves_what_it_costs_and_who_takes_part(
    site: GuardSite,
) -> None:
    report = study_report(site.settings, STUDY, now=NOW)
    text = study_text(report)

    assert [field["name"] for field in report["fields"]] == [
        "patient",
        "age",
        "pressure",
        "disease",
    ]
    assert report["leaves"][0]["times"] == 5
    assert report["leaves"][0]["bytes_each"] == 12
    assert report["privacy"]["epsilon_declared"] == 2.0
    assert report["privacy"]["epsilon_pld"] < report["privacy"]["epsilon_admission"] < 2.0
    assert report["objections"] == []
    for expected in (
        STUDY.digest,
        words(STUDY.digest),
        "5 x a model update with noise: 3 numbers",
        "1 x held-out patients per class in 5 score bins",
        words(STUDY.sites[1].key_sha256),
        "(this hospital)",
        "nobody of this site approved it",
        "in 5 rounds of 4 steps",
    ):
        assert expected in text


def test_the_total_afterwards_counts_what_is_reserved_once(site: GuardSite, tmp_path: Path) -> None:
    other = a_study(id="lung")
    for study in (STUDY, other):
        carry(site, about(study))
    before = study_report(site.settings, other, now=NOW)["privacy"]
    running = start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)
    ask(site, STUDY)
    with_both = study_report(site.settings, other, now=NOW)["privacy"]
    ask(site, other)
    after = study_report(site.settings, other, now=NOW)["privacy"]
    running.close()

    assert before["total_afterwards"] < with_both["total_afterwards"]
    assert with_both["total_afterwards"] == after["total_afterwards"]
    assert with_both["share_afterwards"] == pytest.approx(after["share_afterwards"])
    assert before["share_afterwards"] < after["share_afterwards"] < 1
    assert (with_both["reserved_already"], after["reserved_already"]) == (False, True)


def test_every_objection_of_the_policy_is_told_at_once(tmp_path: Path) -> None:
    site = make_site(tmp_path, min_noise=9.0, allow_evaluation=False)

    report = study_report(site.settings, STUDY, now=NOW)

    assert len(report["objections"]) == 2
    assert "This site's policy says no:" in study_text(report)


def test_the_difference_is_to_the_version_approved_before(
    site: GuardSite, steward: Person, tmp_path: Path
) -> None:
    running = start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)
    approve(site.settings, read_signed(Path(written(tmp_path, STUDY))), steward, now=NOW)
    running.close()

    diff = study_diff(site.settings, NEXT)

    assert (diff["before"], diff["after"]) == (STUDY.digest, NEXT.digest)
    assert diff["changes"] == [
        {"field": "dp.clip_norm", "before": 1.0, "after": 2.0},
        {"field": "dp.noise_multiplier", "before": 3.0, "after": 4.0},
    ]
    assert "dp.noise_multiplier" in diff_text(diff)


def test_another_roster_shows_which_sites_key_changed(
    site: GuardSite, steward: Person, tmp_path: Path
) -> None:
    running = start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)
    approve(site.settings, read_signed(Path(written(tmp_path, STUDY))), steward, now=NOW)
    running.close()
    sites = list(STUDY.sites)
    sites[1] = sites[1].model_copy(update={"key_sha256": "0" * 64})

    diff = study_diff(site.settings, STUDY.model_copy(update={"sites": tuple(sites)}))

    assert [change["field"] for change in diff["changes"]] == ["sites[south].key_sha256"]


def test_without_a_version_approved_before_there_is_no_difference(site: GuardSite) -> None:
    with pytest.raises(ConfigError, match="found none"):
        study_diff(site.settings, STUDY)
    carry(site, about(NEXT))
    with pytest.raises(ConfigError, match="only its digest"):
        study_diff(site.settings, STUDY)


@pytest.mark.parametrize("reference", ["", "0" * 7, "0" * 64, "no-such-file.json"])
def test_a_reference_to_no_study_is_refused(site: GuardSite, reference: str) -> None:
    for find in (find_study, find_named):
        with pytest.raises(ConfigError, match="study"):
            find(site.settings, reference)


def test_a_file_that_is_no_signed_study_is_refused(site: GuardSite, tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_bytes(signed(STUDY).replace(b'"rounds":5', b'"rounds":6'))

    with pytest.raises(FedwardError):
        find_study(site.settings, str(path))


def test_before_anything_happened_the_list_is_empty_in_words(site: GuardSite) -> None:
    assert list_studies(site.settings) == []
    assert "No study is approved" in list_text([])
