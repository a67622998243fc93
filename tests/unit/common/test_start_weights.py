"""Training that begins with weights out of a file: that file, those tensors, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedward_common.arrays import numeric_parts, tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.models.registry import initial_tensors
from fedward_common.models.start import start_tensors
from fedward_common.privacy.disclosure import disclosure
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_server.adapters.start_weights import keep_start_weights, read_start_weights
from tests.support.studies import make_spec

INPUTS = input_size(make_spec().data)
ENCODER = {
    "hidden.0.weight": np.full((4, INPUTS), 0.5, dtype=np.float32),
    "hidden.0.bias": np.arange(4, dtype=np.float32),
}
CONTENT = tensors_to_bytes(ENCODER)


def study(content: bytes = CONTENT, **start: Any) -> StudySpec:
    values = {"sha256": sha256_hex(content), "tensors": ["hidden.0."]} | start
    return make_spec(model={"name": "mlp", "hidden": [4], "start": values})


def started(found: StudySpec, content: bytes | None) -> dict[str, np.ndarray]:
    return start_tensors(found.model, INPUTS, file=content)


def test_what_the_file_holds_is_its_own_and_the_rest_begins_by_the_seed() -> None:
    found, seeded = started(study(), CONTENT), initial_tensors(study().model, INPUTS)

    assert set(found) == set(seeded)
    for name, tensor in found.items():
        assert np.array_equal(tensor, ENCODER.get(name, seeded[name]))
    whole = {name: tensor + 1.0 for name, tensor in seeded.items()}
    content = tensors_to_bytes(whole)
    everything = started(study(content, tensors=[]), content)
    assert all(np.array_equal(everything[name], whole[name]) for name in whole)


WRONG: dict[str, dict[str, np.ndarray]] = {
    "one too few": {"hidden.0.bias": ENCODER["hidden.0.bias"]},
    "one too many": ENCODER | {"output.bias": np.zeros(1, np.float32)},
    "another shape": ENCODER | {"hidden.0.bias": np.zeros(5, np.float32)},
    "another type": ENCODER | {"hidden.0.bias": np.zeros(4, np.float64)},
    "no number": ENCODER | {"hidden.0.bias": np.full(4, np.nan, np.float32)},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_other_tensors_than_the_model_s_are_refused(wrong: dict[str, np.ndarray]) -> None:
    content = b"".join(bytes(part) for part in numeric_parts(wrong))

    with pytest.raises(ConfigError, match=r"model\.start: (tensor hidden|expected the tensors)"):
        started(study(content), content)


@pytest.mark.parametrize("content", [None, CONTENT[:-1], CONTENT + b" ", b"pickle"])
def test_another_file_than_the_study_s_is_refused(content: bytes | None) -> None:
    with pytest.raises(ConfigError, match="expected the file with SHA-256"):
        started(study(), content)
    with pytest.raises(ConfigError, match="expected safetensors"):
        started(study(b"pickle"), b"pickle")


def test_a_beginning_that_no_tensor_has_is_named() -> None:
    with pytest.raises(ConfigError, match=r"found 'encoder\.'; the model has hidden"):
        started(study(tensors=["encoder."]), CONTENT)
    with pytest.raises(ValidationError):
        study(sha256="abc")


def test_a_coordinator_keeps_only_the_file_that_the_study_names(tmp_path: Path) -> None:
    file, other = tmp_path / "encoder", tmp_path / "other"
    file.write_bytes(CONTENT)
    other.write_bytes(tensors_to_bytes(WRONG["one too few"]))
    state = tmp_path / "state"

    for given in (None, other):
        with pytest.raises(ConfigError, match="expected the file with SHA-256"):
            keep_start_weights(state, study(), given)
    assert not state.exists()
    keep_start_weights(state, study(), file)
    keep_start_weights(state, study(), None)

    assert read_start_weights(state, study()) == CONTENT
    assert read_start_weights(state, make_spec()) is None
    with pytest.raises(ConfigError, match=r"expected a study with \[model.start\]"):
        keep_start_weights(state, make_spec(), file)


def test_a_kept_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "encoder"
    file.write_bytes(CONTENT)
    keep_start_weights(tmp_path, study(), file)
    (kept,) = (tmp_path / "weights").iterdir()
    kept.write_bytes(CONTENT[:-1] + b"\x01")

    with pytest.raises(ConfigError, match="found another"):
        started(study(), read_start_weights(tmp_path, study()))


def test_who_approves_reads_that_epsilon_does_not_cover_the_start() -> None:
    entry = disclosure(study()).claim.pre_training

    assert entry.status == "configured"
    assert f"(hidden.0.*) begins with weights of SHA-256 {sha256_hex(CONTENT)}" in entry.value
    assert "is not covered by this study's epsilon: nobody said what" in entry.value
    assert "start" not in make_spec().model_dump(mode="json")["model"]
