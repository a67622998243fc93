"""The index of a site's images: one SQLite file, built once, resumed and brought up to date.

Every file below the folder has a row: usable, or quarantined with a reason. Patient ids and UIDs
stand in it as they are, so the file is 0600 and stays at the site.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final, Self

from fedward_client.data.dicom.header import ImageHeader, open_object
from fedward_client.data.dicom.reasons import Reason
from fedward_common.errors import DataError

FORMAT: Final = 1
BATCH: Final = 500
"""Files between two commits: what an interrupted run reads again at most."""

_COLUMNS: Final = tuple(field.name for field in fields(ImageHeader))
# S608 below: what is put into the statements are these column names, nothing from outside.
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS files (
  path BLOB PRIMARY KEY,
  size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL,
  seen INTEGER NOT NULL,
  reason TEXT,
  together TEXT,
  {", ".join(_COLUMNS)}
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_series ON files (series_uid) WHERE reason IS NULL;
CREATE INDEX IF NOT EXISTS by_sop ON files (sop_uid) WHERE reason IS NULL;
CREATE TABLE IF NOT EXISTS runs (
  number INTEGER PRIMARY KEY, finished INTEGER NOT NULL DEFAULT 0
);
CREATE VIEW IF NOT EXISTS usable AS SELECT * FROM files WHERE reason IS NULL AND together IS NULL;
CREATE VIEW IF NOT EXISTS studies AS
  SELECT study_uid, patient, count(DISTINCT series_uid) AS series, count(*) AS images,
         group_concat(DISTINCT modality) AS modalities
  FROM usable GROUP BY study_uid, patient;
PRAGMA user_version = {FORMAT};
"""  # noqa: S608
_INSERT: Final = f"INSERT OR REPLACE INTO files VALUES ({', '.join('?' * (6 + len(_COLUMNS)))})"  # noqa: S608
# What must be the same for all images of one series, or their grouping cannot be trusted.
_SAME_IN_SERIES: Final = (
    "patient",
    "study_uid",
    "modality",
    "sop_class",
    "rows",
    "columns",
    "samples",
    "photometric",
    "frame_of_reference",
    "orientation",
)
_MIXED: Final = (
    "UPDATE files SET together = ? WHERE reason IS NULL AND together IS NULL AND "  # noqa: S608
    "series_uid IN (SELECT series_uid FROM files "
    "WHERE reason IS NULL AND together IS NULL GROUP BY series_uid HAVING "
    + " OR ".join(f"count(DISTINCT {name}) > 1" for name in _SAME_IN_SERIES)
    + ")"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexed:
    """One usable image and where it is, relative to the indexed folder."""

    path: str
    header: ImageHeader


class ImageIndex:
    """Reads and writes the index file; close it, or use it in a `with` block."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Opens the index in `path`, or makes an empty one where `create` says so.

        Raises:
            DataError: no index there, or a file that is none (it stays as it was).
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT * create | os.O_CLOEXEC, 0o600)
            os.close(descriptor)
            self._db = sqlite3.connect(path, isolation_level=None)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"{path}: expected an image index, as `fedward-client images index` makes it, "
                f"found none ({type(error).__name__})"
            ) from error
        if version == 0 and tables:
            self._db.close()
            raise DataError(f"{path}: expected an image index, found another database")
        if version not in (0, FORMAT):
            self._db.close()
            raise DataError(
                f"image index: expected format {FORMAT}, found {version}; remove the file and "
                "index again"
            )
        path.chmod(0o600)
        self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")  # all of it, or nothing
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._pending = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self.close()

    def close(self) -> None:
        """Keeps what was recorded and closes the file."""
        self._commit()
        self._db.close()

    def begin(self) -> int:
        """The number of this run: the interrupted one, if the last did not finish."""
        row = self._db.execute("SELECT max(number) FROM runs WHERE finished = 0").fetchone()
        if row[0] is not None:
            return int(row[0])
        cursor = self._db.execute("INSERT INTO runs (finished) VALUES (0)")
        return int(cursor.lastrowid or 0)

    def known(self, path: str, *, size: int, mtime_ns: int, run: int) -> bool:
        """Whether the file is in the index as it is now; marks it as seen in this run."""
        key = os.fsencode(path)  # a name may be bytes of any encoding
        row = self._db.execute("SELECT size, mtime_ns, seen FROM files WHERE path = ?", (key,))
        if (found := row.fetchone()) is None or found[:2] != (size, mtime_ns):
            return False
        if found[2] != run:
            self._write("UPDATE files SET seen = ? WHERE path = ?", (run, key))
        return True

    def record(
        self, path: str, verdict: ImageHeader | Reason, *, size: int, mtime_ns: int, run: int
    ) -> None:
        """Keeps what one file is."""
        values: list[object] = [None] * len(_COLUMNS)
        reason = None
        if isinstance(verdict, ImageHeader):
            values = [_cell(value) for value in astuple(verdict)]
        else:
            reason = verdict.value
        self._write(_INSERT, (os.fsencode(path), size, mtime_ns, run, reason, None, *values))

    def finish(self, run: int, *, root: Path) -> int:
        """Forgets files that are gone, judges series and duplicates; returns how many are gone."""
        self._commit()
        self._db.execute("BEGIN IMMEDIATE")
        gone = self._db.execute("DELETE FROM files WHERE seen != ?", (run,)).rowcount
        self._db.execute("UPDATE files SET together = NULL WHERE together IS NOT NULL")
        self._judge_duplicates(root)
        self._judge_series()
        self._db.execute("UPDATE runs SET finished = 1 WHERE number = ?", (run,))
        self._db.execute("COMMIT")
        return gone

    def reasons(self) -> dict[str, int]:
        """How many files are quarantined for each reason."""
        rows = self._db.execute(
            "SELECT coalesce(reason, together) AS why, count(*) FROM files "
            "WHERE why IS NOT NULL GROUP BY why ORDER BY why"
        )
        return {str(reason): int(count) for reason, count in rows}

    def quarantined(self) -> Iterator[tuple[str, str]]:
        """Path and reason of each file that is set aside, in the order of their paths."""
        rows = self._db.execute(
            "SELECT path, coalesce(reason, together) AS why FROM files "
            "WHERE why IS NOT NULL ORDER BY path"
        )
        yield from ((os.fsdecode(path), reason) for path, reason in rows)

    def totals(self) -> dict[str, int]:
        """Files, usable images, series, studies and patients."""
        files = self._db.execute("SELECT count(*) FROM files").fetchone()[0]
        row = self._db.execute(
            "SELECT count(*), count(DISTINCT series_uid), count(DISTINCT study_uid), "
            "count(DISTINCT patient) FROM usable"
        ).fetchone()
        names = ("images", "series", "studies", "patients")
        return {"files": int(files), **dict(zip(names, map(int, row), strict=True))}

    def images(self) -> Iterator[Indexed]:
        """Every usable image, grouped by patient, study and series, one at a time."""
        names = ", ".join(_COLUMNS)
        with closing(self._db.cursor()) as cursor:
            rows = cursor.execute(
                f"SELECT path, {names} FROM usable "  # noqa: S608
                "ORDER BY patient, study_uid, series_uid, instance, path"
            )
            for path, *values in rows:
                yield Indexed(path=os.fsdecode(path), header=_header(values))

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        if self._pending == 0:
            self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(statement, values)
        self._pending += 1
        if self._pending >= BATCH:
            self._commit()

    def _commit(self) -> None:
        if self._pending:
            self._db.execute("COMMIT")
        self._pending = 0

    def _judge_duplicates(self, root: Path) -> None:
        """The same object twice: one of equal files stays; of unequal ones none can be trusted."""
        twice = self._db.execute(
            "SELECT sop_uid FROM files WHERE reason IS NULL GROUP BY sop_uid HAVING count(*) > 1"
        ).fetchall()
        for (sop_uid,) in twice:
            paths = [
                row[0]
                for row in self._db.execute(
                    "SELECT path FROM files WHERE reason IS NULL AND sop_uid = ? ORDER BY path",
                    (sop_uid,),
                )
            ]
            equal = len({_digest(root / os.fsdecode(path)) for path in paths}) == 1
            reason = Reason.DUPLICATE if equal else Reason.DUPLICATE_UID
            self._db.executemany(
                "UPDATE files SET together = ? WHERE path = ?",
                [(reason.value, path) for path in (paths[1:] if equal else paths)],
            )

    def _judge_series(self) -> None:
        self._db.execute(_MIXED, (Reason.MIXED_SERIES.value,))
        # A study with two patients: which of them an image belongs to is unknown.
        self._db.execute(
            "UPDATE files SET together = ? WHERE reason IS NULL AND together IS NULL AND "
            "study_uid IN (SELECT study_uid FROM files WHERE reason IS NULL AND together IS NULL "
            "GROUP BY study_uid HAVING count(DISTINCT patient) > 1)",
            (Reason.MIXED_SERIES.value,),
        )


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        return " ".join(repr(float(number)) for number in value)
    return value


def _header(values: list[object]) -> ImageHeader:
    cells = dict(zip(_COLUMNS, values, strict=True))
    for name in ("position", "orientation"):
        text = cells[name]
        if isinstance(text, str):
            cells[name] = tuple(float(number) for number in text.split())
    return ImageHeader(**cells)  # type: ignore[arg-type]  # the columns are its own fields


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_object(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
