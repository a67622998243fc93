"""The back end `bookkeeping` refuses what it cannot do exactly, and `auto` then takes `loop`."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedward_client.tasks.task import ExampleRecords
from fedward_client.training.patient_dp.back_end import Chunk
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.choice import Load, choose_back_end
from fedward_client.training.patient_dp.layer_gradients import Product, rule_of, short
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.slot_check import check_slots
from fedward_common.errors import ModelRefused
from fedward_common.models.dp_layers import DpLayerName, dp_layer


class OneLogit(nn.Module):
    def __init__(self, layer: nn.Module, twist: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.twist = twist

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.twist(self.layer(records)).squeeze(-1)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return (records * self.factor).sum(dim=1, keepdim=True)


class OwnLinear(nn.Linear):
    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return super().forward(records).square()


class TimeFirst(nn.Module):
    """Its layer sees [1, records, inputs]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.inner(records.unsqueeze(0)).squeeze(0)


def losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(-1.0, 1.0, 4 * count).view(count, 4).cos(), (
        torch.arange(count) % 2
    ) * 1.0


def check(model: nn.Module) -> None:
    made = BookkeepingBackEnd(model, loss=losses, geometry=Geometry(slots=4, records=2))
    check_slots(made, model, loss=losses, examples=examples)


def same(values: torch.Tensor) -> torch.Tensor:
    return values


@pytest.mark.parametrize(
    ("layer", "twist", "reason"),
    [
        (Scale(), same, "layer layer (Scale)"),
        (OwnLinear(4, 1), same, "layer layer (OwnLinear)"),
        (nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5)), same, "layer layer.1 (Dropout)"),
        (nn.Linear(4, 1), torch.sin, "the operation cos"),
        (nn.Linear(4, 1), lambda x: x * float(x.detach().sum()), "the operation _local_scalar"),
        (nn.Linear(4, 1), lambda x: x * len(x.tolist()), "tolist"),
        (nn.Linear(4, 1), lambda x: x / (1 + np.isnan(x.detach()).sum()), "__array__"),
        (nn.Linear(4, 1), lambda x: x - x.mean(dim=0), "a gradient that is not plain autograd's"),
        (TimeFirst(), same, "records in the first dimension"),
    ],
    ids=[
        "own-parameter",
        "own-forward",
        "dropout",
        "sine",
        "value-read",
        "list-read",
        "array-read",
        "batch-mean",
        "time-first",
    ],
)
def test_what_it_cannot_do_exactly_is_refused_by_name(
    layer: nn.Module, twist: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    with pytest.raises(ModelRefused, match=reason.replace("(", r"\(").replace(")", r"\)")):
        check(OneLogit(layer, twist))


class Mix(nn.Module):
    """Mixes records by a constant that is zero when the model is made."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(1))
        self.inner = nn.Linear(4, 1)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.inner(records + self.share * records.mean(dim=0))


def test_a_buffer_that_a_round_s_weights_could_change_after_the_check_is_refused() -> None:
    with pytest.raises(ModelRefused, match=r"layer layer.share \(buffer\)"):
        check(OneLogit(Mix(), same))


def test_every_batch_fills_whole_vectors() -> None:
    """Torch rounds otherwise what is left over at the end of a tensor."""
    sizes = [Geometry(slots=s, records=r).rows for s in range(1, 70) for r in (1, 3, 5, 8)]

    assert all(rows % 32 == 0 for rows in sizes)
    assert Geometry(slots=64, records=1).rows == 64


def test_attention_of_opacus_is_refused_by_name() -> None:
    with pytest.raises(ModelRefused, match="DPMultiheadAttention"):
        check(dp_layer("multihead-attention")(4, 2))


@pytest.mark.parametrize(
    ("width", "twist", "patients", "expected"),
    [
        (900, same, 5000.0, BookkeepingBackEnd),
        (900, torch.sin, 5000.0, LoopBackEnd),
        (1, same, 5000.0, BookkeepingBackEnd),
        (1, same, 50.0, LoopBackEnd),
        (900, same, 1500.0, LoopBackEnd),
    ],
    ids=["large", "unknown operation", "small", "too few patients", "too few for a large one"],
)
def test_auto_takes_bookkeeping_where_it_pays_and_loop_where_it_does_not(
    width: int,
    twist: Callable[[torch.Tensor], torch.Tensor],
    patients: float,
    expected: type[object],
) -> None:
    model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 1))

    made = choose_back_end(
        "auto",
        OneLogit(model, twist),
        loss=losses,
        examples=examples,
        load=Load(most_records=2, max_records_per_chunk=16, patients_drawn=patients),
    )

    assert isinstance(made, expected)


@pytest.mark.parametrize(("records", "places"), [(1, 32), (2, 16), (4, 8), (16, 8)])
def test_auto_gives_a_batch_of_convolutions_as_many_places_as_fill_its_rows(
    records: int, places: int
) -> None:
    """Rows come in 32: eight patients of one record in eight places would be a quarter of them."""
    model = nn.Sequential(
        nn.Conv1d(1, 64, 3, padding=1), nn.Flatten(), nn.Linear(256, 16), nn.Linear(16, 1)
    )

    made = choose_back_end(
        "auto",
        OneLogit(nn.Sequential(nn.Unflatten(1, (1, 4)), model), lambda logits: logits),
        loss=losses,
        examples=examples,
        load=Load(most_records=records, max_records_per_chunk=512, patients_drawn=5000.0),
    )

    assert isinstance(made, BookkeepingBackEnd)
    assert made.geometry == Geometry(slots=places, records=records)


def test_a_place_that_rounds_otherwise_is_refused() -> None:
    """A fault of the smallest size: one place's result off by one unit in the last place."""

    class OneUlp(BookkeepingBackEnd):
        def evidence(self, batch: object) -> torch.Tensor:
            rows = super().evidence(batch).clone()
            rows[2] = rows[2] * (1 + 2**-23)
            return rows

    model = OneLogit(nn.Linear(4, 1), same)
    made = OneUlp(model, loss=losses, geometry=Geometry(slots=4, records=2))

    with pytest.raises(ModelRefused, match="other bits in another place"):
        check_slots(made, model, loss=losses, examples=examples)


CONVOLUTIONS = {
    "1-D": (lambda: nn.Conv1d(40, 24, 3, stride=2, padding=1), (40, 7)),
    "2-D": (lambda: nn.Conv2d(16, 32, 3, padding=1), (16, 3, 2)),
    "2-D, strides and sides that differ": (
        lambda: nn.Conv2d(24, 40, (3, 2), stride=(2, 1), padding=(0, 2)),
        (24, 5, 3),
    ),
    "2-D, 1 x 1": (lambda: nn.Conv2d(64, 32, 1, bias=False), (64, 2, 2)),
    "3-D": (lambda: nn.Conv3d(8, 32, 2, padding=(1, 0, 0)), (8, 2, 3, 2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_as_factors_has_autograd_s_gradient_norm_and_sum(name: str) -> None:
    """Three patients of two records; the oracle is plain autograd in float64."""
    make, shape = CONVOLUTIONS[name]
    generator = torch.Generator().manual_seed(5)
    layer, inputs = make(), torch.randn(6, *shape, generator=generator)
    back = torch.randn(layer(inputs).shape, generator=generator)
    scales = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    weight = layer.weight.detach().double().requires_grad_()
    exact = torch.stack(
        [
            torch.autograd.grad(
                layer._conv_forward(inputs[rows].double(), weight, None),
                weight,
                back[rows].double(),
            )[0].flatten()
            for rows in (slice(0, 2), slice(2, 4), slice(4, 6))
        ]
    )

    found = rule_of(layer)(layer, inputs, back, 3)

    product = found["weight"]
    assert isinstance(product, Product)
    total = torch.zeros(exact.shape[1], dtype=torch.float64)
    product.wide().add_weighted(total, scales)
    norms = product.wide().squared_norms()
    assert torch.allclose(product.rows().flatten(1).double(), exact, atol=1e-4)
    assert torch.allclose(total, scales @ exact, rtol=1e-12, atol=1e-12)
    assert torch.allclose(norms, exact.square().sum(dim=1), rtol=1e-9)
    assert bool((norms >= exact.square().sum(dim=1)).all())
    if layer.bias is not None:
        own = back.flatten(2).sum(dim=2).view(3, 2, -1).sum(dim=1)
        assert torch.allclose(found["bias"], own, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 32, 3, padding=1, groups=2),
        nn.Conv2d(16, 32, 2, padding=1, dilation=2),
        nn.Conv2d(2, 3, 3, padding=1),  # 32 places
    ],
)
def test_a_convolution_in_groups_dilated_or_of_many_places_is_multiplied_out(
    layer: nn.Conv2d,
) -> None:
    inputs = torch.randn(4, layer.in_channels, 4, 4)

    found = rule_of(layer)(layer, inputs, torch.ones_like(layer(inputs)), 2)

    assert isinstance(found["weight"], torch.Tensor)
    assert found["weight"].flatten(1).shape == (2, layer.weight.numel())


def test_factors_are_taken_within_the_roundings_that_a_norm_allows_for() -> None:
    """u (positions^2 + inputs + outputs) stays below 1.1e-12 with u = 2^-53."""
    allowed = [
        positions * positions + inputs + outputs
        for positions in (1, 16, 32, 64, 90, 95, 96, 200)
        for inputs in (1, 64, 4608, 9000, 9300)
        for outputs in (1, 64, 512, 4608)
        if short(positions, inputs=inputs, outputs=outputs)
    ]

    assert 0 < max(allowed) * 2.0**-53 < 1.1e-12


class Recurrent(nn.Module):
    """Two layers both ways, and one logit of the last state."""

    def __init__(self, kind: DpLayerName) -> None:
        super().__init__()
        self.cell = dp_layer(kind)(2, 3, batch_first=True, num_layers=2, bidirectional=True)
        self.output = nn.Linear(6, 1)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        states = self.cell(records.unflatten(1, (-1, 2)))[0]
        return self.output(states[:, -1]).squeeze(-1)


def recurrent(
    kind: DpLayerName, *, steps: int
) -> tuple[nn.Module, BookkeepingBackEnd, Chunk, ExampleRecords]:
    def records(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.arange(count * steps * 2, dtype=torch.float32).sin()
        return numbers.view(count, steps * 2), (torch.arange(count) % 2) * 1.0

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Recurrent(kind)
    made = BookkeepingBackEnd(model, loss=losses, geometry=Geometry(slots=4, records=2))
    features, labels = records(7)
    return (
        model,
        made,
        Chunk(features=features, labels=labels, sizes=torch.tensor([2, 1, 2, 2])),
        (records),
    )


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("steps", [3, 12], ids=["pairs of positions", "products"])
@pytest.mark.parametrize("frozen", ["", "weight_ih_l0", "bias_hh_l1_reverse", "l0", "l1"])
def test_a_recurrent_layer_s_gradients_are_those_of_autograd(
    kind: DpLayerName, steps: int, frozen: str
) -> None:
    model, _, people, records = recurrent(kind, steps=steps)
    if frozen:
        whole = frozen in {"l0", "l1"}
        part = model.cell.get_submodule(frozen) if whole else model.cell.get_parameter(frozen)
        part.requires_grad_(False)
    made = BookkeepingBackEnd(model, loss=losses, geometry=Geometry(slots=4, records=2))
    width = sum(p.numel() for p in model.parameters() if p.requires_grad)

    found = torch.cat(list(made.patient_gradients(people)))
    expected = torch.cat(list(LoopBackEnd(model, loss=losses).patient_gradients(people)))
    total = torch.zeros(width, dtype=torch.float64)
    made.add_clipped(total, people, torch.ones_like)

    assert found.shape == (4, width)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(total, expected.double().sum(dim=0), rtol=1e-4, atol=1e-6)
    check_slots(made, model, loss=losses, examples=records)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_hook_inside_a_recurrent_layer_is_refused_and_nothing_stays_on_it(
    kind: DpLayerName,
) -> None:
    """It would take single steps, of which bookkeeping is told nothing."""
    model, made, people, _ = recurrent(kind, steps=3)
    handle = model.cell.cells[1].ih.register_forward_hook(lambda *_: None)

    with pytest.raises(ModelRefused, match="expected whole series"):
        made.gradients(made.batch(people, sizes=people.sizes, starts=torch.tensor([0, 2, 3, 5])))

    handle.remove()
    assert model.cell.observer is None
    assert made.gradients(
        made.batch(people, sizes=people.sizes, starts=torch.tensor([0, 2, 3, 5]))
    ).shape[0] == len(people.sizes)


@pytest.mark.parametrize("back_end", [LoopBackEnd, BookkeepingBackEnd])
def test_large_convolutions_of_one_place_go_to_the_faster_kernel_and_keep_their_numbers(
    back_end: type[object],
) -> None:
    """Every back end sees the same kernels, or the slot check would have tried others."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 128, 3, dilation=2),
            nn.Conv2d(128, 128, 1),
            nn.Conv2d(128, 128, (1, 2)),
        )
        images = torch.randn(4, 3, 9, 9)
    expected = model(images)

    if back_end is LoopBackEnd:
        LoopBackEnd(model, loss=losses)
    else:
        BookkeepingBackEnd(model, loss=losses, geometry=Geometry(slots=4, records=2))

    assert [layer.dilation for layer in model] == [(1, 1), (2, 2), (2, 2), (1, 1)]
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)


class Calls(Recurrent):
    """Calls its layer in ways that a series from a zero state is not."""

    def __init__(self, kind: DpLayerName, way: str) -> None:
        super().__init__(kind)
        self.way = way

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        series = records.unflatten(1, (-1, 2))
        if self.way == "state":
            states, last = self.cell(series)
            return self.output((states + self.cell(series, last)[0])[:, -1]).squeeze(-1)
        step = self.cell.cells[0](series[:, 0], None)
        step = step[0] if isinstance(step, tuple) else step
        return self.output(self.cell(series)[0][:, -1]).squeeze(-1) + step.sum(dim=1)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(
    ("way", "why"), [("state", "expected whole series"), ("cell", "called by its layer alone")]
)
def test_what_a_recurrent_layer_would_not_tell_of_is_refused_at_once(
    kind: DpLayerName, way: str, why: str
) -> None:
    """Not left to the slot check's numbers: a call beside the told ones would be missed."""
    _, _, people, _ = recurrent(kind, steps=3)
    model = Calls(kind, way)
    made = BookkeepingBackEnd(model, loss=losses, geometry=Geometry(slots=4, records=2))

    with pytest.raises(ModelRefused, match=why):
        list(made.patient_gradients(people))

    assert model.cell.observer is None
    assert len(list(LoopBackEnd(model, loss=losses).patient_gradients(people))) == 1


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("what", ["weight", "bias"])
def test_parameters_tied_inside_a_cell_get_the_gradient_of_both(
    kind: DpLayerName, what: str
) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = dp_layer(kind)(2, 2, batch_first=True)
            setattr(self.cell.l0.hh, what, getattr(self.cell.l0.ih, what))
            self.cell.register_parameter(f"{what}_hh_l0", getattr(self.cell.l0.ih, what))

        def forward(self, records: torch.Tensor) -> torch.Tensor:
            return self.cell(records.unflatten(1, (-1, 2)))[0][:, -1].sum(dim=1)

    _, _, people, _ = recurrent(kind, steps=3)
    model = Tied()
    made = BookkeepingBackEnd(model, loss=losses, geometry=Geometry(slots=4, records=2))

    found = torch.cat(list(made.patient_gradients(people)))
    expected = torch.cat(list(LoopBackEnd(model, loss=losses).patient_gradients(people)))

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
