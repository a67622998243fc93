"""A tiny BERT with made-up weights, in the files of the `transformers` library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

WIDTH, INSIDE, LAYERS, HEADS, PLACES = 16, 32, 2, 2, 20
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *("fever", "cough", "##ing", "no", "pain"),
]
PARTS = {
    "attention.self.query": (WIDTH, WIDTH),
    "attention.self.key": (WIDTH, WIDTH),
    "attention.self.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "attention.output.LayerNorm": (WIDTH,),
    "intermediate.dense": (INSIDE, WIDTH),
    "output.dense": (WIDTH, INSIDE),
    "output.LayerNorm": (WIDTH,),
}


def make_bert(folder: Path, *, prefix: str = "", **config: Any) -> Path:
    """The folder; equal arguments give equal bytes. `config` replaces entries of config.json."""
    folder.mkdir()
    draws = np.random.default_rng(7)

    def drawn(*shape: int) -> np.ndarray:
        return draws.normal(scale=0.3, size=shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": drawn(len(VOCABULARY), WIDTH),
        "embeddings.position_embeddings.weight": drawn(PLACES, WIDTH),
        "embeddings.token_type_embeddings.weight": drawn(2, WIDTH),
        "embeddings.LayerNorm.weight": 1 + drawn(WIDTH),
        "embeddings.LayerNorm.bias": drawn(WIDTH),
    }
    for number in range(LAYERS):
        for name, shape in PARTS.items():
            start = f"encoder.layer.{number}.{name}"
            tensors[f"{start}.weight"] = drawn(*shape) + (1 if "Norm" in name else 0)
            tensors[f"{start}.bias"] = drawn(shape[0])
    tensors["pooler.dense.weight"] = drawn(WIDTH, WIDTH)  # there, and not used
    tensors["pooler.dense.bias"] = drawn(WIDTH)
    save_file(
        {prefix + name: np.float32(array) for name, array in tensors.items()},
        folder / "model.safetensors",
    )
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    facts = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "intermediate_size": INSIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": PLACES,
        "type_vocab_size": 2,
    }
    (folder / "config.json").write_text(json.dumps(facts | config))
    return folder
