"""The edge tells of a reply when its last object has passed; the ServerApp hears it at once."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_server.adapters.edge_kick import ReplyLine
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.kicks import KickServer
from fedward_server.edge.replies import MAX_MISSING, MAX_NODES, ReplyWatch


def test_a_reply_is_told_of_when_its_last_object_has_passed() -> None:
    watch = ReplyWatch()
    told = watch.listen()

    watch.opened(7, "s", frozenset({"a", "b"}))
    watch.stored(7, "s", "a")
    assert told.empty()
    watch.stored(7, "s", "b")

    assert told.get_nowait() == 7
    assert told.empty()


def test_a_reply_without_missing_objects_is_told_of_at_once() -> None:
    watch = ReplyWatch()
    told = watch.listen()

    watch.opened(7, "", frozenset())

    assert told.get_nowait() == 7


def test_sessions_that_never_end_are_forgotten() -> None:
    watch = ReplyWatch()
    told = watch.listen()

    for number in range(MAX_NODES + 1):
        watch.opened(number, f"s{number}", frozenset({"a"}))
    watch.stored(0, "s0", "a")
    assert told.empty()
    watch.stored(1, "s1", "a")

    assert told.get_nowait() == 1


def test_a_node_that_opens_session_after_session_keeps_one_and_nobody_elses_is_lost() -> None:
    watch = ReplyWatch()
    told = watch.listen()
    watch.opened(8, "other", frozenset({"a"}))

    for number in range(2 * MAX_NODES):
        watch.opened(7, f"s{number}", frozenset({"a"}))
    watch.stored(7, "s0", "a")
    assert told.empty()  # an older session: SuperLink dropped it, too
    watch.stored(8, "other", "a")

    assert told.get_nowait() == 8


def test_a_reply_of_more_objects_than_one_has_is_not_followed() -> None:
    watch = ReplyWatch()
    told = watch.listen()
    missing = [str(number) for number in range(MAX_MISSING + 1)]

    watch.opened(7, "s", frozenset(missing))
    for one in missing:
        watch.stored(7, "s", one)

    assert told.empty()


@pytest.fixture
def quiet() -> Iterator[int]:
    """A descriptor that never becomes readable."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def test_the_serverapp_hears_of_a_reply_over_the_socket(tmp_path: Path, quiet: int) -> None:
    watch, path = ReplyWatch(), tmp_path / "edge.sock"

    async def scene() -> list[list[int] | None]:
        server = KickServer(path=path, bell=WorkBell(), replies=watch)
        await server.start()
        line = ReplyLine(path)
        heard = [await asyncio.to_thread(line.heard, 5.0, quiet)]  # `ok`: it is connected
        watch.opened(7, "", frozenset())
        heard.append(await asyncio.to_thread(line.heard, 5.0, quiet))
        line.close()
        await server.stop()
        return heard

    assert asyncio.run(scene()) == [[], [7]]


def test_an_edge_that_is_not_there_is_none_and_no_error(tmp_path: Path, quiet: int) -> None:
    assert ReplyLine(tmp_path / "nobody.sock").heard(0.0, quiet) is None


def test_the_edge_stops_though_a_serverapp_still_listens(tmp_path: Path, quiet: int) -> None:
    async def scene() -> None:
        server = KickServer(path=tmp_path / "edge.sock", bell=WorkBell(), replies=ReplyWatch())
        await server.start()
        line = ReplyLine(tmp_path / "edge.sock")
        await asyncio.to_thread(line.heard, 5.0, quiet)
        await asyncio.wait_for(server.stop(), 5.0)
        line.close()

    asyncio.run(scene())
