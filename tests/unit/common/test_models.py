"""Models by name: equal on every machine, and refused when the study describes them wrongly."""

import hashlib
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedward_common.arrays import tensors_to_bytes
from fedward_common.errors import ConfigError
from fedward_common.models.dp_layers import dp_layer
from fedward_common.models.plugins import BUILT_IN
from fedward_common.models.registry import (
    build_model,
    initial_tensors,
    is_known,
    model_shapes,
    register_model,
)
from fedward_common.study.spec import ModelSpec

LOGISTIC = ModelSpec(name="logistic-regression")
MLP = ModelSpec(name="mlp", hidden=(8, 4), initial_seed=7)


@pytest.mark.parametrize("spec", [LOGISTIC, MLP], ids=["logistic-regression", "mlp"])
@pytest.mark.parametrize("records", [1, 5])
def test_a_model_gives_one_logit_per_record(spec: ModelSpec, records: int) -> None:
    logits = build_model(spec, inputs=3)(torch.ones(records, 3))

    assert logits.shape == (records,)


def test_logistic_regression_starts_at_zero() -> None:
    assert all(not tensor.any() for tensor in initial_tensors(LOGISTIC, 5).values())


def test_initial_weights_are_the_ones_every_machine_has_computed() -> None:
    """The digest was computed on x86-64 and must hold wherever a site runs."""
    digest = hashlib.sha256(tensors_to_bytes(initial_tensors(MLP, 5))).hexdigest()

    assert digest == "53343143dbb7338a7eb5416a61aa25130dc59cbd90ddb720e95d40429e4d53d5"


def test_another_seed_gives_other_weights_within_the_same_bound() -> None:
    one = initial_tensors(MLP, 16)["hidden.0.weight"]
    other = initial_tensors(MLP.model_copy(update={"initial_seed": 8}), 16)["hidden.0.weight"]

    assert not np.isclose(one, other).any()
    assert 0.2 < max(abs(one).max(), abs(other).max()) <= 0.25  # 1 / sqrt(16)


def test_building_a_model_leaves_torchs_global_generator_alone() -> None:
    before = torch.random.get_rng_state()

    build_model(MLP, inputs=5)

    assert torch.equal(torch.random.get_rng_state(), before)


def test_shapes_name_every_tensor_of_the_state() -> None:
    shapes = model_shapes(MLP, 5)

    state = build_model(MLP, inputs=5).state_dict()
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert list(shapes) == sorted(shapes)
    assert shapes["output.weight"] == (1, 4)


@pytest.mark.parametrize(
    ("spec", "inputs", "message"),
    [
        (ModelSpec(name="resnet"), 3, r"expected one of \[.*'cnn', .*'mlp'.*'resnet'"),
        (ModelSpec(name="mlp"), 3, "model.hidden: expected at least one width"),
        (ModelSpec(name="logistic-regression", hidden=(4,)), 3, r"no hidden layer.*found \[4\]"),
        (LOGISTIC, 0, "at least one input, found 0"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_config_error(
    spec: ModelSpec, inputs: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(spec, inputs=inputs)


def test_a_name_means_one_model_for_ever() -> None:
    with pytest.raises(ValueError, match="not taken"):
        register_model("mlp")(lambda spec, inputs: torch.nn.Linear(inputs, 1))


def test_the_registry_needs_torch_and_not_opacus() -> None:
    code = "import sys, fedward_common.models.registry; sys.exit('opacus' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loading_opacus_leaves_the_root_logger_as_it_was() -> None:
    """Opacus calls logging.basicConfig when it is imported."""
    code = (
        "import logging; from fedward_common.models.dp_layers import dp_layer; dp_layer('gru');"
        "root = logging.getLogger(); print(root.handlers, root.level == logging.WARNING)"
    )
    here = list(logging.getLogger().handlers)

    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    dp_layer("lstm")

    assert done.stdout == "[] True\n"
    assert done.stderr == ""
    assert logging.getLogger().handlers == here


def test_what_needs_no_plugin_is_in_the_registry_and_cannot_be_taken() -> None:
    for name in BUILT_IN:
        assert is_known(name)
        with pytest.raises(ValueError, match="not taken"):
            register_model(name)(lambda spec, inputs: torch.nn.Linear(inputs, 1))
