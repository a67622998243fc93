"""Made-up rows of every kind of source, and the site's own way from rows to records.

Patients who are honest, at and far beyond the study's ranges, faulty and contradicting. Real rows
are read by sources that open files; what is tried here is everything behind them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fedward_client.audit.clinical_rows import clinical_rows, load_clinical
from fedward_client.audit.genotype_rows import genotype_rows, load_genotypes
from fedward_client.audit.labelled_rows import labelled_rows, load_labelled
from fedward_client.audit.note_rows import load_notes, note_rows
from fedward_client.audit.source_rows import (
    CalledRow,
    ModalityRow,
    OwnRow,
    SourceRow,
    cells_of,
    label_cells,
    split_cells,
    training_names,
)
from fedward_client.audit.whole_rows import whole_patients
from fedward_common.errors import ConfigError, DataError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.encoding import PatientRecords, Row, encode_present
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.image_encoding import FloatArray, ImageRow, encode_images
from fedward_common.study.imaging import ImageMasks, Pictures
from fedward_common.study.kin import by_family, kin_of, per_person
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.multimodal_encoding import join
from fedward_common.study.notes import NotesData
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.tabular import (
    CategoryColumn,
    NumberColumn,
    TabularData,
)

HUGE = 1e30


def load_rows(study: StudySpec, rows: Sequence[SourceRow]) -> PatientRecords:
    """The records to train on, by the encoding that every site uses on its own source.

    Raises:
        ConfigError: data of a kind that is not audited, or without a package that it needs.
    """
    if isinstance(study.data, MultimodalData):
        return _whole(study, study.data, [row for row in rows if isinstance(row, ModalityRow)])
    return _load(study, [row for row in rows if not isinstance(row, ModalityRow)])


def _whole(study: StudySpec, schema: MultimodalData, rows: Sequence[ModalityRow]) -> PatientRecords:
    """Whole patients, or whole families where the study has some."""
    own = {name: [one.row for one in rows if one.modality == name] for name in schema.parts}
    read_as = schema if schema.kin_from is None else per_person(schema)
    found = {
        name: _load(study.model_copy(update={"data": part}), own[name])
        for name, part in read_as.parts.items()
    }
    patients = join(read_as, found)
    part = None if schema.kin_from is None else schema.parts[schema.kin_from]
    if not isinstance(part, Genotypes):
        return patients
    kin = kin_of(part, [cells_of(row) for row in own[schema.kin_from or ""]])
    return by_family(schema, patients, kin, part="train")


def _load(study: StudySpec, rows: Sequence[OwnRow]) -> PatientRecords:
    single = isinstance(study.dp, DpSgd) and study.dp.max_records_per_patient == 1
    cells = [row for row in rows if isinstance(row, dict)]
    match study.data:
        case TabularData() as table:
            return encode_present(table, cells, part="train", one_record_per_patient=single)[0]
        case Pictures() as images:
            pictures = [row for row in rows if isinstance(row, ImageRow)]
            return encode_images(images, pictures, part="train", strict=False)[0]
        case ClinicalData() as clinical:
            return load_clinical(clinical, cells)
        case NotesData() as notes:
            return load_notes(notes, cells)
        case LabelledRows() as labelled:
            return load_labelled(labelled, rows, single=single)
        case Genotypes() as genotypes:
            people = [row for row in rows if isinstance(row, CalledRow)]
            return load_genotypes(genotypes, people)
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
        }
        return whole_patients(study.data, made)
    return _made_up(study)


def _made_up(study: StudySpec) -> Sequence[Sequence[OwnRow]]:
    match study.data:
        case TabularData() as table:
            return _table_rows(table)
        case Pictures() as images:
            return _image_rows(images)
        case ClinicalData() as clinical:
            return clinical_rows(clinical)
        case NotesData() as notes:
            return note_rows(notes)
        case LabelledRows() as labelled:
            return labelled_rows(labelled)
        case Genotypes() as genotypes:
            return genotype_rows(genotypes)
    raise _unknown(study)


def _unknown(study: StudySpec) -> ConfigError:
    return ConfigError(
        f"audit: expected data of a kind that a model learns from, found {study.data.kind}"
    )


def _table_rows(schema: TabularData) -> list[list[Row]]:
    """The rows of made-up patients: honest, at and far beyond the range, faulty, contradicting."""
    kinds: list[list[tuple[str, bool]]] = [
        [("low", False)],
        [("high", True)],
        [("low", True)],
        [("beyond", True)],
        [("below", False)],
        [("nan", True)],
        [("words", False)],
        [("missing", True)],
        [("low", False), ("high", False)],
        [("high", False), ("high", True)],
        [("beyond", True)] * 3,
        [("high", False)],
    ]
    return [
        [_row(schema, name, kind=kind, high=high) for kind, high in rows]
        for name, rows in zip(training_names(schema.split), kinds, strict=False)
    ]


def _row(schema: TabularData, name: str, *, kind: str, high: bool) -> Row:
    return {
        schema.patient_key: name,
        **label_cells(schema.label, high=high),
        **split_cells(schema.split),
        **{column.name: _cell(column, kind) for column in schema.columns},
    }


def _cell(column: NumberColumn | CategoryColumn, kind: str) -> str:
    special = {"nan": "nan", "words": "no number", "missing": ""}
    if kind in special:
        return special[kind]
    if isinstance(column, CategoryColumn):
        return column.values[0 if kind in ("low", "below") else -1]
    cells = {"low": column.low, "high": column.high, "beyond": HUGE, "below": -HUGE}
    return repr(float(cells[kind]))


def _image_rows(schema: Pictures) -> list[list[ImageRow]]:
    """The images of made-up patients; with masks, each with one, of which some do not fit."""
    shape = schema.size
    ramp = np.linspace(0.0, 1.0, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    spoiled = ramp.copy()
    spoiled.flat[0] = np.nan
    kinds: list[list[tuple[FloatArray | None, bool]]] = [
        [(ramp, False)],
        [(ramp, True)],
        [(np.zeros(shape, np.float32), True)],
        [(np.full(shape, HUGE, np.float32), True)],
        [(np.full(shape, -HUGE, np.float32), False)],
        [(spoiled, True)],
        [(ramp[1:], False)],
        [(None, True)],
        [(1 - ramp, False)],
    ]
    if not schema.no_patient_key:
        kinds += [
            [(ramp, False), (ramp, True)],
            [(ramp, True)] * 3,
            [(ramp, True), (spoiled, True)],
        ]
    groups = [
        [_image(schema, name, pixels, high=high) for pixels, high in images]
        for name, images in zip(training_names(schema.split), kinds, strict=False)
    ]
    if isinstance(schema, ImageMasks):
        groups += _broken_masks(schema, ramp, taken=len(groups))
    return groups


def _image(schema: Pictures, name: str, pixels: FloatArray | None, *, high: bool) -> ImageRow:
    cells = {
        schema.patient_key: name,
        **label_cells(getattr(schema, "label", None), high=high),
        **split_cells(schema.split),
    }
    mask = None
    if isinstance(schema, ImageMasks):
        mask = _pixels(_stripes(schema) if high else np.zeros(schema.size, np.float32))
    return ImageRow(cells=cells, pixels=_pixels(pixels), mask=mask)


def _stripes(schema: ImageMasks) -> FloatArray:
    """A mask in which every structure and the background come again and again."""
    pixels = int(np.prod(schema.size))
    numbers = np.arange(pixels) % (len(schema.structures) + 1)
    return numbers.astype(np.float32).reshape(schema.size)


def _broken_masks(schema: ImageMasks, image: FloatArray, *, taken: int) -> list[list[ImageRow]]:
    """Patients whose masks are of no structure, no numbers, of another size, or not there."""
    stripes = _stripes(schema)
    spoiled = stripes.copy()
    spoiled.flat[0] = np.nan
    names = [name for name, _ in zip(training_names(schema.split), range(taken + 4), strict=False)]
    masks = (stripes + len(schema.structures) + 1, spoiled, stripes[1:], None)
    return [
        [
            ImageRow(
                cells={schema.patient_key: name, **split_cells(schema.split)},
                pixels=_pixels(image),
                mask=None if mask is None else _pixels(mask),
            )
        ]
        for name, mask in zip(names[taken:], masks, strict=True)
    ]


def _pixels(pixels: npt.NDArray[np.float32] | None) -> Callable[[], FloatArray]:
    def read() -> FloatArray:
        if pixels is None:
            raise DataError("images: expected an image that can be decoded, found none")
        return pixels.copy()

    return read
