"""ResNet-18 on PneumoniaMNIST, four hospitals, epsilon 8: `python -m benchmarks.imaging_resnet`.

Two ways to spend one budget, both with distributed noise (the sites' trainer and the coordinator's
steps in this process): the whole network, in as few steps as a core takes in minutes, and its last
layer on the rest frozen at its random start. What the frozen part puts out is computed once and the
last layer trained on that, which is the same arithmetic as a study with `frozen` and much faster.
Beside them the last layer without noise. Nothing was chosen by the test images.

The set does not say whose an image is: epsilon is per record; NOT per patient.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.imaging import DATA, Tables, auc, load, spread
from benchmarks.omics_runs import distributed, pooled, privacy
from fedward_common.models.registry import build_model
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import DpSgd, ModelSpec, StudySpec

RESNET = ModelSpec(name="resnet18", shape=(1, 28, 28), initial_seed=1)
WIDTH = 512
PLACES = (16, 32)
"""The frozen part's numbers as an image, because the study's data are images."""


def planned(study: StudySpec, *, steps: int, probability: float, **training: Any) -> StudySpec:
    """The study with distributed noise in `steps` rounds of one step."""
    dp = study.dp
    if not isinstance(dp, DpSgd):
        raise TypeError("expected a dp-sgd study")
    noise = calibrate_noise_multiplier(
        epsilon=dp.epsilon,
        epsilon_is=dp.epsilon_is,
        delta=dp.delta,
        sampling_probability=probability,
        steps=steps,
        releases=study.releases,
    )
    document = study.model_dump(mode="json")
    document |= {"rounds": steps, "local_steps": 1, "secure_sum": True}
    document["dp"] |= {
        "placement": "distributed",
        "noise_multiplier": noise,
        "sampling_probability": probability,
        "steps": steps,
        "clip_norm": 1.0,
        "clipping": "auto-s",
    }
    document["training"] |= {"momentum": 0.0} | training
    document["aggregation"] |= {"average_last": max(1, steps // 4)}
    return StudySpec.model_validate(document)


def frozen_outputs(tables: Tables) -> Tables:
    """What ResNet-18 puts out before its last layer, at its start."""
    model = build_model(RESNET, 784).eval()
    network: Any = model.network
    network.fc = torch.nn.Identity()

    def outputs(records: PatientRecords) -> PatientRecords:
        with torch.no_grad():
            parts = [
                network(some.reshape(-1, 1, 28, 28))
                for some in torch.from_numpy(records.features).split(64)
            ]
        return replace(records, features=torch.cat(parts).numpy().astype(np.float32))

    return {site: outputs(records) for site, records in tables.items()}


def last_layer(study: StudySpec) -> StudySpec:
    """The study of a last layer alone, on the frozen part's numbers."""
    document = study.model_dump(mode="json")
    document["model"] = ModelSpec(name="logistic-regression").model_dump(mode="json")
    document["data"] |= {"height": PLACES[0], "width": PLACES[1]}
    return StudySpec.model_validate(document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--draws", type=int, default=10, help="of the last layer; 0: left out")
    parser.add_argument("--whole-steps", type=int, default=3, help="of the network; 0: left out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    study, train, test = load(options.data)
    result: dict[str, Any] = {}

    def keep(name: str, value: dict[str, Any], start: float) -> None:
        result[name] = value | {"cpu_seconds": time.process_time() - start}
        print(name, json.dumps(result[name]), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2))

    if options.draws:
        start = time.process_time()
        inner, held_out = frozen_outputs(train), frozen_outputs(test)
        head = last_layer(
            planned(study, steps=60, probability=0.2, learning_rate=0.1, optimizer="adam")
        )
        model = pooled(head, inner, steps=600, rate=0.03, decay=0.0)
        keep("last_layer_without_noise", auc(head, model, held_out), start)
        start = time.process_time()
        runs = [auc(head, distributed(head, inner), held_out) for _ in range(options.draws)]
        keep("last_layer_epsilon_8", spread(runs) | privacy(head), start)
    if not options.whole_steps:
        return
    start = time.process_time()
    steps = options.whole_steps
    whole = planned(study, steps=steps, probability=0.03, learning_rate=0.5)
    whole = whole.model_copy(update={"model": RESNET})
    found = auc(whole, distributed(whole, train, backend="loop"), test)
    keep("whole_network_epsilon_8", found | privacy(whole), start)


if __name__ == "__main__":
    main()
