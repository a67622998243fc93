"""What goes wrong in a hospital: a site dies, nobody wants to take part, a file is wrong."""

import csv
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from fedward_common.errors import StudyFailed
from fedward_common.ids import SiteId
from fedward_server.cli import main
from fedward_server.runs import follow, require_finished, start_run
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.run import Inputs, prepare
from tests.conftest import write_short_study
from tests.support.live import program
from tests.support.studies import STUDY_FILES

DISTRICT = SiteId("district")


@pytest.mark.federation
def test_a_site_killed_in_mid_round_costs_the_study_that_site_only(tmp_path: Path) -> None:
    study = write_short_study(tmp_path / "study.toml", rounds=2, deadline_seconds=40)
    prepared = prepare(Inputs.parse(study=study, sites=[], data=None), out=tmp_path / "out")
    seen: list[tuple[str, dict[str, object]]] = []

    with Federation(prepared.layout) as federation:
        federation.start()
        name, _ = start_run(federation.settings, prepared.signed.canonical)
        for event in follow(federation.settings, name):
            seen.append((event["action"], event["fields"]))
            opened = event["action"] == "round.opened" and event["fields"]["round"] == 2
            if opened and DISTRICT in federation.sites:
                federation.kill_site(DISTRICT)
        outcome = require_finished(federation.settings, name)

    committed = [fields["sites"] for action, fields in seen if action == "round.committed"]
    assert outcome["committed_rounds"] == 2
    assert set(outcome["counts"]) == {"university", "city", "screening"}
    assert DISTRICT in committed[0]
    assert DISTRICT not in committed[1]
    assert any(
        action == "site.lost" and fields["site"] == DISTRICT and fields["reason"] == "deadline"
        for action, fields in seen
    )


@pytest.mark.federation
def test_when_every_policy_says_no_the_run_ends_at_once_and_nothing_is_charged(
    tmp_path: Path,
) -> None:
    study = write_short_study(tmp_path / "study.toml")
    prepared = prepare(Inputs.parse(study=study, sites=[], data=None), out=tmp_path / "out")
    for site in prepared.layout.sites.values():
        text = site.settings_file.read_text()
        lowered = re.sub(r"max_epsilon_(\w+) = 2\.0", r"max_epsilon_\1 = 0.5", text)
        assert lowered != text
        site.settings_file.write_text(lowered)

    with Federation(prepared.layout) as federation:
        federation.start()
        name, _ = start_run(federation.settings, prepared.signed.canonical)
        events = list(follow(federation.settings, name))
        with pytest.raises(
            StudyFailed, match=r"expected at least 3 sites .* found [012] .*: policy"
        ):
            require_finished(federation.settings, name)
        budgets = [federation.ask_site(site, "budget", "show") for site in federation.sites]

    assert not [e for e in events if e["action"] == "round.committed"]
    assert all(budget["studies"] == [] for budget in budgets)


# What a person can get wrong in a study file: the change, and what the one line must say.
WRONG_STUDIES = {
    "epsilon of zero": ("epsilon = 2.0", "epsilon = 0.0", "dp.epsilon"),
    "a negative epsilon": ("epsilon = 2.0", "epsilon = -1.0", "dp.epsilon"),
    "an unknown model": ('name = "logistic-regression"', 'name = "alexnet"', "alexnet"),
    "an unknown key": ("quorum = 3", "quorum = 3\ncolour = 1", "colour"),
    "text where a number belongs": ("rounds = 8", 'rounds = "eight"', "rounds"),
    "a quorum above the sites": ("quorum = 3", "quorum = 9", "quorum"),
    "a delta that protects nobody": ("delta = 2e-4", "delta = 9e-3", "delta"),
    "a task that nobody has": ("tabular-classification", "mind-reading", "mind-reading"),
    "no TOML": ("rounds = 8", "rounds = = 8", "TOML"),
    "a site without data": ('id = "district"', 'id = "nowhere"', "nowhere"),
    "a column that no table has": ('name = "mean radius"', 'name = "shoe size"', "shoe size"),
}


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """`fedward-server` from its entry point to its exit code, without a process of its own.

    As the programs of `program`, which each spend seconds on imports.
    """

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = ["fedward-server", *map(str, arguments)]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(line, int(ended.value.code or 0), out, err)

    yield run
    structlog.reset_defaults()  # the program logged to this test's stderr, which ends with it


@pytest.mark.parametrize("wrong", WRONG_STUDIES, ids=list(WRONG_STUDIES))
def test_a_wrong_study_file_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, here: Here, wrong: str
) -> None:
    old, new, named = WRONG_STUDIES[wrong]
    text = (STUDY_FILES / "breast-cancer.toml").read_text()
    assert old in text
    study = tmp_path / "study.toml"
    study.write_text(text.replace(old, new, 1))

    done = here("sandbox", study, "--out", tmp_path / "out")

    assert done.returncode in (2, 3), done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


Rows = list[dict[str, str]]


def _absent_column(rows: Rows) -> Rows:
    return [{k: v for k, v in row.items() if k != "mean area"} for row in rows]


def _label_out_of_range(rows: Rows) -> Rows:
    return [rows[0] | {"diagnosis": "7"}, *rows[1:]]


def _text_for_a_number(rows: Rows) -> Rows:
    return [rows[0] | {"mean radius": "secret-4711"}, *rows[1:]]


def _duplicate_patients(rows: Rows) -> Rows:
    return [rows[0], rows[0], *rows[1:]]


WRONG_TABLES: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "an absent column": (_absent_column, "mean area"),
    "a label out of range": (_label_out_of_range, "diagnosis"),
    "text where a number belongs": (_text_for_a_number, "mean radius"),
    "no patient": (lambda rows: rows[:0], "district"),
    "duplicate patient ids": (_duplicate_patients, "patient"),
}


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fedward_server.sandbox.datasets import deal_breast_cancer

    folder = tmp_path_factory.mktemp("dealt")
    deal_breast_cancer(folder)
    return folder


def sites_of(folder: Path) -> list[str]:
    names = ("university", "city", "screening", "district")
    return [option for name in names for option in ("--site", f"{name}={folder / name}")]


@pytest.mark.parametrize("wrong", WRONG_TABLES, ids=list(WRONG_TABLES))
def test_a_wrong_table_is_one_clear_line_without_a_value_and_leaves_nothing(
    tmp_path: Path, here: Here, dealt: Path, wrong: str
) -> None:
    change, named = WRONG_TABLES[wrong]
    tables = tmp_path / "tables"
    shutil.copytree(dealt, tables)
    path = tables / "district" / "patients.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    changed = change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list((changed or rows)[0]))
        writer.writeheader()
        writer.writerows(changed)
    study, out = STUDY_FILES / "breast-cancer.toml", tmp_path / "out"

    done = here("sandbox", study, *sites_of(tables), "--out", out)

    assert done.returncode == 3, done.stderr
    assert named in done.stderr
    assert "4711" not in done.stderr
    assert not re.search(r"bc-\d{3}", done.stderr)
    assert not out.exists()


def test_a_missing_table_is_named(tmp_path: Path, dealt: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    options = [*sites_of(dealt)[:-1], f"district={empty}"]

    done = program(
        "fedward-server",
        "sandbox",
        STUDY_FILES / "breast-cancer.toml",
        *options,
        "--out",
        tmp_path / "out",
    )

    assert done.returncode == 2
    assert "patients.csv" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_sandbox_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter-1.txt").write_text("years of work")

    done = program("fedward-server", "sandbox", "--out", out)

    assert done.returncode == 2
    assert "expected a new folder or an earlier sandbox" in done.stderr
    assert (out / "chapter-1.txt").read_text() == "years of work"


def test_a_port_in_use_is_named_with_its_key(tmp_path: Path) -> None:
    study = write_short_study(tmp_path / "study.toml")
    prepared = prepare(Inputs.parse(study=study, sites=[], data=None), out=tmp_path / "out")
    settings = prepared.layout.sites[DISTRICT].settings_file
    match = re.search(r"gateway = (\d+)", settings.read_text())
    assert match is not None
    with settings.open("a") as file:
        file.write('\n[isolation]\nnetwork = "none"\n')  # in a private network it would be free

    with socket.create_server(("127.0.0.1", int(match[1]))):
        done = program("fedward-client", "run", "--config", settings)

    shutil.rmtree(prepared.layout.run, ignore_errors=True)
    assert done.returncode == 12
    assert f"expected port {match[1]} (ports.gateway)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data", "/nowhere"], "--data"),
        (["--site", "a=/nowhere"], "patients.csv"),
        (["--site", "nonsense"], "NAME=FOLDER"),
        (["--data", "/tmp", "--site", "a=/tmp"], "either --data or --site"),
        (["/no/such/study.toml"], "expected a study file"),
    ],
)
def test_wrong_options_are_one_clear_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    done = program("fedward-server", "sandbox", *arguments, "--out", tmp_path / "out")

    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_with_json_an_error_is_an_object(tmp_path: Path) -> None:
    done = program(
        "fedward-server", "sandbox", "/no/such.toml", "--json", "--out", tmp_path / "out"
    )

    assert json.loads(done.stderr)["error"] == "config"
