"""Flower's pauses that Fedward replaces: another version must fail here, loudly."""

import inspect
import re
import threading
from types import SimpleNamespace
from typing import Any

import flwr.common.constant as constant
import flwr.supercore.heartbeat as heartbeat
import flwr.superlink.grid.http_grid as http_grid
import flwr.supernode.fleet_http_connection as connection
import flwr.supernode.runtime.run_clientapp as run_clientapp
import flwr.supernode.servicer.runtime.runtime_handlers as runtime_handlers
import flwr.supernode.start_client_internal as start_client
import pytest
from flwr.common.constant import Status
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.proto.task_pb2 import Task
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.object_store.object_store_factory import ObjectStoreFactory
from flwr.supercore.routers.runtime.router import acquire_task
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.nodestate.nodestate_factory import NodeStateFactory

from fedward_client.adapters.flower_supernode import (
    HEARTBEAT_SECONDS,
    LEASE_SECONDS,
    NodeClock,
    OpenQuestion,
    Reception,
    Wakeup,
)
from fedward_server.adapters import reply_pulls


def test_supernodes_main_loop_uses_time_for_three_pauses_and_nothing_else() -> None:
    source = inspect.getsource(start_client)

    assert len(re.findall(r"\btime\.\w+\(", source)) == 3
    assert source.count("time.sleep(0.5)") == 2
    assert source.count("time.sleep(3)") == 1


def test_a_worker_asks_for_a_task_through_the_name_that_is_replaced() -> None:
    assert "handlers.acquire_task(request, state)" in inspect.getsource(acquire_task)
    assert list(inspect.signature(runtime_handlers.acquire_task).parameters) == ["request", "state"]
    assert not inspect.iscoroutinefunction(acquire_task)  # it may wait: in a thread


def test_supernode_keeps_its_state_in_the_classes_that_are_replaced() -> None:
    store = ObjectStoreFactory().store()

    assert isinstance(store, InMemoryObjectStore)
    assert isinstance(NodeStateFactory(ObjectStoreFactory()).state(), InMemoryNodeState)
    assert list(inspect.signature(InMemoryNodeState.store_message).parameters) == [
        "self",
        "message",
    ]
    assert list(inspect.signature(InMemoryObjectStore.put).parameters) == [
        "self",
        "object_id",
        "object_content",
    ]


def test_supernode_makes_the_task_before_it_stores_the_message() -> None:
    source = inspect.getsource(start_client._pull_and_store_message)

    assert source.index("state.create_task(") < source.index("state.store_message(message)")


@pytest.mark.parametrize(
    ("caller", "name"),
    [
        (start_client, "pull_objects"),
        (http_grid, "pull_objects"),
        (run_clientapp, "pull_and_inflate_object_from_tree"),
    ],
)
def test_objects_are_pulled_by_functions_with_a_default_backoff(caller: Any, name: str) -> None:
    function = getattr(caller, name)

    assert function.__name__ in (name, "_pull_while_awaited")  # quickened in this process already
    assert getattr(inflatable_utils, name).__kwdefaults__["initial_backoff"] in (1, 0.02)


def test_a_pull_ends_when_nobody_waits_for_it() -> None:
    """Whatever SuperLink has of it: an object that is not there is asked for until given up."""
    given_up = threading.Event()

    def missing(_object_id: str) -> bytes:
        given_up.set()
        raise inflatable_utils.ObjectUnavailableError("a")

    reply_pulls._here.given_up = given_up
    with pytest.raises(inflatable_utils.ObjectPullError):
        reply_pulls._pull_while_awaited(["a"], missing)
    del reply_pulls._here.given_up


def test_a_ring_before_the_wait_is_remembered_once() -> None:
    wakeup = Wakeup()
    wakeup.ring()

    assert wakeup.wait(5.0)
    assert not wakeup.wait(0.0)


def test_a_short_pause_ends_with_the_ring_of_another_thread() -> None:
    wakeup = Wakeup()
    clock = NodeClock(wakeup)
    waiting = threading.Thread(target=clock.sleep, args=(1.0,))
    waiting.start()

    wakeup.ring()
    waiting.join(timeout=30)

    assert not waiting.is_alive()


def test_a_task_is_offered_only_when_its_message_was_received() -> None:
    tasks: list[Task] = []

    def answer(_request: object, _state: object) -> AcquireTaskResponse:
        return AcquireTaskResponse(task=tasks[0]) if tasks else AcquireTaskResponse()

    question = OpenQuestion(answer, seconds=0.05)
    question.making_task()
    tasks.append(Task(task_id=7))

    assert not question(SimpleNamespace(), SimpleNamespace()).HasField("task")
    question.received()
    assert question(SimpleNamespace(), SimpleNamespace()).task.task_id == 7


def test_a_nodes_lease_and_its_heartbeats_come_from_the_names_that_are_replaced() -> None:
    assert inspect.getsource(connection).count("heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL") == 2
    assert "HEARTBEAT_DEFAULT_INTERVAL - HEARTBEAT_CALL_TIMEOUT" in inspect.getsource(heartbeat)
    sent_after = (HEARTBEAT_SECONDS - constant.HEARTBEAT_CALL_TIMEOUT) * (
        constant.HEARTBEAT_BASE_MULTIPLIER + max(constant.HEARTBEAT_RANDOM_RANGE)
    )

    assert LEASE_SECONDS >= constant.HEARTBEAT_MIN_INTERVAL
    assert (
        sent_after + constant.HEARTBEAT_CALL_TIMEOUT < constant.HEARTBEAT_PATIENCE * LEASE_SECONDS
    )


@pytest.mark.parametrize("run", [None, 1])
def test_an_instruction_is_received_whole_or_leaves_nothing_behind(run: int | None) -> None:
    """A run that ends while its instruction is received: Flower leaves message and task there."""
    store = ObjectStoreFactory().store()
    state = NodeStateFactory(ObjectStoreFactory()).state()
    assert isinstance(state, InMemoryNodeState)
    question = OpenQuestion(lambda _request, state: offered(state), seconds=0.05)

    def receive(*, state: InMemoryNodeState, object_store: object) -> int | None:
        question.making_task()
        task = state.create_task(TaskType.CLIENT_APP, 1)
        reception.made_task(task)
        metadata = SimpleNamespace(message_id="m", reply_to_message_id="", run_id=1)
        state.store_message(SimpleNamespace(metadata=metadata))  # type: ignore[arg-type]
        reception.stored("m")
        assert not question(None, state).HasField("task")  # not while it is received
        return run

    reception = Reception(receive, question)

    assert reception(state=state, object_store=store) == run
    assert ("m" in state.msg_store) == (run is not None)
    assert question(None, state).HasField("task") == (run is not None)


def offered(state: InMemoryNodeState) -> AcquireTaskResponse:
    """The first task that nobody has finished."""
    open_ones = [one for one in state.get_tasks() if one.status.status == Status.PENDING]
    return AcquireTaskResponse(task=open_ones[0]) if open_ones else AcquireTaskResponse()


def test_supernode_takes_an_instruction_whose_run_ended_for_ignored_though_its_task_is_there() -> (
    None
):
    """The slip that Reception mends: where it is gone, so can Reception be."""
    source = inspect.getsource(start_client._pull_and_store_message)
    ignored = source[source.index("except RunNotRunningException") :]

    assert source.index("state.store_message(message)") < source.index("confirm_message_received(")
    assert "delete_messages" not in ignored
    assert "run_id = _pull_and_store_message(\n" in inspect.getsource(start_client)
