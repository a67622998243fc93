"""Matrices of patients by genes: CSV, TSV, Parquet and AnnData (.h5ad), read and nothing fitted.

Rows are patients and columns genes. The first column of a table holds the patients' ids; of an
AnnData file they are the names of obs, and the genes those of var. Only numbers and names are read
of a .h5ad: no `uns`, no pickle, nothing that lies in another file, and nothing before its size is
known.
"""

import codecs
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import ConfigError, DataError
from fedward_common.study.encoding import readable_cells

Floats = npt.NDArray[np.float32]
CHUNK: Final = 4096
MOST_VALUES: Final = 1 << 31
"""Patients times genes: 8 GiB. A few bytes of HDF5 can say that they are more than any memory."""
MOST_NAMES: Final = 1 << 24
MOST_BYTES: Final = 1 << 33
"""Of one vector: an entry may be a text of any fixed length, or a whole record."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matrix:
    """Values [patients, genes]; what is no number is NaN."""

    patients: Sequence[str]
    genes: Sequence[str]
    values: Floats

    def rows(self) -> Mapping[str, int | None]:
        """A patient's row; None for one who stands there twice: which is true cannot be known."""
        found: dict[str, int | None] = {}
        for number, patient in enumerate(self.patients):
            found[patient] = None if patient in found else number
        return found


def read_matrix(path: Path, *, delimiter: str = ",") -> Matrix:
    """The matrix in a file, by its ending: .h5ad, .parquet, .tsv, otherwise CSV.

    Raises:
        DataError: no such file, or none of its kind; no id and no value is in it.
        ConfigError: a package for this kind is not installed.
    """
    try:
        match path.suffix.lower():
            case ".h5ad":
                return _h5ad(path)
            case ".parquet":
                return _parquet(path)
            case ".tsv":
                return _table(path, "\t")
            case _:
                return _table(path, delimiter)
    except FileNotFoundError:
        raise DataError(
            "profiles: expected the matrix that [[data]] in site.toml names, found no such file"
        ) from None
    except (
        OSError,
        UnicodeDecodeError,
        LookupError,
        ValueError,
        TypeError,
        RuntimeError,  # h5py, of a file whose structures are broken
    ) as error:
        raise DataError(
            f"profiles: expected a matrix of patients by genes, found none that can be read "
            f"({type(error).__name__})"
        ) from None


def _table(path: Path, delimiter: str) -> Matrix:
    """Line by line: a broken quote or foreign bytes in one patient's row touch no other's."""
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    first = next((line for line in lines if line.strip()), b"")
    header = readable_cells(first, delimiter=delimiter)
    if header is None:
        raise ValueError("expected a header")
    patients: list[str] = []
    rows: list[Floats] = []
    for line in lines[lines.index(first) + 1 :]:
        cells = readable_cells(line, delimiter=delimiter)
        if cells is not None and len(cells) == len(header):
            patients.append(cells[0])
            rows.append(np.array([_number(cell) for cell in cells[1:]], dtype=np.float32))
    return _checked(patients, header[1:], rows)


def _number(text: str) -> float:
    """A finite decimal number, else NaN; as `decimal_number`, and quick enough for every gene."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    plain = math.isfinite(value) and text.isascii() and "_" not in text
    return value if plain else math.nan


def _parquet(path: Path) -> Matrix:
    try:
        import duckdb  # noqa: PLC0415 - only who has Parquet needs it
    except ModuleNotFoundError as error:
        raise ConfigError("profiles: expected duckdb for Parquet, found none") from error
    try:
        with duckdb.connect(":memory:") as database:
            found = database.execute("SELECT * FROM read_parquet(?)", [str(path)])
            header = [str(column[0]) for column in found.description or ()]
            patients: list[str] = []
            rows: list[Floats] = []
            while batch := found.fetchmany(CHUNK):
                for row in batch:
                    patients.append(str(row[0]).strip())
                    values = [_number(str(cell)) for cell in row[1:]]
                    rows.append(np.array(values, dtype=np.float32))
    except duckdb.Error as error:
        raise DataError(
            f"profiles: expected a readable Parquet file, found {type(error).__name__}"
        ) from None
    return _checked(patients, header[1:], rows)


def _h5ad(path: Path) -> Matrix:
    """`X` of an AnnData file: dense, or compressed by rows or columns; also as AnnData wrote it
    before its format had a version (before 0.7: data frames as tables of records).
    """
    try:
        import h5py  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            "profiles: expected the package h5py for .h5ad, found none; install the extra [omics] "
            "of fedward-client or fedward-server"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(path.name)
    with h5py.File(path, "r") as file:
        patients, genes = _names(_own(file, "obs")), _names(_own(file, "var"))
        shape = (len(patients), len(genes))
        if shape[0] * shape[1] > MOST_VALUES:
            raise ValueError("X: expected fewer values")
        stored = _own(file, "X")
        values = _sparse(stored, shape) if isinstance(stored, h5py.Group) else _dense(stored, shape)
    return _checked(patients, genes, values)


def _own(group: Any, name: str) -> Any:
    """What `name` is in this file itself: a link to another file, or numbers that lie in one, are
    refused, so that nobody who hands over a .h5ad chooses what else is read.
    """
    import h5py  # noqa: PLC0415 - an extra

    for part in name.strip("/").split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(
            group.get(part, getlink=True), h5py.HardLink
        ):
            raise ValueError("expected everything in the file itself")
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise ValueError("expected everything in the file itself")
    return group


def _all(group: Any, name: str, *, most: int) -> Any:
    """The whole vector `name`, where it is no longer than `most`."""
    stored = _own(group, name)
    _check_vector(stored, most=most)
    return stored[...]


def _check_vector(stored: Any, *, most: int) -> None:
    """Returns when `stored` is a vector of so many entries at most, which fit into memory."""
    if (
        len(stored.shape) != 1
        or stored.shape[0] > most
        or stored.shape[0] * stored.dtype.itemsize > MOST_BYTES
    ):
        raise ValueError("expected a vector of fewer entries")


def _names(frame: Any) -> list[str]:
    """The index of a data frame as AnnData writes it, or of a table of records as it once did."""
    if getattr(frame, "dtype", None) is not None:
        _check_vector(frame, most=MOST_NAMES)
        found = frame.fields("index")[...]
    else:
        key = frame.attrs["_index"]
        key = key.decode() if isinstance(key, bytes) else str(key)
        found = _all(frame, key, most=MOST_NAMES)
    return [one.decode() if isinstance(one, bytes) else str(one) for one in found]


def _dense(stored: Any, shape: tuple[int, int]) -> Floats:
    if tuple(stored.shape) != shape:
        raise ValueError("X: expected patients by genes")
    return np.asarray(stored[...], dtype=np.float32)


def _sparse(group: Any, shape: tuple[int, int]) -> Floats:
    kind = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format"))
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    kind = kind.removesuffix("_matrix")
    if kind not in ("csr", "csc"):
        raise ValueError("X: expected a matrix")
    rows = kind == "csr"
    values = np.zeros(shape if rows else shape[::-1], dtype=np.float32)
    starts = _all(group, "indptr", most=len(values) + 1)
    data, indices = (_all(group, name, most=values.size) for name in ("data", "indices"))
    if not (starts.dtype.kind in "iu" and indices.dtype.kind in "iu"):
        raise ValueError("X: expected whole numbers for places")
    if (
        len(starts) != len(values) + 1
        or starts[0] != 0
        or starts[-1] != len(data)
        or len(data) != len(indices)
        or (starts[1:] < starts[:-1]).any()
    ):
        raise ValueError("X: expected one start for each row, none before the last one's")
    # A place below 0 would count from the end: another patient's or another gene's.
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < values.shape[1]:
        raise ValueError("X: expected places inside the matrix")
    for number in range(len(values)):
        some = slice(int(starts[number]), int(starts[number + 1]))
        np.add.at(values[number], indices[some], data[some])  # a place twice is their sum, as SciPy
    return values if rows else values.T


def _checked(patients: list[str], genes: list[str], rows: Any) -> Matrix:
    if not genes:
        raise ValueError("expected genes")
    values = np.asarray(rows, dtype=np.float32).reshape(len(patients), len(genes))
    return Matrix(patients=patients, genes=genes, values=values)
