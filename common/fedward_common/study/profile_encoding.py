"""From matrices and a table to the inputs of a patient, each patient by itself (rules 6)."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.canonical import sha256_hex
from fedward_common.errors import DataError
from fedward_common.study.encoding import column_reader
from fedward_common.study.matrices import Floats, Matrix, read_matrix
from fedward_common.study.profiles import Identifiers, Layer, ProfileData, Scale
from fedward_common.study.row_encoding import Row, cell

_VERSION: Final = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")
LARGEST_LOG: Final = 30.0
"""log2 of what no sequencer counts: larger values are on no logarithmic scale."""
LARGEST_Z: Final = 1e6
"""Genes that hardly vary in the reference have z-scores of thousands; their limits clip them."""
MANY: Final = 100
"""So many z-scores without a negative one are another scale."""
WHOLE: Final = 1e-4
SHOWN: Final = 5
CONVERTIBLE: Final[frozenset[tuple[Scale, Scale]]] = frozenset({("tpm", "log2-tpm")})
"""(scale of a site, scale of the study), besides equal ones: TPM are encoded as their logarithm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerFile:
    """Where a site has a layer, and what it says of it."""

    layer: str
    path: Path
    scale: Scale
    identifiers: Identifiers
    mapping: Path | None = None
    delimiter: str = ","


def profile_features(
    schema: ProfileData, layers: "Sequence[LayerReader]"
) -> Callable[[Row], Floats]:
    """A function from a row of the table to the inputs of its patient, by readers of the layers.

    It raises DataError for a patient who is in no matrix of a layer, or twice, or whose values are
    not on the layer's scale.
    """
    fill = schema.missing == "fill"
    readers = [
        (column.name, column_reader(column, missing_codes=schema.missing_codes, filled=fill))
        for column in schema.clinical
    ]

    def features(row: Row) -> Floats:
        table: list[float] = []
        for name, read in readers:
            found = read(cell(row, name))
            if found is None:
                raise DataError(f"column {name!r}: expected a value in every row, found none")
            table += found
        patient = cell(row, schema.patient_key)
        parts = [np.array(table, dtype=np.float32), *(layer.inputs(patient) for layer in layers)]
        inputs: Floats = np.concatenate(parts)
        return inputs

    return features


def layer_readers(schema: ProfileData, files: Sequence[LayerFile]) -> "list[LayerReader]":
    """A reader of each of the study's layers, in order.

    Raises:
        DataError: a layer that no file or more than one is for, on another scale than the study's,
            without some of its genes, or a mapping that is not the study's.
    """
    chosen = [(layer, _file_of(layer, files)) for layer in schema.layers]
    return [
        LayerReader(layer, file, read_matrix(file.path, delimiter=file.delimiter))
        for layer, file in chosen
    ]


class LayerReader:
    """The inputs of one layer by patient, out of the matrix that `file` describes."""

    def __init__(self, layer: Layer, file: LayerFile, matrix: Matrix) -> None:
        self.layer, self._scale = layer, file.scale
        self._values, self._rows = matrix.values, matrix.rows()
        self._places = _places(layer, file, matrix)

    def has(self, patient: str) -> bool:
        """Whether a patient stands in the matrix."""
        return patient in self._rows

    def inputs(self, patient: str) -> Floats:
        """One number in [-1, 1] for each gene. Raises DataError where there is none."""
        if patient not in self._rows and self.layer.missing == "fill":
            return np.zeros(len(self._places), dtype=np.float32)
        number = self._rows.get(patient)
        if number is None:
            raise DataError(
                f"layer {self.layer.name!r}: expected every patient once in its matrix, found "
                "none or several"
            )
        whole = self._values[number].astype(np.float64)
        found = whole[self._places]
        check_scale(found, self._scale, layer=self.layer.name)
        if self._scale == "counts":
            found = np.log2(1e6 * found / max(float(np.nansum(whole)), 1.0) + 1.0)
        elif self._scale == "tpm":
            found = np.log2(found + 1.0)
        low, high = self.layer.limits
        scaled = 2.0 * (np.clip(found, low, high) - low) / (high - low) - 1.0
        inputs: Floats = (self.layer.weight * scaled).astype(np.float32)
        return inputs


def check_scale(values: npt.NDArray[np.float64], scale: Scale, *, layer: str) -> None:
    """Returns when a patient's values can be on `scale`.

    Raises:
        DataError: they cannot: no numbers, counts that are no whole numbers, logarithms that are
            too large, negative TPM, ...; says what they look like and no value.
    """
    expected = f"layer {layer!r}: expected values that are {scale} for every patient"
    if not np.isfinite(values).all():
        raise DataError(f"{expected}, found some that are no numbers")
    negative = bool((values < 0).any())
    whole = bool((np.abs(values - np.round(values)) < WHOLE).all())
    largest = float(np.abs(values).max(initial=0.0))
    fits = {
        "counts": whole and not negative,
        "tpm": not negative and largest <= 1e6 + 1,
        "log2-tpm": not negative and largest <= LARGEST_LOG,
        "z-score": largest <= LARGEST_Z and (negative or len(values) < MANY),
        "copy-number": whole and largest <= 2,
        "beta": not negative and largest <= 1,
    }
    if not fits[scale]:
        looks = "negative ones" if negative else "whole numbers" if whole else "fractions"
        raise DataError(f"{expected}, found {looks}{' that are too large' if largest > 2 else ''}")


def gene_name(text: str, identifiers: Identifiers) -> str:
    """A gene's identifier as it is compared: Ensembl without version, HGNC in capitals."""
    name = text.strip()
    if identifiers == "ensembl":
        found = _VERSION.fullmatch(name.upper())
        return found.group(1) if found else name.upper()
    return name.upper()


def read_mapping(layer: Layer, path: Path | None) -> Mapping[str, str]:
    """HGNC and Ensembl names of genes, each to the other.

    Raises:
        DataError: no file, or another one than the study names by its digest.
    """
    try:
        content = b"" if path is None else path.read_bytes()
    except OSError as error:
        raise DataError(f"mapping: expected a readable file, found {error.strerror}") from None
    if layer.mapping_sha256 is None or sha256_hex(content) != layer.mapping_sha256:
        raise DataError(
            f"layer {layer.name!r}: expected the mapping of the digest in the study for other "
            "identifiers than its own, found another; set mapping in [[data.matrices]]"
        )
    both: dict[str, str] = {}
    for row in csv.DictReader(content.decode("utf-8", errors="replace").splitlines()):
        one = gene_name(row.get("ensembl") or "", "ensembl")
        other = gene_name(row.get("hgnc") or "", "hgnc")
        if one and other:
            both[one], both[other] = other, one
    return both


def _file_of(layer: Layer, files: Sequence[LayerFile]) -> LayerFile:
    fitting = [file for file in files if file.layer == layer.name]
    if len(fitting) != 1:
        raise DataError(
            f"layer {layer.name!r}: expected one matrix of it in [[data.matrices]] of site.toml, "
            f"found {len(fitting)}"
        )
    file = fitting[0]
    if file.scale != layer.scale and (file.scale, layer.scale) not in CONVERTIBLE:
        raise DataError(
            f"layer {layer.name!r}: expected a matrix of {layer.scale}, as the study says, found "
            f"one of {file.scale}"
        )
    return file


def _places(layer: Layer, file: LayerFile, matrix: Matrix) -> list[int]:
    """The column of each of the layer's genes. Raises DataError where one is absent or twice."""
    names = [gene_name(gene, file.identifiers) for gene in matrix.genes]
    if file.identifiers != layer.identifiers:
        both = read_mapping(layer, file.mapping)
        names = [both.get(name, "") for name in names]
    columns: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        columns.setdefault(name, []).append(number)
    wanted = [(gene, columns.get(gene_name(gene, layer.identifiers), [])) for gene in layer.genes]
    absent = [gene for gene, found in wanted if not found]
    twice = [gene for gene, found in wanted if len(found) > 1]
    for what, genes in (("found none of", absent), ("found more than one column of", twice)):
        if genes:
            more = f" and {len(genes) - SHOWN} more" if len(genes) > SHOWN else ""
            raise DataError(
                f"layer {layer.name!r}: expected one column for each gene of the study, {what} "
                f"{', '.join(genes[:SHOWN])}{more}"
            )
    return [found[0] for _, found in wanted]
