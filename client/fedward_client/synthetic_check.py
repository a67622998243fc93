"""Synthetic rows held against this hospital's own patients: does any of them look copied?

The report stays here. It finds coarse copying; that nothing was copied is epsilon's to bound.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import ConfigError, DataError
from fedward_common.study.encoding import PatientRecords, column_reader
from fedward_common.study.generation import Generation
from fedward_common.study.imaging import ImageData
from fedward_common.study.npz import read_npz
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TabularData

Floats = npt.NDArray[np.float64]
STEP: Final = 0.05
"""Shares are rounded to it."""
SUSPECT: Final = 0.15
"""By how much the share of rows nearest to a training patient may be above what is expected."""
SAME: Final = 1e-6
WORDS: Final = (
    "This report stays at the site. It shows coarse copying of this hospital's patients and proves "
    "nothing where it shows none: what the rows may tell of one patient is bounded by epsilon."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticCheck:
    """Shares of synthetic rows, rounded to 0.05; None where too few patients are here.

    `nearest_training`: their nearest patient here was trained on; `expected`: the share of training
    patients among all here, which it is where nothing was copied. `same_training`, `same_held_out`:
    equal to a patient in every column. `suspect`: more than chance would give.
    """

    rows: int
    nearest_training: float | None
    expected: float | None
    same_training: float | None
    same_held_out: float | None
    suspect: bool | None


def synthetic_rows(path: Path, schema: TabularData) -> Floats:
    """The inputs [rows, inputs] of the synthetic table at `path`.

    Raises:
        DataError: it cannot be read, or has not the study's columns and values.
    """
    readers = [
        (column.name, column_reader(column, missing_codes=(), filled=False))
        for column in schema.columns
    ]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path.name}: expected a table of synthetic rows, found {type(error).__name__}"
        ) from error
    if not rows or any(name not in rows[0] for name, _ in readers):
        raise DataError(f"{path.name}: expected rows with every column of the study, found others")
    return np.array([_inputs(row, readers) for row in rows], dtype=np.float64)


def synthetic_images(path: Path, schema: ImageData, *, classes: int = 0) -> Floats:
    """The inputs [images, inputs] of the synthetic images at `path`.

    Raises:
        DataError: they cannot be read, are not grey images of the study's size, or have not each
            one of the study's `classes` where it has some.
    """
    arrays = read_npz(path)
    images = arrays.get("images")
    if images is None or images.dtype != np.uint8 or images.shape[1:] != schema.size:
        raise DataError(
            f"{path.name}: expected an array `images` of grey images of {schema.height} x "
            f"{schema.width}, found another"
        )
    labels = arrays.get("labels")
    if classes and (
        labels is None
        or labels.dtype.kind not in "iu"
        or labels.shape != (len(images),)
        or not np.isin(labels, range(classes)).all()
    ):
        raise DataError(
            f"{path.name}: expected an array `labels` of a class 0 to {classes - 1} for each "
            "image, found another or none"
        )
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1.0


def _inputs(row: Mapping[str, str | None], readers: Any) -> list[float]:
    found: list[float] = []
    for name, read in readers:
        inputs = read((row.get(name) or "").strip())
        if inputs is None:
            raise DataError(f"column {name!r}: expected a value in every synthetic row, found none")
        found += inputs
    return found


def check_synthetic(
    study: StudySpec,
    table: Path,
    *,
    training: PatientRecords,
    held_out: PatientRecords,
    least: int,
) -> SyntheticCheck:
    """What the rows in `table` have of this hospital's patients; nothing under `least` of each.

    Raises:
        ConfigError: the study is of neither a table nor images.
        DataError: as `synthetic_rows`.
    """
    if isinstance(study.data, ImageData):
        # A copy with another label is a copy: images are compared with everybody's, of any class.
        shares = study.task.class_shares if isinstance(study.task, Generation) else ()
        made = synthetic_images(table, study.data, classes=len(shares))
    elif isinstance(study.data, TabularData):
        made = synthetic_rows(table, study.data)
    else:
        raise ConfigError(f"data.kind: expected tabular or image, found {study.data.kind!r}")
    if min(training.patients, held_out.patients) < max(1, least):
        return SyntheticCheck(
            rows=len(made),
            nearest_training=None,
            expected=None,
            same_training=None,
            same_held_out=None,
            suspect=None,
        )
    own, others = (_nearest(made, one.features) for one in (training, held_out))
    nearer = float(np.mean(np.where(own == others, 0.5, own < others)))
    expected = len(training.features) / (len(training.features) + len(held_out.features))
    same, same_others = float(np.mean(own < SAME)), float(np.mean(others < SAME))
    # More training patients than held-out ones are equal to a row by chance alone.
    by_chance = same_others * len(training.features) / len(held_out.features)
    return SyntheticCheck(
        rows=len(made),
        nearest_training=_rounded(nearer),
        expected=_rounded(expected),
        same_training=_rounded(same),
        same_held_out=_rounded(same_others),
        suspect=nearer > expected + SUSPECT or same > by_chance + SUSPECT,
    )


def _nearest(made: Floats, real: npt.NDArray[np.float32]) -> Floats:
    """The mean absolute difference of each row to the patient who is nearest."""
    wide = real.reshape(len(real), -1).astype(np.float64)
    return np.array([np.abs(wide - row).mean(axis=1).min() for row in made])


def _rounded(share: float) -> float:
    return round(STEP * round(share / STEP), 2)


def check_json(check: SyntheticCheck) -> dict[str, Any]:
    """The check as a JSON value."""
    return {
        "rows": check.rows,
        "nearest_training": check.nearest_training,
        "expected": check.expected,
        "same_training": check.same_training,
        "same_held_out": check.same_held_out,
        "suspect": check.suspect,
        "words": WORDS,
    }


def check_text(check: SyntheticCheck) -> str:
    """The check in words."""
    if check.suspect is None:
        return f"{check.rows} synthetic rows; too few patients here to say anything\n{WORDS}"
    verdict = "MORE LIKE TRAINING PATIENTS THAN CHANCE: do not pass these rows on"
    return "\n".join(
        [
            f"{check.rows} synthetic rows: {verdict if check.suspect else 'nothing found'}",
            f"nearest patient here was trained on  {check.nearest_training:.2f}, expected "
            f"{check.expected:.2f}",
            f"equal to a patient in every column   {check.same_training:.2f} trained on, "
            f"{check.same_held_out:.2f} held out",
            WORDS,
        ]
    )
