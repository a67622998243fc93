"""What each utility lever does to a study, measured beside the same study without it.

    python -m benchmarks.levers --set breast-cancer --draws 20 --out levers.json
    python -m benchmarks.levers --set digits --draws 10 --out levers-digits.json

Every variant trains the same study but for one field, at the same epsilon, in turns with the plain
study, each draw with fresh noise from the operating system. `breast-cancer` is the study as
shipped, tuned by cross-validation on training patients. `digits` is a convolutional network on
scikit-learn's 8 x 8 digits (5 and above or below), all in one place, for the levers that need
images; its plan is a first guess. So are the levers' own numbers on both: a lever that loses here
may win when it is given the same care.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.study import (
    LEAST_DRAWS,
    STUDIES,
    Tables,
    environment,
    federated,
    load_study,
    read_tables,
    summarised,
)
from fedward_common.ids import SiteId
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import StudySpec
from fedward_server.sandbox.datasets import deal_breast_cancer
from fedward_server.sandbox.figures import model_figures

Changes = Mapping[str, Mapping[str, Any]]
DIGITS_EPSILON: Final = 2.0
DIGITS_DELTA: Final = 8e-5
"""1 / (10 N)."""

LEVERS: Final[Mapping[str, Changes]] = {
    "none (the study as shipped)": {},
    "no averaging of released models": {"aggregation": {"average_last": 1}},
    "EMA of released models": {"aggregation": {"average_last": 1, "ema": 0.5}},
    "AUTO-S clipping": {"dp": {"clipping": "auto-s"}},
    "DP-Adam": {"training": {"optimizer": "adam", "learning_rate": 0.1, "momentum": 0.0}},
    "jitter, 4 copies": {"training": {"jitter": {"copies": 4, "scale": 0.05}}},
    "MLP of 16": {"model": {"name": "mlp", "hidden": (16,)}},
    "MLP of 16, first layer frozen": {
        "model": {"name": "mlp", "hidden": (16,)},
        "training": {"frozen": ("hidden.0.",)},
    },
    "MLP of 16, first layer adapted (LoRA of rank 2)": {
        "model": {"name": "mlp", "hidden": (16,), "lora": {"rank": 2, "layers": ("hidden.0",)}},
    },
}
ON_DIGITS: Final[Mapping[str, Changes]] = {
    "none (GroupNorm)": {},
    "weight standardisation": {"model": {"weight_standardisation": True}},
    "EMA of released models": {"aggregation": {"ema": 0.5}},
    "AUTO-S clipping": {"dp": {"clipping": "auto-s"}},
    "DP-Adam": {"training": {"optimizer": "adam", "learning_rate": 0.01, "momentum": 0.0}},
    "shift by a pixel, 4 copies": {"training": {"jitter": {"copies": 4, "scale": 0.0, "shift": 1}}},
    "jitter, 4 copies": {"training": {"jitter": {"copies": 4, "scale": 0.1}}},
    "first convolution frozen": {"training": {"frozen": ("blocks.0.",)}},
    "second convolution adapted (LoRA of rank 4)": {
        "model": {"lora": {"rank": 4, "layers": ("blocks.4",)}}
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--set", choices=("breast-cancer", "digits"), default="breast-cancer")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.draws < LEAST_DRAWS:
        parser.error(f"--draws: expected at least {LEAST_DRAWS}, found {options.draws}")
    if options.set == "digits":
        (plain, training, held_out), levers = digits(), ON_DIGITS
    else:
        (plain, training, held_out), levers = breast_cancer(), LEVERS
    variants = {name: changed(plain, changes) for name, changes in levers.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for draw in range(options.draws):
        for name, study in variants.items():
            figures = model_figures(study, federated(study, training), held_out)
            found[name].append(
                {"auc": figures.pooled.auc or 0.0, "accuracy": figures.pooled.accuracy}
            )
        print(f"\r{draw + 1}/{options.draws}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    text = json.dumps(report(plain.id, found, draws=options.draws), indent=2)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def breast_cancer() -> tuple[StudySpec, Tables, Tables]:
    """The study as shipped, and what it trains on and is tested with."""
    plain = load_study(STUDIES / "breast-cancer.toml")
    with tempfile.TemporaryDirectory() as folder:
        paths = deal_breast_cancer(Path(folder))
        return plain, read_tables(plain, paths, "train"), read_tables(plain, paths, "test")


def digits() -> tuple[StudySpec, Tables, Tables]:
    """A study of images in one place; every third digit is held out."""
    images, digit = load_digits(return_X_y=True)
    features = (images / 8.0 - 1.0).astype(np.float32)
    labels, held_out = (digit >= 5).astype(np.float32), np.arange(len(digit)) % 3 == 2
    site = SiteId("everybody")
    parts = {
        part: {
            site: PatientRecords(
                features=features[rows], labels=labels[rows], patient=np.arange(rows.sum())
            )
        }
        for part, rows in (("train", ~held_out), ("test", held_out))
    }
    noise = calibrate_noise_multiplier(
        epsilon=DIGITS_EPSILON,
        epsilon_is="admission",
        delta=DIGITS_DELTA,
        sampling_probability=0.1,
        steps=60,
    )
    study = StudySpec.model_validate(
        {
            "id": "digits",
            "title": "Five and above, or below",
            "task": {"kind": "image-classification"},
            "model": {"name": "cnn", "hidden": (16, 32), "shape": (1, 8, 8), "initial_seed": 1},
            "data": {
                "kind": "image",
                "height": 8,
                "width": 8,
                "label": {"column": "digit", "low": 0, "high": 9, "positive_from": 5},
                "split": {"kind": "column", "column": "split"},
            },
            "dp": {
                "kind": "dp-sgd",
                "epsilon": DIGITS_EPSILON,
                "delta": DIGITS_DELTA,
                "noise_multiplier": noise,
                "clip_norm": 0.5,
                "sampling_probability": 0.1,
                "steps": 60,
                "max_records_per_patient": 1,
            },
            "training": {"learning_rate": 2.0, "momentum": 0.5},
            "aggregation": {"name": "fedavg"},
            "rounds": 6,
            "local_steps": 10,
            "quorum": 1,
            "deadline_seconds": 60,
            "sites": [
                {"id": site, "patients": 1200, "key_sha256": "1" * 64, "node_key_sha256": "2" * 64}
            ],
            "lead_key_sha256": "f" * 64,
        }
    )
    return study, parts["train"], parts["test"]


def changed(study: StudySpec, changes: Changes) -> StudySpec:
    """The study with these fields; noise and epsilon are the same, because no lever costs any."""
    document = study.model_dump(mode="python")
    for table, values in changes.items():
        document[table] = {**document[table], **values}
    return StudySpec.model_validate(document)


def report(
    study: str, found: Mapping[str, Sequence[Mapping[str, float]]], *, draws: int
) -> dict[str, Any]:
    plain = found[next(iter(found))]
    return {
        "study": study,
        "draws": draws,
        "levers": {
            name: {
                figure: {
                    **(summarised([run[figure] for run in runs]) or {}),
                    "minus_plain": float(
                        np.mean([run[figure] for run in runs])
                        - np.mean([run[figure] for run in plain])
                    ),
                }
                for figure in ("auc", "accuracy")
            }
            for name, runs in found.items()
        },
        "seed": None,
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
