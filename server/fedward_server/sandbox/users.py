"""Users of their own for the processes of a sandbox's sites, where this machine allows it.

A hospital makes four accounts for a site; here four numbers without an account are written into
each site.toml, so that no process of one site can open what belongs to another, or to another
process of its own site. Needs root, and a Python that every user may read.
"""

import os
import pwd
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedward_common.trust.private_files import write_atomically
from fedward_server.sandbox.layout import Layout, SiteFolder

FIRST: Final = 30_000
LAST: Final = 59_999
"""Debian keeps these numbers free; those that this machine uses all the same are left out."""
BLOCK: Final = 8
PRIVATE: Final = 0o700
PASSAGE: Final = 0o711
ALONE: Final = "alone"
"""Where `run` keeps models of single hospitals for a moment."""
PROBE: Final = """\
import os, sys
import fedward_client
sys.exit(not all(os.access(path, os.R_OK) for path in sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteUsers:
    """The numbers of one site: one group and four users."""

    group: int

    @property
    def worker(self) -> int:
        """The user, and the group, that may read the site's patients."""
        return self.group + 4

    @property
    def settings(self) -> str:
        """The lines of [guard]."""
        names = ("guard_user", "gateway_user", "node_user", "worker_user")
        users = "".join(f'{name} = "#{self.group + n}"\n' for n, name in enumerate(names, start=1))
        return f'group = "#{self.group}"\n{users}'


def separate_users(layout: Layout) -> bool:
    """Gives every site users of its own, in its settings file; whether that was possible here.

    Patients in the sandbox's own folder become readable to their site's worker only; other files
    are left as they are.
    """
    sites = list(layout.sites.values())
    users = _free_users(len(sites))
    if users is None or not _can_read(users[0]):
        return False
    copies = [file for site in sites if _is_copy(site, layout) for file in site.data_files]
    for folder in (layout.coordinator, layout.root / ALONE):
        folder.mkdir(exist_ok=True)
        folder.chmod(PRIVATE)
    for folder in _folders(layout, copies):
        folder.chmod(PASSAGE)
    for site, numbers in zip(sites, users, strict=True):
        for file in site.data_files if _is_copy(site, layout) else ():
            os.chown(file, 0, numbers.worker)
            file.chmod(0o440)
    if not all(
        _can_read(numbers, *site.data_files) for site, numbers in zip(sites, users, strict=True)
    ):
        for folder in _folders(layout, copies):
            folder.chmod(PRIVATE)
        return False
    for site, numbers in zip(sites, users, strict=True):
        _write(site, numbers)
    return True


def _free_users(count: int) -> list[SiteUsers] | None:
    """Numbers that nobody has, drawn by chance: two sandboxes share none. None without root."""
    if os.geteuid() != 0:
        return None
    taken = {account.pw_uid for account in pwd.getpwall()}
    size = BLOCK * count
    for _ in range(100):
        first = FIRST + secrets.randbelow(LAST - FIRST - size)
        if taken.isdisjoint(range(first, first + size)):
            return [SiteUsers(group=first + BLOCK * number) for number in range(count)]
    return None


def _is_copy(site: SiteFolder, layout: Layout) -> bool:
    return site.data_file.absolute().is_relative_to(layout.root.absolute())


def _folders(layout: Layout, copies: Sequence[Path]) -> list[Path]:
    """What every site's processes must pass through on the way to their own folder."""
    root = layout.root.absolute()
    above = [
        folder
        for copy in copies
        for folder in copy.absolute().parents
        if folder.is_relative_to(root)
    ]
    return list(dict.fromkeys([root, root / "sites", layout.run, *above]))


def _can_read(users: SiteUsers, *files: Path) -> bool:
    """Whether a site's worker can start this Python, import Fedward and read the files."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE, *(str(path.absolute()) for path in files)],
            user=users.worker,
            group=users.worker,
            extra_groups=[users.group],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError:
        return False  # no root's rights after all, as in a container's user namespace
    return probe.returncode == 0


def _write(site: SiteFolder, users: SiteUsers) -> None:
    text, table = site.settings_file.read_text(encoding="utf-8"), "[guard]\n"
    if table in text:
        text = text.replace(table, table + users.settings, 1)
    else:
        text = f"{text}\n{table}{users.settings}"
    write_atomically(site.settings_file, text.encode(), mode=0o600)
