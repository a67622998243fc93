"""Processes of a running federation by the names that people give them, to be killed on purpose.

`make demo KILL="edge city:gateway"` shows that a study outlives each of them; the fault suite and
the soak strike by the same names.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from fedward_common.errors import ConfigError
from fedward_server.sandbox.federation import Federation

COORDINATOR: Final = ("serve", "superlink", "bridge", "superexec", "serverapp", "edge", "runs")
SITE: Final = ("run", "guard", "gateway", "bridge", "supernode", "worker", "task")
ROUND: Final = 2
"""Who is named is struck in this round, or in the first where there is no other."""

_OWNER: Final = "coordinator"
_MARKS: Final = {
    "superlink": ("flower-superlink",),
    "bridge": ("fedward_common.bridge",),
    "superexec": ("flower-superexec",),
    "serverapp": ("flwr-serverapp",),
    "edge": ("fedward_server edge",),
    "runs": ("keep-runs",),
    "guard": ("fedward_client guard",),
    "gateway": ("fedward_client gateway",),
    "supernode": ("flower-supernode", "flower_supernode"),
    "worker": ("fedward_client worker",),
    "task": ("fedward_client worker",),
}
_TASK_DEPTH: Final = 3
"""The worker is a child of `run`, its zygote a grandchild, a task below that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Victim:
    """A process by its owner (`coordinator` or a site) and its name there."""

    owner: str
    name: str

    @classmethod
    def parse(cls, text: str, *, sites: Sequence[str]) -> Self:
        """The process that `NAME` (of the coordinator) or `SITE:NAME` means.

        Raises:
            ConfigError: there is none; names those there are.
        """
        owner, sign, name = text.rpartition(":")
        if not sign and name in COORDINATOR:
            return cls(owner=_OWNER, name=name)
        if sign and owner in sites and name in SITE:
            return cls(owner=owner, name=name)
        raise ConfigError(
            f"--kill {text}: expected one of {', '.join(COORDINATOR)}, or SITE:NAME with a site of "
            f"the study ({', '.join(sites)}) and one of {', '.join(SITE)}, found another"
        )

    def __str__(self) -> str:
        """As people write it."""
        return self.name if self.owner == _OWNER else f"{self.owner}:{self.name}"


@dataclass(kw_only=True)
class Strikes:
    """Kills the named processes while the study is in its second round; each once.

    One that is not there at that moment (a task lives for a second) is struck when it is.
    """

    federation: Federation
    waiting: list[Victim]
    rounds: int
    _told: list[str] = field(default_factory=list)
    _round: int = 0

    def see(self, event: Mapping[str, Any]) -> None:
        """Takes note of an event of the run and strikes when the time has come."""
        if event["action"] == "round.opened" and self.waiting:
            self._round = int(event["fields"]["round"])
        self.look()

    def look(self) -> None:
        """Strikes who is there, once the round is."""
        if self._round < min(ROUND, self.rounds):
            return
        for victim in list(self.waiting):
            pid = find(self.federation, victim.owner, victim.name)
            if pid is None or not _signal(pid, signal.SIGKILL):
                continue
            self.waiting.remove(victim)
            self._told.append(f"kill -9 {victim} (process {pid}) in round {self._round}")

    def lines(self) -> list[str]:
        """What was struck, and what was not there to be."""
        return self._told + [f"kill -9 {victim}: it was not there" for victim in self.waiting]


def below(root: int) -> Iterator[tuple[int, int, str]]:
    """Process id, depth and command line of everything that `root` started, parents first."""
    children: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        children.setdefault(parent, []).append((int(folder.name), command))
    waiting = [(root, 0)]
    while waiting:
        parent, depth = waiting.pop(0)
        for pid, command in children.get(parent, []):
            yield pid, depth + 1, command
            waiting.append((pid, depth + 1))


def find(federation: Federation, owner: str, name: str) -> int | None:
    """The process `name` of `coordinator` or of a site; None when it is not there just now."""
    root = federation.processes.get(owner)
    if root is None or name in ("serve", "run"):
        return root
    marks = _MARKS[name]
    for pid, depth, command in below(root):
        if any(mark in command for mark in marks) and (name != "task" or depth >= _TASK_DEPTH):
            return pid
    return None


def strike(federation: Federation, owner: str, name: str, number: int = signal.SIGKILL) -> bool:
    """Sends the process a signal; False when it is not there."""
    pid = find(federation, owner, name)
    return pid is not None and _signal(pid, number)


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
