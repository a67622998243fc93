"""From SMILES to fingerprints and graphs, by RDKit (an extra: `omics`)."""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import ConfigError, DataError
from fedward_common.study.encoding import TablePart, hash_part
from fedward_common.study.labelled_rows import RowSplit, ScaffoldSplit
from fedward_common.study.molecule import (
    ATOM_NUMBERS,
    DESCRIPTORS,
    MoleculeGraph,
    MorganFingerprint,
    Smiles,
)
from fedward_common.study.row_encoding import Floats, PartOf, Row, cell
from fedward_common.study.tabular import HashSplit

LONGEST: Final = 4096
"""Letters of a SMILES: more is no molecule that a model of this kind is about."""
MOST_COUNT: Final = 8
ELEMENTS: Final = (6, 7, 8, 9, 15, 16, 17, 35, 53)
"""Carbon, nitrogen, oxygen, fluorine, phosphorus, sulphur, chlorine, bromine, iodine."""


def molecule_features(schema: Smiles) -> Callable[[Row], Floats]:
    """A function from a row to the numbers of its molecule.

    It raises DataError for what RDKit does not read as one: no letter of the SMILES is in it, and
    RDKit's own messages, which hold the SMILES, are kept from the log.

    Raises:
        ConfigError: RDKit is not installed.
    """
    chem = _rdkit()
    encoding = schema.encoding
    encode = _fingerprint(encoding) if isinstance(encoding, MorganFingerprint) else _graph(encoding)

    def features(row: Row) -> Floats:
        with chem.BlockLogs():
            return encode(_molecule(schema, row))

    return features


def scaffold_part(schema: Smiles, split: RowSplit) -> PartOf | None:
    """A function from a row to its side by the molecule's scaffold; None for another split.

    A molecule without a ring is its own scaffold: else all of them were one.
    """
    if not isinstance(split, ScaffoldSplit):
        return None
    chem = _rdkit()
    by = HashSplit(salt=split.salt, held_out=split.held_out)

    def part(row: Row) -> TablePart:
        with chem.BlockLogs():
            return hash_part(by, scaffold(_molecule(schema, row)))

    return part


def scaffold(molecule: Any) -> str:
    """The SMILES of a molecule's Murcko scaffold, or its own without a ring."""
    from rdkit.Chem import MolToSmiles  # noqa: PLC0415 - an extra
    from rdkit.Chem.Scaffolds import MurckoScaffold  # noqa: PLC0415

    of: Any = MurckoScaffold
    found = of.MurckoScaffoldSmiles(mol=molecule)
    return str(found or MolToSmiles(molecule))


def _molecule(schema: Smiles, row: Row) -> Any:
    from rdkit.Chem import MolFromSmiles  # noqa: PLC0415 - an extra

    text = cell(row, schema.smiles)
    found = MolFromSmiles(text) if 0 < len(text) <= LONGEST else None
    if found is None or not found.GetNumAtoms():
        raise DataError(
            f"column {schema.smiles!r}: expected a molecule in every row as SMILES that RDKit "
            "reads, found something else"
        )
    return found


def _fingerprint(encoding: MorganFingerprint) -> Callable[[Any], Floats]:
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator  # noqa: PLC0415 - an extra

    generator = GetMorganGenerator(radius=encoding.radius, fpSize=encoding.bits)

    def encode(molecule: Any) -> Floats:
        counts = generator.GetCountFingerprintAsNumPy(molecule).astype(np.float64)
        found = np.minimum(np.log1p(counts) / math.log1p(MOST_COUNT), 1.0)
        if encoding.descriptors:
            found = np.concatenate([found, _descriptors(molecule)])
        inputs: Floats = found.astype(np.float32)
        return inputs

    return encode


def _descriptors(molecule: Any) -> npt.NDArray[np.float64]:
    """Sixteen descriptors, each from a public range to [-1, 1], clipped."""
    from rdkit.Chem import Crippen, rdMolDescriptors  # noqa: PLC0415 - an extra

    crippen: Any = Crippen
    found = (
        (rdMolDescriptors.CalcExactMolWt(molecule), 0.0, 800.0),
        (crippen.MolLogP(molecule), -5.0, 10.0),
        (rdMolDescriptors.CalcTPSA(molecule), 0.0, 250.0),
        (rdMolDescriptors.CalcNumHBD(molecule), 0.0, 10.0),
        (rdMolDescriptors.CalcNumHBA(molecule), 0.0, 20.0),
        (rdMolDescriptors.CalcNumRotatableBonds(molecule), 0.0, 20.0),
        (rdMolDescriptors.CalcNumRings(molecule), 0.0, 8.0),
        (rdMolDescriptors.CalcNumAromaticRings(molecule), 0.0, 6.0),
        (rdMolDescriptors.CalcFractionCSP3(molecule), 0.0, 1.0),
        (molecule.GetNumHeavyAtoms(), 0.0, 60.0),
        (crippen.MolMR(molecule), 0.0, 200.0),
        (rdMolDescriptors.CalcLabuteASA(molecule), 0.0, 350.0),
        (rdMolDescriptors.CalcNumHeteroatoms(molecule), 0.0, 25.0),
        (rdMolDescriptors.CalcNumAmideBonds(molecule), 0.0, 6.0),
        (rdMolDescriptors.CalcNumAliphaticRings(molecule), 0.0, 6.0),
        (rdMolDescriptors.CalcNumSaturatedRings(molecule), 0.0, 6.0),
    )
    scaled = [2.0 * (min(max(x, low), high) - low) / (high - low) - 1.0 for x, low, high in found]
    if len(scaled) != DESCRIPTORS or not all(map(math.isfinite, scaled)):
        raise DataError("molecules: expected finite descriptors, found others")
    return np.array(scaled)


def _graph(encoding: MoleculeGraph) -> Callable[[Any], Floats]:
    most = encoding.atoms

    def encode(molecule: Any) -> Floats:
        atoms = molecule.GetNumAtoms()
        if atoms > most:
            raise DataError(f"molecules: expected at most {most} heavy atoms, found more")
        nodes = np.zeros((most, ATOM_NUMBERS), dtype=np.float32)
        edges = np.zeros((most, most), dtype=np.float32)
        for number, atom in enumerate(molecule.GetAtoms()):
            nodes[number] = _atom(atom)
        for bond in molecule.GetBonds():
            one, other = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            edges[one, other] = edges[other, one] = 1.0
        return np.concatenate([nodes.ravel(), edges.ravel()])

    return encode


def _atom(atom: Any) -> list[float]:
    """Numbers in [-1, 1]; the first is 1 of every atom and 0 where there is none."""
    element, neighbours = atom.GetAtomicNum(), min(atom.GetDegree(), 4)
    kinds = [bond.GetBondTypeAsDouble() for bond in atom.GetBonds()]
    return [
        1.0,
        *(float(element == known) for known in ELEMENTS),
        float(element not in ELEMENTS),
        *(float(neighbours == count) for count in range(1, 5)),
        *(float(min(atom.GetTotalNumHs(), 3) == count) for count in range(1, 4)),
        max(-1.0, min(1.0, atom.GetFormalCharge() / 2.0)),
        float(atom.GetIsAromatic()),
        float(atom.IsInRing()),
        float(atom.IsInRingSize(5)),
        float(2.0 in kinds),
        float(3.0 in kinds),
    ]


def _rdkit() -> Any:
    try:
        from rdkit import rdBase  # noqa: PLC0415 - an extra, and half a second to import
    except ModuleNotFoundError as error:
        raise ConfigError(
            "data.kind: expected the package rdkit for molecules, found none; install the extra "
            "[omics] of fedward-client or fedward-server"
        ) from error
    return rdBase
