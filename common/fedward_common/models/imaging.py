"""Networks for images, without anything that mixes records or changes tensors in place.

Inputs come flat, [records, channels * pixels]; `model.shape` says how to fold them: channels,
height, width, or channels, depth, height, width. MONAI's networks are imported when a study names
one.
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
Shape = tuple[int, ...]


class Cnn(nn.Module):
    """Logits of an image through blocks of convolution, GroupNorm, ReLU and halving by means.

    GroupNorm, because it normalises each record by itself: BatchNorm would mix patients.
    """

    def __init__(self, shape: Shape, *, widths: tuple[int, ...], outputs: int = 1) -> None:
        super().__init__()
        self.shape, self.outputs = shape, outputs
        flat = len(shape) == 3
        blocks: list[nn.Module] = []
        for number, (inner, outer) in enumerate(pairwise((shape[0], *widths))):
            convolution = nn.Conv2d if flat else nn.Conv3d
            blocks += [
                convolution(inner, outer, kernel_size=3, padding=1),
                nn.GroupNorm(math.gcd(GROUPS, outer), outer),
                nn.ReLU(),
            ]
            if number < len(widths) - 1:
                blocks.append(nn.AvgPool2d(2) if flat else nn.AvgPool3d(2))
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(widths[-1], outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, pixels]."""
        maps: torch.Tensor = self.blocks(features.reshape(-1, *self.shape))
        logits: torch.Tensor = self.output(maps.flatten(2).mean(dim=2))
        return logits.squeeze(-1) if self.outputs == 1 else logits


class Folded(nn.Module):
    """A network for images as a model of flat records: [records, pixels] -> [records, ...]."""

    def __init__(self, network: nn.Module, shape: Shape, *, outputs: int) -> None:
        super().__init__()
        self.network, self.shape, self.outputs = network, shape, outputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs, ...]) of `features` [records, pixels]."""
        logits: torch.Tensor = self.network(features.reshape(-1, *self.shape))
        return logits.squeeze(-1) if self.outputs == 1 else logits


def cnn(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `cnn`. Raises ConfigError for sizes that it does not take."""
    shape = folded_shape(spec, inputs)
    if not spec.hidden:
        raise ConfigError("model.hidden: expected at least one width for cnn, such as [16, 32]")
    if min(shape[1:]) >> (len(spec.hidden) - 1) < 1:
        raise ConfigError("model.hidden: expected fewer blocks than the image can be halved")
    return initialised(lambda: Cnn(shape, widths=spec.hidden, outputs=spec.outputs), spec)


def resnet18(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `resnet18`: MONAI's, with GroupNorm and a sum that is not in place."""
    nets = _monai()

    class Block(nets.resnet.ResNetBlock):  # type: ignore[name-defined,misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.act(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            kept = x if self.downsample is None else self.downsample(x)
            summed: torch.Tensor = self.act(out + kept)
            return summed

    return _resnet(spec, inputs, block=Block, layers=[2, 2, 2, 2])


def resnet50(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `resnet50`: MONAI's, with GroupNorm and a sum that is not in place."""
    nets = _monai()

    class Bottleneck(nets.resnet.ResNetBottleneck):  # type: ignore[name-defined,misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.act(self.bn1(self.conv1(x)))
            out = self.act(self.bn2(self.conv2(out)))
            out = self.bn3(self.conv3(out))
            kept = x if self.downsample is None else self.downsample(x)
            summed: torch.Tensor = self.act(out + kept)
            return summed

    return _resnet(spec, inputs, block=Bottleneck, layers=[3, 4, 6, 3])


def densenet121(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `densenet121`: MONAI's, with GroupNorm and nothing in place."""
    shape = _no_hidden(spec, inputs)
    make = partial(
        _monai().densenet.DenseNet121,
        spatial_dims=len(shape) - 1,
        in_channels=shape[0],
        out_channels=spec.outputs,
        act=ACTIVATION,
        norm=NORM,
    )
    return initialised(lambda: Folded(make(), shape, outputs=spec.outputs), spec)


def unet(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `unet`: MONAI's, with GroupNorm; `hidden` are the channels of its levels.

    Its output is [records, outputs, *sides]: a logit for each structure and pixel.
    """
    shape = folded_shape(spec, inputs)
    if len(spec.hidden) < 2:
        raise ConfigError("model.hidden: expected the channels of two levels or more for unet")
    if any(side % 2 ** (len(spec.hidden) - 1) for side in shape[1:]):
        raise ConfigError(
            f"model.hidden: expected sides that can be halved {len(spec.hidden) - 1} times, found "
            f"{list(shape[1:])}"
        )
    if spec.outputs < 2:
        raise ConfigError("model.outputs: expected background and at least one structure")
    make = partial(
        _monai().UNet,
        spatial_dims=len(shape) - 1,
        in_channels=shape[0],
        out_channels=spec.outputs,
        channels=spec.hidden,
        strides=[2] * (len(spec.hidden) - 1),
        num_res_units=0,
        act=ACTIVATION,
        norm=("group", {"num_groups": math.gcd(GROUPS, *spec.hidden)}),
    )
    return initialised(lambda: Folded(make(), shape, outputs=spec.outputs), spec)


def _resnet(spec: ModelSpec, inputs: int, *, block: Any, layers: list[int]) -> nn.Module:
    shape, resnet = _no_hidden(spec, inputs), _monai().resnet
    make = partial(
        resnet.ResNet,
        block=block,
        layers=layers,
        block_inplanes=resnet.get_inplanes(),
        spatial_dims=len(shape) - 1,
        n_input_channels=shape[0],
        conv1_t_size=3,
        conv1_t_stride=1,
        no_max_pool=True,
        num_classes=spec.outputs,
        act=ACTIVATION,
        norm=NORM,
    )
    return initialised(lambda: Folded(make(), shape, outputs=spec.outputs), spec)


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


def folded_shape(spec: ModelSpec, inputs: int) -> Shape:
    """`spec.shape`, checked: how flat inputs fold. Raises ConfigError where it does not fit."""
    if len(spec.shape) not in (3, 4) or math.prod(spec.shape) != inputs:
        raise ConfigError(
            f"model.shape: expected [channels, height, width] or [channels, depth, height, width] "
            f"with {inputs} numbers in all, found {list(spec.shape)}"
        )
    return spec.shape


def _no_hidden(spec: ModelSpec, inputs: int) -> Shape:
    if spec.hidden:
        raise ConfigError(f"model.hidden: expected none for {spec.name}, found {list(spec.hidden)}")
    return folded_shape(spec, inputs)


def initialised(make: Callable[[], nn.Module], spec: ModelSpec) -> nn.Module:
    """The network with weights uniform within sqrt(3 / fan-in), norms at one and biases zero.

    Bit-identical on every machine: see `tabular.initialise`. torch's global generator stays.
    """
    with torch.random.fork_rng(devices=()):
        model = make()
    _keep_records_apart(model)
    generator = torch.Generator(device="cpu").manual_seed(spec.initial_seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _WEIGHTED):
                bound = math.sqrt(3.0 / _fan_in(module))
                uniform = torch.rand(module.weight.shape, generator=generator, dtype=torch.float64)
                module.weight.copy_((2.0 * uniform - 1.0) * bound)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.GroupNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
    return model


_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *_TRANSPOSED)


def _fan_in(module: nn.Module) -> float:
    """How many inputs reach one output of a layer."""
    weight = module.weight
    if isinstance(module, _TRANSPOSED) and isinstance(weight, torch.Tensor):
        return weight[:, 0].numel() / math.prod(module.stride)
    return float(weight[0].numel()) if isinstance(weight, torch.Tensor) else 1.0


def _keep_records_apart(model: nn.Module) -> None:
    """GroupNorm for every BatchNorm and nothing in place: MONAI's ResNet hands neither choice on
    to all of its blocks.
    """
    for module in list(model.modules()):
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 - a field that nn.Module does not know
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))
