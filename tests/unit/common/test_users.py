"""Users by name or number, and what a process may do once it is another one."""

import os
import pwd
import subprocess
import tempfile
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError
from fedward_common.users import (
    Account,
    acting_as,
    become,
    find_account,
    group_id,
    no_new_privileges,
    user_id,
)

SOMEBODY = Account(name="#54321", uid=54321, gid=54321, groups=(54320,))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_a_number_needs_no_account() -> None:
    account = find_account("#54321", group="#54320", key="[guard]")

    assert account == SOMEBODY


def test_a_name_is_looked_up_on_this_machine() -> None:
    root = pwd.getpwuid(0).pw_name

    assert user_id(root, key="[guard]") == 0
    assert group_id("#7", key="[guard]") == 7


@pytest.mark.parametrize("find", [user_id, group_id])
def test_an_unknown_name_is_named_with_its_key(find: object) -> None:
    with pytest.raises(ConfigError, match=r"\[guard\] group: expected a .* 'nobody-here'"):
        find("nobody-here", key="[guard] group")  # type: ignore[operator]


@as_root
def test_files_that_are_made_for_somebody_are_theirs() -> None:
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders let nobody through
        Path(root).chmod(0o711)
        theirs = Path(root, "theirs")
        theirs.mkdir()
        os.chown(theirs, SOMEBODY.uid, SOMEBODY.gid)

        with acting_as(SOMEBODY):
            (theirs / "file").write_text("x")
            with pytest.raises(PermissionError):
                Path(root, "other").write_text("x")

        assert (theirs / "file").stat().st_uid == SOMEBODY.uid
    assert os.geteuid() == 0


def test_acting_as_nobody_changes_nothing() -> None:
    before = os.geteuid(), os.getegid()

    with acting_as(None):
        inside = os.geteuid(), os.getegid()

    assert inside == before


@as_root
def test_a_process_that_became_somebody_has_no_other_group_right_or_way_back() -> None:
    def settle() -> None:
        become(SOMEBODY)
        no_new_privileges()

    done = subprocess.run(
        ["/bin/cat", "/proc/self/status"], preexec_fn=settle, capture_output=True, check=True
    )

    status = dict(line.split(":\t", 1) for line in done.stdout.decode().splitlines())
    assert status["Uid"].split() == ["54321"] * 4
    assert status["Gid"].split() == ["54321"] * 4
    assert status["Groups"].split() == ["54320"]
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
