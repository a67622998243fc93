"""What makes numbers of a study's labelled rows, whichever kind they are of."""

from dataclasses import dataclass
from pathlib import Path

from fedward_common.errors import ConfigError
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.molecule import MoleculeData
from fedward_common.study.molecule_encoding import molecule_features, scaffold_part
from fedward_common.study.row_encoding import Features, PartOf
from fedward_common.study.sequence import SequenceData
from fedward_common.study.sequence_encoding import read_fasta, sequence_features


@dataclass(frozen=True, kw_only=True, slots=True)
class Readers:
    """Inputs of a row, and its side of the split where its own content decides that."""

    features: Features
    part_of: PartOf | None = None


def readers_of(schema: LabelledRows, *, fasta: Path | None = None) -> Readers:
    """The readers of `schema`; `fasta` holds the sequences that a table names.

    Raises:
        DataError: the FASTA file cannot be read. ConfigError: another kind of data, or a package
            that it needs is not installed.
    """
    if isinstance(schema, SequenceData):
        return Readers(features=sequence_features(schema, read_fasta(fasta) if fasta else None))
    if isinstance(schema, MoleculeData):
        return Readers(features=molecule_features(schema), part_of=scaffold_part(schema))
    raise ConfigError(f"data.kind: expected sequences or molecules, found {schema.kind!r}")
