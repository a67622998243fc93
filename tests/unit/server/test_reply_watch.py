"""The edge tells of a reply when its last object has passed; the ServerApp hears it at once."""

import asyncio
from pathlib import Path

from fedward_server.adapters.edge_kick import ReplyLine
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.kicks import KickServer
from fedward_server.edge.replies import MAX_SESSIONS, ReplyWatch


def test_a_reply_is_told_of_when_its_last_object_has_passed() -> None:
    watch = ReplyWatch()
    told = watch.listen()

    watch.opened(7, "s", frozenset({"a", "b"}))
    watch.stored("s", "a")
    assert told.empty()
    watch.stored("s", "b")

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

    for number in range(MAX_SESSIONS + 1):
        watch.opened(number, f"s{number}", frozenset({"a"}))
    watch.stored("s0", "a")
    assert told.empty()
    watch.stored("s1", "a")

    assert told.get_nowait() == 1


def test_the_serverapp_hears_of_a_reply_over_the_socket(tmp_path: Path) -> None:
    watch, path = ReplyWatch(), tmp_path / "edge.sock"

    async def scene() -> list[list[int] | None]:
        server = KickServer(path=path, bell=WorkBell(), replies=watch)
        await server.start()
        line = ReplyLine(path)
        heard = [await asyncio.to_thread(line.heard, 5.0)]  # `ok`: it is connected
        watch.opened(7, "", frozenset())
        heard.append(await asyncio.to_thread(line.heard, 5.0))
        line.close()
        await server.stop()
        return heard

    assert asyncio.run(scene()) == [[], [7]]


def test_an_edge_that_is_not_there_is_none_and_no_error(tmp_path: Path) -> None:
    assert ReplyLine(tmp_path / "nobody.sock").heard(0.0) is None
