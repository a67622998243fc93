"""One model of several modalities of a patient, any of which may be missing.

A missing modality has zeros for inputs and 0 for its presence: its encoder's output is chosen away,
not multiplied, so that the patient adds exactly zero to the encoder's gradient. Nothing here mixes
records, normalises over them or works in place.

Sources: Arevalo et al. 2017 (gated multimodal units); Ilse et al. 2018 (attention pooling).
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.tabular import LogisticRegression, Mlp, empty_linear, initialise
from fedward_common.models.text import BiLstm, TextTransformer, build_text_model
from fedward_common.study.fusion import Encoder
from fedward_common.study.spec import ModelSpec

Build = Callable[[ModelSpec, int], nn.Module]
_OF_WORDS: Final[Mapping[str, type[BiLstm] | type[TextTransformer]]] = {
    "bilstm": BiLstm,
    "text-transformer": TextTransformer,
}
"""Models that by themselves put out several numbers for each word and not for a record."""
_SEEDS: Final = 2**53
_NEVER: Final = -1e9
"""A score whose share of a softmax is exactly 0 beside any other in float32."""


class Concatenation(nn.Module):
    """The codes of all modalities side by side."""

    def __init__(self, *, modalities: int, width: int) -> None:
        super().__init__()
        self.outputs = modalities * width

    def forward(self, codes: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """[records, modalities * width] of `codes` [records, modalities, width]."""
        del present
        return codes.flatten(1)


class Gated(nn.Module):
    """The sum over modalities of code times gate; a gate looks at all modalities."""

    def __init__(self, *, modalities: int, width: int) -> None:
        super().__init__()
        self.outputs = width
        self.gate = empty_linear(modalities * width, modalities * width)

    def forward(self, codes: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """[records, width] of `codes` [records, modalities, width]."""
        del present
        gates = torch.sigmoid(self.gate(codes.flatten(1))).reshape(codes.shape)
        return (gates * codes).sum(dim=1)


class Attention(nn.Module):
    """The mean of the codes of the modalities that are there, weighted by a learned score."""

    def __init__(self, *, modalities: int, width: int) -> None:
        super().__init__()
        del modalities
        self.outputs = width
        self.key = empty_linear(width, width)
        self.score = empty_linear(width, 1)

    def forward(self, codes: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """[records, width] of `codes` [records, modalities, width] and who is there."""
        scores = self.score(torch.tanh(self.key(codes))).squeeze(-1)
        shares = torch.softmax(torch.where(present, scores, torch.full_like(scores, _NEVER)), dim=1)
        return (shares.unsqueeze(-1) * codes).sum(dim=1)


_FUSIONS: Final[Mapping[str, type[Concatenation | Gated | Attention]]] = {
    "concatenation": Concatenation,
    "gated": Gated,
    "attention": Attention,
}


class Multimodal(nn.Module):
    """Outputs of a patient through an encoder for each modality, their fusion and a head."""

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        sizes: tuple[int, ...],
        width: int,
        fusion: Concatenation | Gated | Attention,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.sizes = [len(sizes), *sizes]
        self.encoders = nn.ModuleDict(encoders)
        # Layers and no bare parameters: batched back ends have rules for layers only. Attention
        # leaves out what is missing, so nothing has to stand in for it.
        stand_ins = () if isinstance(fusion, Attention) else encoders
        self.absent = nn.ModuleDict(
            {name: empty_linear(1, width, bias=False) for name in stand_ins}
        )
        self.fusion = fusion
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, inputs]."""
        first, *parts = torch.split(features, self.sizes, dim=1)
        present = first > 0.5
        codes = []
        for place, (name, encoder) in enumerate(self.encoders.items()):
            here = present[:, place : place + 1]
            # Copied: products of rows with gaps between them round by where a row stands.
            code = torch.tanh(encoder(parts[place].contiguous()))
            code = torch.where(here, code, torch.zeros_like(code))
            if name in self.absent:
                code = code + self.absent[name](1.0 - here.to(code.dtype))
            codes.append(code)
        outputs: torch.Tensor = self.head(self.fusion(torch.stack(codes, dim=1), present))
        return outputs


def multimodal(spec: ModelSpec, inputs: int, *, build: Build) -> nn.Module:
    """The model `multimodal`: `fusion` as the study says, `hidden` the widths of its head.

    Raises:
        ConfigError: no fusion, other inputs than its encoders', or sizes that one does not take.
    """
    fusion = spec.fusion
    if fusion is None:
        raise ConfigError("model.fusion: expected encoders and how they become one, found none")
    if fusion.inputs != inputs:
        raise ConfigError(
            f"model.fusion.encoders: expected inputs that add up to {inputs} with one presence "
            f"each, found {fusion.inputs}"
        )
    encoders = {
        encoder.modality: _encoder(spec, encoder, place, width=fusion.width, build=build)
        for place, encoder in enumerate(fusion.encoders)
    }
    fused = _FUSIONS[fusion.how](modalities=len(encoders), width=fusion.width)
    head = _head(spec, fused.outputs)
    model = Multimodal(
        encoders,
        sizes=tuple(encoder.inputs for encoder in fusion.encoders),
        width=fusion.width,
        fusion=fused,
        head=head,
    )
    generator = _generator(spec, len(encoders))
    for layer in fused.modules():
        if isinstance(layer, nn.Linear):
            initialise(layer, generator)
    for stand_in in model.absent.values():
        nn.init.zeros_(stand_in.get_parameter("weight"))
    return model


def _encoder(
    spec: ModelSpec, encoder: Encoder, place: int, *, width: int, build: Build
) -> nn.Module:
    if hasattr(nn.ModuleDict, encoder.modality):
        raise ConfigError(f"modality {encoder.modality}: expected another name, such as its kind")
    own = ModelSpec(
        name=encoder.name,
        hidden=encoder.hidden,
        steps=encoder.steps,
        shape=encoder.shape,
        outputs=width,
        initial_seed=(spec.initial_seed + 7919 * place) % _SEEDS,
    )
    words = _OF_WORDS.get(encoder.name)
    try:
        model = (
            build(own, encoder.inputs)
            if words is None
            else build_text_model(own, encoder.inputs, words, pooled=True)
        )
    except ConfigError as error:
        raise ConfigError(f"modality {encoder.modality}: {error}") from error
    if isinstance(model, LogisticRegression):
        # It starts at zero by itself; then all of its numbers would stay alike for ever.
        initialise(model.linear, _generator(spec, place))
    return model


def _head(spec: ModelSpec, inputs: int) -> nn.Module:
    """A linear layer, or an MLP with `hidden` widths, that does not start at zero."""
    seed = (spec.initial_seed + 104_729) % _SEEDS
    if spec.hidden:
        return Mlp(inputs, hidden=spec.hidden, initial_seed=seed, outputs=spec.outputs)
    head = LogisticRegression(inputs, outputs=spec.outputs)
    initialise(head.linear, torch.Generator(device="cpu").manual_seed(seed))
    return head


def _generator(spec: ModelSpec, place: int) -> torch.Generator:
    seed = (spec.initial_seed + 15_485_863 * (place + 1)) % _SEEDS
    return torch.Generator(device="cpu").manual_seed(seed)
