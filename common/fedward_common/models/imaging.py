"""Networks for images, without anything that mixes records or changes tensors in place.

Inputs come flat, [records, channels * height * width]; `model.shape` says how to fold them.
MONAI's networks are imported when a study names one.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.study.spec import ModelSpec

GROUPS: Final = 8
ACTIVATION: Final = ("relu", {"inplace": False})
NORM: Final = ("group", {"num_groups": GROUPS})


class Cnn(nn.Module):
    """One logit per image through blocks of convolution, GroupNorm, ReLU and halving by means.

    GroupNorm, because it normalises each record by itself: BatchNorm would mix patients.
    """

    def __init__(self, shape: tuple[int, int, int], *, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        blocks: list[nn.Module] = []
        for number, (inner, outer) in enumerate(pairwise((shape[0], *widths))):
            blocks += [
                nn.Conv2d(inner, outer, kernel_size=3, padding=1),
                nn.GroupNorm(math.gcd(GROUPS, outer), outer),
                nn.ReLU(),
            ]
            if number < len(widths) - 1:
                blocks.append(nn.AvgPool2d(2))
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(widths[-1], 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] of `features` [records, pixels]."""
        maps: torch.Tensor = self.blocks(features.reshape(-1, *self.shape))
        logits: torch.Tensor = self.output(maps.mean(dim=(2, 3)))
        return logits.squeeze(-1)


class Folded(nn.Module):
    """A network for images as a model of flat records: [records, pixels] -> [records]."""

    def __init__(self, network: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.shape = network, shape

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] of `features` [records, pixels]."""
        logits: torch.Tensor = self.network(features.reshape(-1, *self.shape))
        return logits.squeeze(-1)


def cnn(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `cnn`. Raises ConfigError for sizes that it does not take."""
    shape = _shape(spec, inputs)
    if not spec.hidden:
        raise ConfigError("model.hidden: expected at least one width for cnn, such as [16, 32]")
    if min(shape[1:]) >> (len(spec.hidden) - 1) < 1:
        raise ConfigError("model.hidden: expected fewer blocks than the image can be halved")
    return _initialised(lambda: Cnn(shape, widths=spec.hidden), spec)


def resnet18(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `resnet18`: MONAI's, with GroupNorm and a sum that is not in place."""
    shape = _no_hidden(spec, inputs)
    nets = _monai()

    class Block(nets.resnet.ResNetBlock):  # type: ignore[name-defined,misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.act(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            kept = x if self.downsample is None else self.downsample(x)
            summed: torch.Tensor = self.act(out + kept)
            return summed

    make = partial(
        nets.resnet.ResNet,
        block=Block,
        layers=[2, 2, 2, 2],
        block_inplanes=nets.resnet.get_inplanes(),
        spatial_dims=2,
        n_input_channels=shape[0],
        conv1_t_size=3,
        conv1_t_stride=1,
        no_max_pool=True,
        num_classes=1,
        act=ACTIVATION,
        norm=NORM,
    )
    return _initialised(lambda: Folded(make(), shape), spec)


def densenet121(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `densenet121`: MONAI's, with GroupNorm and nothing in place."""
    shape = _no_hidden(spec, inputs)
    make = partial(
        _monai().densenet.DenseNet121,
        spatial_dims=2,
        in_channels=shape[0],
        out_channels=1,
        act=ACTIVATION,
        norm=NORM,
    )
    return _initialised(lambda: Folded(make(), shape), spec)


def _monai() -> Any:
    try:
        from monai.networks import nets  # noqa: PLC0415 - an extra, and a second to import
        from monai.networks.nets import densenet, resnet  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            "model.name: expected the package monai for this model, found none; install the extra "
            "[imaging] of fedward-client or fedward-server"
        ) from error
    return nets


def _shape(spec: ModelSpec, inputs: int) -> tuple[int, int, int]:
    if len(spec.shape) != 3 or math.prod(spec.shape) != inputs:
        raise ConfigError(
            f"model.shape: expected [channels, height, width] with {inputs} numbers in all, found "
            f"{list(spec.shape)}"
        )
    return spec.shape[0], spec.shape[1], spec.shape[2]


def _no_hidden(spec: ModelSpec, inputs: int) -> tuple[int, int, int]:
    if spec.hidden:
        raise ConfigError(f"model.hidden: expected none for {spec.name}, found {list(spec.hidden)}")
    return _shape(spec, inputs)


def _initialised(make: Callable[[], nn.Module], spec: ModelSpec) -> nn.Module:
    """The network with weights uniform within sqrt(3 / fan-in), norms at one and biases zero.

    Bit-identical on every machine: see `tabular._initialise`. torch's global generator stays.
    """
    with torch.random.fork_rng(devices=()):
        model = make()
    _keep_records_apart(model)
    generator = torch.Generator(device="cpu").manual_seed(spec.initial_seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = math.sqrt(3.0 / module.weight[0].numel())
                uniform = torch.rand(module.weight.shape, generator=generator, dtype=torch.float64)
                module.weight.copy_((2.0 * uniform - 1.0) * bound)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.GroupNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
    return model


def _keep_records_apart(model: nn.Module) -> None:
    """GroupNorm for every BatchNorm and nothing in place: MONAI's ResNet hands neither choice on
    to all of its blocks.
    """
    for module in list(model.modules()):
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - a field that nn.Module does not know
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))
