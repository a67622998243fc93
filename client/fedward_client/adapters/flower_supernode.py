"""SuperNode's process: Flower 1.41's own, with its pauses replaced by wake-ups.

As shipped SuperNode sleeps 3 s after an empty poll, looks every 0.5 s for a reply and its objects,
and a worker has to ask again and again for a task. Here each of these waits ends when what it waits
for is there, and a slip in its receiving is mended (`Reception`). Nothing else is
changed: no message, no order, no retry. The private names that this takes are listed in `quicken`
and pinned by tests/contract/test_flower_waits.py.

`python -m fedward_client.adapters.flower_supernode ARGUMENTS OF flower-supernode` is the program.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import flwr.supernode.fleet_http_connection as connection
import flwr.supernode.start_client_internal as start_client
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.supercore import heartbeat
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.object_store.object_store import ObjectStore
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.servicer.runtime import runtime_handlers

from fedward_common.entry import leave_lightly

OBJECT_BACKOFF_SECONDS: Final = 0.02
"""A message may be announced a moment before its objects are stored."""
EMPTY_POLL_SECONDS: Final = 0.1
"""The edge holds a poll open by itself; this only bounds how often one that does not is asked."""
LOOK_AGAIN_SECONDS: Final = 1.0
"""Finds a task that came back because the worker that had taken it died."""
LEASE_SECONDS: Final = 10
"""SuperLink lets nobody take a node's place until twice this has passed since its last heartbeat:
so long a SuperNode that was killed waits when it is there again (as shipped: 60 s). Flower's
least."""
HEARTBEAT_SECONDS: Final = 20
"""Flower sends a heartbeat after (this - 5 s) x 0.8: every 12 s, well within the 20 s."""
TASK_SECONDS: Final = 4.0
"""How long a worker's question for a task stays open: its supervisor sees by its waking that it
lives (`fedward_common.processes.AWAKE`)."""


class Wakeup:
    """Counts what happened, and lets one thread wait until it has happened once more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._seen = 0

    def ring(self) -> None:
        """Says that something happened; a ring before the wait is remembered."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Returns true as soon as something happened since the last wait, false after `seconds`."""
        with self._changed:
            rung = self._changed.wait_for(lambda: self._count != self._seen, timeout=seconds)
            self._seen = self._count
            return rung


class NodeClock:
    """Stands in for the module `time` in SuperNode's main loop, which only sleeps with it."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup

    def sleep(self, seconds: float) -> None:
        """Waits until the node's state changed: at most `seconds`, after an empty poll a moment."""
        if seconds > 1:
            time.sleep(EMPTY_POLL_SECONDS)
        else:
            self._wakeup.wait(seconds)


class OpenQuestion:
    """A worker's question for a task, held open until there is one.

    A task is offered only when its message was received: Flower makes the task first, and a worker
    that came in between would find no message and fail.
    """

    def __init__(self, answer: Any, *, seconds: float = TASK_SECONDS) -> None:
        self._answer = answer
        self._seconds = seconds
        self._received = Wakeup()
        self._half_made = threading.Event()

    def making_task(self) -> None:
        """A task is about to be made whose message is not received yet."""
        self._half_made.set()

    def received(self) -> None:
        """The message of the last task was received, or given up with its task."""
        self._half_made.clear()
        self._received.ring()

    def __call__(self, request: Any, state: Any) -> Any:
        """Flower's answer: a task as soon as there is one, or none after a while."""
        limit = time.monotonic() + self._seconds
        answer = AcquireTaskResponse()
        while (left := limit - time.monotonic()) > 0:
            if not self._half_made.is_set():
                answer = self._answer(request, state)
            if answer.HasField("task"):
                break
            self._received.wait(min(left, LOOK_AGAIN_SECONDS))
        return answer


class Reception:
    """Receives an instruction whole or not at all, and only then offers its task to a worker.

    As shipped SuperNode stores the instruction, makes its task, and then confirms it. Where its run
    ends in that very moment SuperNode says that it ignores it, but the task is there and is done.
    Its reply is then taken for that to the next instruction, that one's for the one after, and so
    on: each reply leaves an instruction late, which is after its round.
    """

    def __init__(self, receive: Callable[..., int | None], question: OpenQuestion) -> None:
        self._receive = receive
        self._question = question
        self._task: int | None = None
        self._message = ""

    def made_task(self, task: int | None) -> None:
        """The task of the instruction that is received now was made."""
        self._task = task

    def stored(self, message_id: str) -> None:
        """The instruction that is received now was stored."""
        self._message = message_id

    def __call__(
        self, *, state: InMemoryNodeState, object_store: ObjectStore, **named: Any
    ) -> int | None:
        """The run whose instruction was received; None leaves no instruction and no task."""
        self.stored("")
        run = self._receive(state=state, object_store=object_store, **named)
        if run is None and self._message in state.msg_store and self._task is not None:
            state.delete_messages(message_ids=[self._message])
            object_store.delete(self._message)
            state.finish_task(self._task, sub_status=SubStatus.FAILED, details="run ended")
        self._question.received()
        return run


def quicken() -> None:
    """Replaces SuperNode's pauses in this process, and how it receives.

    Private names: `start_client_internal.time` and `._pull_and_store_message`,
    `runtime_handlers.acquire_task`, `InMemoryNodeState.create_task`, `.store_message` and
    `.msg_store`, `InMemoryObjectStore.put`,
    `pull_objects.__kwdefaults__["initial_backoff"]`, and `HEARTBEAT_DEFAULT_INTERVAL` of
    `fleet_http_connection` and `heartbeat`.
    """
    changed = Wakeup()
    question = OpenQuestion(runtime_handlers.acquire_task)
    reception = Reception(start_client._pull_and_store_message, question)
    create_task = InMemoryNodeState.create_task
    store_message, put = InMemoryNodeState.store_message, InMemoryObjectStore.put

    def make(self: Any, *arguments: Any, **named: Any) -> Any:
        question.making_task()
        made = create_task(self, *arguments, **named)
        reception.made_task(made)
        return made

    def store(self: Any, message: Any) -> Any:
        stored = store_message(self, message)
        if message.metadata.reply_to_message_id:
            changed.ring()
        else:
            reception.stored(message.metadata.message_id)
        return stored

    def put_object(self: Any, object_id: str, object_content: bytes) -> None:
        put(self, object_id, object_content)
        changed.ring()

    defaults = pull_objects.__kwdefaults__
    if defaults is None or "initial_backoff" not in defaults:
        raise RuntimeError("flower: expected pull_objects with a default initial_backoff")
    defaults["initial_backoff"] = OBJECT_BACKOFF_SECONDS
    for module, seconds in ((connection, LEASE_SECONDS), (heartbeat, HEARTBEAT_SECONDS)):
        if not hasattr(module, "HEARTBEAT_DEFAULT_INTERVAL"):
            raise RuntimeError("flower: expected a module with HEARTBEAT_DEFAULT_INTERVAL")
        setattr(module, "HEARTBEAT_DEFAULT_INTERVAL", seconds)  # noqa: B010
    setattr(start_client, "time", NodeClock(changed))  # noqa: B010 - a name of Flower's module
    setattr(start_client, "_pull_and_store_message", reception)  # noqa: B010
    setattr(runtime_handlers, "acquire_task", question)  # noqa: B010
    setattr(InMemoryNodeState, "create_task", make)  # noqa: B010
    setattr(InMemoryNodeState, "store_message", store)  # noqa: B010
    setattr(InMemoryObjectStore, "put", put_object)  # noqa: B010


def main() -> None:
    """Runs SuperNode with the arguments of this process until it is ended."""
    leave_lightly()
    quicken()
    flower_supernode()


if __name__ == "__main__":
    main()
