"""Giving folders and files to the users of a site's processes, as root, through descriptors only.

What root hands over it hands over once: something that belongs to a third user is refused, and no
link is followed that anybody but root could have put there, and no file that has a second name is
given.
"""

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fedward_common.errors import StartError
from fedward_common.users import Account

PRIVATE: Final = 0o700
PASSAGE: Final = 0o710
SHARED: Final = 0o640
GROUP_READS: Final = 0o040
GROUP_PASSES: Final = 0o010
OTHERS_WRITE: Final = 0o022


class Owners:
    """Makes folders and gives things away; `group` is the one that all users of the site share.

    Without a group the site has one user: folders are made, 0700, and nothing is given.
    """

    def __init__(self, *, group: int | None) -> None:
        self._group = group
        self._us = os.geteuid()

    def folder(
        self,
        path: Path,
        owner: Account | None,
        *,
        passage: bool = False,
        keep: Collection[str] = (),
    ) -> None:
        """A folder of `owner`, 0700; with `passage` 0710, so that the site's group gets through.

        Where it was root's until now, everything in it but the names of `keep` is given with it:
        nobody else can have put it there.

        Raises:
            StartError: it belongs to a third user, others may write to it, or it is a link.
        """
        self._make_parents(path)
        if owner is None:
            path.mkdir(mode=PRIVATE, exist_ok=True)
            return
        with _folder(path.parent) as parent, suppress(FileExistsError):
            os.mkdir(path.name, PRIVATE, dir_fd=parent)
        with _folder(path) as folder:
            found = os.fstat(folder)
            self._require(path, found, owner)
            if found.st_uid != owner.uid:
                _give_contents(folder, owner, keep=keep)
            group = self._group if passage and self._group is not None else owner.gid
            os.fchown(folder, owner.uid, group)
            os.fchmod(folder, PASSAGE if passage else PRIVATE)

    def file(self, path: Path, owner: Account) -> None:
        """A file of root's becomes the owner's; a missing one is left for its reader to name.

        Raises:
            StartError: it belongs to a third user, others may write to it, or it is a link.
        """
        with _file(path) as descriptor:
            if descriptor is not None:
                self._require(path, os.fstat(descriptor), owner)
                os.fchown(descriptor, owner.uid, owner.gid)

    def shared(self, path: Path, owner: Account, *, reader: Account) -> None:
        """A file of root's becomes the owner's, and one other user may read it."""
        with _file(path) as descriptor:
            if descriptor is not None and os.fstat(descriptor).st_uid in (self._us, owner.uid):
                os.fchown(descriptor, owner.uid, reader.gid)
                os.fchmod(descriptor, SHARED)

    def readable(self, path: Path) -> None:
        """The site's group may read a file of root's; another owner's is left as it is."""
        with _file(path) as descriptor:
            if descriptor is not None:
                self._open_to_group(descriptor, GROUP_READS)

    def passable(self, folder: Path) -> None:
        """The site's group may pass through a folder of root's; another owner's is left as it is.

        Raises:
            StartError: no such folder, or a link.
        """
        with _folder(folder) as descriptor:
            self._open_to_group(descriptor, GROUP_PASSES)

    def _open_to_group(self, descriptor: int, right: int) -> None:
        found = os.fstat(descriptor)
        everybody = found.st_mode & (right >> 3)
        if self._group is None or found.st_uid != self._us or everybody:
            return
        if found.st_gid != self._group:
            os.fchown(descriptor, -1, self._group)
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & ~0o070 | right)
        else:
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) | right)

    def _require(self, path: Path, found: os.stat_result, owner: Account) -> None:
        if found.st_uid not in (self._us, owner.uid):
            raise StartError(
                f"{path}: expected it to belong to {owner.name} ({owner.uid}), found user "
                f"{found.st_uid}. Make sure that nobody else wrote it, then run: chown -R "
                f"{owner.uid} {path}"
            )
        if found.st_uid == self._us and found.st_mode & OTHERS_WRITE:
            raise StartError(
                f"{path}: expected that only its owner may write it, found mode "
                f"{stat.S_IMODE(found.st_mode):04o}. Make sure that nobody else wrote it, then "
                "run: chmod go-w"
            )

    def _make_parents(self, path: Path) -> None:
        for folder in reversed([above for above in path.parents if not above.exists()]):
            folder.mkdir(mode=PRIVATE)
            if self._group is not None:
                self.passable(folder)


def _give_contents(folder: int, owner: Account, *, keep: Collection[str]) -> None:
    for depth, (_, folders, files, here) in enumerate(os.fwalk(".", dir_fd=folder)):
        if depth == 0:
            folders[:] = [name for name in folders if name not in keep]
        for name in (*folders, *files):
            os.chown(name, owner.uid, owner.gid, dir_fd=here, follow_symlinks=False)


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """The open folder, reached from the root without a link that a user could have made."""
    descriptor = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in path.absolute().parts[1:]:
            above = os.fstat(descriptor)
            trusted = above.st_uid == os.geteuid() and not above.st_mode & OTHERS_WRITE
            follow = 0 if trusted else os.O_NOFOLLOW
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | follow, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    except OSError as error:
        raise StartError(
            f"{path}: expected a folder without a link of another user on the way, found "
            f"{error.strerror}"
        ) from error
    finally:
        os.close(descriptor)


@contextmanager
def _file(path: Path) -> Iterator[int | None]:
    """The open file, or None where there is none."""
    with _folder(path.parent) as folder:
        try:
            descriptor = os.open(
                path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder
            )
        except FileNotFoundError:
            yield None
            return
        try:
            found = os.fstat(descriptor)
            # A second name: whoever owns the folder may have linked a file of root's to here.
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise StartError(
                    f"{path}: expected a regular file with no other name, found something else. "
                    "Make sure that nobody else put it there, then copy it to a new file"
                )
            yield descriptor
        finally:
            os.close(descriptor)
