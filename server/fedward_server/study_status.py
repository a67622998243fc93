"""Where the runs of a coordinator stand, from their own files: for `study status` and `watch`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from fedward_common.errors import ConfigError
from fedward_common.log.events import read_events
from fedward_common.study.signed import SignedStudy
from fedward_common.study.statistics import declared
from fedward_server.adapters.run_files import (
    LOG,
    StartedRun,
    read_outcome,
    read_study,
    run_path,
    started_runs,
)
from fedward_server.models import package_path
from fedward_server.runs import find_run, flower_status, follow
from fedward_server.sandbox.board import Header
from fedward_server.sandbox.progress import open_view
from fedward_server.settings import CoordinatorSettings

ENDED: Final = "interrupted: goes on by itself"
_SITE_STATES: Final = {
    "site.replied": "replied",
    "site.refused": "refused",
    "site.lost": "lost",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Where one run stands. Refusals are words of the sites, never a reason of their own."""

    run: str
    study: str
    study_id: str
    state: str
    started_at: str
    round: int
    rounds: int
    committed: int
    abandoned: int
    sites: Mapping[str, str]
    refusals: Mapping[str, str]
    model_signed: bool
    message: str = ""


@dataclass(kw_only=True)
class _Story:
    """What the events of a run's log add up to."""

    round: int = 0
    rounds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    sites: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    paused: str = ""

    def take(self, action: str, fields: Mapping[str, Any]) -> None:
        """Takes one event in."""
        self.counts[action] += 1
        if action == "round.opened":
            self.round, self.rounds = fields["round"], fields["rounds"]
            self.sites |= dict.fromkeys(fields["sites"], "asked")
            self.paused = ""
        elif action == "study.paused":
            self.paused = fields["reason"]
        elif action in _SITE_STATES:
            self.sites[fields["site"]] = _SITE_STATES[action]
        if action == "site.refused":
            self.refusals[fields["site"]] = fields["code"]


def statuses(settings: CoordinatorSettings, which: str | None = None) -> list[RunStatus]:
    """The runs of this coordinator, oldest first; of one run, study id or digest with `which`.

    Raises:
        ConfigError: there is no such run or study.
        LedgerError: the log of a run was changed.
    """
    runs = started_runs(settings.state)
    if which is not None:
        runs = [run for run in runs if _means(run, which)]
        if not runs:
            raise ConfigError(
                f"{which}: expected a run, a study's id or the first digits of its digest, found "
                "none of that name on this coordinator"
            )
    return [status(settings, run) for run in runs]


def _means(run: StartedRun, which: str) -> bool:
    digits = len(which) >= 8 and run.study.startswith(which)
    return which in (run.name, run.study_id) or digits


def status(settings: CoordinatorSettings, run: StartedRun) -> RunStatus:
    """Where `run` stands."""
    folder, story = run_path(settings.state, run.name), _Story()
    outcome = read_outcome(folder)
    for event in read_events(folder / LOG):
        story.take(event.action, event.fields)
    return RunStatus(
        run=run.name,
        study=run.study,
        study_id=run.study_id,
        state=_state(settings, run, story) if outcome is None else outcome["status"],
        started_at=run.started_at,
        round=story.round,
        rounds=story.rounds,
        committed=story.counts["round.committed"],
        abandoned=story.counts["round.abandoned"],
        sites=dict(sorted(story.sites.items())),
        refusals=dict(sorted(story.refusals.items())),
        model_signed=package_path(settings.state, run.name).exists(),
        message=story.paused if outcome is None else str(outcome.get("message", "")),
    )


def _state(settings: CoordinatorSettings, run: StartedRun, story: _Story) -> str:
    word = flower_status(settings, run)
    if word is None:
        return "the coordinator does not run"
    if word.startswith("finished"):
        return ENDED
    if story.paused:
        return "paused"
    return "running" if story.counts["run.started"] else "starting"


def statuses_json(found: list[RunStatus]) -> dict[str, Any]:
    """The statuses as a JSON value."""
    return {"runs": [asdict(one) for one in found]}


def print_statuses(found: list[RunStatus], console: Console) -> None:
    """A table of runs and, below it, what went wrong in each."""
    if not found:
        console.print("no run was started on this coordinator")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("run", "state", "round", "committed", "abandoned", "sites", "model"):
        table.add_column(column, no_wrap=column in ("run", "state"))
    for one in found:
        counts = Counter(one.sites.values())
        table.add_row(
            one.run,
            one.state,
            f"{one.round}/{one.rounds}" if one.rounds else "-",
            str(one.committed),
            str(one.abandoned),
            ", ".join(f"{count} {word}" for word, count in sorted(counts.items())) or "-",
            "signed" if one.model_signed else "-",
        )
    console.print(table)
    for one in found:
        for site, code in one.refusals.items():
            console.print(f"{one.run}: {site} refused: {code}", markup=False, highlight=False)
        if one.message:
            console.print(f"{one.run}: {one.message}", markup=False, highlight=False)


def watch(settings: CoordinatorSettings, name: str, console: Console) -> None:
    """Shows a run until its outcome is there: a live table on a terminal, lines elsewhere.

    Raises:
        ConfigError: no such run.
    """
    run = find_run(settings, name)
    study = SignedStudy.parse(read_study(settings.state, run.study)).verify()
    plan = declared(study)
    header = Header(
        study=study.id,
        digest=study.digest,
        sites=tuple(site.id for site in study.sites),
        rounds=study.rounds,
        delta=plan.delta,
        epsilon=plan.epsilon,
        epsilon_is=plan.epsilon_is,
        unit=plan.unit,
    )
    with open_view(header, console=console) as view:
        for event in follow(settings, name):
            view.feed(event["action"], event["fields"])
