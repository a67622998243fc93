"""The variants about pairs of a molecule and a protein: how strongly the one binds the other."""

from typing import Literal

from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.molecule import Smiles
from fedward_common.study.registry import TaskSpec, register
from fedward_common.study.sequence import Letters
from fedward_common.study.tabular import NumberLabel


@register
class DrugTarget(TaskSpec):
    """The affinity of a molecule to a protein, such as pKd: half the squared error on [-1, 1].

    An encoder for each of the two, joined as the modalities of a patient are (model `multimodal`).
    Source: Ozturk, Ozgur and Ozkirimli 2018 (DeepDTA).
    """

    kind: Literal["drug-target"] = "drug-target"


@register
class DrugTargetData(LabelledRows):
    """Pairs in the rows of a table: a SMILES, the letters of a protein and a measured affinity.

    With `no_patient_key` one pair is one unit: a molecule or a protein that stands in many rows is
    as many units. A table's column of molecules as `patient_key` makes each molecule one.
    """

    kind: Literal["drug-target"] = "drug-target"
    molecule: Smiles
    protein: Letters

    @property
    def is_genomic(self) -> bool:
        """As of sequences: letters do not say whether they are a reference's or a person's."""
        return True

    @property
    def parts(self) -> dict[str, Smiles | Letters]:
        """What each encoder sees, by its name, in the order of the inputs."""
        return {"molecule": self.molecule, "protein": self.protein}

    @property
    def input_size(self) -> int:
        """One presence a part, as whole patients have, then the inputs of each."""
        parts = self.parts.values()
        return len(parts) + sum(part.input_size for part in parts)

    @property
    def what(self) -> Literal["drug-targets"]:
        """Pairs."""
        return "drug-targets"

    @property
    def own_columns(self) -> tuple[str, ...]:
        """SMILES and protein."""
        return (self.molecule.smiles, self.protein.sequence)

    @property
    def own_labels(self) -> tuple[type[object], ...]:
        """A measured number."""
        return (NumberLabel,)
