"""A whole federation as real operating-system processes on this machine.

Starts the programs a hospital starts, `fedward-server serve` and `fedward-client run`, with the
configuration files a hospital writes; there is no flag, variable or branch for the sandbox in them.
Where the machine allows it each site's processes are users of their own (`users`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fedward_common.errors import StartError
from fedward_common.ids import SiteId
from fedward_common.processes import offline_environment
from fedward_server.adapters.superlink_state import put_away
from fedward_server.runs import online_nodes
from fedward_server.sandbox.layout import Layout
from fedward_server.sandbox.users import separate_users
from fedward_server.serve import ready_file, require_running
from fedward_server.settings import CoordinatorSettings, load_coordinator_settings

START_SECONDS: Final = 120.0
START_SECONDS_A_SITE: Final = 30.0
"""A site is six processes that import much; on two cores they come up one after the other."""
LOOK_SECONDS: Final = 0.2
NODES_LOOK_SECONDS: Final = 0.5
STOP_SECONDS: Final = 20.0
ASK_SECONDS: Final = 1800
"""A rehearsal trains a whole study, and a busy machine takes its time."""
PATIENT_NICENESS: Final = 10
STEADY_SECONDS: Final = 60.0
MAX_DEATHS: Final = 6
BIN: Final = Path(sys.executable).parent


@dataclass(kw_only=True, slots=True)
class _Life:
    """How a process that is kept up has fared."""

    since: float
    deaths: int = 0
    again_at: float | None = None


class Federation:
    """The processes of a layout; a context manager that leaves none behind.

    `separate` says, once it is started, whether the sites' processes are users of their own.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.settings: CoordinatorSettings = load_coordinator_settings(layout.settings_file)
        self.separate = False
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lives: dict[str, _Life] = {}
        self._patient: set[subprocess.Popen[bytes]] = set()
        self._hurried = False

    def __enter__(self) -> Self:
        """The federation itself, not started yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops every process and removes the sockets' folder."""
        self.stop()

    def start(self, *, on_state: Callable[[SiteId, str], None] = lambda *_: None) -> None:
        """Starts coordinator and sites and returns when every site is connected.

        Raises:
            StartError: a process ended or not all sites were connected in time.
        """
        self.separate = separate_users(self.layout)
        self._spawn("coordinator", "fedward-server", "serve", self.layout.settings_file)
        # Before a site: one that is turned away at first waits seconds before it tries again.
        self._wait(self._coordinator_ready, "the coordinator to listen")
        for site in self.layout.sites.values():
            on_state(site.site, "starting")
            self.start_site(site.site)
        # Each look is a request to SuperLink, and takes time from those that are waited for.
        self._wait(
            lambda: online_nodes(self.settings) >= len(self.layout.sites),
            "every site to connect",
            every=NODES_LOOK_SECONDS,
        )
        for name in self.layout.sites:
            on_state(name, "online")

    def start_site(self, name: SiteId) -> None:
        """Starts one site's `fedward-client run`."""
        self._spawn(name, "fedward-client", "run", self.layout.sites[name].settings_file)

    def _spawn(self, name: str, program: str, command: str, config: Path) -> None:
        log = config.parent / f"{command}.log"
        with log.open("ab") as log_file:
            self._processes[name] = subprocess.Popen(
                [str(BIN / program), command, "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env=offline_environment(),
            )

    def _coordinator_ready(self) -> bool:
        try:
            require_running(self.settings)
        except StartError:
            return False
        return ready_file(self.settings).exists()

    def _wait(self, ready: Callable[[], bool], what: str, *, every: float = LOOK_SECONDS) -> None:
        patience = START_SECONDS + START_SECONDS_A_SITE * len(self.layout.sites)
        limit = time.monotonic() + patience
        while not ready():
            self.check_alive()
            if time.monotonic() > limit:
                raise StartError(
                    f"sandbox: expected {what} within {patience:.0f} s, found otherwise. "
                    f"The logs are under {self.layout.root}"
                )
            time.sleep(every)

    @property
    def sites(self) -> list[SiteId]:
        """The sites whose processes were not killed."""
        return [site for site in self.layout.sites if site in self._processes]

    def keep_up(self) -> None:
        """Starts again what ended, as a hospital's systemd would, after a pause that grows.

        Raises:
            StartError: a process ended many times in a row.
        """
        now = time.monotonic()
        for name, process in list(self._processes.items()):
            life = self._lives.setdefault(name, _Life(since=now))
            if process.poll() is None:
                if now - life.since > STEADY_SECONDS:
                    life.deaths = 0
                continue
            if life.again_at is None:
                life.deaths += 1
                if life.deaths > MAX_DEATHS:
                    self._check(name)
                life.again_at = now + min(10.0, 2.0**life.deaths)
            elif now >= life.again_at:
                life.since, life.again_at = now, None
                self._start_again(name)

    def _start_again(self, name: str) -> None:
        if name == "coordinator":
            self._spawn(name, "fedward-server", "serve", self.layout.settings_file)
        else:
            self.start_site(SiteId(name))

    def check_alive(self) -> None:
        """Returns while the coordinator and every site that should run does.

        Raises:
            StartError: one of them ended; names it, its last words and its log.
        """
        for name in self._processes:
            self._check(name)

    def _check(self, name: str) -> None:
        process = self._processes[name]
        if process.poll() is not None:
            raise StartError(
                f"sandbox: expected {name} to run, found it ended with code "
                f"{process.returncode}: {self._last_words(name)}"
            )

    def _last_words(self, name: str) -> str:
        log = self.log_file(name)
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return f"{lines[-1] if lines else 'nothing'} (log: {log})"

    def log_file(self, name: str) -> Path:
        """Where a process of the sandbox writes what it prints."""
        if name == "coordinator":
            return self.layout.coordinator / "serve.log"
        return self.layout.sites[SiteId(name)].folder / "run.log"

    def pid(self, name: str) -> int:
        """The process id of `coordinator` or of a site's `fedward-client run`."""
        return self._processes[name].pid

    def kill_site(self, name: SiteId) -> None:
        """Ends a site at once, as a power cut would (SIGKILL); its children die with it."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def ask_site(self, name: SiteId, *command: str, patient: bool = False) -> dict[str, Any]:
        """The JSON that a `fedward-client` command prints at a site.

        `patient`: the command takes what time of the processor everybody else leaves.

        Raises:
            StartError: the command failed.
        """
        config = self.layout.sites[name].settings_file
        asked = subprocess.Popen(
            [str(BIN / "fedward-client"), *command, "--json", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Two are asked at a time: threads would take each other's cores.
            env=offline_environment() | {"OMP_NUM_THREADS": "1"},
        )
        with asked:
            if patient:
                os.setpriority(os.PRIO_PROCESS, asked.pid, PATIENT_NICENESS)
                self._patient.add(asked)
            if patient and self._hurried:
                asked.kill()
            try:
                answer, said = asked.communicate(timeout=ASK_SECONDS)
            finally:
                asked.kill()  # nothing, where it has ended
                self._patient.discard(asked)
        if asked.returncode != 0:
            raise StartError(
                f"{name}: expected JSON of `fedward-client {' '.join(command)}`, found exit code "
                f"{asked.returncode}: {said.decode(errors='replace').strip()}"
            )
        found: dict[str, Any] = json.loads(answer)
        return found

    def end_patient(self) -> None:
        """Ends the patient commands that run, and every one that begins from now on."""
        self._hurried = True
        for asked in list(self._patient):
            asked.kill()

    @property
    def processes(self) -> Mapping[str, int]:
        """Name -> process id of what runs."""
        return {name: process.pid for name, process in self._processes.items()}

    def stop(self) -> None:
        """Asks everything to stop, sites first, and ends what does not."""
        order = sorted(self._processes, key=lambda name: name == "coordinator")
        for name in order:
            if self._processes[name].poll() is None:
                self._processes[name].terminate()
        limit = time.monotonic() + STOP_SECONDS
        for name in order:
            try:
                self._processes[name].wait(timeout=max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._processes[name].kill()
                self._processes[name].wait()
        self._processes.clear()
        put_away(self.settings)
        shutil.rmtree(self.layout.run, ignore_errors=True)
