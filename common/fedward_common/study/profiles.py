"""The variants about molecular profiles of patients: expression, copy number, methylation.

Each layer is a matrix of patients by genes. Which genes, on which scale, and between which public
limits is the study's; nothing is fitted on a site's patients (rules 6), so there are no z-scores of
a site: values that a laboratory already gave as z-scores of a public reference are a scale of their
own.
"""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from fedward_common.ids import DIGEST
from fedward_common.study.imaging import MAX_LABELS, ClassLabel, Weight
from fedward_common.study.labelled_rows import AnyRowLabel, LabelledRows
from fedward_common.study.registry import Strict, TaskSpec, register
from fedward_common.study.tabular import Column, LabelRule, Name, NumberColumn, TimeLabel

Scale = Literal["counts", "tpm", "log2-tpm", "z-score", "copy-number", "beta"]
Identifiers = Literal["hgnc", "ensembl"]
Gene = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")]
MOST_GENES: Final = 30_000
DEFAULT_LIMITS: Final[dict[Scale, tuple[float, float]]] = {
    "counts": (0.0, 16.0),
    "tpm": (0.0, 16.0),
    "log2-tpm": (0.0, 16.0),
    "z-score": (-4.0, 4.0),
    "copy-number": (-2.0, 2.0),
    "beta": (0.0, 1.0),
}
"""Of counts and TPM on the scale log2(x + 1), counts as parts of a million of the patient's own."""


@register
class ExpressionClassification(TaskSpec):
    """One of two or of several classes from profiles, each with its weight (none: 1 each)."""

    kind: Literal["expression-classification"] = "expression-classification"
    class_weights: tuple[Weight, ...] = Field(default=(), max_length=MAX_LABELS, strict=False)


class Layer(Strict):
    """One matrix: its genes in the order of the inputs, and the scale that they are on.

    `low` and `high` become -1 and 1; what lies outside is clipped. A site's matrix may have more
    genes. `mapping_sha256`: the table (columns `ensembl`, `hgnc`) by which a site whose matrix has
    the other identifiers translates them; versions of Ensembl ids never count. A patient without
    this layer does not fit, or with `missing = "fill"` has zeros, the middle of the limits.
    `weight` scales the inputs, so that thousands of genes do not drown a few clinical columns.
    """

    name: Name
    scale: Scale
    identifiers: Identifiers = "hgnc"
    genes: tuple[Gene, ...] = Field(min_length=1, max_length=MOST_GENES, strict=False)
    low: float | None = Field(default=None, allow_inf_nan=False)
    high: float | None = Field(default=None, allow_inf_nan=False)
    missing: Literal["refuse", "fill"] = "refuse"
    weight: float = Field(default=1.0, gt=0, le=1)
    mapping_sha256: str | None = Field(default=None, pattern=DIGEST)

    @property
    def limits(self) -> tuple[float, float]:
        """The values that become -1 and 1."""
        low, high = DEFAULT_LIMITS[self.scale]
        return (low if self.low is None else self.low, high if self.high is None else self.high)

    @model_validator(mode="after")
    def _consistent(self) -> "Layer":
        if len(set(self.genes)) != len(self.genes):
            raise ValueError("genes: expected each once")
        low, high = self.limits
        if not low < high:
            raise ValueError(f"expected low < high, found {low} and {high}")
        return self


@register
class ProfileData(LabelledRows):
    """Profiles of patients: matrices by layer, and a table with label, split and `clinical`
    columns, which stand before the layers in the inputs (fusion by concatenation).

    Without a label an autoencoder learns from them, or they are a modality of patients whose label
    is in another.
    """

    added: ClassVar[frozenset[str]] = frozenset({"label"})

    kind: Literal["profiles"] = "profiles"
    label: AnyRowLabel | None = None
    layers: tuple[Layer, ...] = Field(default=(), max_length=16, strict=False)
    clinical: tuple[Column, ...] = Field(default=(), max_length=256, strict=False)
    missing: Literal["refuse", "fill"] = "refuse"
    missing_codes: tuple[str, ...] = Field(default=("", "?", "NA"), strict=False)

    @property
    def is_genomic(self) -> bool:
        """They are."""
        return True

    @property
    def input_size(self) -> int:
        """Inputs of the clinical columns, and one for each gene of each layer."""
        table = sum(1 if isinstance(c, NumberColumn) else len(c.values) - 1 for c in self.clinical)
        return table + sum(len(layer.genes) for layer in self.layers)

    @property
    def what(self) -> Literal["profiles"]:
        """Profiles."""
        return "profiles"

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The clinical columns; genes are in the matrices."""
        return tuple(column.name for column in self.clinical)

    @property
    def own_labels(self) -> tuple[type[object], ...]:
        """A binary answer, one of several classes, a time, or none."""
        return (LabelRule, ClassLabel, TimeLabel, type(None))

    @model_validator(mode="after")
    def _owned(self) -> "ProfileData":
        if self.no_patient_key:
            raise ValueError("no_patient_key: expected profiles that say whose they are")
        if not self.input_size:
            raise ValueError("expected at least one layer or clinical column")
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise ValueError("layers: expected each name once")
        if self.missing == "fill" and any(column.fill is None for column in self.clinical):
            raise ValueError("missing = 'fill': expected a public fill value for every column")
        return self
