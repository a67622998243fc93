"""Distributed noise beside central DP-SGD and full noise at each site, on three sets of patients.

    python -m benchmarks.utility --data ../shared/data/fed_heart_disease --out runs/utility.json

Each split of the patients into training and held-out is dealt to the hospitals anew and trained
with several noise draws. All arms have the same epsilon (by PLD, of the whole training), delta,
clip norm, averaging (the second half of the released models) and grid of settings; the setting is
chosen anew in every split and by every arm for itself, by validation on parts of its training
patients with fresh noise; `local` may also take five local steps a round, which the others cannot.
`central, same sigma` is central DP-SGD with the setting that `distributed` chose, so with its
sigma. Tuning is not charged: no arm is. Every patient takes part in every step (q = 1): at these
sizes sigma / q is the same at q = 1/2, and drawing only adds variance.

Heart disease: which hospital a patient is in is a public category column of every arm, encoded as a
study would (0 or 1). This was chosen on parts of the training patients, for all arms together.

With --study-run one more draw of a split goes through the product (`utility_study_run`): StudyRun,
guards and workers, with the setting that `distributed` chose.

Intervals are Student's, 95 %, over the means of the splits. The splits share patients: they say how
sure the figures are on these patients, not on others.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import scipy.stats  # type: ignore[import-untyped]
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from benchmarks.arms import Arm, Budget, Floats, Patients, Setting, pooled, train
from benchmarks.study import LEAST_DRAWS, STUDIES, environment, load_study, read_tables
from benchmarks.utility_study_run import train_by_study_run
from fedward_common.secagg.thresholds import Thresholds
from fedward_common.study.tabular import NumberColumn, TabularData
from fedward_server.sandbox.datasets import (
    FLAMBY_SEED,
    FLAMBY_TRAIN_FRACTION,
    import_fed_heart,
)

Split = tuple[list[Patients], list[Patients]]
Metric = Literal["auc", "site_accuracy"]
Deal = Callable[[int], Split]

ARMS: Final[tuple[Arm, ...]] = ("central", "distributed", "local")
SAME: Final = "central, same sigma"
PRODUCT: Final = "distributed, by StudyRun"
STEPS: Final = (15, 45)
RATES: Final = (0.5, 1.5, 4.5)
LOCAL_STEPS: Final = (1, 5)
VALIDATION: Final = 0.25
HELD_OUT: Final = 0.3
TARGETS: Final = {"central_auc": 0.005, "heart_site_accuracy": 0.80}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row of the table: a set of patients, how many hospitals, the budget, the metric."""

    name: str
    sites: int
    budget: Budget
    metric: Metric = "auc"

    def __str__(self) -> str:
        return f"{self.name}, {self.sites} sites, epsilon {self.budget.epsilon:g}"


def cases() -> list[Case]:
    """What is measured; delta is at most 1 / (10 N) (398, 1257 and about 490 patients train)."""
    breast = [
        Case(name="breast-cancer", sites=sites, budget=Budget(epsilon=epsilon, delta=2e-4))
        for sites, epsilon in product((4, 16), (0.5, 1.0))
    ]
    digits = [
        Case(name="digits", sites=16, budget=Budget(epsilon=epsilon, delta=5e-5))
        for epsilon in (0.5, 1.0)
    ]
    heart = Budget(epsilon=1.0, delta=1e-4)
    return [*breast, *digits, Case(name="heart", sites=4, budget=heart, metric="site_accuracy")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="the UCI heart-disease files")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--draws", type=int, default=5, help="noise draws in each split")
    parser.add_argument("--validations", type=int, default=3)
    parser.add_argument("--case", action="append", help="only cases whose row begins so")
    parser.add_argument("--study-run", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.splits < LEAST_DRAWS:
        parser.error(f"--splits: expected at least {LEAST_DRAWS}, found {options.splits}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    text = ""
    for case in cases():
        if options.case and not str(case).startswith(tuple(options.case)):
            continue
        start = time.process_time()
        row = measured(
            case,
            deal_of(case, options.data),
            splits=options.splits,
            draws=options.draws,
            validations=options.validations,
            study_run=options.study_run,
        )
        rows.append(row | {"cpu_seconds": time.process_time() - start})
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        result = {"cases": rows, "targets": TARGETS, "environment": environment()}
        text = json.dumps(result, indent=2)
        if options.out is not None:  # after each case: hours of a busy machine are not lost
            options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(table(rows), file=sys.stderr)


def deal_of(case: Case, heart: Path) -> Deal:
    """The split of a number: training and held-out patients of every hospital."""
    if case.name == "heart":
        return partial(split_hospitals, heart_hospitals(heart))
    return partial(deal, breast_cancer() if case.name == "breast-cancer" else digits(), case.sites)


def breast_cancer() -> Patients:
    """569 real patients, encoded by the public limits of the example study."""
    data, schema = load_breast_cancer(), load_study(STUDIES / "breast-cancer.toml").data
    assert isinstance(schema, TabularData)
    limits = {c.name: (c.low, c.high) for c in schema.columns if isinstance(c, NumberColumn)}
    low, high = np.array([limits[name] for name in map(str, data.feature_names)]).T
    scaled = 2 * (np.clip(data.data, low, high) - low) / (high - low) - 1
    return Patients(features=scaled, labels=1.0 - data.target)


def digits() -> Patients:
    """1,797 written digits as patients: is it 5 or more?

    Ink goes from 0 to 16. The limits -8 and 16, which a study can state, put 0 near the middle of
    what is inked, so that blank paper takes less of a gradient's clipped norm. They were chosen by
    validation on training patients, as the mean over all arms (0.874; limits 0 and 16: 0.867; -16
    and 16: 0.854).
    """
    data = load_digits()
    return Patients(features=(data.data - 4.0) / 12.0, labels=(data.target >= 5).astype(float))


def heart_hospitals(folder: Path) -> list[Patients]:
    """The patients of the four real hospitals, encoded by the example study and by hospital."""
    study = load_study(STUDIES / "heart.toml")
    with tempfile.TemporaryDirectory() as made:
        paths = import_fed_heart(folder, Path(made))
        parts = [read_tables(study, paths, part) for part in ("train", "test")]
    return by_hospital(
        [
            pooled(
                [
                    Patients(
                        features=part[site].features.astype(np.float64),
                        labels=part[site].labels.astype(np.float64),
                    )
                    for part in parts
                ]
            )
            for site in paths
        ]
    )


def by_hospital(hospitals: Sequence[Patients]) -> list[Patients]:
    """The patients with their hospital as a category: an input for each one but the first."""
    codes = np.eye(len(hospitals))[:, 1:]
    return [
        Patients(
            features=np.hstack([site.features, np.tile(code, (len(site), 1))]), labels=site.labels
        )
        for site, code in zip(hospitals, codes, strict=True)
    ]


def deal(patients: Patients, sites: int, number: int) -> Split:
    """A stratified split, its training patients dealt evenly; the held-out ones stay together."""
    training, held_out = train_test_split(
        np.arange(len(patients)),
        test_size=HELD_OUT,
        random_state=number,
        stratify=patients.labels,
    )
    shuffled = np.random.default_rng(number).permutation(training)
    hands = [patients.some(part) for part in np.array_split(shuffled, sites)]
    return hands, [patients.some(held_out)]


def split_hospitals(hospitals: Sequence[Patients], number: int) -> Split:
    """Each hospital split as FLamby does it, with another random state for each number."""
    training, held_out = [], []
    for hospital in hospitals:
        _, sizes = np.unique(hospital.labels, return_counts=True)
        first, second = train_test_split(
            np.arange(len(hospital)),
            train_size=FLAMBY_TRAIN_FRACTION,
            random_state=FLAMBY_SEED + number,
            stratify=hospital.labels if len(sizes) > 1 and min(sizes) > 2 else None,
        )
        training.append(hospital.some(first))
        held_out.append(hospital.some(second))
    return training, held_out


def measured(
    case: Case,
    deal_split: Deal,
    *,
    splits: int,
    draws: int,
    validations: int,
    study_run: bool = False,
) -> dict[str, Any]:
    """The figures of one case: per arm, in pairs, and what was chosen."""
    names: tuple[Metric, ...] = ("auc", "site_accuracy")
    found: dict[str, dict[Metric, list[float]]] = {
        arm: {name: [] for name in names}
        for arm in (*ARMS, SAME, PRODUCT, "no privacy", "majority")
    }
    chosen: dict[str, list[str]] = {arm: [] for arm in ARMS}
    for number in range(splits):
        training, held_out = deal_split(number)
        settings = tuned(case, training, number=number, validations=validations)
        tried = [(arm, arm, settings[arm]) for arm in ARMS]
        for label, arm, setting in (*tried, (SAME, ARMS[0], settings["distributed"])):
            runs = [
                figures(train(arm, training, setting=setting, budget=case.budget), held_out)
                for _ in range(draws)
            ]
            for name in names:
                found[label][name].append(float(np.mean([run[name] for run in runs])))
        for arm in ARMS:
            chosen[arm].append(str(settings[arm]))
        if study_run:
            chosen_here = settings["distributed"]
            weights = train_by_study_run(training, setting=chosen_here, budget=case.budget)
            for name, value in figures(weights, held_out).items():
                found[PRODUCT][name].append(value)
        plain = figures(no_privacy(training), held_out)
        for name in names:
            found["no privacy"][name].append(plain[name])
        found["majority"]["site_accuracy"].append(majority(held_out))
    thresholds = Thresholds.of(case.sites)
    return {
        "case": str(case),
        "metric": case.metric,
        "delta": case.budget.delta,
        "splits": splits,
        "draws": draws,
        "excess_noise": thresholds.excess_noise,
        "arms": {
            arm: {name: interval(values) for name, values in metrics.items() if values}
            for arm, metrics in found.items()
        },
        "distributed_minus": {
            arm: {
                name: interval(np.subtract(found["distributed"][name], found[arm][name]).tolist())
                for name in names
            }
            for arm in (SAME, "central", "local", *((PRODUCT,) if study_run else ()))
        },
        "chosen": chosen,
    }


def tuned(
    case: Case, training: Sequence[Patients], *, number: int, validations: int
) -> Mapping[Arm, Setting]:
    """The best setting of each arm by the mean over validation parts."""
    folds = []
    for validation in range(validations):
        generator = np.random.default_rng((number, validation))
        parts = [np.split(*cut(site, generator)) for site in training]
        pairs = list(zip(training, parts, strict=True))
        folds.append(tuple([site.some(part[side]) for site, part in pairs] for side in (0, 1)))
    best: dict[Arm, Setting] = {}
    for arm in ARMS:
        local_steps = LOCAL_STEPS if arm == "local" else (1,)
        grid = [
            Setting(steps=steps, rate=rate, local_steps=local)
            for steps, rate, local in product(STEPS, RATES, local_steps)
        ]

        def score(setting: Setting, arm: Arm = arm) -> float:
            runs = [
                figures(train(arm, inner, setting=setting, budget=case.budget), validation)
                for inner, validation in folds
            ]
            return float(np.mean([run[case.metric] for run in runs]))

        best[arm] = max(grid, key=score)
    return best


def cut(site: Patients, generator: np.random.Generator) -> tuple[Any, list[int]]:
    order = generator.permutation(len(site))
    return order, [max(1, round((1 - VALIDATION) * len(site)))]


def figures(weights: Floats, held_out: Sequence[Patients]) -> dict[Metric, float]:
    """AUC over all held-out patients, and the mean over the hospitals of their accuracy."""
    everyone = pooled(held_out)
    return {
        "auc": float(roc_auc_score(everyone.labels, logits(weights, everyone))),
        "site_accuracy": float(
            np.mean([np.mean((logits(weights, s) > 0) == (s.labels > 0)) for s in held_out])
        ),
    }


def logits(weights: Floats, patients: Patients) -> Floats:
    result: Floats = patients.features @ weights[:-1] + weights[-1]
    return result


def no_privacy(training: Sequence[Patients]) -> Floats:
    """Scikit-learn's logistic regression on everybody, as it comes."""
    everyone = pooled(training)
    fitted = LogisticRegression(max_iter=2000).fit(everyone.features, everyone.labels)
    return np.append(fitted.coef_[0], fitted.intercept_)


def majority(held_out: Sequence[Patients]) -> float:
    """The accuracy of saying each hospital's more frequent label, the mean over hospitals."""
    shares = [float(site.labels.mean()) for site in held_out]
    return float(np.mean([max(share, 1 - share) for share in shares]))


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, SD over the splits, and Student's 95 % interval of the mean."""
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return {"mean": mean, "sd": deviation, "low": mean - half, "high": mean + half}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    shown, compared = ("no privacy", "central", "distributed", "local"), (SAME, "central", "local")
    titles = ["set", "metric", *shown, *(f"distributed - {arm}" for arm in compared)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        metric = row["metric"]
        arms = [row["arms"][arm][metric] for arm in shown]
        differences = [row["distributed_minus"][arm][metric] for arm in compared]
        cells = [
            *(f"{arm['mean']:.3f} +- {arm['sd']:.3f}" for arm in arms),
            *(f"{d['mean']:+.4f} ({d['low']:+.4f}, {d['high']:+.4f})" for d in differences),
        ]
        lines.append(f"| {row['case']} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
