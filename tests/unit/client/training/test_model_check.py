"""The model check refuses, by name, what would make a patient-level guarantee false."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedward_client.tasks.task import ExampleRecords, LossFunction
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.model_check import (
    check_model,
    check_untrained_state,
    checked_back_end,
    untrained_state,
)
from fedward_client.training.patient_dp.opacus_backend import OpacusBackEnd
from fedward_common.errors import ModelRefused
from fedward_common.models.dp_layers import dp_layer

SHAPE = (2, 6, 6)


class Logit(nn.Module):
    """A layer under test followed by what makes one logit of it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.output = nn.LazyLinear(1)
        self.forward(torch.zeros(2, *SHAPE))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(self.layers(images).flatten(1)).squeeze(-1)


def cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")


def made_up(*shape: int) -> ExampleRecords:
    generator = torch.Generator().manual_seed(0)

    def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.randn(count, *shape, generator=generator)
        return features, (torch.arange(count) % 2).float()

    return examples


def check(model: nn.Module, *, loss: LossFunction = cross_entropy) -> None:
    check_model(model.train(), loss=loss, examples=made_up(*SHAPE))


def check_on(back_end: type[LoopBackEnd | OpacusBackEnd], model: nn.Module, **how: object) -> None:
    loss = how.get("loss", cross_entropy)
    shape = how.get("shape", SHAPE)
    model.train()
    checked_back_end(lambda: back_end(model, loss=loss), model, loss=loss, examples=made_up(*shape))


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(2),
        nn.BatchNorm2d(2).eval(),
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, track_running_stats=False),
        frozen(nn.BatchNorm2d(2)),
        nn.SyncBatchNorm(2),
        type("FrozenBatchNorm2d", (nn.Identity,), {})(),
    ],
    ids=["plain", "eval", "not-affine", "no-statistics", "frozen", "sync", "by-name"],
)
def test_batch_norm_is_refused_in_any_form(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), layer, nn.Flatten(), nn.Linear(32, 1))

    with pytest.raises(ModelRefused, match=r"layer 1 \(.*BatchNorm.*\): BatchNorm mixes patients"):
        check(model)


def test_running_statistics_are_refused() -> None:
    with pytest.raises(ModelRefused, match=r"layer layers\.0 .*track_running_stats = False"):
        check(Logit(nn.InstanceNorm2d(2, affine=True, track_running_stats=True)))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_anything_but_zeros_is_refused(mode: str) -> None:
    with pytest.raises(ModelRefused, match=rf"layer layers\.0 \(Conv2d\).*found '{mode}'"):
        check(Logit(nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode)))


def test_an_in_place_layer_is_refused() -> None:
    with pytest.raises(ModelRefused, match=r"layer layers\.1 \(ReLU\): expected inplace = False"):
        check(Logit(nn.Conv2d(2, 2, 3), nn.ReLU(inplace=True)))


def test_an_output_that_is_changed_in_place_later_is_refused() -> None:
    """As in `out += residual`."""

    class Residual(Logit):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = self.layers(images)
            out += images
            return self.output(out.flatten(1)).squeeze(-1)

    with pytest.raises(ModelRefused, match=r"layer layers.*changed in place.*out = out \+ x"):
        check(Residual(nn.Conv2d(2, 2, 3, padding=1)))


def test_a_buffer_that_follows_the_data_is_refused() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last_mean", torch.zeros(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.last_mean = images.mean()
            return images

    with pytest.raises(ModelRefused, match=r"buffer layers\.0\.last_mean: expected a constant"):
        check(Logit(Remembers()))


def test_a_constant_buffer_is_accepted_and_a_new_one_is_not() -> None:
    model = Logit(nn.Identity())
    model.register_buffer("scale", torch.ones(3))
    before = untrained_state(model)

    check(model)

    check_untrained_state(model, before=before)
    model.register_buffer("sneaked_in", torch.ones(1))
    with pytest.raises(ModelRefused, match="buffer sneaked_in"):
        check_untrained_state(model, before=before)


def test_a_frozen_parameter_that_follows_the_data_is_refused() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last_mean = nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.last_mean.copy_(images.detach().mean())
            return images

    with pytest.raises(ModelRefused, match=r"buffer layers\.0\.last_mean: expected a constant"):
        check(Logit(Remembers()))


def test_a_parameter_without_gradient_is_refused() -> None:
    model = Logit(nn.Conv2d(2, 2, 3))
    model.unused = nn.Linear(2, 2)

    with pytest.raises(ModelRefused, match=r"parameter unused\.weight: expected a gradient"):
        check(model)


def test_frozen_parameters_are_accepted_but_not_only_frozen_ones() -> None:
    check(Logit(frozen(nn.Conv2d(2, 2, 3))))

    with pytest.raises(ModelRefused, match="Logit: expected a trainable parameter, found none"):
        check(frozen(Logit(nn.Conv2d(2, 2, 3))))


@pytest.mark.parametrize(
    "reduce", [torch.mean, torch.sum, lambda losses: losses[:, None]], ids=["mean", "sum", "B-1"]
)
def test_a_loss_that_is_not_one_number_per_record_is_refused(
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(ModelRefused, match=r"loss: expected .* shape \[6\], found"):
        check(Logit(nn.Conv2d(2, 2, 3)), loss=lambda o, y: reduce(cross_entropy(o, y)))


def test_a_model_that_does_not_run_is_refused_with_torchs_reason() -> None:
    with pytest.raises(
        ModelRefused, match=r"Sequential: expected a model that runs.*mat1 and mat2"
    ):
        check(nn.Sequential(nn.Flatten(), nn.Linear(5, 1)))


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.ReLU()),
        (nn.Flatten(), nn.Linear(72, 5), nn.LayerNorm(5), nn.Dropout(0.5), nn.Tanh()),
        (nn.InstanceNorm2d(2, affine=True), nn.MaxPool2d(2)),
    ],
    ids=["groups", "dropout", "instance-norm"],
)
@pytest.mark.parametrize("back_end", [LoopBackEnd, OpacusBackEnd])
def test_ordinary_models_pass_on_both_back_ends(
    back_end: type[LoopBackEnd], layers: tuple[nn.Module, ...]
) -> None:
    model = Logit(*layers)

    check(model)
    check_on(back_end, model)


@pytest.mark.parametrize("back_end", [LoopBackEnd, OpacusBackEnd])
def test_a_recurrent_model_of_dp_layers_passes_on_both_back_ends(
    back_end: type[LoopBackEnd],
) -> None:
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = dp_layer("lstm")(3, 4, batch_first=True)
            self.output = nn.Linear(4, 1)

        def forward(self, series: torch.Tensor) -> torch.Tensor:
            return self.output(self.lstm(series)[0][:, -1]).squeeze(-1)

    model = Series().train()

    check_model(model, loss=cross_entropy, examples=made_up(5, 3))
    check_on(back_end, model, shape=(5, 3))


def test_a_layer_that_mixes_records_without_being_named_batch_norm_is_refused() -> None:
    class Centres(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images - images.mean(dim=0, keepdim=True)

    with pytest.raises(ModelRefused, match=r"parameter .*: expected a patient's gradient"):
        check_on(OpacusBackEnd, Logit(nn.Conv2d(2, 2, 3), Centres()))


def test_a_loss_that_mixes_records_is_refused_although_its_shape_is_right() -> None:
    """Broadcasting [B, 1] against [B] and averaging afterwards hides the mixture."""

    def mixes(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (outputs.unsqueeze(1) - labels).square().mean(dim=1)

    with pytest.raises(ModelRefused, match=r"parameter .*: expected a patient's gradient"):
        check_on(OpacusBackEnd, Logit(nn.Conv2d(2, 2, 3)), loss=mixes)


def test_a_parameter_used_outside_its_layer_is_refused_by_opacus_and_right_in_the_loop() -> None:
    class Tied(Logit):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            flat = self.layers(images).flatten(1)
            inside = self.output(flat)
            return (inside + functional.linear(flat.square(), self.output.weight)).squeeze(-1)

    with pytest.raises(ModelRefused, match=r"parameter output\.weight"):
        check_on(OpacusBackEnd, Tied(nn.Conv2d(2, 2, 3)))
    check_on(LoopBackEnd, Tied(nn.Conv2d(2, 2, 3)))


def test_a_layer_that_opacus_cannot_sample_is_refused_with_the_way_out() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.register_buffer("constant", torch.ones(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images * self.weight * self.constant

    with pytest.raises(ModelRefused, match=r"choose backend = 'loop' in site\.toml"):
        check_on(OpacusBackEnd, Logit(Scales()))


def test_closing_the_opacus_back_end_leaves_the_model_as_it_was() -> None:
    model = Logit(nn.Conv2d(2, 2, 3)).train()
    back_end = OpacusBackEnd(model, loss=cross_entropy)

    back_end.close()

    assert not any(module._forward_hooks for module in model.modules())
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())
