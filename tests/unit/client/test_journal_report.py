"""The journal for people, and whether the coordinator's log tells of the same objects."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedward_client.journal_report import (
    compare_logs,
    journal_month,
    journal_objects,
    journal_report,
    parse_since,
)
from fedward_client.journal_text import comparison_text, month_text, objects_text, totals_text
from fedward_common.errors import ConfigError, LedgerError
from fedward_common.log.events import EventLog
from tests.support.guard_site import GuardSite, a_study, make_site

STUDY = a_study()
START = datetime(2026, 10, 31, 23, 0, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def site(tmp_path: Path) -> GuardSite:
    """October: one object out. November: a round of two objects, one in, one held back."""
    made = make_site(tmp_path)
    clock = Clock()
    log = EventLog(made.settings.audit_path, clock=clock)
    log.append("study.seen", study=STUDY.digest, study_id=STUDY.id)
    log.append("object", **an_object("out", "1", 10), route="hello")
    clock.now += timedelta(hours=2)
    for number in ("2", "3"):
        known = {"study": STUDY.digest, "round": 4, "run": "77", "certificate_sha256": "f" * 64}
        log.append("object", **an_object("out", number, 100), route="push-object", **known)
    log.append("object", **an_object("in", "4", 1000), route="pull-object", run="77")
    log.append("object.held", kind="object", sha256="5" * 64, bytes=1, code="paused")
    log.close()
    return made


def an_object(direction: str, digit: str, size: int, kind: str = "object") -> dict[str, Any]:
    return {"direction": direction, "kind": kind, "sha256": digit * 64, "bytes": size}


def test_totals_are_by_direction_and_kind(site: GuardSite) -> None:
    report = journal_report(site.settings)

    assert report["bytes_out"] == 210
    assert report["totals"] == [
        {"direction": "in", "kind": "object", "objects": 1, "bytes": 1000},
        {"direction": "out", "kind": "object", "objects": 3, "bytes": 210},
    ]
    assert "Left in all: 210 bytes" in totals_text(report)


def test_since_leaves_out_what_came_before(site: GuardSite) -> None:
    since = parse_since("2026-11-01")

    assert journal_report(site.settings, since=since)["bytes_out"] == 200
    assert len(journal_objects(site.settings, since=since)["objects"]) == 3


def test_every_object_stands_with_study_run_round_digest_size_and_destination(
    site: GuardSite,
) -> None:
    objects = journal_objects(site.settings)["objects"]

    assert objects[1] == {
        "time": "2026-11-01T01:00:00.000+00:00",
        "direction": "out",
        "kind": "object",
        "study": STUDY.digest,
        "run": "77",
        "round": 4,
        "sha256": "2" * 64,
        "bytes": 100,
        "certificate_sha256": "f" * 64,
    }
    assert len(objects_text({"objects": objects}).splitlines()) == 4


def test_a_month_says_what_left_for_which_study_and_what_was_held_back(site: GuardSite) -> None:
    report = journal_month(site.settings, "2026-11")

    assert report["studies"] == [
        {"study": STUDY.digest, "id": "heart", "rounds": 1, "objects_out": 2, "bytes_out": 200}
    ]
    assert report["other"] == {
        "objects_in": 1, "bytes_in": 1000, "objects_out": 0, "bytes_out": 0,
    }  # fmt: skip
    assert report["events"] == {"object.held": 1}
    assert "study heart" in month_text(report)


@pytest.mark.parametrize("month", ["2026", "2026-13", "2026-1", "november"])
def test_what_is_no_month_is_refused(site: GuardSite, month: str) -> None:
    with pytest.raises(ConfigError, match="YYYY-MM"):
        journal_month(site.settings, month)


@pytest.mark.parametrize("text", ["yesterday", "2026-02-30", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--since"):
        parse_since(text)


def test_a_journal_that_was_edited_is_reported_by_nobody(site: GuardSite) -> None:
    path = site.settings.audit_path
    path.write_bytes(path.read_bytes().replace(b'"bytes":100,', b'"bytes":900,', 1))

    for report in (journal_report, journal_objects):
        with pytest.raises(LedgerError):
            report(site.settings)
    with pytest.raises(LedgerError):
        journal_month(site.settings, "2026-11")


def coordinator_log(folder: Path, *objects: dict[str, Any], site: str = "north") -> Path:
    path = folder / "edge.jsonl"
    log = EventLog(path)
    for one in objects:
        log.append("edge.object", site=site, route="push-object", **one)
    log.append("edge.object", site="south", route="push-object", **an_object("in", "9", 9))
    log.close()
    return path


SEEN = (
    an_object("in", "1", 10),
    an_object("in", "2", 100),
    an_object("in", "3", 100),
    an_object("out", "4", 1000),
)


def test_equal_objects_agree_and_other_sites_do_not_count(site: GuardSite, tmp_path: Path) -> None:
    report = compare_logs(site.settings.audit_path, coordinator_log(tmp_path, *SEEN), site="north")

    assert report["agree"]
    assert report["matched"] == 4
    assert "agree" in comparison_text(report)


@pytest.mark.parametrize(
    ("objects", "key"),
    [
        ((*SEEN, an_object("in", "8", 5)), "left_unnoted"),
        ((*SEEN, an_object("in", "2", 100)), "left_unnoted"),
        ((*SEEN, an_object("out", "8", 5)), "came_unnoted"),
        (SEEN[1:], "sent_not_arrived"),
        (SEEN[:3], "came_from_elsewhere"),
    ],
    ids=["one more out", "one twice", "one more in", "one lost", "one from elsewhere"],
)
def test_every_difference_is_found_and_named(
    site: GuardSite, tmp_path: Path, objects: tuple[dict[str, Any], ...], key: str
) -> None:
    report = compare_logs(
        site.settings.audit_path, coordinator_log(tmp_path, *objects), site="north"
    )

    assert not report["agree"]
    assert [one["times"] for one in report[key]] == [1]
    assert len(comparison_text(report).splitlines()) == 2


def test_another_size_under_the_same_digest_is_two_differences(
    site: GuardSite, tmp_path: Path
) -> None:
    objects = (an_object("in", "1", 11), *SEEN[1:])

    report = compare_logs(
        site.settings.audit_path, coordinator_log(tmp_path, *objects), site="north"
    )

    assert len(report["left_unnoted"]) == len(report["sent_not_arrived"]) == 1
