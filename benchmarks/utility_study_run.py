"""The arm `distributed` through the product: StudyRun, guards with ledgers, workers, secret sums.

Slow, so it runs once a split beside the arithmetic of `arms`, which takes the same mechanism some
ten thousand times. Only Flower and the network are left out.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.arms import CLIP, Budget, Floats, Patients, Setting
from fedward_client.guard.main import study_shapes
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey
from tests.support import secure_federation
from tests.support.secure_federation import Federation, Hospital, secure_study

LIMIT: Final = 1000.0
POLICY: Final = {
    "max_epsilon_per_study": LIMIT,
    "max_epsilon_total": LIMIT,
    "max_epsilon_if_all_others_collude": LIMIT,
    "min_noise": 0.1,
}
"""What these hospitals allow: the benchmark is about utility, the budget is the study's."""


def study_of(
    keys: dict[str, SigningKey], sites: Sequence[Patients], *, setting: Setting, budget: Budget
) -> StudySpec:
    """The signed study of one run: one step a round over all hospitals' patients."""
    inputs = sites[0].features.shape[1]
    column = {"type": "number", "unit": "1", "low": -1.0, "high": 1.0}
    plain = secure_study(keys, rounds=setting.steps).model_dump(mode="json")
    plain["dp"] |= {  # delta fits the patients of below, not those of a study for tests
        "epsilon": budget.epsilon,
        "epsilon_is": "pld",
        "delta": budget.delta,
        "noise_multiplier": budget.noise_multiplier(setting),
        "clip_norm": CLIP,
        "sampling_probability": setting.sampling,
        "max_records_per_patient": 1,
    }
    plain["data"]["columns"] = [{"name": f"x{n}", **column} for n in range(inputs)]
    plain["training"]["learning_rate"] = setting.rate / CLIP
    plain["aggregation"]["average_last"] = max(1, setting.steps // 2)
    plain["releases"] = []
    for entry, patients in zip(plain["sites"], sites, strict=True):
        entry["patients"] = len(patients)
    return StudySpec.model_validate(plain)


def train_by_study_run(sites: Sequence[Patients], *, setting: Setting, budget: Budget) -> Floats:
    """The weights [inputs + 1] of the study's released model."""
    keys = {f"s{number}": SigningKey.generate() for number in range(1, len(sites) + 1)}
    study = study_of(keys, sites, setting=setting, budget=budget)
    with tempfile.TemporaryDirectory() as folder:
        hospitals = {
            SiteId(name): _hospital(Path(folder) / name, name, keys[name], patients, study)
            for name, patients in zip(keys, sites, strict=True)
        }
        federation = Federation(study=study, hospitals=hospitals)
        try:
            model: dict[str, Any] = federation.run().run().model
        finally:
            federation.close()
    return np.append(model["linear.weight"][0], model["linear.bias"]).astype(np.float64)


def _hospital(
    folder: Path, name: str, key: SigningKey, patients: Patients, study: StudySpec
) -> Hospital:
    hospital = Hospital(
        name=SiteId(name),
        key=key,
        folder=folder,
        patients=secure_federation.Patients(
            features=patients.features.astype(np.float32),
            labels=patients.labels.astype(np.float32),
        ),
        study=study,
        policy=dict(POLICY),
    )
    hospital.service = replace(hospital.service, shapes=study_shapes)
    return hospital
