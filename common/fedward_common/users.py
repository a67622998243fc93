"""Users of this machine, by name or by number, and a child's one-way step into one (rules 14).

A number needs no account: `#12001` is user and group 12001, whether or not somebody has that name.
"""

import ctypes
import grp
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from fedward_common.errors import ConfigError

PR_SET_NO_NEW_PRIVS: Final = 38
NUMBER: Final = "#"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A user and the groups that a process of it is in; no other group of the user counts."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def user_id(name: str, *, key: str) -> int:
    """The id of a user; `key` names the setting in the error.

    Raises:
        ConfigError: no such user on this machine.
    """
    if name.startswith(NUMBER):
        return int(name.removeprefix(NUMBER))
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise _unknown(name, key, "user") from error


def group_id(name: str, *, key: str) -> int:
    """The id of a group; `key` names the setting in the error.

    Raises:
        ConfigError: no such group on this machine.
    """
    if name.startswith(NUMBER):
        return int(name.removeprefix(NUMBER))
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise _unknown(name, key, "group") from error


def find_account(name: str, *, group: str, key: str) -> Account:
    """The account of a user whose processes are in its own group and in `group`.

    Raises:
        ConfigError: no such user or group on this machine.
    """
    uid = user_id(name, key=key)
    own = uid if name.startswith(NUMBER) else pwd.getpwnam(name).pw_gid
    return Account(name=name, uid=uid, gid=own, groups=(group_id(group, key=key),))


def become(account: Account) -> None:
    """Makes this process the account's, for good; called between fork and exec.

    Guarantees: real, effective and saved ids are the account's, every other supplementary group is
    dropped, and with the ids go all capabilities.

    Raises:
        OSError: the kernel refuses; the process must end then.
    """
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    if (*os.getresuid(), *os.getresgid()) != (*[account.uid] * 3, *[account.gid] * 3):
        raise PermissionError("the kernel kept another user")


def no_new_privileges() -> None:
    """Nothing this process or its children execute gains a right by a set-uid bit (for good)."""
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")


@contextmanager
def acting_as(account: Account | None) -> Iterator[None]:
    """Opens and makes files with an account's rights, and as its own; None changes nothing.

    For root in a folder that belongs to somebody else: a link prepared there leads no further than
    its owner could go. It holds for the whole process: no other thread opens files meanwhile.
    """
    if account is None or account.uid == os.geteuid():
        yield
        return
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        os.setgroups(account.groups)
        os.setegid(account.gid)
        os.seteuid(account.uid)
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def _unknown(name: str, key: str, what: str) -> ConfigError:
    return ConfigError(
        f"{key}: expected a {what} of this machine, found {name!r}. Create it or remove the key"
    )
