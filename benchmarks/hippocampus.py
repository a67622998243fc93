"""Hippocampus over four hospitals, with and without noise: `python -m benchmarks.hippocampus`.

With noise: deploy/studies/hippocampus.toml as shipped, a filter bank on whole volumes with
distributed noise; sites' LocalTrainer and the coordinator's steps in this process (channel, guard
and Flower change no number). `without_noise`: federated averaging
of a U-Net on patches, Adam at the sites, nothing clipped. Hyper-parameters stand here and
in the study, and were chosen on training cases; the held-out volumes are read once for each draw.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.omics_runs import distributed, privacy
from benchmarks.study import load_study
from fedward_common.ids import SiteId
from fedward_common.models.objectives import objective_of
from fedward_common.models.registry import build_model, model_tensors
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.image_encoding import encode_images, npz_rows
from fedward_common.study.imaging import ImageMasks
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_server.sandbox.datasets_masks import deal_hippocampus
from fedward_server.sandbox.figures import model_figures

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "hippocampus_msd"
WIDE = {"name": "unet", "shape": [1, 32, 32, 32], "hidden": [16, 32, 64], "initial_seed": 1}
PATCHES = {"patch": [32, 32, 32], "stride": [16, 16, 16]}
BATCH = 8
Tables = Mapping[SiteId, PatientRecords]


def load(study: StudySpec, data: Path) -> tuple[Tables, Tables]:
    assert isinstance(study.data, ImageMasks)
    with tempfile.TemporaryDirectory() as folder:
        files = deal_hippocampus(data, Path(folder))
        train, test = (
            {
                site: encode_images(study.data, npz_rows(path, study.data), part=part, strict=True)[
                    0
                ]
                for site, path in files.items()
            }
            for part in ("train", "test")
        )
    return train, test


def figures(study: StudySpec, model: Mapping[str, Any], test: Tables) -> dict[str, Any]:
    found = model_figures(study, dict(model), test, draws=400)
    pooled = found.pooled
    return {
        "dice": pooled.more["dice"],
        "interval": pooled.intervals.get("dice"),
        **{k: v for k, v in pooled.more.items() if ":" in k},
        "per_site": {site: one.more["dice"] for site, one in found.per_site.items()},
        "held_out": pooled.held_out,
    }


def without_noise(study: StudySpec, train: Tables, *, rounds: int, steps: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    loss = objective_of(study).losses
    inputs = next(iter(train.values())).features.shape[1]
    shared = build_model(study.model, inputs).train()
    for number in range(rounds):
        rate = 2e-3 * 0.5 * (1 + np.cos(np.pi * number / rounds)) + 1e-5
        total = {name: torch.zeros_like(t) for name, t in shared.state_dict().items()}
        for site, records in train.items():
            local = build_model(study.model, inputs).train()
            local.load_state_dict(shared.state_dict())
            optimizer = torch.optim.AdamW(local.parameters(), lr=rate, weight_decay=1e-4)
            for _ in range(steps):
                rows = torch.randint(0, len(records.features), (BATCH,), generator=generator)
                features = torch.from_numpy(records.features[rows.numpy()])
                labels = torch.from_numpy(records.labels[rows.numpy()])
                optimizer.zero_grad()
                loss(local(features), labels).mean().backward()
                optimizer.step()
            for name, tensor in local.state_dict().items():
                total[name] += tensor * study.weight(site)
        shared.load_state_dict(total)
        print("round", number + 1, flush=True)
    return model_tensors(shared)


def at_epsilon(study: StudySpec, epsilon: float) -> StudySpec:
    dp = study.dp
    assert isinstance(dp, DpSgd)
    noise = calibrate_noise_multiplier(
        epsilon=epsilon,
        epsilon_is=dp.epsilon_is,
        delta=dp.delta,
        sampling_probability=dp.sampling_probability,
        steps=dp.steps,
        releases=study.releases,
    )
    document = study.model_dump(mode="json")
    document["dp"] |= {"epsilon": epsilon, "noise_multiplier": noise}
    return StudySpec.model_validate(document)


def wide_study(study: StudySpec) -> StudySpec:
    """The U-Net of the arm without noise, on patches."""
    document = study.model_dump(mode="json")
    document["model"] |= WIDE
    document["data"] |= PATCHES
    document["task"] |= {"dice": 0.5}
    return StudySpec.model_validate(document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[50.0, 8.0])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(ROOT / "deploy" / "studies" / "hippocampus.toml")
    train, test = load(study, options.data)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "monai", "numpy")},
        "volumes": {s: {"train": train[s].patients, "test": test[s].patients} for s in train},
    }

    def keep(name: str, value: object) -> None:
        result[name] = value
        print(name, json.dumps(value), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2))

    for epsilon in options.epsilons:
        one = at_epsilon(study, epsilon)
        for draw in range(1, options.draws + 1):
            start = time.process_time()
            found = figures(one, distributed(one, train, backend="loop"), test)
            facts = privacy(one) | {"cpu_seconds": time.process_time() - start}
            keep(f"epsilon_{epsilon:g}_{draw}", found | facts)
    if not options.seeds:
        return
    wide = wide_study(study)
    patches, _ = load(wide, options.data)
    for seed in range(1, options.seeds + 1):
        start = time.process_time()
        model = without_noise(wide, patches, rounds=options.rounds, steps=options.steps, seed=seed)
        found = figures(wide, model, test)
        keep(f"without_noise_{seed}", found | {"cpu_seconds": time.process_time() - start})


if __name__ == "__main__":
    main()
