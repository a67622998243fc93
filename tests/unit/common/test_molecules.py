"""Molecules as tensors: public fingerprints and graphs, scaffolds, answers nobody measured."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedward_common.errors import ConfigError, DataError, ModelRefused
from fedward_common.models.answer_objectives import AnswersObjective
from fedward_common.models.registry import build_model
from fedward_common.study.evaluation import BinnedScores, ClassScores
from fedward_common.study.molecule import ATOM_NUMBERS, MoleculeData
from fedward_common.study.row_encoding import NOT_MEASURED, encode_rows
from fedward_common.study.row_readers import readers_of
from fedward_common.study.spec import ModelSpec

pytest.importorskip("rdkit")

ASPIRIN, CAFFEINE, ETHANOL = "CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "CCO"


def data(**changes: Any) -> MoleculeData:
    values = {
        "kind": "molecule",
        "no_patient_key": True,
        "encoding": {"kind": "morgan", "bits": 128},
        "label": {"answers": ["toxic", "bitter"]},
        "split": {"kind": "column", "column": "split"},
    }
    return MoleculeData.model_validate(values | changes)


def row(smiles: str, **more: str) -> dict[str, str]:
    return {"smiles": smiles, "toxic": "1", "bitter": "", "split": "train"} | more


def encoded(schema: MoleculeData, *rows: dict[str, str], **more: Any) -> Any:
    readers = readers_of(schema)
    options: dict[str, Any] = {"part": "train", "part_of": readers.part_of} | more
    return encode_rows(schema, rows, readers.features, **options)


def test_a_fingerprint_is_the_same_however_the_molecule_is_written_and_in_range() -> None:
    records, absent = encoded(data(), row("OCC"), row(ETHANOL), row(CAFFEINE))

    assert absent == 0
    assert records.features.shape == (3, 144)
    assert (records.features[0] == records.features[1]).all()
    assert (records.features[0] != records.features[2]).any()
    assert np.abs(records.features).max() <= 1.0


def test_an_answer_that_nobody_measured_is_no_answer() -> None:
    records, _ = encoded(data(), row(ETHANOL), row(CAFFEINE, toxic="0", bitter="1.0"))

    assert records.labels.tolist() == [[1.0, NOT_MEASURED], [0.0, 1.0]]


def test_what_is_no_molecule_is_absent_and_nothing_of_it_is_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    schema = data()
    bad = [row("C1CC"), row("secret("), row(""), row("c1cccc1"), row(ETHANOL, toxic="yes")]

    records, absent = encoded(schema, *bad, row(ETHANOL))

    assert (records.patients, absent) == (1, 5)
    for one in bad[:4]:
        with pytest.raises(DataError, match="SMILES") as refused:
            encoded(schema, one, strict=True)
        assert not one["smiles"] or one["smiles"] not in str(refused.value)
    shown = capfd.readouterr()
    assert "secret" not in shown.out + shown.err


def test_molecules_of_one_scaffold_stay_on_one_side() -> None:
    schema = data(split={"kind": "scaffold", "salt": "s", "held_out": 0.5})
    rings = ["C1CC1", "C1CCC1", "C1CCCC1", "C1CCCCC1", "c1ccccc1", "c1ccncc1", "c1ccoc1"]

    sides = {}
    for ring in rings:
        for tail in ("", "C", "CC", "CCO"):
            one = [row(ring + tail)]
            train = encoded(schema, *one, part="train")[0].patients
            sides.setdefault(ring, set()).add(train)

    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {0, 1}


def test_a_graph_has_the_atoms_and_both_ends_of_every_bond() -> None:
    schema = data(encoding={"kind": "graph", "atoms": 6})

    records, _ = encoded(schema, row(ETHANOL))
    nodes = records.features[0, : 6 * ATOM_NUMBERS].reshape(6, ATOM_NUMBERS)
    edges = records.features[0, 6 * ATOM_NUMBERS :].reshape(6, 6)

    assert nodes[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert edges.sum() == 4
    assert (edges == edges.T).all()
    assert np.abs(nodes).max() <= 1.0


def test_a_molecule_larger_than_the_graph_is_absent() -> None:
    schema = data(encoding={"kind": "graph", "atoms": 6})

    assert encoded(schema, row(ASPIRIN), row(ETHANOL))[1] == 1


def test_a_graph_network_does_not_depend_on_the_order_of_the_atoms() -> None:
    schema = data(encoding={"kind": "graph", "atoms": 16})
    spec = ModelSpec(name="graph-network", hidden=(8, 8, 8), shape=(ATOM_NUMBERS, 16), outputs=2)
    net = build_model(spec, schema.input_size)

    records, _ = encoded(schema, row("CC(=O)Oc1ccccc1C(=O)O"), row("OC(=O)c1ccccc1OC(C)=O"))
    one, other = net(torch.from_numpy(records.features))

    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("changes", [{"hidden": [8]}, {"shape": [ATOM_NUMBERS, 5]}])
def test_a_graph_network_of_other_sizes_is_refused(changes: dict[str, Any]) -> None:
    values = {"name": "graph-network", "hidden": [8, 8], "shape": [ATOM_NUMBERS, 6]}
    spec = ModelSpec.model_validate(values | changes)

    with pytest.raises(ConfigError, match="graph-network"):
        build_model(spec, 6 * (ATOM_NUMBERS + 6))


@pytest.mark.parametrize(
    "changes",
    [
        {"split": {"kind": "hash", "salt": "s", "held_out": 0.5}},
        {"label": {"column": "site", "classes": ["a", "b", "c"]}},
        {"label": {"answers": ["toxic", "toxic"]}},
        {"encoding": {"kind": "graph", "atoms": 500}},
    ],
    ids=["nobody to hash", "one of three", "one twice", "too large"],
)
def test_a_schema_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        data(**changes)


def test_the_loss_of_several_answers_is_over_those_that_were_measured() -> None:
    objective = AnswersObjective(2, (1.0, 3.0))
    outputs = torch.zeros(3, 2, requires_grad=True)
    labels = torch.tensor([[1.0, NOT_MEASURED], [0.0, 1.0], [NOT_MEASURED, NOT_MEASURED]])

    losses = objective.losses(outputs, labels)
    losses.sum().backward()  # type: ignore[no-untyped-call]

    half = float(np.log(2.0)) / 2
    assert losses.tolist() == pytest.approx([half, 4 * half, 0.0])
    assert outputs.grad is not None
    assert ((outputs.grad != 0) == (labels >= 0)).all()
    with pytest.raises(ModelRefused, match="each answer"):
        objective.losses(torch.zeros(3), labels)


def test_an_answer_that_nobody_measured_is_counted_nowhere() -> None:
    objective = AnswersObjective(2)
    release = ClassScores(bins=4, noise_multiplier=1.0, classes=2, exclusive=False)

    places = objective.places(
        torch.tensor([[5.0, -5.0]]), np.array([1.0, NOT_MEASURED], np.float32), release
    )

    assert places[0] == 1 * 4 + 3
    assert places[1] < 0
    with pytest.raises(ConfigError, match="class-scores"):
        objective.places(
            torch.zeros(1, 2), np.zeros(2, np.float32), BinnedScores(bins=4, noise_multiplier=1.0)
        )
