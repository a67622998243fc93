"""The SQLite ledger on disk: what damage it notices, and what lowering a limit does."""

import json
import os
import shutil
import signal
import sqlite3
import stat
from pathlib import Path

import pytest

from fedward_client.adapters import sqlite_ledger
from fedward_client.adapters.ledger_mark import mark_path, read_mark, write_mark
from fedward_client.adapters.sqlite_ledger import SqliteLedger, ledger_exists, read_accounts
from fedward_common.canonical import canonical_json
from fedward_common.errors import BudgetExceeded, LedgerError
from fedward_common.privacy.ledger import Charge, row_sha256
from fedward_common.privacy.ledger_state import LedgerState
from fedward_common.privacy.ledger_values import Head, Limits
from tests.support.ledger_fakes import ROUND, Ticking, digest, reservation

WIDE = Limits(max_epsilon_per_study=10.0, max_epsilon_total=20.0, delta=1e-4)


def opened(folder: Path, *, limits: Limits = WIDE) -> SqliteLedger:
    return SqliteLedger(folder / "ledger.sqlite", limits=limits, clock=Ticking())


def charge(ledger: SqliteLedger, number: int) -> Charge:
    return ledger.charge(
        [ROUND],
        study=digest("heart"),
        slot=f"heart/train/{number}",
        key=digest(f"key {number}"),
        purpose="round",
    )


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A folder with a closed ledger of one study and two rounds (four rows)."""
    ledger = opened(tmp_path)
    ledger.reserve(reservation())
    charge(ledger, 1)
    charge(ledger, 2)
    ledger.close()
    return tmp_path


def edit(folder: Path, *statements: str) -> None:
    """Changes the database as someone would who can write the file."""
    with sqlite3.connect(folder / "ledger.sqlite") as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def with_triggers_off(statement: str) -> list[str]:
    return [
        "DROP TRIGGER entries_no_update",
        "DROP TRIGGER entries_no_delete",
        statement,
        "CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
        "CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    ]


def test_charges_are_there_after_reopening(used: Path) -> None:
    ledger = opened(used)

    assert ledger.accounts()[0].charged("round") == 2
    assert charge(ledger, 2).repeated
    assert ledger.head().seq == 4


def test_the_files_are_for_their_user_alone(used: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in used.iterdir()}

    assert set(modes.values()) == {0o600}
    assert {"ledger.sqlite", "ledger.sqlite.mark"} <= modes.keys()


def test_what_another_connection_changes_is_found_before_the_next_charge(used: Path) -> None:
    ledger = opened(used)
    charge(ledger, 3)
    edit(used, *with_triggers_off("UPDATE entries SET body = x'7b7d' WHERE seq = 3"))

    with pytest.raises(LedgerError, match="row 3 changed or missing"):
        charge(ledger, 4)
    ledger.close()


def test_a_charge_costs_the_same_however_long_the_ledger_is(
    used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain is walked at opening, and again only when another connection wrote."""
    hashed: list[int] = []

    def counting(*, seq: int, previous: str, body: bytes) -> str:
        hashed.append(seq)
        return row_sha256(seq=seq, previous=previous, body=body)

    ledger = opened(used)
    monkeypatch.setattr(sqlite_ledger, "row_sha256", counting)
    charge(ledger, 3)
    charge(ledger, 4)
    ledger.head()

    assert hashed == [5, 6]  # the rows that were written, and none before them
    ledger.close()


def test_rows_cannot_be_updated_or_deleted(used: Path) -> None:
    for statement in ("UPDATE entries SET slot = 'x'", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            edit(used, statement)


@pytest.mark.parametrize(
    "statements",
    [
        with_triggers_off("DELETE FROM entries WHERE seq = 3"),
        with_triggers_off("DELETE FROM entries WHERE seq = 4"),
        with_triggers_off("DELETE FROM entries"),
        with_triggers_off("UPDATE entries SET slot = 'heart/train/9' WHERE seq = 3"),
        with_triggers_off("UPDATE entries SET body = replace(body, 'round', 'other') WHERE seq=3"),
        with_triggers_off(
            "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), '\"delta\":0.0001', "
            "'\"delta\":0.0009') AS BLOB) WHERE seq = 2"
        ),
        ["DROP TRIGGER entries_no_delete"],
        ["INSERT INTO entries VALUES (5, 'x', x'7b7d', '', '')"],
        ["CREATE TABLE more (x)"],
    ],
    ids=[
        "row removed",
        "last row removed",
        "all rows removed",
        "slot changed",
        "entry changed",
        "byte changed",
        "trigger removed",
        "row added",
        "table added",
    ],
)
def test_an_edited_database_is_refused(used: Path, statements: list[str]) -> None:
    edit(used, *statements)

    with pytest.raises(LedgerError):
        opened(used)
    with pytest.raises(LedgerError):
        read_accounts(used / "ledger.sqlite")


def test_an_edit_under_a_running_ledger_stops_the_next_charge(used: Path) -> None:
    ledger = opened(used)
    edit(used, *with_triggers_off("DELETE FROM entries WHERE seq = 4"))

    with pytest.raises(LedgerError):
        charge(ledger, 3)


def test_an_older_copy_put_back_is_refused(used: Path) -> None:
    shutil.copy(used / "ledger.sqlite", used / "copy")
    ledger = opened(used)
    charge(ledger, 3)
    ledger.close()
    shutil.copy(used / "copy", used / "ledger.sqlite")

    with pytest.raises(LedgerError, match="rolled back"):
        opened(used)


def test_a_deleted_database_is_refused(used: Path) -> None:
    (used / "ledger.sqlite").unlink()

    with pytest.raises(LedgerError, match="never start a new one"):
        opened(used)
    with pytest.raises(LedgerError):
        read_accounts(used / "ledger.sqlite")


def test_a_removed_mark_is_refused(used: Path) -> None:
    (used / "ledger.sqlite.mark").unlink()

    with pytest.raises(LedgerError, match="mark"):
        opened(used)


def test_the_ledger_of_another_site_is_refused(used: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    ledger = opened(other)
    ledger.reserve(reservation("lung"))
    ledger.close()
    shutil.copy(other / "ledger.sqlite", used / "ledger.sqlite")

    with pytest.raises(LedgerError):
        opened(used)


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)

    with pytest.raises(LedgerError):
        opened(tmp_path)


def test_database_and_mark_put_back_together_are_only_noticed_by_what_the_journal_noted(
    used: Path,
) -> None:
    """The documented limit of the mark, and why the guard asks `require` at its start."""
    for name in ("ledger.sqlite", "ledger.sqlite.mark"):
        shutil.copy(used / name, used / f"{name}.copy")
    ledger = opened(used)
    charge(ledger, 3)
    noted = ledger.head()
    ledger.close()
    for name in ("ledger.sqlite", "ledger.sqlite.mark"):
        shutil.copy(used / f"{name}.copy", used / name)

    restored = opened(used)

    with pytest.raises(LedgerError, match="older ledger"):
        restored.require(noted)
    restored.require(Head())


def test_a_second_process_is_refused_while_one_has_the_ledger(used: Path) -> None:
    ledger = opened(used)

    with pytest.raises(LedgerError, match="Stop the other guard"):
        opened(used)

    ledger.close()
    opened(used).close()


def test_reading_leaves_a_running_ledger_alone(used: Path) -> None:
    ledger = opened(used)
    mark = (used / "ledger.sqlite.mark").read_bytes()

    head, accounts = read_accounts(used / "ledger.sqlite")

    assert head == ledger.head()
    assert accounts[0].charged("round") == 2
    assert (used / "ledger.sqlite.mark").read_bytes() == mark
    assert not charge(ledger, 3).repeated


def test_a_limit_lowered_below_what_is_reserved_stops_further_charges(used: Path) -> None:
    lowered = Limits(max_epsilon_per_study=10.0, max_epsilon_total=0.5, delta=1e-4)
    ledger = opened(used, limits=lowered)

    with pytest.raises(BudgetExceeded, match="max_epsilon_total"):
        charge(ledger, 3)
    assert charge(ledger, 2).repeated


def test_a_crash_before_the_first_mark_leaves_a_ledger_that_opens(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "ledger.sqlite.mark").unlink()

    ledger = opened(tmp_path)

    assert ledger.head().seq == 1
    assert ledger_exists(tmp_path / "ledger.sqlite")


def test_kill_9_in_the_middle_of_charges_loses_none(tmp_path: Path) -> None:
    """Twelve processes are killed while they charge; each charge they reported is on disk, once."""
    rounds = 400
    first = opened(tmp_path)
    first.reserve(reservation(rounds=rounds, epsilon=10.0))
    first.close()
    granted: list[int] = []
    for attempt in range(12):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # the guard's part: charge, then say so
            try:
                ledger = opened(tmp_path)
                number = len(ledger.accounts()[0].charges)
                while True:
                    number += 1
                    charge(ledger, number)
                    os.write(write, b"%d\n" % number)
            finally:
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as lines:
            for _ in range(3 + attempt % 4):
                granted.append(int(lines.readline()))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            granted += [int(line) for line in lines if line.endswith("\n")]

    ledger = opened(tmp_path)

    charged = [found.slot for found in ledger.accounts()[0].charges]
    assert {f"heart/train/{number}" for number in granted} <= set(charged)
    assert len(set(charged)) == len(charged)
    assert len(granted) == len(set(granted)) >= 12 * 3
    # At most the one charge per killed process that was committed and not yet reported.
    assert len(charged) - len(granted) <= 12


def test_entries_name_no_patient_and_state_their_delta(used: Path) -> None:
    with sqlite3.connect(used / "ledger.sqlite") as database:
        bodies = [json.loads(body) for (body,) in database.execute("SELECT body FROM entries")]
    database.close()

    assert [body["kind"] for body in bodies] == ["open", "reserve", "charge", "charge"]
    assert bodies[1]["delta"] == 1e-4
    assert bodies[2].keys() == {"kind", "time", "study", "slot", "key", "purpose", "event"}


def test_a_ledger_of_an_earlier_version_fixes_its_order_with_its_next_study() -> None:
    """Rows without an order are read; the next reservation carries one, for all that follow."""
    limits = Limits(max_epsilon_per_study=10.0, max_epsilon_total=20.0, delta=1e-4)
    state = LedgerState()
    first = state.admit(reservation("heart"), limits=limits, time="t")
    assert first is not None
    state.apply({key: value for key, value in first.items() if key != "order"})

    assert state.order is None
    second = state.admit(reservation("lung"), limits=limits, time="t")
    assert second is not None
    state.apply(second)
    third = state.admit(reservation("kidney"), limits=limits, time="t")

    assert state.order == second["order"]
    assert third is not None
    assert "order" not in third
    with pytest.raises(LedgerError, match="one known Renyi order"):
        state.apply({**third, "order": 2.0})


def test_a_mark_that_a_crash_tore_leaves_the_one_before_it(used: Path) -> None:
    mark = used / "ledger.sqlite.mark"
    whole = read_mark(used / "ledger.sqlite")
    assert whole is not None
    torn = bytearray(mark.read_bytes())
    at = torn.index(f'"seq":{whole.seq},'.encode()) // 512 * 512
    torn[at + 20 : at + 512] = bytes(492)
    mark.write_bytes(torn)

    before = read_mark(used / "ledger.sqlite")
    opened(used).close()

    assert before is not None
    assert before.seq == whole.seq - 1
    assert read_mark(used / "ledger.sqlite") == whole


def test_the_newest_good_mark_is_never_written_over(tmp_path: Path) -> None:
    """Also where a write in between failed, and rows and places no longer go in turns."""
    ledger = tmp_path / "ledger.sqlite"
    write_mark(ledger, Head(seq=1, sha256="a" * 64))
    for seq in (2, 4, 6, 7, 9):
        newest, before = read_mark(ledger), mark_path(ledger).read_bytes()
        write_mark(ledger, Head(seq=seq, sha256="a" * 64))
        after = mark_path(ledger).read_bytes()

        kept = [
            before[at : at + 512] for at in (0, 512) if after.startswith(before[at : at + 512], at)
        ]
        assert newest is not None
        assert any(f'"seq":{newest.seq},'.encode() in record for record in kept)
        assert read_mark(ledger) == Head(seq=seq, sha256="a" * 64)


def test_a_mark_of_which_nothing_is_left_is_refused(used: Path) -> None:
    (used / "ledger.sqlite.mark").write_bytes(bytes(1024))

    with pytest.raises(LedgerError, match="expected a row number and a hash"):
        opened(used)


def test_a_mark_of_an_earlier_version_is_read_and_replaced(used: Path) -> None:
    mark = used / "ledger.sqlite.mark"
    head = read_mark(used / "ledger.sqlite")
    assert head is not None
    mark.write_bytes(canonical_json({"seq": head.seq, "sha256": head.sha256}))

    opened(used).close()

    assert mark.stat().st_size == 1024
    assert stat.S_IMODE(mark.stat().st_mode) == 0o600
    assert read_mark(used / "ledger.sqlite") == head
