"""Disease names in abstracts (NCBI-disease): `text-ner`, nothing pretrained, without privacy.

    python -m benchmarks.ehr_ner --data ../shared/data/ner_corpora

Four sites with a quarter of the training sentences each (by a hash), FedAvg of one pass of Adam per
round; beside it one site with everything. Sentences are no patients: the unit would be `record`.
Settings were chosen on the corpus' development part; the test part is read once.
"""

import argparse
import copy
import gzip
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from benchmarks.study import environment
from fedward_common.arrays import Tensors
from fedward_common.models.registry import build_model, load_tensors, model_tensors
from fedward_common.models.text_objectives import NO_TAG, TaggingObjective, f1_of
from fedward_common.notes.tokens import token_ids
from fedward_common.study.notes import HashedWords, TagLabel
from fedward_common.study.spec import ModelSpec

Part = tuple[np.ndarray, np.ndarray]
"""Ids [sentences, words * 4] and tags [sentences, words]."""

TOKENISER: Final = HashedWords(max_tokens=128, buckets=16_384)
LABEL: Final = TagLabel(column="tags", types=("Disease",))
MODEL: Final = ModelSpec(
    name="bilstm", hidden=(96, 96), outputs=3, steps=128, shape=(4, TOKENISER.size)
)
SITES: Final = 4
RATE: Final = 3e-3
BATCH: Final = 16
WORD_DROP: Final = 0.15
"""How often a word's own number is left out in training: its ends and form have to do then."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Disease names in abstracts.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--part", choices=("devel", "test"), default="test")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.data / "NCBI-disease"
    training, held_out = read(folder / "train.tsv.gz"), read(folder / f"{options.part}.tsv.gz")
    runs: dict[str, list[dict[str, float]]] = {"federated": [], "pooled": []}
    for seed in range(options.first, options.first + options.seeds):
        for kind, sites in (("federated", dealt(training, SITES)), ("pooled", [training])):
            tensors = trained(sites, rounds=options.rounds, seed=seed)
            runs[kind].append(figures(tensors, held_out))
            print(seed, kind, runs[kind][-1], file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        "part": options.part,
        "rounds": options.rounds,
        "sites": SITES,
        "words": TOKENISER.max_tokens,
        "environment": environment(),
        "entity_f1": {
            kind: {
                "mean": float(np.mean([run["f1"] for run in found])),
                "sd": float(np.std([run["f1"] for run in found], ddof=1)) if len(found) > 1 else 0,
                "runs": found,
            }
            for kind, found in runs.items()
        },
    }
    text = json.dumps(result, indent=2)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def read(path: Path) -> Part:
    """The sentences of an IOB file; words beyond the tokeniser's end are cut off, tags too."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    ids, tags = [], []
    for block in text.split("\n\n"):
        pairs = [line.split("\t") for line in block.splitlines() if "\t" in line]
        if not pairs:
            continue
        words = [pair[0] for pair in pairs]
        codes = [LABEL.tags.index(_tag(pair[1])) for pair in pairs]
        ids.append(token_ids(TOKENISER, words, vocabulary=None))
        row = np.full(TOKENISER.max_tokens, NO_TAG, dtype=np.float32)
        row[: len(codes)] = codes[: TOKENISER.max_tokens]
        tags.append(row)
    return np.array(ids, dtype=np.float32), np.stack(tags)


def _tag(text: str) -> str:
    mark = text[0]
    return "O" if mark == "O" else f"{mark}-Disease"


def dealt(part: Part, sites: int) -> list[Part]:
    """The sentences by a hash of their place."""
    place = np.array(
        [hashlib.sha256(f"ner|{n}".encode()).digest()[0] % sites for n in range(len(part[0]))]
    )
    return [(part[0][place == site], part[1][place == site]) for site in range(sites)]


def trained(sites: Sequence[Part], *, rounds: int, seed: int) -> Tensors:
    """The mean model after `rounds` of one pass of Adam at every site."""
    spec = MODEL.model_copy(update={"initial_seed": seed})
    studied = build_model(spec, TOKENISER.max_tokens * TOKENISER.ids)
    model = quick(studied)
    state: Mapping[str, Any] = model_tensors(model)
    optimisers: list[Any] = [None] * len(sites)
    order = np.random.default_rng(seed)
    total = sum(len(ids) for ids, _ in sites)
    for number in range(rounds):
        rate = RATE * (1.0 - number / rounds)
        mean = {name: np.zeros_like(array) for name, array in state.items()}
        for site, part in enumerate(sites):
            load_tensors(model, state)
            optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
            if optimisers[site] is not None:
                optimiser.load_state_dict(optimisers[site])
                for group in optimiser.param_groups:
                    group["lr"] = rate
            one_pass(model, optimiser, part, order)
            optimisers[site] = optimiser.state_dict()
            for name, array in model_tensors(model).items():
                mean[name] += array * (len(part[0]) / total)
        state = mean
    # Opacus' LSTM has every number under a second name as well, which is the same tensor.
    studied.load_state_dict({n: torch.tensor(array) for n, array in state.items()}, strict=False)
    return model_tensors(studied)


def quick(studied: nn.Module) -> nn.Module:
    """A copy of `studied` with torch's own LSTM in the place of Opacus' one, whose steps are single
    layers for gradients per record: the same numbers, several times faster where nothing is
    clipped.
    """
    model: Any = copy.deepcopy(studied)
    slow = model.cell
    model.cell = nn.LSTM(slow.input_size, slow.hidden_size, batch_first=True, bidirectional=True)
    model.cell.load_state_dict(
        {name: value for name, value in slow.state_dict().items() if "_l0" in name}
    )
    found: nn.Module = model
    return found


def one_pass(model: Any, optimiser: Any, part: Part, order: np.random.Generator) -> None:
    ids, tags = part
    lengths = (tags >= 0).sum(axis=1)
    objective = TaggingObjective(LABEL)
    # Sentences of about one length together: no time goes into what is empty.
    shuffled = np.argsort(lengths + order.uniform(0, 6, len(lengths)))
    batches = [shuffled[n : n + BATCH] for n in range(0, len(shuffled), BATCH)]
    for number in order.permutation(len(batches)):
        chosen = batches[number]
        words = int(lengths[chosen].max())
        inputs = ids[chosen, : words * TOKENISER.ids].copy()
        inputs.reshape(len(chosen), words, TOKENISER.ids)[..., 0][
            order.random((len(chosen), words)) < WORD_DROP
        ] = 1.0
        outputs = model(torch.from_numpy(inputs))
        loss = objective.losses(outputs, torch.from_numpy(tags[chosen, :words])).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()


def figures(tensors: Tensors, part: Part) -> dict[str, float]:
    """Entity F1 over exact spans, with precision and recall."""
    model = build_model(MODEL, TOKENISER.max_tokens * TOKENISER.ids).eval()
    load_tensors(model, tensors)
    objective = TaggingObjective(LABEL)
    counts = np.zeros(3)
    with torch.inference_mode():
        for ids, tags in zip(*part, strict=True):
            words = int((tags >= 0).sum())
            inputs = torch.from_numpy(ids[None, : words * TOKENISER.ids])
            counts += objective.compared(model(inputs)[0], tags[:words])
    right, wrong, missed = counts
    return {
        "f1": f1_of(right, wrong, missed),
        "precision": right / max(right + wrong, 1),
        "recall": right / max(right + missed, 1),
    }


if __name__ == "__main__":
    main()
