"""The variants about genotypes: two tasks, and how a fixed panel of loci becomes numbers.

A panel is part of the study and so under its digest: loci, alleles, reference build and the public
frequencies that fill in what is missing. Nothing is learned from a site's own people (rules 6).
"""

from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fedward_common.study.imaging import MAX_LABELS, ClassLabel, Weight
from fedward_common.study.registry import DataSpec, Strict, TaskSpec, register
from fedward_common.study.tabular import (
    Column,
    ColumnSplit,
    LabelRule,
    Name,
    NumberColumn,
    NumberLabel,
    Split,
)

MAX_LOCI: Final = 4096
COMPLEMENT: Final = {"A": "T", "C": "G", "G": "C", "T": "A"}

Alleles = Annotated[str, Field(pattern=r"^[ACGT]{1,64}$")]
Build = Literal["GRCh37", "GRCh38"]


@register
class GenotypeClassification(TaskSpec):
    """A class of a patient from genotypes: one of two, or one of several, as the label says.

    Cross-entropy, each class with its weight of `class_weights`, public constants. None: 1 each.
    """

    kind: Literal["genotype-classification"] = "genotype-classification"
    class_weights: tuple[Weight, ...] = Field(default=(), max_length=MAX_LABELS, strict=False)


@register
class GenotypeRegression(TaskSpec):
    """A number about a patient from genotypes: half the squared error on the scale [-1, 1]."""

    kind: Literal["genotype-regression"] = "genotype-regression"


class Locus(Strict):
    """One place of the panel. `frequency` of `alt` is public, such as a reference population's.

    Autosomes only: on the others the number of copies depends on sex.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$")
    chrom: str = Field(pattern=r"^([1-9]|1[0-9]|2[0-2])$")
    pos: int = Field(ge=1, le=300_000_000, description="1-based, as in a VCF")
    ref: Alleles
    alt: Alleles
    frequency: float = Field(ge=0, le=1)

    @property
    def ambiguous(self) -> bool:
        """Whether the other strand has the same two letters (A/T, C/G)."""
        return len(self.ref) == 1 and COMPLEMENT[self.ref] == self.alt

    @model_validator(mode="after")
    def _two_alleles(self) -> "Locus":
        if self.ref == self.alt:
            raise ValueError("alt: expected another allele than ref")
        return self


def _label_kind(value: object) -> str:
    """Which kind of label genotypes have, by its keys, as the other data."""
    keys = value if isinstance(value, dict) else ()
    if isinstance(value, ClassLabel) or "classes" in keys:
        return "class"
    return "number" if isinstance(value, NumberLabel) or "unit" in keys else "binary"


GenotypeLabel = Annotated[
    Annotated[LabelRule, Tag("binary")]
    | Annotated[ClassLabel, Tag("class")]
    | Annotated[NumberLabel, Tag("number")],
    Discriminator(_label_kind),
]


@register
class Genotypes(DataSpec):
    """Genotypes at the loci of a panel, and a table of the people they are from.

    `coding`: copies of `alt` (hard-calls), their expectation where the file has one (dosage), or
    both haplotypes by themselves, for which an unphased heterozygote is missing. Scaled to [-1, 1];
    what is missing is filled with the panel's public frequency. A genotype counts as missing below
    `min_genotype_quality` (GQ) or `min_depth` (DP), where the study asks for one, and with
    `require_pass` where its record failed a filter. A patient with fewer than `min_call_rate` of
    the loci is not in the study.

    `strand_ambiguous`: A/T and C/G loci cannot be told from their other strand. Refused in the
    panel, unless the study states that every file is on the forward strand of the reference.

    The table has the columns `sample_key` (the name in the file), `patient_key`, with `family_key`
    who is of one family, label, split, and `columns`, which become inputs after the genotypes.
    """

    kind: Literal["genotypes"] = "genotypes"
    build: Build
    loci: tuple[Locus, ...] = Field(min_length=1, max_length=MAX_LOCI, strict=False)
    coding: Literal["hard-calls", "dosage", "haplotypes"] = "hard-calls"
    strand_ambiguous: Literal["refuse", "forward"] = "refuse"
    min_call_rate: float = Field(default=0.9, ge=0, le=1)
    min_genotype_quality: int = Field(default=0, ge=0, le=1000)
    min_depth: int = Field(default=0, ge=0, le=100_000)
    require_pass: bool = True
    sample_key: Name = "sample"
    patient_key: Name = "patient_id"
    family_key: Name | None = None
    columns: tuple[Column, ...] = Field(default=(), max_length=256, strict=False)
    missing: Literal["drop", "fill"] = "drop"
    missing_codes: tuple[str, ...] = Field(default=("", "?", "NA"), strict=False)
    label: GenotypeLabel | None = None
    split: Split | None = None

    @property
    def is_genomic(self) -> bool:
        """They are."""
        return True

    @property
    def channels(self) -> int:
        """Numbers of each locus."""
        return 2 if self.coding == "haplotypes" else 1

    @property
    def input_size(self) -> int:
        """The number of inputs of a model: the loci, then the columns."""
        beside = sum(1 if isinstance(c, NumberColumn) else len(c.values) - 1 for c in self.columns)
        return len(self.loci) * self.channels + beside

    @property
    def outputs(self) -> int:
        """How many numbers a model puts out."""
        return len(self.label.classes) if isinstance(self.label, ClassLabel) else 1

    @property
    def table_columns(self) -> tuple[str, ...]:
        """The columns of the table of people that are read."""
        found = [self.sample_key, self.patient_key, *(column.name for column in self.columns)]
        if self.family_key is not None:
            found.append(self.family_key)
        if self.label is not None:
            found.append(self.label.column)
        if isinstance(self.split, ColumnSplit):
            found.append(self.split.column)
        return tuple(found)

    @model_validator(mode="after")
    def _consistent(self) -> "Genotypes":
        if len(set(self.table_columns)) != len(self.table_columns):
            raise ValueError("expected every column name once")
        for name, values in (
            ("id", [locus.id for locus in self.loci]),
            ("place", [(one.chrom, one.pos, one.ref, one.alt) for one in self.loci]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"loci: expected every {name} once")
        unsure = [locus.id for locus in self.loci if locus.ambiguous]
        if unsure and self.strand_ambiguous == "refuse":
            raise ValueError(
                f"loci: {', '.join(unsure[:5])}: expected no A/T or C/G locus, whose strand cannot "
                "be told; leave it out, or say strand_ambiguous = 'forward' where every site's "
                "file is on the forward strand of the reference"
            )
        for column in self.columns:
            if self.missing == "fill" and column.fill is None:
                raise ValueError(
                    f"missing = 'fill': expected a public fill value for {column.name!r}"
                )
        return self
