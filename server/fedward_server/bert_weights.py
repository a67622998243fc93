"""A folder of a published BERT as the weights that a study's `bert` begins with.

`config.json`, `model.safetensors` and `vocab.txt` are read as data; nothing of the folder is run.
Another format of weights (pickles) is not read at all.

Source: the names of the `transformers` library's BertModel, with or without `bert.` before them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from fedward_common.arrays import Array
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
VOCABULARY: Final = "vocab.txt"
BEGIN: Final = "[CLS]"
END: Final = "[SEP]"
EXPECTED: Final[dict[str, Any]] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
}
"""What this arithmetic is of; these are the library's defaults, too, for what a file leaves out."""
LAYER: Final = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "joined",
    "attention.output.LayerNorm": "norm",
    "intermediate.dense": "wide",
    "output.dense": "narrow",
    "output.LayerNorm": "after",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BertStart:
    """Tensors `encoder.*` of the model `bert`, and what a study says of model and tokeniser."""

    tensors: dict[str, Array]
    hidden: tuple[int, ...]
    pieces: int
    vocabulary_sha256: str
    lower_case: bool


def read_bert(folder: Path) -> BertStart:
    """The encoder in `folder`.

    Raises:
        ConfigError: a file is missing or damaged, or the model computes otherwise than `bert`.
    """
    config, vocabulary = _config(folder), _bytes(folder / VOCABULARY)
    try:
        lines = vocabulary.decode("utf-8").splitlines()
        found = load(_bytes(folder / WEIGHTS))
    except (UnicodeDecodeError, SafetensorError) as error:
        raise ConfigError(
            f"{folder}: expected a vocabulary in UTF-8 and safetensors, found "
            f"{type(error).__name__}"
        ) from error
    given = {name.removeprefix("bert."): array for name, array in found.items()}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    hidden = (*(_whole(config, name) for name in names), _whole(config, "max_position_embeddings"))
    if len(lines) != _whole(config, "vocab_size") or not {BEGIN, END} <= set(lines):
        raise ConfigError(
            f"{folder / VOCABULARY}: expected {config['vocab_size']} lines with {BEGIN} and {END}, "
            f"found {len(lines)}"
        )
    return BertStart(
        tensors=_tensors(folder, given, lines=lines, layers=hidden[2]),
        hidden=hidden,
        pieces=len(lines),
        vocabulary_sha256=sha256_hex(vocabulary),
        # Marks such as [CLS] apart, a vocabulary of lower case has no capital.
        lower_case=all(line == line.lower() for line in lines if not line.startswith("[")),
    )


def _tensors(
    folder: Path, given: dict[str, Any], *, lines: list[str], layers: int
) -> dict[str, Array]:
    def take(name: str) -> Array:
        if name not in given or given[name].dtype != np.float32:
            raise ConfigError(f"{folder / WEIGHTS}: expected float32 {name}, found none")
        return np.ascontiguousarray(given[name])

    words = take("embeddings.word_embeddings.weight")
    if len(words) != len(lines):
        raise ConfigError(f"{folder / WEIGHTS}: expected {len(lines)} words, found {len(words)}")
    start = "encoder.embedding."
    made = {
        # Fedward counts pieces from 1: 0 is nothing.
        f"{start}words.weight": np.concatenate([np.zeros((1, words.shape[1]), np.float32), words]),
        f"{start}places.weight": take("embeddings.position_embeddings.weight"),
        f"{start}begin": words[lines.index(BEGIN)].copy(),
        f"{start}end": words[lines.index(END)].copy(),
        f"{start}kind": take("embeddings.token_type_embeddings.weight")[0].copy(),
    }
    for part in ("weight", "bias"):
        made[f"{start}norm.{part}"] = take(f"embeddings.LayerNorm.{part}")
        for number in range(layers):
            for theirs, ours in LAYER.items():
                name = f"encoder.layers.{number}.{ours}.{part}"
                made[name] = take(f"encoder.layer.{number}.{theirs}.{part}")
    return made


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(_bytes(folder / CONFIG))
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG}: expected JSON, found something else") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{folder / CONFIG}: expected a JSON object, found something else")
    for name, expected in EXPECTED.items():
        found = config.get(name, None if name == "model_type" else expected)
        if found != expected:
            raise ConfigError(f"{folder / CONFIG}: expected {name} {expected!r}, found {found!r}")
    return config


def _whole(config: dict[str, Any], name: str) -> int:
    found = config.get(name)
    if type(found) is not int or not 1 <= found <= 65535:
        raise ConfigError(f"{CONFIG}: expected a whole number in {name}, found {found!r}")
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: expected a file to read, found {error.strerror}") from error
