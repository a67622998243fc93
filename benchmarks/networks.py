"""The networks of tests and benchmarks, one parameterised definition each.

Own small versions of the usual designs with GroupNorm in the place of BatchNorm. Every network maps
records [records, ...] to one logit each, [records]. Arguments make a network as small as a test
wants; the defaults are the sizes of `benchmarks/privacy.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from fedward_common.models.dp_layers import dp_layer
from fedward_common.models.registry import build_model
from fedward_common.study.spec import ModelSpec


class Logit(nn.Module):
    """`body` and a last layer of one output, without its dimension."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.output = nn.Linear(width, 1)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(self.body(records))
        return logits.squeeze(-1)


def mlp(*, inputs: int = 64, hidden: Sequence[int] = (96, 64, 16)) -> nn.Module:
    """Linear layers and ReLU; 13.5 thousand parameters."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise((inputs, *hidden)):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return Logit(nn.Sequential(*layers), hidden[-1])


class Recurrent(nn.Module):
    """An LSTM or GRU over [records, time, measurements]; the last state gives the logit.

    `fused` takes torch's own layer, which gives nothing of a single record or patient.
    """

    def __init__(
        self,
        kind: Literal["lstm", "gru"],
        *,
        inputs: int = 32,
        hidden: int = 64,
        fused: bool = False,
    ) -> None:
        super().__init__()
        own = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.cell = (own if fused else dp_layer(kind))(inputs, hidden, batch_first=True)
        self.output = nn.Linear(hidden, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        states, _ = self.cell(series)
        logits: torch.Tensor = self.output(states[:, -1])
        return logits.squeeze(-1)


def cnn(*, side: int = 28, width: int = 16, groups: int = 4) -> nn.Module:
    """Two convolutions, the second one in groups, and two dense layers; 27 thousand parameters."""
    flat = 2 * width * (side // 4) ** 2
    hidden = max(4, width)
    return Logit(
        nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GroupNorm(groups, width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, groups=groups),
            nn.GroupNorm(groups, 2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(flat, hidden),
            nn.ReLU(),
        ),
        hidden,
    )


class Attention(nn.Module):
    """Self-attention of several heads made of Linear layers, records first all the way."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.queries = nn.Linear(width, width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(tokens).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        mixed = scores.softmax(dim=-1) @ value
        result: torch.Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return result


class Transformer(nn.Module):
    """Words of a vocabulary, one block of attention and a dense layer, mean over the words."""

    def __init__(
        self, *, words: int = 500, width: int = 64, heads: int = 4, length: int = 32
    ) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(words, width)
        self.attention = Attention(width, heads=heads)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dense = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.output = nn.Linear(width, 1)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        tokens = self.embedding(words)
        tokens = tokens + self.attention(self.first_norm(tokens))
        tokens = tokens + self.dense(self.second_norm(tokens))
        logits: torch.Tensor = self.output(tokens.mean(dim=1))
        return logits.squeeze(-1)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
        )
        same = inputs == outputs and stride == 1
        self.past = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                nn.GroupNorm(groups, outputs),
            )
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(images) + self.past(images))


def resnet18(
    *, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2), groups: int = 16, channels: int = 3
) -> nn.Module:
    """ResNet with basic blocks and a 7 x 7 stem; 11.2 million parameters."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
        nn.GroupNorm(groups, width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width << stage
        for number in range(count):
            stride = 2 if stage and not number else 1
            layers.append(_Residual(inputs, outputs, stride=stride, groups=groups))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Logit(nn.Sequential(*layers), inputs)


class _Dense(nn.Module):
    def __init__(self, inputs: int, growth: int, *, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(groups, inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.GroupNorm(groups, 4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, self.body(images)], dim=1)


def densenet121(
    *,
    growth: int = 32,
    blocks: Sequence[int] = (6, 12, 24, 16),
    groups: int = 16,
    channels: int = 3,
) -> nn.Module:
    """DenseNet with bottlenecks and halving transitions; 7.0 million parameters."""
    width = 2 * growth
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
        nn.GroupNorm(groups, width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    for number, count in enumerate(blocks):
        for _ in range(count):
            layers.append(_Dense(width, growth, groups=groups))
            width += growth
        if number < len(blocks) - 1:
            layers += [
                nn.GroupNorm(groups, width),
                nn.ReLU(),
                nn.Conv2d(width, width // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            width //= 2
    layers += [nn.GroupNorm(groups, width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Logit(nn.Sequential(*layers), width)


def _two_convolutions(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, padding=1),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.ReLU(),
        nn.Conv3d(outputs, outputs, 3, padding=1),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.ReLU(),
    )


class UNet3d(nn.Module):
    """A 3-D U-Net of two levels; the logit of a record is the mean over its voxels."""

    def __init__(self, *, width: int = 8, channels: int = 1) -> None:
        super().__init__()
        self.down = _two_convolutions(channels, width)
        self.bottom = _two_convolutions(width, 2 * width)
        self.up = _two_convolutions(3 * width, width)
        self.pool = nn.MaxPool3d(2)
        self.rise = nn.Upsample(scale_factor=2)
        self.output = nn.Conv3d(width, 1, 1)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        fine = self.down(volumes)
        coarse = self.rise(self.bottom(self.pool(fine)))
        voxels: torch.Tensor = self.output(self.up(torch.cat([fine, coarse], dim=1)))
        return voxels.flatten(1).mean(dim=1)


def gru_d(*, steps: int, width: int, variables: int, hidden: int) -> nn.Module:
    """Fedward's own `gru-d`; of made-up numbers as masks those above 0.5 are observed."""
    spec = ModelSpec(name="gru-d", hidden=(hidden,), steps=steps, shape=(variables,))
    return build_model(spec, steps * width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A network, the shape of one of its records, and whether a record is words (0 .. words-1)."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: int = 0
    fused: Callable[[], nn.Module] | None = None
    """The same network of torch's fused layers, where they have no per-patient gradients."""

    def records(self, count: int, *, generator: torch.Generator) -> torch.Tensor:
        """`count` made-up records."""
        if self.words:
            return torch.randint(self.words, (count, *self.shape), generator=generator)
        return torch.randn((count, *self.shape), generator=generator)


FULL: dict[str, Network] = {
    "mlp": Network(build=mlp, shape=(64,)),
    "lstm": Network(
        build=lambda: Recurrent("lstm"),
        shape=(48, 32),
        fused=lambda: Recurrent("lstm", fused=True),
    ),
    "gru": Network(
        build=lambda: Recurrent("gru"),
        shape=(48, 32),
        fused=lambda: Recurrent("gru", fused=True),
    ),
    "gru-d": Network(
        build=lambda: gru_d(steps=48, width=32, variables=15, hidden=64), shape=(48 * 32,)
    ),
    "cnn": Network(build=cnn, shape=(1, 28, 28)),
    "transformer": Network(build=Transformer, shape=(32,), words=500),
    "resnet18": Network(build=resnet18, shape=(3, 64, 64)),
    "densenet121": Network(build=densenet121, shape=(3, 64, 64)),
    "unet3d": Network(build=UNet3d, shape=(1, 16, 16, 16)),
}
TINY: dict[str, Network] = {
    "mlp": Network(build=lambda: mlp(inputs=6, hidden=(7, 5)), shape=(6,)),
    "lstm": Network(build=lambda: Recurrent("lstm", inputs=3, hidden=4), shape=(5, 3)),
    "gru": Network(build=lambda: Recurrent("gru", inputs=3, hidden=4), shape=(9, 3)),
    "gru-d": Network(build=lambda: gru_d(steps=4, width=5, variables=2, hidden=3), shape=(4 * 5,)),
    "cnn": Network(build=lambda: cnn(side=8, width=4, groups=2), shape=(1, 8, 8)),
    "transformer": Network(
        build=lambda: Transformer(words=11, width=8, heads=2, length=6), shape=(6,), words=11
    ),
    "resnet18": Network(
        build=lambda: resnet18(width=4, blocks=(1, 1, 1, 1), groups=2), shape=(3, 16, 16)
    ),
    "densenet121": Network(
        build=lambda: densenet121(growth=4, blocks=(2, 2, 2, 2), groups=2), shape=(3, 32, 32)
    ),
    "unet3d": Network(build=lambda: UNet3d(width=2), shape=(1, 4, 4, 4)),
}
