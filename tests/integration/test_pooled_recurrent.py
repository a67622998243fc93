"""A model whose cells list their parameters twice learns by pooled steps as it does by local ones.

Opacus' recurrent cells do. The second names travelled too, had no gradient, and won when the model
was loaded: with distributed noise nothing of such a model but its last layer ever learned.
"""

import numpy as np
import pytest
import torch

from fedward_client.training.weights import load_weights
from fedward_common.errors import ProtocolError
from fedward_common.models.pooled_descent import PooledDescent
from fedward_common.models.registry import build_model, initial_tensors, load_tensors
from fedward_common.study.spec import ModelSpec, TrainingSpec

INPUTS = 6
MODELS = {
    "lstm": ModelSpec(name="lstm", hidden=[4], steps=3),
    "gru": ModelSpec(name="gru", hidden=[4], steps=3),
    "mlp": ModelSpec(name="mlp", hidden=[4]),
}
every_model = pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)


@every_model
def test_every_tensor_travels_once_by_the_name_of_its_gradient(spec: ModelSpec) -> None:
    model = build_model(spec, INPUTS)

    tensors = initial_tensors(spec, INPUTS)

    assert set(tensors) == {name for name, _ in model.named_parameters()}
    assert sum(array.size for array in tensors.values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )


@every_model
def test_a_pooled_step_moves_every_parameter_of_the_model_that_a_site_loads(
    spec: ModelSpec,
) -> None:
    start = initial_tensors(spec, INPUTS)
    model = build_model(spec, INPUTS)
    gradient = {name: np.ones(array.shape) for name, array in start.items()}
    descent = PooledDescent(TrainingSpec(learning_rate=0.5))

    load_weights(model, descent.step(start, gradient, rate=0.5))

    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), start[name] - 0.5, atol=1e-6)


def test_weights_of_another_shape_or_name_are_refused_and_change_nothing() -> None:
    model = build_model(MODELS["lstm"], INPUTS)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    wrong = {name: array + 1 for name, array in initial_tensors(MODELS["gru"], INPUTS).items()}

    with pytest.raises(ProtocolError, match="weights: expected"):
        load_tensors(model, wrong)

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
