"""Matrices of patients by genes: CSV, TSV, Parquet and AnnData (.h5ad), read and nothing fitted.

Rows are patients and columns genes. The first column of a table holds the patients' ids; of an
AnnData file they are the names of obs, and the genes those of var. Only numbers and names are read
of a .h5ad: no `uns`, no pickle.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import ConfigError, DataError

Floats = npt.NDArray[np.float32]
CHUNK: Final = 4096


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
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"profiles: expected a matrix of patients by genes, found none that can be read "
            f"({type(error).__name__})"
        ) from None


def _table(path: Path, delimiter: str) -> Matrix:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=delimiter)
        header = next(lines, [])
        patients: list[str] = []
        rows: list[Floats] = []
        for cells in lines:
            if len(cells) != len(header):
                continue  # by itself: a broken row must not touch another patient's
            patients.append(cells[0].strip())
            rows.append(np.array([_number(cell) for cell in cells[1:]], dtype=np.float32))
    return _checked(patients, [name.strip() for name in header[1:]], rows)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


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
    """`X` of an AnnData file: dense, or compressed by rows or columns (format 0.1.0 and later)."""
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
        patients, genes = _names(file["obs"]), _names(file["var"])
        shape = (len(patients), len(genes))
        stored = file["X"]
        values = _sparse(stored, shape) if isinstance(stored, h5py.Group) else stored[...]
    values = np.asarray(values, dtype=np.float32)
    if values.shape != shape:
        raise ValueError("X: expected patients by genes")
    return _checked(patients, genes, values)


def _names(frame: Any) -> list[str]:
    """The index of a data frame as AnnData writes it."""
    key = frame.attrs["_index"]
    key = key.decode() if isinstance(key, bytes) else str(key)
    return [one.decode() if isinstance(one, bytes) else str(one) for one in frame[key][...]]


def _sparse(group: Any, shape: tuple[int, int]) -> Floats:
    kind = group.attrs["encoding-type"]
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if kind not in ("csr_matrix", "csc_matrix"):
        raise ValueError("X: expected a matrix")
    rows = kind == "csr_matrix"
    data, indices, starts = (group[name][...] for name in ("data", "indices", "indptr"))
    values = np.zeros(shape if rows else shape[::-1], dtype=np.float32)
    if len(starts) != len(values) + 1:
        raise ValueError("X: expected one start for each row")
    for number in range(len(values)):
        some = slice(int(starts[number]), int(starts[number + 1]))
        values[number, indices[some]] = data[some]
    return values if rows else values.T


def _checked(patients: list[str], genes: list[str], rows: Any) -> Matrix:
    if not genes:
        raise ValueError("expected genes")
    values = np.asarray(rows, dtype=np.float32).reshape(len(patients), len(genes))
    return Matrix(patients=patients, genes=genes, values=values)
