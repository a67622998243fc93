"""Autoencoders of one record: an encoder that other studies can begin with, and a decoder.

The encoder is named and built as the hidden layers of an `mlp`: start weights whose names begin
with `hidden.` fit one. The chance that a variational autoencoder needs is an input of the record
and no draw in here: a forward pass is a function of its record alone, whatever stands beside it.

Source: Kingma and Welling 2014 (reparameterised code).
"""

from itertools import pairwise

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.tabular import empty_linear, initialise
from fedward_common.study.spec import ModelSpec

_WIDEST = 6.0
"""The logarithm of a code's variance stays within this, so that no sample is infinite."""


class Autoencoder(nn.Module):
    """Reconstructions beside the inputs they are of, and the code's distribution where it has one.

    `latent` = 0: plain; the code is what the last hidden layer gives.
    """

    def __init__(self, inputs: int, *, hidden: tuple[int, ...], latent: int, seed: int) -> None:
        super().__init__()
        self.inputs, self.latent = inputs, latent
        back = hidden[::-1] if latent else hidden[-2::-1]
        self.hidden = _layers((inputs, *hidden))
        if latent:
            self.mean = empty_linear(hidden[-1], latent)
            self.log_variance = empty_linear(hidden[-1], latent)
        widths = (latent or hidden[-1], *back)
        self.decoder = _layers(widths)
        self.output = empty_linear(widths[-1], inputs)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise(module, generator)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[records, 2 inputs + 2 latent]: reconstruction, inputs, mean and log variance of the code
        of `features` [records, inputs], or [records, inputs + latent] where a standard normal
        number for each number of the code comes with every record; without, the mean is decoded.
        """
        # Copied: products of rows with gaps between them round by where a row stands.
        record = features[:, : self.inputs].contiguous()
        chance = features[:, self.inputs :]
        found = self.hidden(record)
        if not self.latent:
            return torch.cat([self.decode(found), record], dim=1)
        mean = self.mean(found)
        log_variance = _WIDEST * torch.tanh(self.log_variance(found) / _WIDEST)
        code = mean
        if chance.shape[1]:
            code = mean + torch.exp(0.5 * log_variance) * chance
        return torch.cat([self.decode(code), record, mean, log_variance], dim=1)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """What records [records, inputs] are made of `code` [records, latent]: numbers on their
        scale, and a logit for each value of a category but the first.
        """
        made: torch.Tensor = self.output(self.decoder(code))
        return made


def with_chance(
    features: torch.Tensor, spec: ModelSpec, generator: torch.Generator
) -> torch.Tensor:
    """`features` with the standard normal numbers that each record of `spec` is trained with.

    For training without privacy; at a site the engine draws them for each record.
    """
    if not spec.sampled:
        return features
    chance = torch.randn((len(features), spec.sampled), generator=generator).to(features)
    return torch.cat([features, chance], dim=1)


def _layers(widths: tuple[int, ...]) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        blocks += [empty_linear(width_in, width_out), nn.LayerNorm(width_out), nn.ReLU()]
    return nn.Sequential(*blocks)


def autoencoder(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `autoencoder`: `hidden` are the widths down to the code.

    Raises:
        ConfigError: no width, or sizes that it does not take.
    """
    if not spec.hidden or spec.shape or spec.outputs != 1:
        raise ConfigError(
            "model: expected hidden = [widths down to the code], no shape and no outputs for "
            f"autoencoder, found hidden {list(spec.hidden)}, shape {list(spec.shape)} and outputs "
            f"{spec.outputs}"
        )
    return Autoencoder(inputs, hidden=spec.hidden, latent=0, seed=spec.initial_seed)


def variational_autoencoder(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `variational-autoencoder`: `hidden` the encoder's widths, `shape` = [code].

    Raises:
        ConfigError: no width, or not one size of the code.
    """
    if not spec.hidden or len(spec.shape) != 1 or spec.outputs != 1:
        raise ConfigError(
            "model: expected hidden = [widths of the encoder], shape = [numbers of the code] and "
            f"no outputs for variational-autoencoder, found hidden {list(spec.hidden)}, shape "
            f"{list(spec.shape)} and outputs {spec.outputs}"
        )
    return Autoencoder(inputs, hidden=spec.hidden, latent=spec.sampled, seed=spec.initial_seed)
