"""SuperLink's state lies in memory where there is some, and its numbers survive a reboot."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fedward_common.errors import StartError
from fedward_server.adapters import superlink_state
from fedward_server.adapters.superlink_state import keep_copy, put_away, superlink_database
from fedward_server.settings import CoordinatorSettings, TlsPaths


def settings(folder: Path) -> CoordinatorSettings:
    (folder / "state").mkdir()
    tls = TlsPaths(certificate=folder / "c", key=folder / "k", ca=folder / "r")
    return CoordinatorSettings(
        federation="north", state=folder / "state", run=folder / "run", tls=tls
    )


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as a tmpfs."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(superlink_state, "_is_tmpfs", lambda asked: asked == folder)
    monkeypatch.setattr(superlink_state, "ROOM_BYTES", 0)
    return folder


def test_the_same_coordinator_finds_the_same_private_file(tmp_path: Path, memory: Path) -> None:
    where = settings(tmp_path)

    found = superlink_database(where, memory=memory)

    assert found == superlink_database(where, memory=memory)
    assert memory in found.parents
    assert found.parent.stat().st_mode & 0o777 == 0o700


def test_without_a_tmpfs_the_state_is_on_disk(tmp_path: Path) -> None:
    where = settings(tmp_path)

    assert superlink_database(where, memory=tmp_path) == where.state / "superlink.db"


def test_a_folder_that_others_may_enter_is_not_used(tmp_path: Path, memory: Path) -> None:
    where = settings(tmp_path)
    superlink_database(where, memory=memory).parent.chmod(0o755)

    assert superlink_database(where, memory=memory) == where.state / "superlink.db"


def written(path: Path, number: int) -> sqlite3.Connection:
    """An open database in WAL mode, as SuperLink has it, that holds `number` in its log only."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    with database:
        database.execute("CREATE TABLE IF NOT EXISTS node (id INTEGER)")
        database.execute("DELETE FROM node")
        database.execute("INSERT INTO node VALUES (?)", (number,))
    return database


def numbers(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [number for (number,) in database.execute("SELECT id FROM node")]


def test_what_a_killed_superlink_left_in_its_log_is_taken_up(tmp_path: Path, memory: Path) -> None:
    where = settings(tmp_path)
    open_still = written(where.state / "superlink.db", 42)

    found = superlink_database(where, memory=memory)

    assert numbers(found) == [42]
    open_still.close()


def test_a_log_beside_an_older_copy_does_not_undo_the_newer(tmp_path: Path, memory: Path) -> None:
    where = settings(tmp_path)
    path = superlink_database(where, memory=memory)
    old = written(where.state / "superlink.db", 1)
    new = written(path, 2)

    assert keep_copy(where, memory=memory)

    assert numbers(where.state / "superlink.db") == [2]
    old.close()
    new.close()


def test_a_torn_copy_stops_the_start_and_leaves_no_half_file(tmp_path: Path, memory: Path) -> None:
    where = settings(tmp_path)
    (where.state / "superlink.db").write_bytes(b"SQLite format 3\0 torn")

    with pytest.raises(StartError, match="Restore the newest copy"):
        superlink_database(where, memory=memory)

    assert not [path for path in memory.rglob("*") if path.name == "superlink.db"]


def test_what_was_kept_is_there_again_after_a_reboot(tmp_path: Path, memory: Path) -> None:
    where = settings(tmp_path)
    path = superlink_database(where, memory=memory)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE node (id INTEGER)")
        database.execute("INSERT INTO node VALUES (42)")
    database.close()

    keep_copy(where, memory=memory)
    shutil.rmtree(path.parent)
    again = sqlite3.connect(superlink_database(where, memory=memory))

    assert again.execute("SELECT id FROM node").fetchall() == [(42,)]
    again.close()
    put_away(where, memory=memory)
    assert not list(memory.iterdir())
