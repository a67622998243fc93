"""The variants about molecules: one task, and how a SMILES becomes numbers (by RDKit).

Nothing is learned from a site's molecules: fingerprints are hashes, descriptors have public ranges,
graphs have a public number of atoms (rules 6).
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fedward_common.study.imaging import MAX_LABELS, Weight
from fedward_common.study.labelled_rows import LabelledRows, SeveralAnswers
from fedward_common.study.registry import Strict, TaskSpec, register
from fedward_common.study.tabular import LabelRule, Name, NumberLabel

DESCRIPTORS: Final = 16
"""With them the inputs fill whole vectors of a processor, as back end `bookkeeping` needs."""
ATOM_NUMBERS: Final = 24
"""What is said of an atom of a graph: element, neighbours, charge, hydrogens, rings, bonds."""
MOST_INPUTS: Final = 1 << 16


@register
class MoleculeProperty(TaskSpec):
    """Properties of a molecule: one answer, several of which some were not measured, or a number.

    Of several answers the loss is the sum over those that were measured, over how many the study
    has; of a number half the squared error on the scale [-1, 1]. `class_weights`: as of images.
    """

    kind: Literal["molecule-property"] = "molecule-property"
    class_weights: tuple[Weight, ...] = Field(default=(), max_length=MAX_LABELS, strict=False)


class MorganFingerprint(Strict):
    """Circular fingerprints (Rogers and Hahn 2010): counts of atom environments up to `radius`
    bonds, hashed to `bits` places, on a logarithmic scale up to 8; with `descriptors`, sixteen
    of RDKit's (weight, logP, polar surface, ...) on public ranges.
    """

    kind: Literal["morgan"] = "morgan"
    radius: int = Field(default=2, ge=0, le=6)
    bits: int = Field(default=1024, ge=64, le=16384)
    descriptors: bool = True

    @property
    def size(self) -> int:
        """Inputs of a molecule."""
        return self.bits + (DESCRIPTORS if self.descriptors else 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """What `model.shape` has to be: nothing."""
        return ()


class MoleculeGraph(Strict):
    """Heavy atoms and the bonds between them; a larger molecule than `atoms` does not fit."""

    kind: Literal["graph"] = "graph"
    atoms: int = Field(ge=4, le=200)

    @property
    def size(self) -> int:
        """Inputs of a molecule: numbers of each atom, then atoms x atoms."""
        return self.atoms * (ATOM_NUMBERS + self.atoms)

    @property
    def shape(self) -> tuple[int, ...]:
        """What `model.shape` has to be: numbers of an atom, atoms."""
        return (ATOM_NUMBERS, self.atoms)


class Smiles(Strict):
    """A column of SMILES, and how they become numbers."""

    smiles: Name = "smiles"
    encoding: Annotated[MorganFingerprint | MoleculeGraph, Field(discriminator="kind")]

    @property
    def input_size(self) -> int:
        """Places of the fingerprint, or numbers of atoms and bonds."""
        return self.encoding.size

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.input_size > MOST_INPUTS:
            raise ValueError(f"encoding: expected at most {MOST_INPUTS} inputs")
        return self


@register
class MoleculeData(Smiles, LabelledRows):
    """Molecules as SMILES in a column of a table."""

    kind: Literal["molecule"] = "molecule"

    @property
    def what(self) -> Literal["molecules"]:
        """Molecules."""
        return "molecules"

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The SMILES."""
        return (self.smiles,)

    @property
    def own_labels(self) -> tuple[type[object], ...]:
        """One answer, several, or a measured number."""
        return (LabelRule, SeveralAnswers, NumberLabel)
