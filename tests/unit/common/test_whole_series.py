"""The LSTM and the GRU whose steps are one operation: torch's numbers, Opacus' names."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fedward_common.models.dp_layers import (
    DpLayerName,
    as_opacus,
    dp_layer,
    observed,
    whole_series_layers,
)

TORCH: dict[DpLayerName, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}
SHAPES = [
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
]
INPUTS, HIDDEN, STEPS, RECORDS = 5, 7, 9, 6
KINDS = pytest.mark.parametrize("kind", list(TORCH))


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


def made(kind: DpLayerName, **shape: Any) -> nn.Module:
    return dp_layer(kind)(INPUTS, HIDDEN, **shape).double()


def series() -> torch.Tensor:
    return torch.randn(RECORDS, STEPS, INPUTS, dtype=torch.float64, requires_grad=True)


def plain(kind: DpLayerName, layer: nn.Module, **shape: Any) -> nn.RNNBase:
    twin = TORCH[kind](INPUTS, HIDDEN, **shape).double()
    state = layer.state_dict()
    twin.load_state_dict({name: state[name] for name in twin.state_dict()})
    return twin


def last_of(states: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return states if isinstance(states, torch.Tensor) else torch.cat(states)


def all_gradients(
    layer: nn.Module, names: list[str], inputs: torch.Tensor, *, last: bool = True
) -> list[torch.Tensor]:
    """Of a weighted sum of everything that the layer gives."""
    states, ends = layer(inputs)
    weights = torch.arange(states.numel(), dtype=states.dtype).cos().view_as(states)
    total = (states * weights).sum()
    if last:
        total = total + last_of(ends).square().sum()
    return list(torch.autograd.grad(total, [inputs, *(layer.get_parameter(n) for n in names)]))


@KINDS
@pytest.mark.parametrize("shape", SHAPES, ids=["one-layer", "two-layers-both-ways", "no-bias"])
def test_it_gives_what_torch_s_own_layer_gives(kind: DpLayerName, shape: dict[str, Any]) -> None:
    layer, inputs = made(kind, **shape), series()
    twin = plain(kind, layer, **shape)

    states, ends = layer(inputs)
    expected, expected_ends = twin(inputs)

    torch.testing.assert_close(states, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(last_of(ends), last_of(expected_ends), rtol=0, atol=1e-14)
    names = [name for name, _ in twin.named_parameters()]
    for last in (True, False):
        found = all_gradients(layer, names, inputs, last=last)
        wanted = all_gradients(twin, names, inputs, last=last)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@KINDS
def test_the_last_states_alone_have_a_gradient(kind: DpLayerName) -> None:
    layer, inputs = made(kind, batch_first=True), series()
    twin = plain(kind, layer, batch_first=True)

    found, wanted = (
        torch.autograd.grad(last_of(one(inputs)[1]).sum(), inputs)[0] for one in (layer, twin)
    )

    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


@KINDS
def test_its_derivatives_are_those_of_differences(kind: DpLayerName) -> None:
    layer = dp_layer(kind)(2, 3).double()
    inputs = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x: layer(x)[0], (inputs,))


@KINDS
def test_parameters_have_the_names_of_opacus_and_of_torch(kind: DpLayerName) -> None:
    layer = made(kind, bidirectional=True)
    twin = TORCH[kind](INPUTS, HIDDEN, bidirectional=True)

    assert set(dict(layer.named_parameters())) == set(dict(twin.named_parameters()))
    assert layer.opacus.__mro__[0] in type(layer).__mro__


@KINDS
@pytest.mark.parametrize("why", ["hook", "state", "autocast", "dropout"])
def test_who_must_see_single_steps_gets_them(
    kind: DpLayerName, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opacus' own way then: same numbers, and the inner layers are called at every step."""
    layer = dp_layer(kind)(INPUTS, HIDDEN, batch_first=True, num_layers=2, dropout=0.5)
    layer.train(why == "dropout")
    inputs = series().detach().float()
    expected = layer(inputs)[0]
    seen: list[int] = []
    monkeypatch.setattr(type(layer), "_layers", lambda *_: pytest.fail("all steps at once"))

    def count(*_: object) -> None:
        seen.append(1)

    if why == "hook":
        layer.cells[0].hh.register_forward_hook(count)
        torch.testing.assert_close(layer(inputs)[0], expected, rtol=0, atol=1e-6)
        assert len(seen) == STEPS
    elif why == "state":
        zeros = torch.zeros(2, RECORDS, HIDDEN)
        found = layer(inputs, (zeros, zeros) if kind == "lstm" else zeros)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    elif why == "autocast":
        with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
            layer(inputs)
    else:
        layer(inputs)


@KINDS
def test_as_opacus_is_opacus_own_class_with_the_same_results(kind: DpLayerName) -> None:
    model = nn.Sequential(made(kind, batch_first=True))
    inputs = series()
    states = model(inputs)[0]
    names = list(model.state_dict())

    undo = as_opacus(model)

    assert type(model[0]).__module__ == "opacus.layers.dp_rnn"
    assert whole_series_layers(model) == []
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(inputs)[0], states, rtol=0, atol=1e-14)
    undo()
    assert whole_series_layers(model) == [model[0]]


@KINDS
def test_an_observer_sees_what_both_linear_layers_need_for_their_gradients(
    kind: DpLayerName,
) -> None:
    layer, inputs = made(kind, batch_first=True), series()
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    wanted = all_gradients(layer, names, inputs)[1:]
    seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    with observed([layer], lambda *told: seen.append(told)):
        states, ends = layer(inputs)
    weights = torch.arange(states.numel(), dtype=states.dtype).cos().view_as(states)
    total = (states * weights).sum() + last_of(ends).square().sum()
    ((cell, entered, gates),) = seen
    (back,) = torch.autograd.grad(total, gates)

    of_ih = of_hh = back.flatten(0, 1)
    if kind == "gru":
        of_ih = of_ih[:, :-HIDDEN].roll(-HIDDEN, dims=1)
        of_hh = of_hh[:, HIDDEN:]
    x, h = entered.flatten(0, 1).split((INPUTS, HIDDEN), dim=1)
    found = [of_ih.t() @ x, of_hh.t() @ h, of_ih.sum(0), of_hh.sum(0)]
    assert cell is layer.cells[0]
    assert layer.observer is None
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@KINDS
def test_going_back_twice_gives_the_same_or_is_refused(kind: DpLayerName) -> None:
    """Never a wrong number: the observed pass of an LSTM works in place and can be used once."""
    layer, inputs = made(kind, batch_first=True), series()
    total = layer(inputs)[0].sum()
    first, second = (torch.autograd.grad(total, inputs, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)

    seen: list[torch.Tensor] = []
    with observed([layer], lambda *told: seen.append(told[2])):
        total = layer(inputs)[0].sum()
    once = torch.autograd.grad(total, seen, retain_graph=True)[0].clone()
    if kind == "lstm":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(total, seen)
    else:
        assert torch.equal(torch.autograd.grad(total, seen)[0], once)


@KINDS
def test_a_record_that_is_not_a_number_spoils_no_other(kind: DpLayerName) -> None:
    layer, inputs = made(kind, batch_first=True), series().detach()
    whole = layer(inputs)[0]
    inputs[2, 4, 0] = float("nan")

    spoilt = layer(inputs)[0]

    others = [record for record in range(RECORDS) if record != 2]
    assert torch.equal(spoilt[others], whole[others])
    assert torch.equal(spoilt[2, :4], whole[2, :4])
    assert bool(spoilt[2, 4:].isnan().all())


@KINDS
def test_a_gradient_of_a_gradient_is_refused_and_opacus_own_way_has_it(kind: DpLayerName) -> None:
    """It came out as zero without a word."""
    layer, inputs = made(kind, batch_first=True), series()

    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(layer(inputs)[0].sum(), inputs, create_graph=True)

    as_opacus(layer)
    (once,) = torch.autograd.grad(layer(inputs)[0].sum(), inputs, create_graph=True)
    assert float(torch.autograd.grad(once.square().sum(), inputs)[0].abs().sum()) > 0


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@KINDS
def test_a_tracer_and_another_layer_inside_are_followed(kind: DpLayerName) -> None:
    layer, inputs = made(kind, batch_first=True), series().detach()

    traced = torch.jit.trace(layer, inputs, check_trace=False)

    other = inputs.flip(0).contiguous()
    torch.testing.assert_close(traced(other)[0], layer(other)[0], rtol=0, atol=1e-12)

    class Twice(type(layer.cells[0].ih)):  # type: ignore[misc]
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().forward(values)

    before = layer(inputs)[0]
    layer.cells[0].ih.__class__ = Twice
    assert not torch.allclose(layer(inputs)[0], before)
