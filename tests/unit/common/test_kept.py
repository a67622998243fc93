"""What sites keep between rounds: SCAFFOLD's control variates and FedBN's own layers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedward_common.arrays import Array
from fedward_common.study.kept import (
    correction,
    kept_words,
    new_state,
    opened_round,
    own_model,
    released_shapes,
    round_tensors,
    state_shapes,
)
from fedward_common.study.spec import StudySpec
from fedward_server.aggregation import ScaffoldStep
from tests.support.guard_site import a_study


def study(aggregation: dict[str, object], **training: object) -> StudySpec:
    plain = a_study(id="kept", rounds=3, local_steps=2).model_dump(mode="json")
    plain["aggregation"] = {"average_last": 1, **aggregation}
    plain["training"] |= {"momentum": 0.0, "weight_decay": 0.0, **training}
    return StudySpec.model_validate(plain)


def tensors(value: float) -> dict[str, Array]:
    return {
        "linear.bias": np.array([value], np.float32),
        "linear.weight": np.array([[value, -value]], np.float32),
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=2), max_size=4))
def test_shared_is_the_weighted_mean_of_the_sites_variates(moves: list[list[float]]) -> None:
    """The coordinator follows it from the mean of the released models alone, sites absent or not.

    A move of exactly 0 stands for a site that is absent in that round.
    """
    spec = study({"name": "scaffold"})
    first, second = (spec.weight(site.id) for site in spec.sites[:2])  # type: ignore[arg-type]
    weights = dict(zip("ab", (first, second), strict=True))
    server, model = ScaffoldStep(spec), tensors(0.0)
    kept: dict[str, dict[str, Array]] = {"a": {}, "b": {}}
    for move in moves:
        there = {site: value for site, value in zip("ab", move, strict=True) if value != 0.0}
        if not there:
            continue
        shared, share = server.shared(), sum(weights[site] for site in there)
        after = {s: {n: t + np.float32(v) for n, t in model.items()} for s, v in there.items()}
        for site, moved in after.items():
            kept[site] = new_state(spec, before=model, after=moved, shared=shared, state=kept[site])
        mean = {n: sum(weights[s] * after[s][n] for s in there) / share for n in model}
        model = server.step(model, mean, share=share)  # type: ignore[arg-type]
    for name, value in server.shared().items():
        own = [weights[s] * kept[s][name] for s in kept if kept[s]]
        np.testing.assert_allclose(value, sum(own, np.zeros(value.shape)), atol=2e-4)


def test_a_variate_is_the_mean_gradient_of_the_round_and_corrects_it_away() -> None:
    spec = study({"name": "scaffold"}, learning_rate=0.5)

    state = new_state(spec, before=tensors(1.0), after=tensors(0.0), shared=tensors(0.0), state={})

    assert state["linear.bias"] == 1.0  # moved by 1 in two steps of 0.5
    assert correction(tensors(0.25), state)["linear.bias"] == -0.75
    assert correction(tensors(0.25), {})["linear.bias"] == 0.25


def test_a_round_takes_model_and_shared_variate_apart_again() -> None:
    model, shared = opened_round(round_tensors(tensors(1.0), tensors(2.0)))

    assert model["linear.bias"] == 1.0
    assert shared["linear.bias"] == 2.0


def test_kept_layers_are_in_no_update_and_replace_those_that_come() -> None:
    spec = study({"name": "fedbn", "kept": ["linear.bias"]})
    shapes = {name: tensor.shape for name, tensor in tensors(0.0).items()}

    assert set(released_shapes(spec, shapes)) == {"linear.weight"}
    assert set(state_shapes(spec, shapes)) == {"linear.bias"}
    own = own_model(spec, tensors(1.0), {"linear.bias": np.array([7.0], np.float32)})
    assert (own["linear.bias"], own["linear.weight"][0, 0]) == (7.0, 1.0)
    state = new_state(spec, before=tensors(0.0), after=tensors(3.0), shared={}, state={})
    assert set(state) == {"linear.bias"}


@pytest.mark.parametrize("training", [{"momentum": 0.5}, {"optimizer": "adam"}])
def test_scaffold_wants_plain_sgd(training: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="plain sgd with scaffold"):
        study({"name": "scaffold"}, **training)


def test_people_are_told_what_stays() -> None:
    assert "costs no privacy" in kept_words(study({"name": "scaffold"}))
    assert "linear.bias" in kept_words(study({"name": "fedbn", "kept": ["linear.bias"]}))
    assert kept_words(a_study()) == ""
