"""A federation from nothing: init, two hospitals join, approve, train; one is revoked in mid-run.

Everything is typed as people type it, in folders and processes of their own; one hospital joins by
carried files. `make e2e-enrol` runs this together with the installation from a bundle;
in CI tests/integration has the same steps piece by piece.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedward_server.sandbox.datasets import deal_breast_cancer
from tests.support.joining import OPERATORS, Joining
from tests.support.studies import STUDY_FILES

pytestmark = [pytest.mark.federation, pytest.mark.slow]

SITES = ("university", "city")
ENDED = ("finished", "failed", "cancelled")
RULES = {
    "max_epsilon_per_study": 5.0,
    "max_epsilon_total": 10.0,
    "delta": 2e-4,
    "allow_evaluation": True,
}


def study_file(path: Path) -> Path:
    """The breast-cancer study on two of its hospitals, with rounds enough to lose one."""
    text = (STUDY_FILES / "breast-cancer.toml").read_text()
    for old, new in (
        ("rounds = 8", "rounds = 12"),
        ("local_steps = 5", "local_steps = 2"),
        ("quorum = 3", "quorum = 1"),
        ("deadline_seconds = 60", "deadline_seconds = 15"),
    ):
        if old not in text:
            raise AssertionError(f"the study file has no {old!r}")
        text = text.replace(old, new)
    head, *sites = text.split("[[sites]]")
    rest = "[data]" + sites[-1].partition("[data]")[2]
    sites[-1] = sites[-1].partition("[data]")[0]
    kept = [site for site in sites if any(f'id = "{name}"' in site for name in SITES)]
    path.write_text("[[sites]]".join([head, *kept]) + rest)
    return path


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Joining, dict[str, Any]]]:
    """The federation after its study; what was seen on the way."""
    root = tmp_path_factory.mktemp("joining")
    tables = deal_breast_cancer(root / "data")
    with Joining(root=root) as joining:
        yield joining, train(joining, tables, revoke="city")


def train(joining: Joining, tables: Mapping[str, Path], *, revoke: str | None) -> dict[str, Any]:
    """Everything from `init` to the end of a run; `revoke` is ended as a member in mid-run."""
    seen: dict[str, Any] = {}
    joining.found()
    joining.serve()
    joining.enrol("university")
    joining.enrol_carried("city")
    bundle = json.loads(joining.ask("fedward-server", "bundle", "--json"))["bundle_sha256"]
    for site in SITES:
        joining.decide(site, data=tables[site], rules=RULES)
        joining.run_site(site)
        joining.says(site, "bundle", "approve", bundle)
    seen["doctor"] = {site: json.loads(joining.client(site, "doctor", "--json")) for site in SITES}
    lead = joining.root / "lead.pem"
    joining.ask("fedward-server", "lead", "new", "--key", lead)
    file, signed = study_file(joining.root / "study.toml"), joining.root / "study.json"
    joining.ask("fedward-server", "study", "validate", file)
    joining.server("study", "submit", file, "--key", lead, "--yes", "--out", signed)
    seen["shown"] = joining.client("city", "studies", "show", signed)
    for site in SITES:
        joining.says(site, "studies", "approve", signed)
    run = json.loads(joining.server("runs", "start", signed, "--json"))["run"]
    log = joining.coordinator.parent / "state" / "runs" / run / "log.jsonl"
    if revoke is not None:
        joining.wait(lambda: committed(log) >= 2, "two rounds", seconds=180)
        joining.server(
            *("site", "revoke", revoke, "--operator", OPERATORS[0]),
            *("--key", joining.operator_key(0)),
        )
        seen["revoked_after"] = committed(log)
    joining.wait(lambda: state(joining, run) in ENDED, "the end of the run", seconds=400)
    return seen | {"run": run, "log": log, "lead": lead, "state": state(joining, run)}


def committed(log: Path) -> int:
    return log.read_text().count('"round.committed"') if log.exists() else 0


def state(joining: Joining, run: str) -> str:
    (status,) = json.loads(joining.server("study", "status", run, "--json"))["runs"]
    return str(status["state"])


def test_both_hospitals_are_members_by_two_operators(
    joined: tuple[Joining, dict[str, Any]],
) -> None:
    joining, _ = joined

    listed = {e["site"]: e["status"] for e in json.loads(joining.server("site", "list", "--json"))}
    assert listed == {"university": "active", "city": "revoked"}
    desk = joining.lines(joining.coordinator.parent / "state" / "audit" / "desk.jsonl")
    granted = [event for event in desk if "grant" in event["action"]]
    assert len(granted) >= 2 * len(SITES)


def test_the_round_closes_by_its_quorum_after_a_member_is_revoked_in_mid_run(
    joined: tuple[Joining, dict[str, Any]],
) -> None:
    joining, seen = joined

    assert seen["state"] == "finished"
    assert committed(seen["log"]) == 12
    assert seen["revoked_after"] < 12
    last = [e for e in joining.lines(seen["log"]) if e["action"] == "round.committed"][-1]
    assert last["fields"]["sites"] == ["university"]


def test_the_revoked_members_reply_is_refused_and_logged(
    joined: tuple[Joining, dict[str, Any]],
) -> None:
    joining, _ = joined
    edge = joining.lines(joining.coordinator.parent / "state" / "audit" / "edge.jsonl")

    refused = [e for e in edge if e["fields"].get("code") == "site-revoked"]
    assert refused
    assert all(event["fields"]["site"] == "city" for event in refused)
    after = [e for e in edge if e["action"] == "edge.object" and e["seq"] > refused[0]["seq"]]
    assert {event["fields"]["site"] for event in after} == {"university"}


def test_the_approver_reads_in_plain_words_what_the_study_does(
    joined: tuple[Joining, dict[str, Any]],
) -> None:
    _, seen = joined

    assert "epsilon" in seen["shown"]
    assert "university" in seen["shown"]


def test_doctor_finds_nothing_wrong_at_a_new_member(
    joined: tuple[Joining, dict[str, Any]],
) -> None:
    """Warnings may stand (users shared, no study approved yet); nothing fails."""
    _, seen = joined

    for site, report in seen["doctor"].items():
        failed = [f for f in report["findings"] if f["level"] == "fail"]
        assert not failed, (site, failed)


def test_the_journal_and_the_coordinators_log_agree(
    joined: tuple[Joining, dict[str, Any]],
) -> None:
    joining, _ = joined
    edge = joining.coordinator.parent / "state" / "audit" / "edge.jsonl"

    report = json.loads(joining.client("university", "journal", "compare", edge, "--json"))

    assert report["agree"]


def test_the_hospital_fetches_and_verifies_the_signed_model(
    joined: tuple[Joining, dict[str, Any]], tmp_path: Path
) -> None:
    joining, seen = joined
    joining.server("study", "sign-model", seen["run"], "--key", seen["lead"])

    listed = json.loads(joining.client("university", "model", "list", "--json"))["models"]
    fetched = json.loads(
        joining.client("university", "model", "fetch", seen["run"], "--out", tmp_path, "--json")
    )

    assert [entry["run"] for entry in listed] == [seen["run"]]
    joining.client("university", "model", "verify", fetched["folder"])
