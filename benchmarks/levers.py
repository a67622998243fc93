"""What each utility lever does to an example study, measured beside the study without it.

    python -m benchmarks.levers --draws 20 --out levers.json

Every variant trains the breast-cancer study as shipped but for one field, at the same epsilon, in
turns with the plain study, each draw with fresh noise from the operating system. The plain study
was tuned by cross-validation on training patients; the levers' own numbers are first guesses that
nobody tuned, so a lever that loses here may win when it is given the same care.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.study import (
    LEAST_DRAWS,
    STUDIES,
    environment,
    federated,
    load_study,
    read_tables,
    summarised,
)
from fedward_common.study.spec import StudySpec
from fedward_server.sandbox.datasets import deal_breast_cancer
from fedward_server.sandbox.figures import model_figures

Changes = Mapping[str, Mapping[str, Any]]

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
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.draws < LEAST_DRAWS:
        parser.error(f"--draws: expected at least {LEAST_DRAWS}, found {options.draws}")
    plain = load_study(STUDIES / "breast-cancer.toml")
    with tempfile.TemporaryDirectory() as folder:
        paths = deal_breast_cancer(Path(folder))
        training, held_out = (read_tables(plain, paths, part) for part in ("train", "test"))
    variants = {name: changed(plain, changes) for name, changes in LEVERS.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for draw in range(options.draws):
        for name, study in variants.items():
            figures = model_figures(study, federated(study, training), held_out)
            found[name].append(
                {"auc": figures.pooled.auc or 0.0, "accuracy": figures.pooled.accuracy}
            )
        print(f"\r{draw + 1}/{options.draws}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    text = json.dumps(report(found, draws=options.draws), indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def changed(study: StudySpec, changes: Changes) -> StudySpec:
    """The study with these fields; noise and epsilon are the same, because no lever costs any."""
    document = study.model_dump(mode="python")
    for table, values in changes.items():
        document[table] = {**document[table], **values}
    return StudySpec.model_validate(document)


def report(found: Mapping[str, Sequence[Mapping[str, float]]], *, draws: int) -> dict[str, Any]:
    plain = found[next(iter(LEVERS))]
    return {
        "study": "breast-cancer",
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
