"""The signed studies that the guard was asked to run: for people to read, and to look up again.

An approved study stays. Of studies that nobody approved only the latest few are kept: whoever can
send instructions can fill nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedward_common.errors import FedwardError, LedgerError
from fedward_common.ids import Digest
from fedward_common.study.signed import MAX_STUDY_BYTES, SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_private

MAX_WAITING: Final = 16
"""Studies that wait for an approval, of at most 1 MiB each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyShelf:
    """Signed studies in one folder, by digest; the caller has verified what it puts in."""

    folder: Path
    approved: Callable[[str], bool]
    _known: dict[str, StudySpec] = field(default_factory=dict)

    def put(self, study: StudySpec, signed: bytes) -> bool:
        """Keeps a verified study; True when it was not here before.

        Raises:
            LedgerError: it cannot be written.
        """
        if self.find(study.digest) is not None:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room()
            write_private(self._path(study.digest), signed)
        except OSError as error:
            raise LedgerError(
                f"{self.folder}: expected to store a study, found {error.strerror}"
            ) from error
        self._known[study.digest] = study
        return True

    def find(self, digest: str) -> StudySpec | None:
        """The study with this digest, or None when it is not here (or damaged)."""
        if digest not in self._known:
            found = read_study(self._path(Digest(digest)))
            if found is None or found[1].digest != digest:
                return None
            self._known[digest] = found[1]
        return self._known[digest]

    def _make_room(self) -> None:
        """Deletes the oldest of those that nobody approved, so that one more fits."""
        waiting = [path for path in self.folder.glob("*.json") if not self.approved(path.stem)]
        waiting.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in waiting[: max(0, len(waiting) + 1 - MAX_WAITING)]:
            path.unlink(missing_ok=True)
            self._known.pop(path.stem, None)

    def _path(self, digest: Digest) -> Path:
        return self.folder / f"{digest}.json"


def read_studies(folder: Path) -> Iterator[tuple[SignedStudy, StudySpec]]:
    """Every study in a shelf's folder that is whole, in the order in which they came."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in paths:
        found = read_study(path)
        if found is not None and found[1].digest == path.stem:
            yield found


def read_study(path: Path) -> tuple[SignedStudy, StudySpec] | None:
    """The signed study in a file and its verified contents, or None."""
    try:
        with path.open("rb") as file:
            signed = SignedStudy.parse(file.read(MAX_STUDY_BYTES + 1))
        return signed, signed.verify()
    except (OSError, FedwardError):
        return None
