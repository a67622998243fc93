"""EHR studies against published figures, in this process: the sites' trainer, the server's sums.

    python -m benchmarks.ehr heart --data ../shared/data/fed_heart_disease --out heart.json
    python -m benchmarks.ehr tcga  --data ../shared/data/fed_tcga_brca --out tcga.json
    python -m benchmarks.ehr fhir  --data ../shared/data/synthea_fhir_r4 --out fhir.json

Noise and sampling come from the operating system; there is no seed. Hyper-parameters were chosen by
cross-validation on training patients (`--tune`) and stand below, fixed before any held-out patient
was read. The channel, the guard and Flower are left out: they change no number.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import ehr_fhir
from benchmarks.ehr_pooled import pooled_steps
from benchmarks.study import STUDIES, environment, privacy_json, summarised
from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.models.averages import released_models
from fedward_common.models.registry import build_model, initial_tensors, load_tensors, model_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords, encode_table
from fedward_common.study.files import SiteKeys, parse_study, read_toml
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TabularData
from fedward_server.aggregation import plain_sum, server_optimiser
from fedward_server.sandbox.datasets import import_fed_heart

Tables = Mapping[SiteId, PatientRecords]
Score = Callable[[StudySpec, Tensors, Tables], float]

# Opacus' hooks and not the loop: the same sums up to rounding, several times faster. The figures
# are about utility; no patient of these public sets is protected by them.
FLAGS: Final = PerformanceFlags(backend="opacus")
LEAST_DRAWS: Final = 10
BOOTSTRAP: Final = 2000
REGIONS: Final = ("Northeast", "South", "West", "Midwest", "Europe", "Canada")
CUTS: Final = (365.0, 730.0, 1095.0, 1825.0, 2920.0, 8700.0)
PENALTY: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What was tuned: the learning rate, the clip norm, sampling, rounds and steps of a round."""

    rate: float
    clip: float
    sampling: float
    rounds: int
    steps: int
    momentum: float = 0.5


# Chosen by `--tune` on training patients: the best mean of the figure over folds and draws.
HEART: Final = {1.0: Plan(rate=0.3, clip=0.5, sampling=1.0, rounds=3, steps=4)}
TCGA: Final = {
    4.0: Plan(rate=0.2, clip=2.0, sampling=1.0, rounds=4, steps=8),
    8.0: Plan(rate=0.6, clip=2.0, sampling=0.5, rounds=4, steps=8),
}
TCGA_GRID: Final = tuple(
    Plan(rate=rate, clip=clip, sampling=sampling, rounds=4, steps=8)
    for clip in (0.5, 1.0, 2.0)
    for rate in (0.2, 0.6)
    for sampling in (0.5, 1.0)
)
GRID: Final = tuple(
    Plan(rate=rate, clip=clip, sampling=sampling, rounds=rounds, steps=steps)
    for clip in (0.25, 0.5)
    for rate in (0.3, 1.0)
    for sampling, rounds, steps in ((0.5, 3, 4), (1.0, 3, 4), (0.5, 5, 8))
)


def main() -> None:
    parser = argparse.ArgumentParser(description="EHR studies against published figures.")
    parser.add_argument("study", choices=("heart", "tcga", "fhir"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=LEAST_DRAWS)
    parser.add_argument("--tune", action="store_true", help="cross-validate and print, no test set")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.study == "fhir":
        result = ehr_fhir.measure(options.data)
    elif options.tune:
        result = tune(options.study, options.data)
    elif options.draws < LEAST_DRAWS:
        parser.error(f"--draws: expected at least {LEAST_DRAWS}, found {options.draws}")
    else:
        result = measure(options.study, options.data, draws=options.draws)
    text = json.dumps(result, indent=2)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(name: str, data: Path, *, draws: int) -> dict[str, Any]:
    """The study without privacy and at each epsilon, on the held-out patients."""
    plans, make, figures = _study_of(name)
    result: dict[str, Any] = {"study": name, "draws": draws, "environment": environment()}
    for epsilon, plan in plans.items():
        study, training, held_out = make(data, epsilon, plan)
        runs = []
        for _ in range(draws):
            runs.append(figures(study, federated(study, training), held_out))
            print(f"\r{name} epsilon {epsilon:g}: {len(runs)}/{draws}", end="", file=sys.stderr)
        result[f"epsilon {epsilon:g}"] = {
            "privacy": privacy_json(study),
            "plan": {key: getattr(plan, key) for key in Plan.__slots__},
            "federated": {key: summarised([run[key] for run in runs]) for key in runs[0]},
        }
        if "without_privacy" not in result:
            result["without_privacy"] = {
                "federated": figures(study, without_noise(study, training), held_out),
                "pooled": figures(study, without_noise(study, _pooled(training)), held_out),
                "one_step_a_round": figures(study, pooled_steps(study, training), held_out),
            }
            result["intervals_95"] = {
                "of": "federated without privacy, bootstrap over held-out patients within sites",
                **intervals(study, without_noise(study, training), held_out, figures),
                "one_step_a_round": intervals(
                    study, pooled_steps(study, training), held_out, figures
                ),
            }
    return result


def tune(name: str, data: Path) -> dict[str, Any]:
    """The mean figure of every plan of the grid over 3 folds of the training patients."""
    plans, make, figures = _study_of(name)
    found: dict[str, Any] = {}
    for epsilon in plans:
        for plan in GRID if name == "heart" else TCGA_GRID:
            study, training, _ = make(data, epsilon, plan)
            values = []
            for fold in range(3):
                kept = {s: _fold(r, fold, inside=False) for s, r in training.items()}
                left = {s: _fold(r, fold, inside=True) for s, r in training.items()}
                figure = figures(study, federated(study, kept), left)
                values.append(figure["figure"])
            found[f"epsilon {epsilon:g} {plan}"] = float(np.mean(values))
            print(f"{found[f'epsilon {epsilon:g} {plan}']:.4f} {plan}", file=sys.stderr, flush=True)
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def federated(study: StudySpec, training: Tables) -> Tensors:
    """One run of the study with its noise, every site in every round."""
    trainers = {
        site: LocalTrainer(study, site, sampling=Csprng(), noise=Csprng(), flags=FLAGS)
        for site in training
    }
    optimiser, released = server_optimiser(study), released_models(study)
    model: Tensors = initial_tensors(study.model, input_size(study.data))
    for _ in range(study.rounds):
        total = plain_sum(study)
        for site, trainer in trainers.items():
            total.add(site, trainer.train(model, training[site]).tensors)
        model = optimiser.step(model, total.mean())
        released.add(dict(model))
    return released.mean()


def without_noise(study: StudySpec, training: Tables, *, rounds: int = 5) -> Tensors:
    """FedAvg without clipping and noise: `rounds` rounds of 5 full-batch steps of Adam.

    Rounds {5, 15, 50} and penalty {0, 0.01, 0.1, 1, 3} were chosen by 3-fold cross-validation.
    """
    task, inputs = task_of(study), input_size(study.data)
    model: Tensors = initial_tensors(study.model, inputs)
    patients = sum(records.patients for records in training.values())
    for _ in range(rounds):
        total = {name: np.zeros(array.shape) for name, array in model.items()}
        for records in training.values():
            net = build_model(study.model, inputs)
            load_tensors(net, model)
            optimiser = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=PENALTY)
            features, labels = map(torch.from_numpy, (records.features, records.labels))
            for _ in range(5):
                optimiser.zero_grad()
                task.losses(net(features), labels).mean().backward()
                optimiser.step()
            for name, array in model_tensors(net).items():
                total[name] += array * (records.patients / patients)
        model = {name: array.astype(np.float32) for name, array in total.items()}
    return model


def intervals(
    study: StudySpec, model: Tensors, held_out: Tables, figures: Callable[..., dict[str, float]]
) -> dict[str, list[float]]:
    """The middle 95 % of each figure over patients drawn again within each site."""
    draws = np.random.default_rng(1)
    runs = []
    for _ in range(BOOTSTRAP // 10):
        chosen = {
            site: _some(records, draws.integers(0, records.patients, records.patients))
            for site, records in held_out.items()
        }
        runs.append(figures(study, model, chosen))
    return {
        key: [float(np.quantile([run[key] for run in runs], end)) for end in (0.025, 0.975)]
        for key in runs[0]
    }


def outputs(study: StudySpec, model: Tensors, records: PatientRecords) -> torch.Tensor:
    """The model's outputs for all records."""
    net = build_model(study.model, records.features.shape[1]).eval()
    load_tensors(net, model)
    with torch.inference_mode():
        return net(torch.from_numpy(records.features))


def heart_figures(study: StudySpec, model: Tensors, held_out: Tables) -> dict[str, float]:
    """The mean over the hospitals of their accuracy, and the accuracy of all patients."""
    right = {
        site: ((outputs(study, model, r) > 0).numpy() == (r.labels == 1))
        for site, r in held_out.items()
    }
    return {
        "figure": float(np.mean([one.mean() for one in right.values()])),
        "pooled_accuracy": float(np.concatenate(list(right.values())).mean()),
    }


def tcga_figures(study: StudySpec, model: Tensors, held_out: Tables) -> dict[str, float]:
    """The C-index over the comparable pairs within regions, and the mean of the regions' own."""
    pairs = {
        site: concordance(
            task_of(study).scores(outputs(study, model, r)).numpy().astype(np.float64), r.labels
        )
        for site, r in held_out.items()
    }
    concordant, comparable = map(sum, zip(*pairs.values(), strict=True))
    own = [c / n for c, n in pairs.values() if n]
    return {
        "figure": float(concordant / comparable) if comparable else 0.5,
        "mean_of_regions": float(np.mean(own)) if own else 0.5,
    }


def concordance(
    risk: npt.NDArray[np.float64], labels: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """(concordant, comparable) pairs, ties of the risk as half a pair (Harrell 1982).

    `labels`: days, negative where censored. A pair is comparable where the earlier one had the
    event; of equal times, where exactly one had it.
    """
    days, event = np.abs(labels), labels > 0
    earlier = event[:, None] & (
        (days[:, None] < days[None, :]) | ((days[:, None] == days[None, :]) & ~event[None, :])
    )
    higher, equal = risk[:, None] > risk[None, :], risk[:, None] == risk[None, :]
    return float((earlier & higher).sum() + 0.5 * (earlier & equal).sum()), float(earlier.sum())


def make_heart(data: Path, epsilon: float, plan: Plan) -> tuple[StudySpec, Tables, Tables]:
    """The example study at another epsilon, on FLamby's exact split."""
    text = (STUDIES / "heart.toml").read_text(encoding="utf-8")
    for old, new in (
        ("epsilon = 4.0", f"epsilon = {epsilon}"),
        ("noise_multiplier = 2.0", "noise_multiplier = 8.0"),  # of the evaluation
        ("rounds = 5", f"rounds = {plan.rounds}"),
        ("local_steps = 8", f"local_steps = {plan.steps}"),
        ("learning_rate = 0.3", f"learning_rate = {plan.rate}"),
        ("clip_norm = 0.25", f"clip_norm = {plan.clip}"),
        ("sampling_probability = 0.5", f"sampling_probability = {plan.sampling}"),
    ):
        if old not in text:
            raise SystemExit(f"heart.toml: expected {old!r}")
        text = text.replace(old, new, 1)
    study = parsed(text, [str(site["id"]) for site in read_toml(STUDIES / "heart.toml")["sites"]])
    with tempfile.TemporaryDirectory() as folder:
        rows = {s: _rows(path) for s, path in import_fed_heart(data, Path(folder)).items()}
    return study, _encoded(study, rows, "train"), _encoded(study, rows, "test")


def make_tcga(data: Path, epsilon: float, plan: Plan) -> tuple[StudySpec, Tables, Tables]:
    """Proportional hazards on FLamby's 39 features, sites and split."""
    rows = _rows(data / "brca.csv")
    split = {row["pid"]: row["fold2"] for row in _rows(data / "train_test_split.csv")}
    tables: dict[SiteId, list[dict[str, str]]] = {}
    for row in rows:
        part, _, number = split.get(row["pid"], "").partition("_")
        if number:
            renamed = {f"x{k}": value for k, value in enumerate(list(row.values())[1:-2])}
            tables.setdefault(SiteId(f"region-{number}"), []).append(
                renamed | {"pid": row["pid"], "E": str(int(float(row["E"]))), "T": row["T"]}
                | {"split": part}
            )  # fmt: skip
    names = [name for name in next(iter(tables.values()))[0] if name.startswith("x")]
    columns = "".join(
        f'[[data.columns]]\nname = "{name}"\n'
        + (
            'type = "number"\nunit = "years"\nlow = 20.0\nhigh = 90.0\n'
            if name == "x0"  # the age; all others are 0 or 1
            else 'type = "category"\nvalues = ["0", "1"]\n'
        )
        for name in names
    )
    sites = "".join(
        f'[[sites]]\nid = "{site}"\npatients = {round(sum(r["split"] == "train" for r in t), -1)}\n'
        for site, t in sorted(tables.items())
    )
    text = f"""id = "tcga-brca"
title = "Breast cancer, overall survival, six regions"
rounds = {plan.rounds}
local_steps = {plan.steps}
quorum = 4
deadline_seconds = 60
[task]
kind = "survival"
likelihood = "proportional-hazards"
cuts = [{", ".join(map(str, CUTS))}]
horizon_days = 1825.0
[model]
name = "proportional-hazards"
outputs = {len(CUTS)}
[dp]
kind = "dp-sgd"
epsilon = {epsilon}
delta = 1e-4
clip_norm = {plan.clip}
sampling_probability = {plan.sampling}
max_records_per_patient = 1
[training]
learning_rate = {plan.rate}
momentum = {plan.momentum}
[aggregation]
name = "fedavg"
{sites}
[data]
kind = "tabular"
patient_key = "pid"
[data.label]
column = "T"
event_column = "E"
longest_days = 8700.0
[data.split]
kind = "column"
column = "split"
{columns}"""
    study = parsed(text, sorted(tables))
    return study, _encoded(study, tables, "train"), _encoded(study, tables, "test")


def _study_of(name: str) -> tuple[Mapping[float, Plan], Any, Any]:
    return (
        (HEART, make_heart, heart_figures) if name == "heart" else (TCGA, make_tcga, tcga_figures)
    )


def parsed(text: str, sites: Sequence[str]) -> StudySpec:
    keys = {
        site: SiteKeys(key_sha256=f"{2 * n:064x}", node_key_sha256=f"{2 * n + 1:064x}")
        for n, site in enumerate(sites)
    }
    return parse_study(text, source="study.toml", keys=keys, lead_key_sha256="f" * 64)


def _encoded(study: StudySpec, tables: Mapping[SiteId, Sequence[Any]], part: Any) -> Tables:
    if not isinstance(study.data, TabularData):
        raise SystemExit("expected a table")
    return {site: encode_table(study.data, rows, part=part) for site, rows in tables.items()}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _pooled(training: Tables) -> Tables:
    several = list(training.values())
    records = PatientRecords(
        features=np.concatenate([r.features for r in several]),
        labels=np.concatenate([r.labels for r in several]),
        patient=np.arange(sum(r.patients for r in several)),
    )
    return {next(iter(training)): records}


def _fold(records: PatientRecords, fold: int, *, inside: bool) -> PatientRecords:
    return _some(records, np.flatnonzero((np.arange(records.patients) % 3 == fold) == inside))


def _some(records: PatientRecords, chosen: npt.NDArray[np.int64]) -> PatientRecords:
    return PatientRecords(
        features=records.features[chosen],
        labels=records.labels[chosen],
        patient=np.arange(len(chosen)),
    )


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
