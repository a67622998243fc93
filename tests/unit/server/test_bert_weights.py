"""BERT's published weights in our arithmetic: equal states, and folders that are refused."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedward_common.arrays import tensors_from_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.models.bert import Bert, bert
from fedward_common.models.registry import load_tensors, model_tensors
from fedward_common.notes.tokens import token_ids
from fedward_common.study.notes import WordPieces
from fedward_common.study.spec import ModelSpec
from fedward_server.bert_weights import read_bert
from fedward_server.cli import app
from tests.support.bert_folder import VOCABULARY, make_bert

# The first four numbers of each token's last hidden state, as transformers 5.24.0 (BertModel, torch
# 2.13.0, eval) computes them of this folder for [CLS] tokens [SEP]; 2026-11-27.
ORACLE = {
    "fever no coughing": [
        [2.3051157, 0.8934644, -0.4318628, 0.2844868],
        [2.1794052, 1.2599107, -0.3265051, 0.3618297],
        [1.8935648, 0.8717020, -0.7009365, -0.0840604],
        [2.0827651, 1.0724061, -0.4708715, 0.2360868],
    ],
    "pain ab c xz": [
        [2.0542307, 1.0036323, -0.0122521, 0.3710584],
        [1.9724780, 1.0668528, 0.0683318, 0.3584798],
        [1.9889296, 0.9687509, -0.0421752, 0.2109848],
        [2.0311463, 0.9945773, -0.0673634, 0.3202029],
        [2.1036658, 0.7949778, -0.0821060, 0.3246175],
        [1.9580981, 0.9634090, -0.0030703, 0.3258333],
    ],
}
TOKENS = 8


def model_of(folder: Path) -> Bert:
    start = read_bert(folder)
    spec = ModelSpec(name="bert", hidden=start.hidden, shape=(1, start.pieces + 1))
    model = bert(spec, TOKENS)
    load_tensors(model, model_tensors(model) | start.tensors)
    if not isinstance(model, Bert):
        raise TypeError("expected a BERT")
    return model.eval()


def ids_of(text: str) -> torch.Tensor:
    tokeniser = WordPieces(max_tokens=TOKENS, vocabulary_sha256="0" * 64, pieces=len(VOCABULARY))
    vocabulary = {piece: number for number, piece in enumerate(VOCABULARY, start=1)}
    return torch.tensor([token_ids(tokeniser, text.split(), vocabulary=vocabulary)]).float()


@pytest.mark.parametrize("text", sorted(ORACLE))
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_states_are_those_of_the_transformers_library(
    tmp_path: Path, text: str, prefix: str
) -> None:
    model = model_of(make_bert(tmp_path / "bert", prefix=prefix))

    with torch.inference_mode():
        states, there = model.encoder(ids_of(text))

    expected = np.array(ORACLE[text])
    assert there.sum() == len(expected)
    np.testing.assert_allclose(states[0, : len(expected), :4].numpy(), expected, atol=2e-5)


def test_a_text_has_the_same_states_beside_others_and_without_a_word_they_are_numbers(
    tmp_path: Path,
) -> None:
    model = model_of(make_bert(tmp_path / "bert"))
    texts = torch.cat([ids_of("pain ab c xz"), ids_of("fever"), torch.zeros(1, TOKENS)])

    with torch.inference_mode():
        alone, together = model(texts[:1]), model(texts)

    assert torch.allclose(alone, together[:1], atol=1e-6)
    assert torch.isfinite(together).all()


def test_the_command_writes_the_start_and_what_a_study_says(tmp_path: Path) -> None:
    folder, target = make_bert(tmp_path / "bert"), tmp_path / "start.safetensors"

    done = CliRunner().invoke(app, ["model", "bert-weights", str(folder), str(target), "--json"])

    facts = json.loads(done.stdout)
    content = target.read_bytes()
    assert facts["start"] == {"sha256": sha256_hex(content), "tensors": ["encoder."]}
    assert facts["model"] == {
        "name": "bert",
        "hidden": [16, 32, 2, 2, 20],
        "shape": [1, len(VOCABULARY) + 1],
    }
    digest = sha256_hex((folder / "vocab.txt").read_bytes())
    assert facts["tokeniser"]["vocabulary_sha256"] == digest
    assert facts["tokeniser"]["pieces"] == len(VOCABULARY)
    assert facts["tokeniser"]["lower_case"] is True
    assert set(tensors_from_bytes(content)) == set(read_bert(folder).tensors)


def test_the_toml_that_is_printed_is_toml_and_says_what_is_left_to_say(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert")
    vocabulary = (folder / "vocab.txt").read_text()
    (folder / "vocab.txt").write_text(vocabulary.replace("fever", "Fever"))

    done = CliRunner().invoke(app, ["model", "bert-weights", str(folder), str(tmp_path / "start")])

    said = tomllib.loads(done.stdout)
    assert said["model"]["name"] == "bert"
    assert said["model"]["start"]["tensors"] == ["encoder."]
    assert said["data"]["tokeniser"]["lower_case"] is False
    assert "max_tokens, at most 18" in done.stdout


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "roberta"}, "model_type 'bert', found 'roberta'"),
        ({"hidden_act": "relu"}, "hidden_act 'gelu', found 'relu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_size": "16"}, "whole number in hidden_size"),
        ({"vocab_size": 3}, "expected 3 lines"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.attention.self.query"),
    ],
)
def test_what_computes_otherwise_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConfigError, match=found):
        read_bert(make_bert(tmp_path / "bert", **config))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_a_missing_or_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_bert(tmp_path / "bert")
    (folder / name).write_bytes(b"\xff\x00no")
    with pytest.raises(ConfigError):
        read_bert(folder)
    (folder / name).unlink()
    # A pickle beside it is not read.
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match=f"{name}: expected a file to read"):
        read_bert(folder)
