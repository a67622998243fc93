"""The worker: Flower's SuperExec loop with an executor that forks tasks from a warm process.

A new Python with torch costs seconds for every message; a fork of a process that has imported
everything costs milliseconds. The zygote is single-threaded, holds no task state and never sees a
record: each task runs in its own child, which ends with the task. Only ClientApp tasks are taken.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

import flwr.supercore.superexec.run_superexec as superexec
import httpcore  # noqa: F401 - httpx imports it with the first client: else each task would
from flwr.supercore.auth.superexec_secret import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.superexec.executor import LaunchResult
from flwr.supercore.superexec.executor.types import ExecutionSpec
from flwr.supernode.runtime.run_clientapp import run_clientapp

from fedward_client.adapters.forked_tasks import LOOK_SECONDS, ForkedTasks
from fedward_common.errors import StartError
from fedward_common.processes import die_with_parent

MAX_REQUEST_BYTES: Final = 65536
OBJECT_BACKOFF_SECONDS: Final = 0.02
"""A task may be taken a moment before the objects of its message are here; Flower waits 1 s."""


class Zygote:
    """A warm process that forks one child per task."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _serve_forks(theirs)
        theirs.close()
        self._socket = ours

    def launch(self, *, address: str, token: str) -> None:
        """Starts a task in a fresh child; the token never stands on a command line."""
        self._socket.send(json.dumps({"address": address, "token": token}).encode())

    def close(self) -> None:
        """Ends the zygote; tasks that run finish by themselves."""
        self._socket.close()


def _serve_forks(requests: socket.socket) -> None:
    """Forks a child for every request until the parent closes the socket; never returns."""
    # A task whose SuperNode is gone retries for ever, with records in memory: when the site stops,
    # or anything above ends, zygote and tasks end at once.
    die_with_parent(signal.SIGKILL)
    zygote = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # No task looks through what all of them share, which would also make each a copy of it.
    gc.collect()
    gc.freeze()
    tasks, look_at = ForkedTasks(), time.monotonic() + LOOK_SECONDS
    while True:
        asked = select.select([requests], [], [], max(0.0, look_at - time.monotonic()))[0]
        if time.monotonic() >= look_at:
            tasks.look()
            look_at = time.monotonic() + LOOK_SECONDS
        if not asked:
            continue
        request = requests.recv(MAX_REQUEST_BYTES)
        if not request:
            break
        if (pid := os.fork()) != 0:
            tasks.add(pid)
            continue
        die_with_parent(signal.SIGKILL)
        if os.getppid() != zygote:
            os._exit(1)  # it ended before the kernel was asked
        tasks.forget()
        requests.close()
        _run_task(request)
    os._exit(0)


def _run_task(request: bytes) -> NoReturn:
    """Flower's own entry in the child; the process ends with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    task = json.loads(request)
    code = 1
    try:
        run_clientapp(
            runtime_api_address=task["address"],
            token=task["token"],
            insecure=True,
            parent_pid=None,
            runtime_dependency_install=False,
        )
        code = 0
    except SystemExit as ended:  # Flower ends a task by exiting the process
        code = ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class ForkExecutor:
    """Flower's `Executor` port over a zygote."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """ClientApp tasks and nothing else; forks need no free slot."""
        del insecure, root_certificates_path
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        """Returns at once."""
        del task_type, fab_hash, insecure, root_certificates_path

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Forks a child for a ClientApp task; any other kind is refused."""
        if spec.task_type is not TaskType.CLIENT_APP:
            return LaunchResult.failed("this worker runs ClientApp tasks only")
        self._zygote.launch(address=spec.runtime_api_address, token=spec.token)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Nothing to maintain."""

    def close(self) -> None:
        """Ends the zygote."""
        self._zygote.close()


def run_worker(*, runtime_port: int, secret_file: Path) -> None:
    """Takes ClientApp tasks from SuperNode's Runtime API until the process is ended.

    Everything a task needs must be imported before the call: children inherit it.
    """
    defaults = pull_and_inflate_object_from_tree.__kwdefaults__
    if defaults is None or "initial_backoff" not in defaults:
        raise StartError("flower: expected pull_and_inflate_object_from_tree with initial_backoff")
    defaults["initial_backoff"] = OBJECT_BACKOFF_SECONDS
    executor = ForkExecutor(Zygote())
    # A private name of Flower 1.41, pinned by a contract test: it has no port for an executor.
    setattr(superexec, "get_executor", lambda *_args, **_kwargs: executor)  # noqa: B010
    superexec.run_superexec(
        runtime_api_address=f"127.0.0.1:{runtime_port}",
        insecure=True,
        superexec_auth_secret=load_superexec_auth_secret(secret_file=str(secret_file)),
        runtime_dependency_install=False,
    )
