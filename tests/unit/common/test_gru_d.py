"""GRU-D against its equations, one patient and one step after another in numpy."""

import numpy as np
import pytest
import torch

from fedward_common.errors import ConfigError
from fedward_common.models.registry import build_model, initial_tensors, model_tensors
from fedward_common.study.spec import ModelSpec

STEPS, STATIC, VARIABLES, HIDDEN = 5, 1, 2, 3
SPEC = ModelSpec(name="gru-d", hidden=(HIDDEN,), steps=STEPS, shape=(VARIABLES,))
WIDTH = STATIC + 2 * VARIABLES
FILL = (0.25, -0.5)


def series(*, patients: int, seed: int = 0) -> np.ndarray:
    """[patients, steps, width]: a static number, then value and mask of each variable."""
    draws = np.random.default_rng(seed)
    rows = np.zeros((patients, STEPS, WIDTH))
    rows[:, :, 0] = draws.uniform(-1, 1, (patients, 1))
    for variable in range(VARIABLES):
        seen = draws.random((patients, STEPS)) < 0.5
        values = draws.uniform(-1, 1, (patients, STEPS))
        rows[:, :, STATIC + 2 * variable] = np.where(seen, values, FILL[variable])
        rows[:, :, STATIC + 2 * variable + 1] = seen
    return rows


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def by_the_paper(weights: dict[str, np.ndarray], rows: np.ndarray) -> float:
    """The logit of one patient [steps, width]; the paper's equations with the fill as mean."""
    state, last, since = np.zeros(HIDDEN), np.array(FILL), np.zeros(VARIABLES)
    slope, offset = weights["input_decay.weight"].T
    for step in range(STEPS):
        static, pairs = rows[step, :STATIC], rows[step, STATIC:]
        value, mask = pairs[0::2], pairs[1::2]
        if step:
            before = rows[step - 1, STATIC + 1 :: 2]
            since = np.where(before == 1, 1 / STEPS, 1 / STEPS + since)
        kept = np.exp(-np.maximum(0, slope * since + offset))
        last = np.where(mask == 1, value, last)
        filled = np.where(mask == 1, value, kept * last + (1 - kept) * np.array(FILL))
        decay = weights["state_decay.weight"] @ since + weights["state_decay.bias"]
        state = np.exp(-np.maximum(0, decay)) * state
        seen = np.concatenate([static, filled, mask])
        z, r, n = np.split(weights["inputs.weight"] @ seen + weights["inputs.bias"], 3)
        uz, ur = np.split(weights["gates.weight"] @ state, 2)
        z, r = sigmoid(z + uz), sigmoid(r + ur)
        proposed = np.tanh(n + weights["candidate.weight"] @ (r * state))
        state = (1 - z) * state + z * proposed
    return float((weights["output.weight"] @ state + weights["output.bias"])[0])


def changed_model() -> torch.nn.Module:
    """A model whose every parameter has a value of its own, offsets and biases too."""
    model = build_model(SPEC, STEPS * WIDTH)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(torch.rand(parameter.shape, generator=generator))
    return model


def test_the_logit_is_that_of_the_paper_s_equations() -> None:
    model, rows = changed_model(), series(patients=8)
    weights = model_tensors(model)

    found = model(torch.tensor(rows.reshape(8, -1), dtype=torch.float32))

    expected = [by_the_paper(weights, patient) for patient in rows]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


def test_how_long_ago_a_value_was_seen_counts() -> None:
    """The same value, then nothing: a GRU of values and masks alone could not tell these apart
    at the last step, were its state the same.
    """
    model = changed_model()
    rows = series(patients=1)
    rows[0, :, STATIC::2], rows[0, :, STATIC + 1 :: 2] = FILL, 0.0
    early, late = rows.copy(), rows.copy()
    early[0, 0, STATIC : STATIC + 2] = late[0, 3, STATIC : STATIC + 2] = 1.0, 1.0

    ones = [
        model(torch.tensor(r.reshape(1, -1), dtype=torch.float32)).item() for r in (early, late)
    ]

    assert abs(ones[0] - ones[1]) > 1e-3


def test_it_starts_the_same_everywhere_with_every_decay_alive() -> None:
    one, other = initial_tensors(SPEC, STEPS * WIDTH), initial_tensors(SPEC, STEPS * WIDTH)

    assert all((one[name] == other[name]).all() for name in one)
    assert (one["input_decay.weight"][:, 0] > 0).all()
    assert (one["state_decay.weight"] >= 0).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden": ()}, "model.hidden"),
        ({"steps": 4}, "model.steps"),
        ({"shape": ()}, "model.shape"),
        ({"shape": (3,)}, r"at most 2 in the 5 inputs"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_model(SPEC.model_copy(update=changes), STEPS * WIDTH)
