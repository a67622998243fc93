"""Processes of a running federation by the names that people give them, and what is left of it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from fedward_server.sandbox.federation import Federation

COORDINATOR = ("serve", "superlink", "bridge", "superexec", "serverapp", "edge", "runs")
SITE = ("run", "guard", "gateway", "site-bridge", "supernode", "worker", "task")
_MARKS = {
    "superlink": "flower-superlink",
    "bridge": "fedward_common.bridge",
    "superexec": "flower-superexec",
    "serverapp": "flwr-serverapp",
    "edge": "fedward_server edge",
    "runs": "keep-runs",
    "guard": "fedward_client guard",
    "gateway": "fedward_client gateway",
    "site-bridge": "fedward_common.bridge",
    "supernode": "flower-supernode",
    "worker": "fedward_client worker",
    "task": "fedward_client worker",
}


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
    root = federation.pid(owner)
    if name in ("serve", "run"):
        return root
    found = [(pid, depth) for pid, depth, command in below(root) if _MARKS[name] in command]
    # The worker is a child of `run`, its zygote a grandchild, a task below that.
    if name == "task":
        found = [(pid, depth) for pid, depth in found if depth >= 3]
    return found[0][0] if found else None


def strike(federation: Federation, owner: str, name: str, number: int = signal.SIGKILL) -> bool:
    """Sends the process a signal; False when it is not there."""
    pid = find(federation, owner, name)
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def left_behind(folder: Path) -> list[str]:
    """Command lines that still name the federation's folder."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in command and path.parent.name != str(os.getpid()):
            commands.append(command)
    return commands
