"""Made-up sequences, molecules and profiles for the audit, and the site's own way to records.

A FASTA file is not opened: the letters stand in the table. Matrices of profiles are made up in
memory and go through the product's own reader of a layer.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np

from fedward_client.audit.source_rows import (
    UNREADABLE,
    OwnRow,
    ProfiledRow,
    cells_of,
    label_cells,
    split_cells,
    training_names,
)
from fedward_common.errors import ConfigError
from fedward_common.study.drug_target import DrugTargetData
from fedward_common.study.encoding import PatientRecords, Row
from fedward_common.study.image_encoding import FloatArray
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.matrices import Matrix
from fedward_common.study.molecule import MoleculeData, Smiles
from fedward_common.study.profile_encoding import LayerFile, LayerReader, profile_features
from fedward_common.study.profiles import Layer, ProfileData
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.row_readers import Readers, readers_of
from fedward_common.study.sequence import AMBIGUOUS, Letters, SequenceData
from fedward_common.study.tabular import CategoryColumn, NumberColumn

HUGE: Final = 1e30
_FARTHEST: Final = {
    "counts": 1e6,
    "tpm": 1e6,
    "log2-tpm": 30.0,
    "z-score": 1e6,
    "copy-number": 2.0,
    "beta": 1.0,
}
"""Of each scale the value that is the farthest out and still on it."""
MOLECULES: Final = (
    "CCO",
    "c1ccccc1C(=O)O",
    "C1CCCCC1CCO",
    "[Na+].[Cl-]",
    "C" * 199,
    "c1ccc2ccccc2c1",
    "CC(C)(C)O",
    "N#CC1=CC=CN1",
    "CC(=O)N",
    "c1ccsc1Cl",
)
BROKEN: Final = ("", "no molecule", "C" * 5000)


def load_labelled(schema: LabelledRows, rows: Sequence[OwnRow], *, single: bool) -> PatientRecords:
    """The records to train on, by the encoding that every site uses on its own rows.

    Raises:
        ConfigError: a package that the kind of data needs is not installed.
    """
    readers = (
        Readers(features=profile_features(schema, _layers(schema, rows)))
        if isinstance(schema, ProfileData)
        else readers_of(schema)
    )
    cells = [cells_of(row) for row in rows]
    return encode_rows(
        schema,
        cells,
        readers.features,
        part="train",
        part_of=readers.part_of,
        one_record_per_patient=single and not schema.no_patient_key,
    )[0]


def labelled_rows(schema: LabelledRows) -> list[list[OwnRow]]:
    """The rows of made-up patients: at and beyond every range, faulty, contradicting.

    Raises:
        ConfigError: another kind of labelled rows.
    """
    if isinstance(schema, ProfileData):
        return _profiles(schema)
    texts, broken = _own_cells(schema)
    alone = [(text, number % 2 == 1) for number, text in enumerate((*texts, *broken))]
    kinds: list[list[tuple[Row, bool | None]]] = [[one] for one in alone]
    kinds.append([(texts[0], None)])
    if not schema.no_patient_key:
        kinds += [
            [(texts[0], False), (texts[1], True)],
            [(texts[1], True)] * 3,
            [(texts[1], True), (broken[0], True)],
        ]
    names = training_names(schema.split)
    return [
        [_row(schema, name, text, high=high) for text, high in rows]
        for name, rows in zip(names, kinds, strict=False)
    ]


def _own_cells(schema: LabelledRows) -> tuple[list[Row], list[Row]]:
    """The cells that become inputs: those that fit, or nearly, and broken ones.

    Raises:
        ConfigError: another kind of labelled rows.
    """
    if isinstance(schema, SequenceData):
        return _letter_cells(schema)
    if isinstance(schema, MoleculeData):
        return _smiles_cells(schema)
    if not isinstance(schema, DrugTargetData):
        raise ConfigError(f"audit: expected rows that can be made up, found kind {schema.kind!r}")
    (molecules, no_molecules), (proteins, no_proteins) = (
        _smiles_cells(schema.molecule),
        _letter_cells(schema.protein),
    )
    pairs: list[Row] = [
        {**one, **other} for one, other in zip(molecules, cycle(proteins), strict=False)
    ]
    broken: list[Row] = [{**molecules[0], **one} for one in no_proteins]
    return pairs, [*broken, *({**one, **proteins[0]} for one in no_molecules)]


def _smiles_cells(schema: Smiles) -> tuple[list[Row], list[Row]]:
    return [{schema.smiles: text} for text in MOLECULES], [{schema.smiles: one} for one in BROKEN]


def _letter_cells(schema: Letters) -> tuple[list[Row], list[Row]]:
    column, nonsense = schema.sequence, ("?" * schema.length, "")
    return [{column: text} for text in _sequences(schema)], [{column: one} for one in nonsense]


def _row(schema: LabelledRows, name: str, own: Row, *, high: bool | None) -> Row:
    label = label_cells(schema.label, high=bool(high))
    if high is None:
        label = dict.fromkeys(label, UNREADABLE)
    return {schema.patient_key: name, **own, **label, **split_cells(schema.split)}


def _sequences(schema: Letters) -> tuple[str, ...]:
    first, last, length = schema.letters[0], schema.letters[-1], schema.length
    code = next(iter(AMBIGUOUS[schema.alphabet]))
    return (
        first * length,
        last * length,
        (first + last) * (length // 2) + first * (length % 2),
        last.lower() * length,
        code * length,
        first * (2 * length),
        first * (length // 2),
    )


def _profiles(schema: ProfileData) -> list[list[OwnRow]]:
    kinds: list[list[tuple[str, bool | None]]] = [
        [("low", False)],
        [("high", True)],
        [("low", True)],
        [("beyond", True)],
        [("below", False)],
        [("nan", True)],
        [("other scale", False)],
        [("absent", True)],
        [("low", None)],
        [("low", False), ("high", True)],
        [("beyond", True), ("no matrix", True), ("no matrix", True)],
        [("high", True), ("low", True)],
    ]
    return [
        [_profile(schema, name, kind=kind, high=high) for kind, high in rows]
        for name, rows in zip(training_names(schema.split), kinds, strict=False)
    ]


def _profile(schema: ProfileData, name: str, *, kind: str, high: bool | None) -> ProfiledRow:
    own = {column.name: _cell(column, kind) for column in schema.clinical}
    away = kind in ("absent", "no matrix")
    layers = {} if away else {layer.name: _values(layer, kind) for layer in schema.layers}
    return ProfiledRow(row=_row(schema, name, own, high=high), layers=layers)


def _cell(column: NumberColumn | CategoryColumn, kind: str) -> str:
    if kind in ("nan", "absent"):
        return {"nan": "nan", "absent": ""}[kind]
    if isinstance(column, CategoryColumn):
        return column.values[0 if kind in ("low", "below") else -1]
    ends = {"low": column.low, "beyond": HUGE, "below": -HUGE}
    return repr(float(ends.get(kind, column.high)))


def _values(layer: Layer, kind: str) -> FloatArray:
    """One value for each gene, on the layer's scale but of kinds that are wrong on purpose."""
    low, high = layer.limits
    far = _FARTHEST[layer.scale]
    signed = layer.scale in ("z-score", "copy-number")
    whole = layer.scale in ("counts", "copy-number")
    raw = layer.scale in ("counts", "tpm")
    value = {
        "low": 0.0 if raw else low,
        "high": far if raw else high,
        "beyond": far,
        "below": -far if signed else 0.0,
        "nan": np.nan,
        "other scale": HUGE if signed else -1.5,
    }[kind]
    values = np.full(len(layer.genes), round(value) if whole and abs(value) < far else value)
    if layer.scale == "z-score" and len(values) > 1:
        # Many z-scores without a negative one are taken for another scale.
        values[1::2] *= -1.0
    return values.astype(np.float32)


def _layers(schema: ProfileData, rows: Sequence[OwnRow]) -> list[LayerReader]:
    """A reader of each layer over the rows' values, with the study's own genes and scale."""
    found = [row for row in rows if isinstance(row, ProfiledRow)]
    return [_reader(schema, layer, found) for layer in schema.layers]


def _reader(schema: ProfileData, layer: Layer, rows: Sequence[ProfiledRow]) -> LayerReader:
    here: list[tuple[str, Mapping[str, FloatArray]]] = [
        (row.row[schema.patient_key], row.layers) for row in rows if layer.name in row.layers
    ]
    values = [layers[layer.name] for _, layers in here]
    width = len(layer.genes)
    matrix = Matrix(
        patients=[name for name, _ in here],
        genes=layer.genes,
        values=np.array(values, dtype=np.float32).reshape(-1, width),
    )
    said = LayerFile(
        layer=layer.name, path=Path(), scale=layer.scale, identifiers=layer.identifiers
    )
    return LayerReader(layer, said, matrix)
