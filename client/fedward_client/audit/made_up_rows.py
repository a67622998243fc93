"""Made-up rows of every kind of source, and the site's own way from rows to records.

Patients who are honest, at and far beyond the study's ranges, faulty and contradicting. Real rows
are read by sources that open files; what is tried here is everything behind them.
"""

from collections.abc import Callable, Sequence
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from fedward_client.audit.clinical_rows import clinical_rows, load_clinical
from fedward_client.audit.whole_rows import AUDITED, ModalityRow, whole_patients
from fedward_common.errors import ConfigError, DataError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.encoding import PatientRecords, Row, encode_present, hash_part
from fedward_common.study.image_encoding import FloatArray, ImageRow, encode_images
from fedward_common.study.imaging import ImageData, Pictures, PlainImages
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.multimodal_encoding import join
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.tabular import (
    CategoryColumn,
    HashSplit,
    LabelRule,
    NumberColumn,
    NumberLabel,
    Split,
    TabularData,
    TimeLabel,
)

HUGE = 1e30
_NO_LABEL = LabelRule(column="no label", low=0, high=1, positive_from=1)
"""Of images whose patients' label is in another modality: nobody reads that column."""
SourceRow = Row | ImageRow | ModalityRow


def load_rows(study: StudySpec, rows: Sequence[SourceRow]) -> PatientRecords:
    """The records to train on, by the encoding that every site uses on its own source.

    Raises:
        ConfigError: data of a kind that is not audited.
    """
    single = isinstance(study.dp, DpSgd) and study.dp.max_records_per_patient == 1
    match study.data:
        case TabularData() as table:
            cells = [row for row in rows if isinstance(row, dict)]
            return encode_present(table, cells, part="train", one_record_per_patient=single)[0]
        case MultimodalData() as whole:
            tagged = [row for row in rows if isinstance(row, ModalityRow)]
            return join(
                whole,
                {
                    name: load_rows(
                        study.model_copy(update={"data": part}),
                        [one.row for one in tagged if one.modality == name],
                    )
                    for name, part in whole.parts.items()
                    if isinstance(part, AUDITED)
                },
            )
        case ImageData() | PlainImages() as images:
            pictures = [row for row in rows if isinstance(row, ImageRow)]
            return encode_images(images, pictures, part="train", strict=False)[0]
        case ClinicalData() as clinical:
            return load_clinical(clinical, [row for row in rows if isinstance(row, dict)])
    raise _unknown(study)


def made_up_rows(study: StudySpec) -> Sequence[Sequence[SourceRow]]:
    """The rows of some made-up patients, one list a patient.

    Raises:
        ConfigError: data of a kind that is not audited.
    """
    if isinstance(study.data, MultimodalData):
        made = {
            name: _made_up(study.model_copy(update={"data": part}))
            for name, part in study.data.parts.items()
            if isinstance(part, AUDITED)
        }
        return whole_patients(study.data, made)
    return _made_up(study)


def _made_up(study: StudySpec) -> Sequence[Sequence[Row | ImageRow]]:
    match study.data:
        case TabularData() as table:
            return _table_rows(table)
        case ImageData() | PlainImages() as images:
            return _image_rows(images)
        case ClinicalData() as clinical:
            return clinical_rows(clinical)
    raise _unknown(study)


def _unknown(study: StudySpec) -> ConfigError:
    return ConfigError(
        f"audit: expected data of kind tabular, clinical or image, found {study.data.kind}"
    )


def _names(split: Split) -> list[str]:
    """Names of patients who are trained on."""
    numbers = (str(number) for number in count())
    chosen = (
        name
        for name in numbers
        if not isinstance(split, HashSplit) or hash_part(split, name) == "train"
    )
    return list(islice(chosen, 16))


def _table_rows(schema: TabularData) -> list[list[Row]]:
    """The rows of made-up patients: honest, at and far beyond the range, faulty, contradicting."""
    label = schema.label
    low, high = _ends(label) if isinstance(label, LabelRule | NumberLabel) else (0, 1)
    kinds: list[list[tuple[str, float]]] = [
        [("low", low)],
        [("high", high)],
        [("low", high)],
        [("beyond", high)],
        [("below", low)],
        [("nan", high)],
        [("words", low)],
        [("missing", high)],
        [("low", low), ("high", low)],
        [("high", low), ("high", high)],
        [("beyond", high)] * 3,
        [("high", low)],
    ]
    return [
        [_row(schema, name, kind=kind, label=label) for kind, label in rows]
        for name, rows in zip(_names(schema.split), kinds, strict=False)
    ]


def _row(schema: TabularData, name: str, *, kind: str, label: float) -> Row:
    row = {schema.patient_key: name}
    if schema.label is not None:
        row[schema.label.column] = str(label)
    if isinstance(schema.label, TimeLabel):
        row |= {schema.label.column: "100", schema.label.event_column: str(label)}
    if not isinstance(schema.split, HashSplit):
        row[schema.split.column] = "train"
    for column in schema.columns:
        row[column.name] = _cell(column, kind)
    return row


def _ends(label: LabelRule | NumberLabel) -> tuple[float, float]:
    return label.low, label.high


def _cell(column: NumberColumn | CategoryColumn, kind: str) -> str:
    special = {"nan": "nan", "words": "no number", "missing": ""}
    if kind in special:
        return special[kind]
    if isinstance(column, CategoryColumn):
        return column.values[0 if kind in ("low", "below") else -1]
    cells = {"low": column.low, "high": column.high, "beyond": HUGE, "below": -HUGE}
    return repr(float(cells[kind]))


def _image_rows(schema: ImageData | PlainImages) -> list[list[ImageRow]]:
    label, shape = getattr(schema, "label", _NO_LABEL), schema.size
    if not isinstance(label, LabelRule):
        raise ConfigError("audit: expected images with one column of numbers as their label")
    ramp = np.linspace(0.0, 1.0, schema.input_size, dtype=np.float32).reshape(shape)
    spoiled = ramp.copy()
    spoiled.flat[0] = np.nan
    low, high = label.low, label.high
    kinds: list[list[tuple[FloatArray | None, float]]] = [
        [(ramp, low)],
        [(ramp, high)],
        [(np.zeros(shape, np.float32), high)],
        [(np.full(shape, HUGE, np.float32), high)],
        [(np.full(shape, -HUGE, np.float32), low)],
        [(spoiled, high)],
        [(ramp[1:], low)],
        [(None, high)],
        [(1 - ramp, low)],
    ]
    if not schema.no_patient_key:
        kinds += [[(ramp, low), (ramp, high)], [(ramp, high)] * 3, [(ramp, high), (spoiled, high)]]
    return [
        [_image(schema, label.column, (name, pixels, number)) for pixels, number in images]
        for name, images in zip(_names(schema.split), kinds, strict=False)
    ]


def _image(schema: Pictures, label: str, about: tuple[str, FloatArray | None, float]) -> ImageRow:
    name, pixels, number = about
    cells = {schema.patient_key: name, label: str(int(number))}
    if not isinstance(schema.split, HashSplit):
        cells[schema.split.column] = "train"
    return ImageRow(cells=cells, pixels=_pixels(pixels))


def _pixels(pixels: npt.NDArray[np.float32] | None) -> Callable[[], FloatArray]:
    def read() -> FloatArray:
        if pixels is None:
            raise DataError("images: expected an image that can be decoded, found none")
        return pixels.copy()

    return read
