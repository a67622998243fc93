"""Survival on TCGA by the linear fusion, each cancer with the plan that was best in the other one.

    python -m benchmarks.genomics_crossed --data FOLDER --out runs/bench-tcga-crossed.json

Inputs, hospitals and model are those of `genomics_tcga`; without noise. A deal puts all patients
into five folds by a public hash, and a plan's figure is the mean of Harrell's C over the folds.
Every plan is measured in both cancers over all deals; what counts for a cancer is the plan that has
the best mean in the other, so that none of its own patients decides anything. Gradient descent with
momentum and few steps: Adam moves every gene by as much, which costs 0.01 to 0.02 of C here.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.facts import facts
from benchmarks.genomics_breast import parted
from benchmarks.genomics_tcga import FOLDS, dealt, matrix_files, read
from benchmarks.multimodal_hazards import (
    CANCERS,
    LINEAR,
    Try,
    c_index,
    encodings,
    places,
    plain,
    spread,
    study,
)

MARKS: Final = (25, 50, 100, 200, 400, 800)
WEIGHTS: Final = (0.03, 0.06, 0.1, 0.2)
ARMS: Final[Mapping[str, tuple[tuple[str, ...], Sequence[float]]]] = {
    "clinical": (("clinical",), (0.1,)),
    "RNA": (("rna",), (0.06, 0.2)),
    "copy number": (("cn",), (0.2,)),
    "fusion": (("clinical", "rna", "cn"), WEIGHTS),
}
"""The inputs of an arm, and the weights of genes that are tried; alone, a weight is a rate."""
Figures = dict[str, dict[tuple[float, int], list[float]]]
"""Arm -> (weight of genes, steps) -> C of each deal."""


def plans(arm: str, marks: Sequence[int]) -> list[Try]:
    """The plans that are tried of an arm; each is measured after every number of steps."""
    inputs, weights = ARMS[arm]
    return [
        Try(
            how=LINEAR,
            weight=weight,
            rate=0.03,
            momentum=0.9,
            marks=tuple(marks),
            inputs=inputs,
        )
        for weight in weights
    ]


def measured(
    patients: Sequence[Mapping[str, str]], *, deals: int, arms: Sequence[str], marks: Sequence[int]
) -> Figures:
    """The figure of every plan in every deal of one cancer's patients."""
    rows, found = dealt(patients), Figures()
    for arm in arms:
        tried, own = plans(arm, marks), found.setdefault(arm, {})
        with tempfile.TemporaryDirectory() as folder:
            records = encodings(rows, patients, tried, matrix_files(patients, Path(folder)))
        for plan in tried:
            spec = study(rows, patients, plan, seed=1)
            for deal in range(1, deals + 1):
                fold_of = places(rows, records[plan], FOLDS, f"tcga/folds/v{deal}")
                worth = np.zeros(len(marks))
                for fold in range(FOLDS):
                    training, held_out = parted(records[plan], fold_of, fold)
                    models = plain(spec, training, plan)
                    worth += [c_index(spec, models[mark], held_out) for mark in marks]
                for mark, value in zip(marks, worth / FOLDS, strict=True):
                    own.setdefault((plan.weight, mark), []).append(float(value))
    return found


def crossed(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """Of each cancer and arm: the figure of the plan that is best in the other cancer."""
    first, second = figures
    result: dict[str, Any] = {}
    for cancer, other in ((first, second), (second, first)):
        result[cancer] = {}
        for arm, tried in figures[other].items():
            best = max(tried, key=lambda plan: float(np.mean(tried[plan])))
            result[cancer][arm] = {
                **spread(figures[cancer][arm][best]),
                "weight": best[0],
                "steps": best[1],
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--deals", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one deal of clinical columns")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    deals, arms, marks = (1, ["clinical"], MARKS[:2]) if options.quick else (
        options.deals, list(ARMS), MARKS,
    )  # fmt: skip
    figures = {
        cancer: measured(read(options.data, cancer), deals=deals, arms=arms, marks=marks)
        for cancer in CANCERS
    }
    result = {
        **facts(("torch", "numpy")),
        "cancers": crossed(figures),
        "every_plan": {
            cancer: {
                arm: {f"weight {w:g}, steps {s}": spread(v) for (w, s), v in tried.items()}
                for arm, tried in own.items()
            }
            for cancer, own in figures.items()
        },
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(result["cancers"], indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
