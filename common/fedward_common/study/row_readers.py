"""What makes numbers of a study's labelled rows, whichever kind they are of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedward_common.errors import ConfigError
from fedward_common.study.drug_target import DrugTargetData
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.molecule import MoleculeData
from fedward_common.study.molecule_encoding import molecule_features, scaffold_part
from fedward_common.study.profile_encoding import LayerFile, layer_readers, profile_features
from fedward_common.study.profiles import ProfileData
from fedward_common.study.row_encoding import Features, Floats, PartOf, Row
from fedward_common.study.sequence import SequenceData
from fedward_common.study.sequence_encoding import Fasta, read_fasta, sequence_features


@dataclass(frozen=True, kw_only=True, slots=True)
class Readers:
    """Inputs of a row, and its side of the split where its own content decides that."""

    features: Features
    part_of: PartOf | None = None


def readers_of(
    schema: LabelledRows, *, fasta: Path | None = None, layers: Sequence[LayerFile] = ()
) -> Readers:
    """The readers of `schema`.

    `fasta` holds the sequences that a table names, `layers` are the matrices of profiles.

    Raises:
        DataError: a file beside the table cannot be read or is not as the study says.
        ConfigError: another kind of data, or a package that it needs is not installed.
    """
    if isinstance(schema, SequenceData):
        return Readers(features=sequence_features(schema, read_fasta(fasta) if fasta else None))
    if isinstance(schema, MoleculeData):
        return Readers(
            features=molecule_features(schema), part_of=scaffold_part(schema, schema.split)
        )
    if isinstance(schema, DrugTargetData):
        return Readers(
            features=_pair_features(schema, read_fasta(fasta) if fasta else None),
            part_of=scaffold_part(schema.molecule, schema.split),
        )
    if isinstance(schema, ProfileData):
        return Readers(features=profile_features(schema, layer_readers(schema, layers)))
    raise ConfigError(
        f"data.kind: expected sequences, molecules, drug-target or profiles, found {schema.kind!r}"
    )


def _pair_features(schema: DrugTargetData, fasta: Fasta | None) -> Features:
    """Both presences, which are 1 of every pair, then the molecule's and the protein's inputs."""
    molecule = molecule_features(schema.molecule)
    protein = sequence_features(schema.protein, fasta)
    present = np.ones(len(schema.parts), dtype=np.float32)

    def features(row: Row) -> Floats:
        return np.concatenate([present, molecule(row), protein(row)])

    return features
