"""BERT's encoder of notes, in the arithmetic of its published weights, for a head or adapters.

Every layer is one with per-record gradients on the back end `loop`; with a frozen encoder or LoRA
only the head or the adapters are clipped, noised and sent.

Source: Devlin et al. 2019, section 3; post-norm layers of Vaswani et al. 2017.
"""

import math
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.text import Answers, start_numbers
from fedward_common.study.spec import ModelSpec

EPSILON: Final = 1e-12
"""Of BERT's layer norms."""
SIZES: Final = 5


class BertEmbedding(nn.Module):
    """Words, places and the first kind of sentence, between what begins and ends every text."""

    def __init__(self, *, size: int, width: int, places: int) -> None:
        super().__init__()
        self.size = size
        self.words = nn.Embedding(size, width)
        self.places = nn.Embedding(places, width)
        self.begin, self.end = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.kind = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[records, tokens + 2, width], and [records, tokens + 2] that is 1 where something is.

        `features` [records, tokens]: ids, float32 whole numbers, 0 (nothing) after the last one.
        """
        # What is no number is nothing: as a whole number it would be any, and stop the round.
        ids = features.nan_to_num(nan=0.0).round().clamp(0, self.size - 1).to(torch.int64)
        words = self.words(ids)
        there = (ids > 0).to(words.dtype)
        edge = there.new_zeros(len(ids), 1)
        inside = torch.cat([edge, there, edge], dim=1)
        last = there.sum(dim=1).to(torch.int64) + 1
        ends = nn.functional.one_hot(last, ids.shape[1] + 2).to(words.dtype)
        begins = torch.zeros_like(ends)
        begins[:, 0] = 1.0
        padded = nn.functional.pad(words, (0, 0, 1, 1)) * inside.unsqueeze(-1)
        marked = padded + begins.unsqueeze(-1) * self.begin + ends.unsqueeze(-1) * self.end
        places = self.places(torch.arange(marked.shape[1], device=ids.device))
        embedded: torch.Tensor = self.norm(marked + places + self.kind)
        return embedded, (inside + begins + ends).clamp(max=1.0)


class BertLayer(nn.Module):
    """Attention among what is there, then a feed-forward part; a layer norm after each sum."""

    def __init__(self, *, width: int, inside: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.joined = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.wide, self.narrow = nn.Linear(width, inside), nn.Linear(inside, width)
        self.after = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, states: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """[records, tokens, width]."""
        records, tokens, width = states.shape

        def split(layer: nn.Module) -> torch.Tensor:
            parts: torch.Tensor = layer(states)
            return parts.reshape(records, tokens, self.heads, -1).transpose(1, 2)

        query, key, value = split(self.query), split(self.key), split(self.value)
        scores = query @ key.transpose(2, 3) / math.sqrt(width // self.heads)
        # A finite number: a record of which nothing is there has a mean, not a NaN.
        scores = scores + (1.0 - there)[:, None, None, :] * -1e9
        mixed = torch.softmax(scores, dim=-1) @ value
        joined = self.joined(mixed.transpose(1, 2).reshape(records, tokens, width))
        states = self.norm(states + joined)
        inner = self.narrow(nn.functional.gelu(self.wide(states)))
        after: torch.Tensor = self.after(states + inner)
        return after


class BertEncoder(nn.Module):
    """The states of a text's tokens."""

    def __init__(self, *, size: int, width: int, inside: int, layers: int, heads: int, places: int):
        super().__init__()
        self.embedding = BertEmbedding(size=size, width=width, places=places)
        self.layers = nn.ModuleList(
            BertLayer(width=width, inside=inside, heads=heads) for _ in range(layers)
        )

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[records, tokens, width], and [records, tokens] that is 1 where there is a token."""
        states, there = self.embedding(features)
        for layer in self.layers:
            states = layer(states, there)
        tokens = states.shape[1] - 2
        real = (features.nan_to_num(nan=0.0).round() > 0).to(states.dtype)
        return states[:, 1 : tokens + 1], real


class Bert(nn.Module):
    """The encoder, and linear outputs of each token or of the mean over the tokens."""

    def __init__(self, encoder: BertEncoder, *, width: int, outputs: int, pooled: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.answers = Answers(width, outputs, pooled=pooled)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] for one output, otherwise [records, tokens, outputs]."""
        states, there = self.encoder(features)
        answers: torch.Tensor = self.answers(states, there)
        return answers


def bert(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `bert`: `hidden` = [width, inside, layers, heads, places], `shape` = [1, ids].

    Raises:
        ConfigError: sizes that the model does not take.
    """
    if len(spec.hidden) != SIZES or spec.hidden[0] % spec.hidden[3]:
        raise ConfigError(
            "model.hidden: expected [width, width inside, layers, heads, places] for bert, the "
            "width a multiple of the heads, such as [768, 3072, 12, 12, 512]"
        )
    width, inside, layers, heads, places = spec.hidden
    if len(spec.shape) != 2 or spec.shape[0] != 1:
        raise ConfigError("model.shape: expected [1, different ids] for bert, as word pieces have")
    if inputs + 2 > places:
        raise ConfigError(
            f"tokeniser.max_tokens: expected at most {places - 2} for bert with {places} places, "
            f"found {inputs}"
        )
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights; ours replace them
        encoder = BertEncoder(
            size=spec.shape[1],
            width=width,
            inside=inside,
            layers=layers,
            heads=heads,
            places=places,
        )
        model = Bert(encoder, width=width, outputs=spec.outputs, pooled=False)
    start_numbers(model, seed=spec.initial_seed)
    return model
