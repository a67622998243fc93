"""An encoder that a study of images has learned begins a study of several modalities."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Array, tensors_from_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors
from fedward_common.models.start import start_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_server.cli import app
from tests.support.image_studies import image_study
from tests.support.multimodal import SIZE, model, multimodal_study
from tests.support.packages import make_package

ENCODER = "encoders.image.blocks."


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    """The convolutions of an image study's model, written out for another study."""
    study = image_study(
        model={"name": "cnn", "shape": [1, SIZE, SIZE], "hidden": [4]},
        data={"height": SIZE, "width": SIZE},
    )
    package, file = make_package(tmp_path, study), tmp_path / "encoder.safetensors"
    words = ["--begin", "blocks.", "--as", ENCODER, "--key", package.key.public_hex]
    done = CliRunner().invoke(
        app, ["model", "start-weights", str(package.folder), str(file), *words]
    )
    assert done.exit_code == 0, done.output
    assert f'tensors = ["{ENCODER}"]' in done.stdout
    return file


def study_from(file: Path, *, frozen: bool, tensors: str = ENCODER) -> StudySpec:
    start = {"sha256": sha256_hex(file.read_bytes()), "tensors": [tensors]}
    training = {"learning_rate": 0.5, "frozen": [ENCODER] if frozen else []}
    return multimodal_study(model=model(start=start), training=training)


def after_a_round(study: StudySpec, begun: dict[str, Array]) -> dict[str, Array]:
    features, labels = task_of(study).examples(device=torch.device("cpu"))(16)
    records = PatientRecords(
        features=features.numpy(), labels=labels.numpy(), patient=np.arange(16)
    )
    trainer = LocalTrainer(
        study, SiteId("north"), sampling=Csprng(), noise=Csprng(), flags=PerformanceFlags()
    )
    return dict(trainer.train(begun, records).tensors)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_learned_encoder_begins_the_study_and_moves_unless_it_is_frozen(
    learned: Path, frozen: bool
) -> None:
    study = study_from(learned, frozen=frozen)
    inputs = input_size(study.data)

    begun = start_tensors(study.model, inputs, file=learned.read_bytes())

    encoder = load_file(learned)
    assert set(encoder) == {name for name in begun if name.startswith(ENCODER)}
    assert all(np.array_equal(begun[name], encoder[name]) for name in encoder)
    seeded = initial_tensors(study.model, inputs)
    others = set(begun) - set(encoder)
    assert all(np.array_equal(begun[name], seeded[name]) for name in others)

    found = after_a_round(study, begun)

    moved = {name for name in found if not np.array_equal(found[name], begun[name])}
    assert bool(moved & set(encoder)) is not frozen
    assert moved & others


def test_another_file_or_one_of_other_sizes_is_refused(learned: Path, tmp_path: Path) -> None:
    study = study_from(learned, frozen=True)
    inputs = input_size(study.data)

    with pytest.raises(ConfigError, match="another"):
        start_tensors(study.model, inputs, file=learned.read_bytes() + b" ")
    with pytest.raises(ConfigError, match="give it with --start-weights"):
        start_tensors(study.model, inputs)
    whole = study_from(learned, frozen=True, tensors="encoders.image.")
    with pytest.raises(ConfigError, match="found none"):
        start_tensors(whole.model, inputs, file=learned.read_bytes())
    assert tensors_from_bytes(learned.read_bytes())
