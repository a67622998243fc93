"""PneumoniaMNIST over four hospitals, with and without noise: `python -m benchmarks.imaging`.

    python -m benchmarks.imaging --draws 10 --out runs/bench-imaging.json

The study is deploy/studies/pneumonia.toml as shipped, beside a small convolutional network with the
same budget; the sites' LocalTrainer and the coordinator's aggregation in this process, noise from
the operating system. Channel, guard and Flower are left out: they change no number. Without noise
stand federated averaging of the network without clipping (four hospitals, the same deal), the
network trained in one place, and logistic regression in one place. Hyper-parameters were fixed on
the official validation images; the test images are read here and nowhere else.

The set does not say whose an image is: epsilon is per record; NOT per patient.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from benchmarks.facts import facts
from benchmarks.study import load_study
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.ids import SiteId
from fedward_common.models.averages import released_models
from fedward_common.models.registry import build_model, initial_tensors, model_tensors
from fedward_common.privacy.accounting import (
    calibrate_noise_multiplier,
    epsilon_admission,
    epsilon_pld,
)
from fedward_common.privacy.mechanism import study_event
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.image_encoding import encode_images, npz_rows
from fedward_common.study.imaging import ImageData
from fedward_common.study.spec import DpSgd, ModelSpec, StudySpec
from fedward_server.aggregation import plain_sum, server_optimiser
from fedward_server.sandbox.baselines import pool
from fedward_server.sandbox.datasets_images import deal_pneumonia
from fedward_server.sandbox.figures import model_figures

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "pneumoniamnist"
NETWORK = ModelSpec(name="cnn", shape=(1, 28, 28), hidden=(16, 32, 32), initial_seed=1)
SMALL = ModelSpec(name="cnn", shape=(1, 28, 28), hidden=(8, 16), initial_seed=1)
Tables = Mapping[SiteId, PatientRecords]


def load(data: Path) -> tuple[StudySpec, Tables, Tables]:
    study = load_study(ROOT / "deploy" / "studies" / "pneumonia.toml")
    schema = study.data
    assert isinstance(schema, ImageData)
    with tempfile.TemporaryDirectory() as folder:
        files = deal_pneumonia(data, Path(folder))
        train, test = (
            {
                site: encode_images(schema, npz_rows(path, schema), part=part, strict=True)[0]
                for site, path in files.items()
            }
            for part in ("train", "test")
        )
    return study, train, test


def network_study(study: StudySpec) -> StudySpec:
    """The shipped study with the small network and the plan that was best for it."""
    dp = study.dp
    assert isinstance(dp, DpSgd)
    rounds, probability = 60, 0.1
    noise = calibrate_noise_multiplier(
        epsilon=dp.epsilon,
        epsilon_is=dp.epsilon_is,
        delta=dp.delta,
        sampling_probability=probability,
        steps=rounds,
        releases=study.releases,
    )
    document = study.model_dump(mode="json")
    document |= {"model": SMALL.model_dump(mode="json"), "rounds": rounds, "local_steps": 1}
    document["dp"] |= {
        "noise_multiplier": noise,
        "sampling_probability": probability,
        "steps": rounds,
        "clip_norm": 1.0,
    }
    document["training"] |= {"learning_rate": 2.0}
    return StudySpec.model_validate(document)


def private_run(study: StudySpec, train: Tables) -> Mapping[str, Any]:
    flags = PerformanceFlags(backend="bookkeeping")
    trainers = {
        site: LocalTrainer(study, site, sampling=Csprng(), noise=Csprng(), flags=flags)
        for site in train
    }
    optimiser, tail = server_optimiser(study), released_models(study)
    model: Mapping[str, Any] = initial_tensors(study.model, 784)
    for _ in range(study.rounds):
        total = plain_sum(study)
        for site, trainer in trainers.items():
            total.add(site, trainer.train(model, train[site]).tensors)
        model = optimiser.step(model, total.mean())
        tail.add(dict(model))
    return tail.mean()


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by at most two pixels: a radiograph stays what it is."""
    padded = functional.pad(images.reshape(-1, 1, 28, 28), (2, 2, 2, 2), mode="replicate")
    moves = torch.randint(0, 5, (len(images), 2), generator=generator).tolist()
    moved = [padded[i, :, y : y + 28, x : x + 28] for i, (y, x) in enumerate(moves)]
    return torch.stack(moved).flatten(1)


def descend(
    model: torch.nn.Module,
    records: PatientRecords,
    *,
    steps: int,
    rate: float,
    generator: torch.Generator,
) -> None:
    features, labels = torch.from_numpy(records.features), torch.from_numpy(records.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    for _ in range(steps):
        rows = torch.randint(0, len(labels), (64,), generator=generator)
        outputs = model(shifted(features[rows], generator))
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(outputs, labels[rows]).backward()
        optimizer.step()


def without_noise(
    study: StudySpec, train: Tables, *, rounds: int, steps: int, seed: int
) -> Mapping[str, Any]:
    """Federated averaging of the larger network, nothing clipped; cosine steps over the rounds."""
    generator = torch.Generator().manual_seed(seed)
    spec = NETWORK.model_copy(update={"initial_seed": seed})
    shared = build_model(spec, 784).train()
    for number in range(rounds):
        rate = 3e-3 * 0.5 * (1 + np.cos(np.pi * number / rounds)) + 1e-5
        total = {name: torch.zeros_like(t) for name, t in shared.state_dict().items()}
        for site, records in train.items():
            local = build_model(spec, 784).train()
            local.load_state_dict(shared.state_dict())
            descend(local, records, steps=steps, rate=rate, generator=generator)
            for name, tensor in local.state_dict().items():
                total[name] += tensor * study.weight(site)
        shared.load_state_dict(total)
    return model_tensors(shared)


def auc(study: StudySpec, model: Mapping[str, Any], test: Tables) -> dict[str, float]:
    pooled = model_figures(study, dict(model), test).pooled
    return {"auc": float(pooled.auc or 0.0), "accuracy": pooled.accuracy}


def spread(figures: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    out: dict[str, Any] = {"draws": len(figures)}
    for name in ("auc", "accuracy"):
        values = [one[name] for one in figures]
        out[name] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "min": min(values),
        }
    return out


def privacy(study: StudySpec) -> dict[str, Any]:
    dp = study.dp
    assert isinstance(dp, DpSgd)
    event = study_event(study)
    return {
        "unit": "per record; NOT per patient",
        "placement": dp.placement,
        "delta": dp.delta,
        "epsilon_admission": epsilon_admission([event], delta=dp.delta),
        "epsilon_pld": epsilon_pld(event, delta=dp.delta),
        "noise_multiplier": dp.noise_multiplier,
        "steps": dp.steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--network-draws", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="runs without noise")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    study, train, test = load(options.data)
    small = network_study(study)
    result: dict[str, Any] = {
        **facts(("torch", "numpy", "scikit-learn")),
        "images": {
            site: {"train": records.patients, "held_out": test[site].patients}
            for site, records in train.items()
        },
        "majority": model_figures(study, initial_tensors(study.model, 784), test).pooled.majority,
    }

    def keep(name: str, value: object) -> None:
        result[name] = value
        print(name, json.dumps(value), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2))

    everyone, held_out = pool(list(train.values())), pool(list(test.values()))
    regression = LogisticRegression(C=0.01, max_iter=500).fit(everyone.features, everyone.labels)
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415

    keep(
        "logistic_regression_in_one_place",
        {
            "auc": float(
                roc_auc_score(held_out.labels, regression.decision_function(held_out.features))
            ),
            "accuracy": float(regression.score(held_out.features, held_out.labels)),
        },
    )
    start = time.perf_counter()
    runs = [auc(study, private_run(study, train), test) for _ in range(options.draws)]
    keep(
        "logistic_regression_epsilon_8",
        spread(runs) | privacy(study) | {"seconds": time.perf_counter() - start},
    )
    larger = study.model_copy(update={"model": NETWORK})
    start = time.perf_counter()
    runs = [
        auc(larger, without_noise(larger, train, rounds=options.rounds, steps=12, seed=seed), test)
        for seed in range(1, options.seeds + 1)
    ]
    keep("cnn_federated_without_noise", spread(runs) | {"seconds": time.perf_counter() - start})
    start = time.perf_counter()
    runs = [auc(small, private_run(small, train), test) for _ in range(options.network_draws)]
    keep(
        "cnn_epsilon_8",
        spread(runs) | privacy(small) | {"seconds": time.perf_counter() - start},
    )


if __name__ == "__main__":
    main()
