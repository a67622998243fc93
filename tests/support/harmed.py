"""A federation of real processes that is harmed again and again, one study after the other.

Starting four hospitals costs a minute or more, so all faults share one federation: it has to stand
up after each of them anyway. Every site sits behind a relay that can be cut.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest

from fedward_client.adapters.sqlite_ledger import read_ledger
from fedward_client.settings import load_site_settings
from fedward_common.errors import StartError
from fedward_common.ids import SiteId
from fedward_common.log.events import read_events
from fedward_common.study.signed import SignedStudy
from fedward_server.adapters.run_files import LOG, run_path
from fedward_server.runs import cancel_run, follow, online_nodes, require_finished, start_run
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from fedward_server.sandbox.settings_files import write_approval
from fedward_server.sandbox.victims import COORDINATOR, SITE, find
from tests.support.agreement import agreement
from tests.support.cut_relay import Relay
from tests.support.left_behind import litter
from tests.support.studies import STUDY_FILES

ROUNDS: Final = 3
STEADY_SECONDS: Final = 240.0
RUN_SECONDS: Final = 360.0
STUDIES: Final = 64

Event = dict[str, Any]
Harm = Callable[["Harmed"], object]
When = Callable[[Event], bool]


def at(action: str, *, round_number: int = 2) -> When:
    """The moment when the run's log says this of a round."""
    return lambda event: event["action"] == action and event["fields"]["round"] == round_number


SHIM: Final = Path(__file__).with_name("clock_shim.c")
OPENED: Final = at("round.opened")


@dataclass(kw_only=True)
class Harmed:
    """A running federation and the signed studies that nobody has run yet."""

    folder: Path
    prepared: Prepared
    federation: Federation
    relays: dict[str, Relay]
    studies: Iterator[SignedStudy]
    events: list[Event] = field(default_factory=list)
    seconds: float = 0.0
    clocks: Mapping[str, Path] = field(default_factory=dict)
    small_disks: bool = False

    def set_clock(self, owner: str, seconds: int) -> None:
        """Moves the clock of `coordinator` or of a site, all of its processes, from now on."""
        set_clock(self.clocks[owner], seconds)

    def survive(
        self,
        harm: Harm,
        *,
        when: When = OPENED,
        abandoned: int = 1,
        patience: float = 0.0,
    ) -> dict[str, Any]:
        """The outcome of a study that is harmed once, after everything was compared.

        At most `abandoned` rounds may be missing from it, each named in the log. `patience` is how
        much longer than usual the sites may take to be back.
        """
        self.steady()
        study = next(self.studies)
        harmed, self.events, started = False, [], time.monotonic()
        name, _ = start_run(self.federation.settings, study.canonical)

        def alive() -> None:
            self.federation.keep_up()
            if time.monotonic() - started > RUN_SECONDS + patience:
                cancel_run(self.federation.settings, name)
                raise StartError(f"harmed: expected an end within {RUN_SECONDS:.0f} s, found none")

        for event in follow(self.federation.settings, name, alive=alive):
            self.events.append(event)
            if not harmed and when(event):
                harmed = True
                harm(self)
        outcome = require_finished(self.federation.settings, name)
        self.seconds = time.monotonic() - started
        self.steady(patience)
        self._compare(study, name)
        facts = {name: outcome[name] for name in ("committed_rounds", "abandoned_rounds")}
        sys.stdout.write(f"{self.seconds:.0f} s, {facts}, lost {self._lost()}\n")

        assert harmed
        assert outcome["committed_rounds"] + outcome["abandoned_rounds"] == ROUNDS
        assert outcome["abandoned_rounds"] <= abandoned
        named = {e["fields"]["round"] for e in self.events if e["action"] == "round.abandoned"}
        assert len(named) >= outcome["abandoned_rounds"]
        return outcome

    def _lost(self) -> list[tuple[int, str, str]]:
        """Which answers did not count, and why."""
        return [
            (e["fields"]["round"], e["fields"]["site"], e["fields"]["reason"])
            for e in self.events
            if e["action"] == "site.lost"
        ]

    def _compare(self, study: SignedStudy, run: str) -> None:
        digest = study.verify().digest
        charged = {
            site: rounds_charged(place.settings_file, digest)
            for site, place in self.prepared.layout.sites.items()
        }
        settings = self.federation.settings
        facts = agreement(
            {site: place.folder for site, place in self.prepared.layout.sites.items()},
            run_path(settings.state, run) / LOG,
            charged,
            study=digest,
            edge_log=settings.edge_log,
        )
        assert facts["committed_once"], facts
        assert facts["ledger_equals_journal"], facts
        assert facts["charged_once"], facts
        assert facts["no_charge_unasked"], facts
        assert facts["answers_charged"], facts
        assert facts["nothing_unwritten"] == [], facts
        assert litter(self.folder) == []

    def steady(self, patience: float = 0.0) -> None:
        """Returns when every site is connected and works.

        Raises:
            StartError: not in STEADY_SECONDS.
        """
        limit = time.monotonic() + STEADY_SECONDS + patience
        while time.monotonic() < limit:
            self.federation.keep_up()
            try:
                online = online_nodes(self.federation.settings)
            except StartError:
                online = 0
            if online >= len(self.prepared.layout.sites) and self._complete():
                return
            time.sleep(0.5)
        raise StartError(f"harmed: expected every site back within {STEADY_SECONDS:.0f} s")

    def _complete(self) -> bool:
        """Whether every process is there that is there while nothing is asked."""
        wanted = [("coordinator", name) for name in COORDINATOR if name != "serverapp"]
        wanted += [
            (str(site), name)
            for site in self.prepared.layout.sites
            for name in SITE
            if name != "task"
        ]
        return all(find(self.federation, *one) is not None for one in wanted)

    def journal(self, site: str) -> list[Any]:
        """The lines of a site's journal."""
        path = self.prepared.layout.sites[SiteId(site)].folder / "state" / "audit" / "site.jsonl"
        return list(read_events(path))

    def charged(self, site: str) -> int:
        """How many charges a site's journal has."""
        return sum(event.action == "round.charged" for event in self.journal(site))


class ClockedFederation(Federation):
    """A federation whose processes see the clock that a file sets."""

    shim: Path | None = None
    clocks: Mapping[str, Path] = MappingProxyType({})

    def _spawn(self, name: str, program: str, command: str, config: Path) -> None:
        clock = self.clocks.get(name)
        clocked = {} if clock is None else {"LD_PRELOAD": self.shim, "TESTS_CLOCK": clock}
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in clocked.items():
                patch.setenv(variable, str(value))
            super()._spawn(name, program, command, config)


@contextmanager
def harmed_federation(
    folder: Path,
    *,
    deadline_seconds: int = 40,
    clocked: Sequence[str] = (),
    arranged: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Harmed]:
    """A federation behind relays, with studies that every site approved.

    The clocks of `clocked` can be set. What `arranged` opens is there while the processes are.
    """
    text = (STUDY_FILES / "breast-cancer.toml").read_text()
    for old, new in (
        ("rounds = 8", f"rounds = {ROUNDS}"),
        ("local_steps = 5", "local_steps = 2"),
        ("average_last = 2", "average_last = 1"),
        ("deadline_seconds = 60", f"deadline_seconds = {deadline_seconds}"),
    ):
        if old not in text:
            raise AssertionError(f"the study file has no {old!r}")
        text = text.replace(old, new)
    study = folder / "study.toml"
    study.write_text(text)
    prepared = prepare(Inputs.parse(study=study, sites=[], data=None), out=folder / "out")
    studies = [
        SignedStudy.sign(
            prepared.study.model_copy(update={"title": f"Harmed {number}"}), prepared.layout.lead
        )
        for number in range(STUDIES)
    ]
    now = datetime.now(UTC)
    for site in prepared.layout.sites.values():
        for signed in studies:
            write_approval(site, signed.verify(), now=now)
        settings = site.settings_file.read_text()
        settings = re.sub(r"max_epsilon_(\w+) = .*", r"max_epsilon_\1 = 1000.0", settings)
        settings = re.sub(r"min_noise = .*", "min_noise = 1.0", settings)
        site.settings_file.write_text(settings)
    with ExitStack() as opened:
        relays = {
            str(name): opened.enter_context(behind(prepared, str(name)))
            for name in prepared.layout.sites
        }
        opened.enter_context(arranged())
        federation = ClockedFederation(prepared.layout)
        federation.shim = clock_shim(folder)
        if federation.shim is not None:
            federation.clocks = {name: folder / f"clock-{name}" for name in clocked}
        for clock in federation.clocks.values():
            clock.write_bytes(bytes(8))
        opened.enter_context(federation)
        federation.start()
        yield Harmed(
            folder=folder,
            prepared=prepared,
            federation=federation,
            relays=relays,
            studies=iter(studies),
            clocks=federation.clocks,
        )
    if prepared.layout.run.exists():
        raise AssertionError(f"{prepared.layout.run}: expected it gone with the federation")


def clock_shim(folder: Path) -> Path | None:
    """The library that moves a process's clock, made in `folder`; None without a C compiler."""
    if (compiler := shutil.which("cc")) is None:
        return None
    shim = folder / "clock_shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O", "-o", shim, SHIM], check=True)
    return shim


def set_clock(clock: Path, seconds: int) -> None:
    """Moves the clock of the processes that have mapped this file."""
    with clock.open("r+b") as file:
        file.write(seconds.to_bytes(8, "little", signed=True))


def rounds_charged(settings: Path, study: str) -> int:
    """How many rounds of a study a site's ledger has, which is verified."""
    ledger = read_ledger(load_site_settings(settings).ledger_path)
    return sum(a.charged("round") for a in ledger.accounts if a.reservation.study == study)


@contextmanager
def behind(prepared: Prepared, site: str) -> Iterator[Relay]:
    """A relay between a site and the edge, which the site's settings name."""
    settings = prepared.layout.sites[SiteId(site)].settings_file
    text = settings.read_text()
    found = re.search(r'address = "127\.0\.0\.1:(\d+)"', text)
    if found is None:
        raise AssertionError("site.toml has no address of the edge")
    with Relay(int(found[1])) as relay:
        settings.write_text(text.replace(found[0], f'address = "127.0.0.1:{relay.port}"'))
        yield relay
