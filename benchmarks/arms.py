"""The three ways to place the noise, on logistic regression: central, distributed, local.

The draw, the clipping, the noise and its accounting are the project's own; the gradient of a
logistic regression is written out, because a benchmark takes some hundred thousand steps (a test
holds it equal to the back end `loop`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from fedward_client.training.patient_dp.back_end import Chunk
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_client.training.patient_dp.sampling import draw_patients
from fedward_common.arrays import Array
from fedward_common.models.averages import TailAverage
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.privacy.clipping import clip_l2
from fedward_common.privacy.randomness import Csprng, RandomSource
from fedward_common.secagg.fixedpoint import FixedPoint
from fedward_common.secagg.thresholds import Thresholds

Arm = Literal["central", "distributed", "local"]
Floats = npt.NDArray[np.float64]

CLIP: Final = 0.5
"""On inputs in [-1, 1] every gradient is longer than that at first; the rate is in units of it."""
CHUNK: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is tuned. `rate`: how far one step goes on a mean of gradients of norm C."""

    steps: int
    rate: float
    local_steps: int = 1
    sampling: float = 1.0

    def __str__(self) -> str:
        return f"T={self.steps} rate={self.rate:g} L={self.local_steps} q={self.sampling:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Epsilon (by PLD, of the whole training) and delta of one patient of one site."""

    epsilon: float
    delta: float

    def noise_multiplier(self, setting: Setting) -> float:
        return _noise_multiplier(self.epsilon, self.delta, setting.sampling, setting.steps)


@lru_cache
def _noise_multiplier(epsilon: float, delta: float, sampling: float, steps: int) -> float:
    return calibrate_noise_multiplier(
        epsilon=epsilon,
        epsilon_is="pld",
        delta=delta,
        sampling_probability=sampling,
        steps=steps,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Patients:
    """One record a patient: `features` [patients, inputs] in [-1, 1], `labels` 0 or 1."""

    features: Floats
    labels: Floats

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, chosen: npt.NDArray[np.int64]) -> "Patients":
        return Patients(features=self.features[chosen], labels=self.labels[chosen])

    def tensors(self) -> PatientTensors:
        return PatientTensors(
            features=torch.from_numpy(self.features),
            labels=torch.from_numpy(self.labels),
            starts=np.arange(len(self) + 1),
        )


def pooled(sites: Sequence[Patients]) -> Patients:
    return Patients(
        features=np.concatenate([site.features for site in sites]),
        labels=np.concatenate([site.labels for site in sites]),
    )


class LogisticGradients:
    """The back end of one weight vector [inputs + 1], the bias last: (p - y) times (x, 1)."""

    def __init__(self, inputs: int) -> None:
        self.weights = torch.zeros(inputs + 1, dtype=torch.float64)

    def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
        if len(chunk.sizes) != len(chunk.labels):
            raise ValueError("expected one record a patient")
        logits = chunk.features @ self.weights[:-1] + self.weights[-1]
        error = (torch.sigmoid(logits) - chunk.labels).unsqueeze(1)
        yield torch.cat([error * chunk.features, error], dim=1)


def train(
    arm: Arm,
    sites: Sequence[Patients],
    *,
    setting: Setting,
    budget: Budget,
    source: RandomSource | None = None,
) -> Floats:
    """The weights [inputs + 1]: the mean of the second half of the released models, in each arm."""
    source = Csprng() if source is None else source
    sigma = budget.noise_multiplier(setting)
    match arm:
        case "central":
            return _one_place(pooled(sites), setting, sigma, source)
        case "distributed":
            return _distributed(sites, setting, sigma, source)
        case "local":
            return _local(sites, setting, sigma, source)


def _one_place(patients: Patients, setting: Setting, sigma: float, source: RandomSource) -> Floats:
    """DP-SGD by somebody whom every hospital trusts with its patients."""
    site = _Site(patients, setting, sigma, source)
    tail = _tail(setting.steps)
    for _ in range(setting.steps):
        site.step()
        tail.add(released(site.weights))
    return tail.mean()["w"].astype(np.float64)


def _local(
    sites: Sequence[Patients], setting: Setting, sigma: float, source: RandomSource
) -> Floats:
    """FedAvg of sites that each add the whole noise, weighted by their public patients."""
    total = sum(len(site) for site in sites)
    trainers = [_Site(site, setting, sigma, source) for site in sites]
    rounds = setting.steps // setting.local_steps
    tail, weights = _tail(rounds), np.zeros(sites[0].features.shape[1] + 1)
    for _ in range(rounds):
        mean = np.zeros_like(weights)
        for trainer, site in zip(trainers, sites, strict=True):
            trainer.weights = weights
            for _ in range(setting.local_steps):
                trainer.step()
            mean += len(site) / total * trainer.weights
        weights = mean
        tail.add(released(weights))
    return tail.mean()["w"].astype(np.float64)


def _distributed(
    sites: Sequence[Patients], setting: Setting, sigma: float, source: RandomSource
) -> Floats:
    """One step over all hospitals a round; the coordinator sees the sum on the grid and no more."""
    std = sigma * CLIP * Thresholds.of(len(sites)).site_noise_factor
    grid = FixedPoint.fitting(clip_norm=CLIP, sites=len(sites), noise_std=std)
    grid.check(sites=len(sites), noise_std=std)
    gradients = LogisticGradients(sites[0].features.shape[1])
    records = [site.tensors() for site in sites]
    denominator = setting.sampling * sum(len(site) for site in sites)
    tail = _tail(setting.steps)
    for _ in range(setting.steps):
        total = np.zeros(len(gradients.weights), dtype=grid.dtype)
        for site in records:
            integers = grid.saturate(_integer_sum(site, gradients, grid, setting, source))
            noise = grid.noise(len(total), std=std, source=source)
            total += grid.to_ring(integers + noise)
        mean = torch.from_numpy(grid.from_ring(total) / denominator)
        gradients.weights = gradients.weights - setting.rate / CLIP * mean
        tail.add(released(gradients.weights.numpy()))
    return tail.mean()["w"].astype(np.float64)


def _integer_sum(
    site: PatientTensors,
    gradients: LogisticGradients,
    grid: FixedPoint,
    setting: Setting,
    source: RandomSource,
) -> npt.NDArray[np.int64]:
    """The sum of the drawn patients' clipped gradients, each on the grid by itself."""
    chosen = draw_patients(source, patients=site.patients, probability=setting.sampling)
    chunk = Chunk(
        features=site.features[chosen],
        labels=site.labels[chosen],
        sizes=torch.ones(len(chosen), dtype=torch.int64),
    )
    (rows,) = gradients.patient_gradients(chunk)
    integers = grid.quantise(clip_l2(rows, clip_norm=CLIP).numpy())
    total: npt.NDArray[np.int64] = integers.sum(axis=0)
    return total


class _Site:
    """The project's engine and plain steps along its noisy gradients."""

    def __init__(
        self, patients: Patients, setting: Setting, sigma: float, source: RandomSource
    ) -> None:
        self._gradients = LogisticGradients(patients.features.shape[1])
        self._patients = patients.tensors()
        self._rate = setting.rate / CLIP
        self._engine = PatientDpEngine(
            self._gradients,
            PatientDpPlan(
                noise_multiplier=sigma,
                clip_norm=CLIP,
                sampling_probability=setting.sampling,
                max_records_per_patient=1,
                public_patients=len(patients),
            ),
            parameters=len(self._gradients.weights),
            sampling=source,
            noise=source,
            max_records_per_chunk=CHUNK,
        )

    @property
    def weights(self) -> Floats:
        return self._gradients.weights.numpy()

    @weights.setter
    def weights(self, values: Floats) -> None:
        self._gradients.weights = torch.from_numpy(values.copy())

    def step(self) -> None:
        step = self._rate * self._engine.step(self._patients)
        self._gradients.weights = self._gradients.weights - step


def released(weights: Floats) -> dict[str, Array]:
    """A model as the study releases it, in float32."""
    return {"w": weights.astype(np.float32)}


def _tail(rounds: int) -> TailAverage:
    return TailAverage(max(1, rounds // 2))
