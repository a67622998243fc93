"""Studies with secret sums over real processes: more hospitals, and what became of each round."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward_common.ids import SiteId
from fedward_common.log.events import Event, read_events
from fedward_server.adapters.run_files import LOG, run_path
from fedward_server.runs import follow, require_finished, start_run
from fedward_server.sandbox.datasets import TABLE, deal_breast_cancer
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from tests.support.studies import STUDY_FILES

STUDY = STUDY_FILES / "breast-cancer-distributed.toml"
OnEvent = Callable[[Federation, Mapping[str, Any]], object]


def changed(changes: Mapping[str, str], *, study: Path = STUDY) -> str:
    """The text of a study file with these changes."""
    text = study.read_text()
    for old, new in changes.items():
        if old not in text:
            raise AssertionError(f"the study file has no {old!r}")
        text = text.replace(old, new)
    return text


def prepared_study(folder: Path, text: str, *, sites: Mapping[str, Path] | None = None) -> Prepared:
    """The federation of a study text; its sites are the four dealt hospitals or `sites`."""
    study = folder / "study.toml"
    study.write_text(text)
    named = [f"{name}={path}" for name, path in (sites or {}).items()]
    return prepare(Inputs.parse(study=study, sites=named, data=None), out=folder / "out")


def deal_evenly(folder: Path, *, hospitals: int) -> dict[str, Path]:
    """The 569 patients of the four hospitals' tables, dealt one by one to so many."""
    rows: list[list[str]] = []
    for path in deal_breast_cancer(folder / "four").values():
        with path.open(newline="") as file:
            header, *own = csv.reader(file)
            rows += own
    rows.sort()
    folders = {}
    for number in range(hospitals):
        place = folder / f"hospital-{number + 1}"
        place.mkdir()
        with (place / TABLE).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows[number::hospitals]])
        folders[place.name] = place
    return folders


def sites_toml(patients: Mapping[str, int]) -> str:
    """The [[sites]] of a study file."""
    return "".join(
        f'[[sites]]\nid = "{name}"\npatients = {count}\n\n' for name, count in patients.items()
    )


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A study that has run: its outcome, its log, its folder, and what each ledger says."""

    folder: Path
    outcome: dict[str, Any]
    events: list[Event]
    charged: dict[SiteId, dict[str, Any]]

    def of(self, action: str, **fields: Any) -> list[dict[str, Any]]:
        """The fields of the events of one action that hold these values."""
        return [
            e.fields
            for e in self.events
            if e.action == action and fields.items() <= e.fields.items()
        ]


def run_to_end(prepared: Prepared, on_event: OnEvent = lambda _federation, _event: None) -> Ran:
    """The study's run over real processes; `on_event` hears every event of its log."""
    with Federation(prepared.layout) as federation:
        federation.start()
        name, _ = start_run(federation.settings, prepared.signed.canonical)
        for event in follow(federation.settings, name, alive=federation.keep_up):
            on_event(federation, event)
        outcome = require_finished(federation.settings, name)
        federation.keep_up()
        charged = {
            site: federation.ask_site(site, "budget", "show")["studies"][0]
            for site in prepared.layout.sites
        }
        folder = run_path(federation.settings.state, name)
        return Ran(
            folder=folder,
            outcome=outcome,
            events=list(read_events(folder / LOG)),
            charged=charged,
        )
