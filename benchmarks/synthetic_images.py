"""Synthetic radiographs of a class each: train on them, test on real ones.

    python -m benchmarks.synthetic_images --data FOLDER --runs 3 --out runs/synthetic-images.json

A class-conditional GAN of PneumoniaMNIST (normal, pneumonia) at 14 x 14 pixels, by the sites'
trainer and the coordinator's steps over four sites with the training images dealt out evenly: at
epsilon 8 with distributed noise, and the same steps without noise. The set does not say whose an
image is, so the unit is the record. From each model as many images are drawn as there are training
images, in the study's public proportions; logistic regression is fitted on them and judged on the
official test images. Beside it: the same on the real training images. `--choose` fits the plans
once and judges them on the official validation images, and reads no test image.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.facts import facts
from benchmarks.omics_runs import distributed, privacy
from benchmarks.synthetic import spread
from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.models.gan import Gan
from fedward_common.models.generator_descent import drawn_classes
from fedward_common.models.registry import build_model, load_tensors
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.generation import Generation
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task

SIDE: Final = 14
SITES: Final = 4
SHARES: Final = (0.26, 0.74)
"""Of the published training set, as a study would state them: normal, pneumonia."""
EPSILON: Final = 8.0
DELTA: Final = 2e-5
NO_NOISE: Final = 1e-6
PACKAGES: Final = ("numpy", "torch", "scikit-learn", "opacus")
_FIRST: Final[Mapping[str, Any]] = {
    "hidden": [32],
    "code": 4,
    "rounds": 300,
    "q": 0.05,
    "clip": 0.5,
    "rate": 1.0,
    "generator_rate": 0.005,
    "frozen": [],
}
PLANS: Final[Mapping[str, Mapping[str, Any]]] = {
    "code of 4": _FIRST,
    "code of 8": {**_FIRST, "code": 8},
    "wider": {**_FIRST, "code": 8, "hidden": [64]},
}
CHOSEN: Final = "code of 4"
Images = npt.NDArray[np.float32]


def study(plan: Mapping[str, Any], patients: int, *, noise: bool) -> StudySpec:
    """The generator's study, of four sites with `patients` images each."""
    keys = [(f"{n:064x}", f"{n + 100:064x}") for n in range(1, SITES + 1)]
    sigma = calibrate_noise_multiplier(
        epsilon=EPSILON,
        epsilon_is="admission",
        delta=DELTA,
        sampling_probability=plan["q"],
        steps=plan["rounds"],
    )
    spec = StudySpec.model_validate(
        {
            "id": "synthetic-radiographs",
            "title": "Synthetic radiographs",
            "task": {
                "kind": "generation",
                "generator_rate": plan["generator_rate"],
                "generator_steps": plan.get("generator_steps", 1),
                "class_shares": SHARES,
            },
            "model": {
                "name": "gan",
                "hidden": plan["hidden"],
                "shape": [plan["code"]],
                "outputs": len(SHARES),
                "initial_seed": 1,
            },
            "data": {
                "kind": "image",
                "height": SIDE,
                "width": SIDE,
                "no_patient_key": True,
                "label": {"column": "label", "low": 0, "high": 1, "positive_from": 1},
                "split": {"kind": "column", "column": "split"},
            },
            "dp": {
                "kind": "dp-sgd",
                "unit": "record",
                "epsilon": EPSILON,
                "delta": DELTA,
                "noise_multiplier": sigma if noise else NO_NOISE,
                "clip_norm": plan["clip"],
                "sampling_probability": plan["q"],
                "steps": plan["rounds"],
                "max_records_per_patient": 1,
                "placement": "distributed",
            },
            "training": {"learning_rate": plan["rate"], "frozen": plan["frozen"]},
            "aggregation": {"name": "fedavg", "average_last": plan.get("average_last", 50)},
            "rounds": plan["rounds"],
            "local_steps": 1,
            "quorum": SITES,
            "secure_sum": True,
            "deadline_seconds": 60,
            "sites": [
                {"id": f"site-{n}", "patients": patients, "key_sha256": k, "node_key_sha256": node}
                for n, (k, node) in enumerate(keys)
            ],
            "lead_key_sha256": "f" * 64,
        }
    )
    check_task(spec)
    return spec


def part_of(data: Path, part: str) -> tuple[Images, npt.NDArray[np.float32]]:
    """The images [images, pixels] of a part in [-1, 1], each pixel the mean of four, and labels."""
    with np.load(data / "pneumoniamnist.npz", allow_pickle=False) as found:
        images, labels = found[f"{part}_images"], found[f"{part}_labels"]
    small = images.reshape(len(images), SIDE, 2, SIDE, 2).mean(axis=(2, 4)).reshape(len(images), -1)
    return (small / 127.5 - 1.0).astype(np.float32), labels[:, 0].astype(np.float32)


def dealt(images: Images, labels: npt.NDArray[np.float32]) -> dict[SiteId, PatientRecords]:
    """The images dealt out to the sites in turn."""
    return {
        SiteId(f"site-{n}"): PatientRecords(
            features=images[n::SITES],
            labels=labels[n::SITES],
            patient=np.arange(len(labels[n::SITES]), dtype=np.int64),
        )
        for n in range(SITES)
    }


def drawn(spec: StudySpec, weights: Tensors, count: int) -> tuple[Images, Images]:
    """Synthetic images and their classes, as `fedward-server synthesize` draws them."""
    model = build_model(spec.model, SIDE * SIDE).eval()
    if not isinstance(model, Gan) or not isinstance(spec.task, Generation):
        raise TypeError("expected a generator")
    load_tensors(model, weights)
    classes = drawn_classes(spec.task, count)
    with torch.inference_mode():
        made = model.generate(torch.randn((count, model.latent)), classes).numpy()
    return np.rint((made + 1.0) * 127.5) / np.float32(127.5) - 1.0, classes.numpy()  # type: ignore[union-attr]


def judged(images: Images, labels: Images, held_out: tuple[Images, Images]) -> float:
    """The AUC on `held_out` of logistic regression that was fitted on `images`."""
    fitted = LogisticRegression(max_iter=1000).fit(images, labels)
    return float(roc_auc_score(held_out[1], fitted.decision_function(held_out[0])))


def sheet(images: Images, labels: Images, file: Path) -> None:
    """Ten images of each class, four times their size."""
    rows = [
        np.concatenate(list(images[labels == one][:10].reshape(-1, SIDE, SIDE)), axis=1)
        for one in (0, 1)
    ]
    grey = np.rint((np.concatenate(rows) + 1.0) * 127.5).clip(0, 255).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.kron(grey, np.ones((4, 4), dtype=np.uint8))).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--choose", action="store_true", help="plans on validation images")
    parser.add_argument("--sheets", type=Path, help="a folder for contact sheets")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    images, labels = part_of(options.data, "train")
    training = dealt(images, labels)
    held_out = part_of(options.data, "val" if options.choose else "test")
    found: dict[str, Any] = {"real": spread([judged(images, labels, held_out)])}
    print("real", found["real"], flush=True)
    for plan in PLANS if options.choose else (CHOSEN,):
        for noise in (False, True):
            name = f"{plan}, {f'epsilon {EPSILON:g}' if noise else 'no noise'}"
            spec = study(PLANS[plan], len(images) // SITES, noise=noise)
            aucs = []
            for run in range(1 if options.choose else options.runs):
                made = drawn(spec, distributed(spec, training), len(images))
                aucs.append(judged(*made, held_out))
                if options.sheets and not run:
                    sheet(*made, options.sheets / f"{name}.png")
            found[name] = spread(aucs) | (privacy(spec) if noise else {})
            print(name, json.dumps(found[name]), f"{time.perf_counter() - start:.0f} s", flush=True)
    result = {
        **facts(PACKAGES),
        "judged_on": "validation" if options.choose else "test",
        "auc": found,
        "seconds": time.perf_counter() - start,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
