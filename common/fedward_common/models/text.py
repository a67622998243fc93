"""Models of notes: embedded ids of tokens, then a bidirectional LSTM or a small transformer.

Their layers are those with per-record gradients on every back end (Opacus' LSTM and attention).
"""

import math

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.dp_layers import dp_layer
from fedward_common.study.notes import MARKS
from fedward_common.study.spec import ModelSpec


class TokenEmbedding(nn.Module):
    """The sum of the embeddings of a token's ids; ids are float32 whole numbers, 0 is nothing."""

    def __init__(self, *, ids: int, size: int, width: int) -> None:
        super().__init__()
        self.ids, self.size = ids, size
        self.table = nn.Embedding(ids * size, width)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[records, tokens, width], and [records, tokens] that is 1 where there is a token."""
        tokens = features.reshape(features.shape[0], -1, self.ids)
        offsets = torch.arange(self.ids, device=features.device) * self.size
        # What is no number is nothing: as a whole number it would be any, and stop the round.
        numbers = tokens.nan_to_num(nan=0.0).round().clamp(0, self.size - 1).to(torch.int64)
        embedded: torch.Tensor = self.table(numbers + offsets).sum(dim=2)
        return embedded, (numbers[:, :, 0] > 0).to(embedded.dtype)


class PairEmbedding(TokenEmbedding):
    """As `TokenEmbedding`, with the last ids for the marks of a pair (`MARKS`)."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[records, tokens, width], and [records, 2, tokens] that is 1 where an entity begins."""
        embedded, _ = super().forward(features)
        return embedded, entity_begins(features, ids=self.ids, size=self.size).to(embedded.dtype)


def entity_begins(features: torch.Tensor, *, ids: int, size: int) -> torch.Tensor:
    """Where the first and the second entity of a pair begin, bool [records, 2, tokens]."""
    first = features.reshape(features.shape[0], -1, ids)[:, :, 0]
    opening = size - len(MARKS)
    return torch.stack([first == opening, first == opening + 2], dim=1)


class PairAnswers(nn.Module):
    """Linear outputs of the states at the beginnings of both entities of a pair.

    An entity that was cut off has a state of zeros.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, outputs)

    def forward(self, states: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        """[records, outputs] from states [records, tokens, width]."""
        share = begins / begins.sum(dim=2, keepdim=True).clamp(min=1.0)
        both = torch.stack(
            [(states * share[:, one].unsqueeze(-1)).sum(dim=1) for one in range(2)], dim=1
        )
        logits: torch.Tensor = self.linear(both.reshape(both.shape[0], -1))
        return logits


def _answers(embedding: TokenEmbedding, width: int, outputs: int, *, pooled: bool) -> nn.Module:
    if isinstance(embedding, PairEmbedding):
        return PairAnswers(width, outputs)
    return Answers(width, outputs, pooled=pooled)


class Answers(nn.Module):
    """Linear outputs: of each token for tags, of the mean over the tokens where they are `pooled`
    and for one answer.
    """

    def __init__(self, width: int, outputs: int, *, pooled: bool) -> None:
        super().__init__()
        self.linear, self.pooled = nn.Linear(width, outputs), pooled

    def forward(self, states: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """[records, tokens, outputs], [records, outputs] or, of one output, [records]."""
        if self.linear.out_features > 1 and not self.pooled:
            tagged: torch.Tensor = self.linear(states)
            return tagged
        share = there / there.sum(dim=1, keepdim=True).clamp(min=1.0)
        pooled = (states * share.unsqueeze(-1)).sum(dim=1)
        logits: torch.Tensor = self.linear(pooled)
        return logits.squeeze(-1) if self.linear.out_features == 1 else logits


class BiLstm(nn.Module):
    """A bidirectional LSTM over the tokens."""

    def __init__(
        self,
        *,
        embedding: TokenEmbedding,
        width: int,
        hidden: int,
        outputs: int,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.cell = dp_layer("lstm")(width, hidden, batch_first=True, bidirectional=True)
        self.answers = _answers(embedding, 2 * hidden, outputs, pooled=pooled)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] for one output, otherwise [records, tokens, outputs], or [records,
        outputs] where they are pooled.
        """
        embedded, there = self.embedding(features)
        states = self.cell(embedded)[0]
        answers: torch.Tensor = self.answers(states, there)
        return answers


class TextTransformer(nn.Module):
    """One block of attention and a feed-forward part, each after its LayerNorm; sine positions."""

    def __init__(
        self,
        *,
        embedding: TokenEmbedding,
        width: int,
        hidden: int,
        outputs: int,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.embedding, self.width = embedding, width
        self.before = nn.LayerNorm(width)
        self.attention = dp_layer("multihead-attention")(width, _heads(width), batch_first=True)
        self.between = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.after = nn.LayerNorm(width)
        self.answers = _answers(embedding, width, outputs, pooled=pooled)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] for one output, otherwise [records, tokens, outputs], or [records,
        outputs] where they are pooled.
        """
        embedded, there = self.embedding(features)
        states = embedded + _positions(embedded.shape[1], self.width).to(embedded)
        normed = self.before(states)
        attended = self.attention(normed, normed, normed, need_weights=False)[0]
        states = states + attended
        states = states + self.narrow(torch.relu(self.wide(self.between(states))))
        answers: torch.Tensor = self.answers(self.after(states), there)
        return answers


def bilstm(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `bilstm`. Raises ConfigError as `build_text_model`."""
    return build_text_model(spec, inputs, BiLstm)


def text_transformer(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `text-transformer`. Raises ConfigError as `build_text_model`."""
    return build_text_model(spec, inputs, TextTransformer)


def relation_bilstm(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `relation-bilstm`: of marked pairs. Raises ConfigError as `build_text_model`."""
    return build_text_model(spec, inputs, BiLstm, pairs=True)


def relation_transformer(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `relation-transformer`: of marked pairs. Raises: as `build_text_model`."""
    return build_text_model(spec, inputs, TextTransformer, pairs=True)


def build_text_model(
    spec: ModelSpec,
    inputs: int,
    kind: type[BiLstm] | type[TextTransformer],
    *,
    pooled: bool = False,
    pairs: bool = False,
) -> nn.Module:
    """A model of tokens: `hidden` = [width of a token, width inside], `shape` = [ids, size].

    Several outputs are those of each token, or of the whole where they are `pooled` or of `pairs`.

    Raises:
        ConfigError: sizes that the model does not take.
    """
    if len(spec.hidden) != 2 or (
        kind is TextTransformer and spec.hidden[0] % _heads(spec.hidden[0])
    ):
        raise ConfigError(f"model.hidden: expected two widths for {spec.name}, such as [64, 64]")
    if len(spec.shape) != 2 or inputs % spec.shape[0]:
        raise ConfigError(
            f"model.shape: expected [ids of a token, different ids] for {spec.name}, as its "
            "tokeniser has"
        )
    width, hidden = spec.hidden
    ids, size = spec.shape
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights; ours replace them
        embedding = (PairEmbedding if pairs else TokenEmbedding)(ids=ids, size=size, width=width)
        model = kind(
            embedding=embedding, width=width, hidden=hidden, outputs=spec.outputs, pooled=pooled
        )
    start_numbers(model, seed=spec.initial_seed)
    return model


def start_numbers(model: nn.Module, *, seed: int) -> None:
    """Puts the numbers of `seed` into every weight of `model`; scales of layer norms stay 1."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() < 2:
                if "bias" in name:
                    parameter.zero_()
                continue  # scales of LayerNorm stay 1
            bound = 0.1 if "embedding" in name else 1.0 / math.sqrt(parameter.shape[-1])
            uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_((2.0 * uniform - 1.0) * bound)


def _heads(width: int) -> int:
    return 4 if width % 4 == 0 else 1


def _positions(tokens: int, width: int) -> torch.Tensor:
    """Sine and cosine positions [tokens, width] (Vaswani et al. 2017, section 3.5)."""
    place = torch.arange(tokens, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    angles = place * rate
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(tokens, -1)[:, :width]
