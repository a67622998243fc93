"""Genotypes: from a site's file to a protected update, counts and a data report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedward_client.data.genotypes import GenotypeSource
from fedward_client.data_entries import GenotypeFiles
from fedward_client.held_out import HeldOut
from fedward_client.tasks.registry import task_of
from fedward_client.training.patient_dp.model_check import check_model
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.spec import ModelSpec, StudySpec
from fedward_server.private_measures import private_measures
from fedward_server.sandbox.figures import model_figures
from tests.support.genotype_studies import (
    LOCI,
    genotype_study,
    people,
    simple_lines,
    write_people,
    write_vcf,
)
from tests.support.studies import SITES

CLASSES = {"label": {"column": "origin", "classes": ["a", "b", "c"]}}
ANSWERS = [
    {"kind": "class-scores", "classes": 3, "exclusive": True, "bins": 4, "noise_multiplier": 1.0}
]
NUMBER = {"label": {"column": "height", "unit": "cm", "low": 100.0, "high": 200.0}}
CNN = {"name": "locus-cnn", "shape": [1, 4], "hidden": [4]}


def several(**changes: Any) -> StudySpec:
    values = {
        "data": CLASSES,
        "model": {"name": "linear", "outputs": 3},
        "releases": ANSWERS,
    }
    return genotype_study(**(values | changes))


def regression() -> StudySpec:
    return genotype_study(
        data=NUMBER,
        task={"kind": "genotype-regression"},
        releases=[{"kind": "value-scores", "bins": 4, "noise_multiplier": 3.0}],
    )


def source(folder: Path, count: int = 36) -> GenotypeSource:
    codes = ["0/0", "0/1", "1/1"]
    cells = [[codes[n % 3] for n in range(count)] for _ in LOCI]
    rows = people(
        count,
        origin=["abc"[n % 3] for n in range(count)],
        height=[str(150 + 20 * (n % 3)) for n in range(count)],
        split=["train" if n < count // 2 else "test" for n in range(count)],
    )
    names = [row["sample"] for row in rows]
    path = write_vcf(folder / "genotypes.vcf.gz", simple_lines(cells), samples=names)
    return GenotypeSource(
        [
            GenotypeFiles(
                path=path,
                people=write_people(folder / "patients.csv", rows),
                build="GRCh37",
                patient_key="patient_id",
            )
        ]
    )


@pytest.mark.parametrize(
    "study",
    [
        genotype_study(model={"name": "mlp", "hidden": [4]}),
        genotype_study(model=CNN),
        several(),
        several(model=CNN | {"outputs": 3}),
        regression(),
    ],
    ids=["mlp", "cnn", "classes", "classes cnn", "regression"],
)
def test_a_study_of_genotypes_trains_from_the_site_s_files(
    study: StudySpec, tmp_path: Path
) -> None:
    trainer = LocalTrainer(
        study, SiteId(SITES[0]), sampling=Csprng(), noise=Csprng(), flags=PerformanceFlags()
    )
    start = initial_tensors(study.model, task_of(study).inputs)

    found = trainer.train(start, source(tmp_path).records(study, part="train"))

    assert found.executed.steps == study.local_steps
    assert any(not np.array_equal(found.tensors[name], start[name]) for name in start)


def test_held_out_people_are_counted_by_class_and_by_answer(tmp_path: Path) -> None:
    study = several()
    records = source(tmp_path).records(study, part="test")
    # The class is the number of copies: a model that knows it.
    weights = {
        "linear.weight": np.outer([-1.0, 0.0, 1.0], [8.0, 0, 0, 0]).astype(np.float32),
        "linear.bias": np.array([0, 4, 0], np.float32),
    }

    counts = HeldOut(study=study, weights=weights, records=records).counts()
    figures = model_figures(study, weights, {SiteId("north"): records}).pooled
    release = study.releases[0]
    private = private_measures(study, release, counts.astype(float) * 10, noise=0.0)  # type: ignore[arg-type]

    assert counts[6:, :3].tolist() == (6 * np.eye(3)).tolist()
    assert (figures.accuracy, figures.held_out) == (1.0, 18)
    assert figures.majority == pytest.approx(1 / 3)
    assert private["accuracy"].value == 1.0


def test_a_regression_s_labels_are_on_the_study_s_scale(tmp_path: Path) -> None:
    records = source(tmp_path).records(regression(), part="train")

    np.testing.assert_allclose(records.labels[:3], [0.0, 0.4, 0.8], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": CNN | {"shape": [2, 2]}}, r"model.shape: expected \[1, 4\]"),
        ({"data": {"split": None}}, "data.split: expected who is held out"),
        ({"data": {"label": None}}, "expected one that fits the label"),
        ({"task": {"kind": "tabular-classification"}}, "task.kind: expected one"),
        ({"data": CLASSES, "model": {"name": "linear", "outputs": 3}}, "expected class-scores of"),
        ({"data": CLASSES, "releases": ANSWERS}, "model.outputs: expected 3"),
    ],
)
def test_parts_of_a_study_of_genotypes_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(genotype_study(**changes))


@pytest.mark.parametrize("hidden", [(4,), (4, 8)])
def test_the_convolution_starts_alike_everywhere_and_mixes_nobody(hidden: tuple[int, ...]) -> None:
    spec = ModelSpec(name="locus-cnn", shape=(2, 9), hidden=hidden, outputs=3)
    model, again = (build_model(spec, 20).eval() for _ in range(2))
    features = torch.linspace(-1, 1, 60).reshape(3, 20)

    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    torch.testing.assert_close(model(features)[1:2], model(features[1:2]))
    # The columns beside the genotypes have a weight of their own.
    assert not torch.equal(model(features), model(features + torch.eye(20)[19]))


def test_the_convolution_passes_the_check_of_a_patient_level_guarantee() -> None:
    study = genotype_study(model=CNN)
    task = task_of(study)

    check_model(
        build_model(study.model, task.inputs).train(),
        loss=task.losses,
        examples=task.examples(device=torch.device("cpu")),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": ()}, "at least one width"),
        ({"shape": (1, 30)}, "model.shape"),
        ({"hidden": (4, 4, 4, 4)}, "fewer blocks"),
    ],
)
def test_sizes_that_the_convolution_cannot_have_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    values = {"name": "locus-cnn", "shape": (1, 9), "hidden": (4,)} | changes
    with pytest.raises(ConfigError, match=message):
        build_model(ModelSpec(**values), 9)
