"""One step of DP-SGD whose privacy unit is the patient."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from fedward_client.training.patient_dp.augment import augmented
from fedward_client.training.patient_dp.back_end import BackEnd, Chunk, add_clipped
from fedward_client.training.patient_dp.plan import Int64Array, PatientDpPlan, PatientTensors
from fedward_client.training.patient_dp.sampling import Draw, chunks, draw_patients, draw_records
from fedward_common.privacy.clipping import (
    clip_factors,
    clip_l2,
    normalise_factors,
    normalise_l2,
)
from fedward_common.privacy.randomness import RandomSource

Quantise = Callable[[npt.NDArray[np.float64]], Int64Array]
"""Rows of real numbers -> whole numbers of no larger norm."""


class PatientDpEngine:
    """Turns patients into noisy gradients, one step at a time.

    Guarantees, each with a test of the same words in tests/privacy/test_patient_dp.py:
        one patient more or less moves the sum before noise by at most C, another patient in
        its place by at most 2 C;
        a patient with a non-finite gradient counts as absent;
        an empty draw adds noise like any other;
        how records are cut into chunks changes nothing but rounding;
        an interrupted step leaves nothing behind: the sum lives in the call and dies with it.

    What is not checked here: that the model keeps patients apart (`model_check` does that before
    the first step), and that the budget was charged (the guard did).
    """

    def __init__(
        self,
        back_end: BackEnd,
        plan: PatientDpPlan,
        *,
        parameters: int,
        sampling: RandomSource,
        noise: RandomSource,
        max_records_per_chunk: int,
    ) -> None:
        """An engine for a model with `parameters` trainable numbers.

        `sampling` and `noise` are separate sources: who learns one draw learns nothing of another.
        """
        if max_records_per_chunk < 1:
            raise ValueError(f"chunk: expected at least 1 record, found {max_records_per_chunk}")
        self.plan = plan
        self._back_end = back_end
        self._parameters = parameters
        self._sampling = sampling
        self._noise = noise
        self._max_records_per_chunk = max_records_per_chunk
        self._steps = 0

    @property
    def steps(self) -> int:
        """How many steps have released a gradient; what the ledger's charge is checked against."""
        return self._steps

    def step(self, patients: PatientTensors, *, into: torch.Tensor | None = None) -> torch.Tensor:
        """The noisy mean gradient of one Poisson draw: float64 [parameters].

        With `into`, what an earlier step returned, that tensor is overwritten and returned: fresh
        memory for each step costs a large model a tenth of its time.

        1. Draw: each patient enters with probability q, with at most k random records.
        2. Clip: each patient's mean gradient to C in float64; a non-finite one becomes zero.
        3. Sum over patients, and add N(0, (sigma C)^2) to each coordinate, once.
        4. Divide by the public constant q * N, never by the number drawn.

        Raises:
            RuntimeError: `into` is no float64 [parameters] on the patients' device.

        Source: McMahan et al. 2018 (the unit is a person); Abadi et al. 2016 (the step).
        """
        total = self._clipped_sum(patients, self._drawn(patients), into)
        total.add_(self._draw_noise(total.device), alpha=self.plan.noise_std)
        self._steps += 1
        return total.div_(self.plan.denominator)

    def integer_sum(self, patients: PatientTensors, quantise: Quantise) -> Int64Array:
        """The sum over one Poisson draw in whole numbers, WITHOUT noise: int64 [parameters].

        Steps 1 and 2 of `step`; each patient's clipped gradient is then put on a grid by itself, so
        that the bound holds on the whole numbers. Saturation, noise and masks are the guard's.
        """
        total = np.zeros(self._parameters, dtype=np.int64)
        bound = clip_l2 if self.plan.clipping == "flat" else normalise_l2
        for piece in chunks(self._drawn(patients), max_records=self._max_records_per_chunk):
            rows = 0
            for block in self._back_end.patient_gradients(self._chunk(patients, piece)):
                if block.shape[1] != self._parameters:
                    raise RuntimeError("back end: expected one number for each parameter")
                clipped = bound(block, clip_norm=self.plan.clip_norm)
                total += quantise(clipped.cpu().numpy()).sum(axis=0)
                rows += block.shape[0]
            if rows != len(piece.sizes):
                raise RuntimeError("back end: expected one gradient for each patient of the chunk")
        self._steps += 1
        return total

    def _drawn(self, patients: PatientTensors) -> Draw:
        chosen = draw_patients(
            self._sampling,
            patients=patients.patients,
            probability=self.plan.sampling_probability,
        )
        return draw_records(
            self._sampling,
            starts=patients.starts,
            chosen=chosen,
            limit=self.plan.max_records_per_patient,
        )

    def _zeros(self, device: torch.device, into: torch.Tensor | None) -> torch.Tensor:
        """Float64 zeros for each parameter, in `into` where that is given."""
        if into is None:
            return torch.zeros(self._parameters, dtype=torch.float64, device=device)
        if (into.dtype, into.shape, into.device) != (torch.float64, (self._parameters,), device):
            raise RuntimeError("engine: expected `into` to be what an earlier step returned")
        return into.zero_()

    def _clipped_sum(
        self, patients: PatientTensors, draw: Draw, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        total = self._zeros(patients.features.device, into)
        bound = clip_factors if self.plan.clipping == "flat" else normalise_factors
        factors = partial(bound, clip_norm=self.plan.clip_norm)
        for piece in chunks(draw, max_records=self._max_records_per_chunk):
            chunk = self._chunk(patients, piece)
            if add_clipped(self._back_end, total, chunk, factors) != len(piece.sizes):
                raise RuntimeError("back end: expected one gradient for each patient of the chunk")
        return total

    def _chunk(self, patients: PatientTensors, piece: Draw) -> Chunk:
        """The records of some drawn patients, each `copies` times and set apart."""
        copies, device = self.plan.copies, patients.features.device
        rows = torch.from_numpy(np.repeat(piece.rows, copies)).to(device)
        features = patients.features.index_select(0, rows)
        if self.plan.shift:
            features = self._shifted(features)
        if self.plan.augment:
            features = augmented(
                features, image=self.plan.image, ways=self.plan.augment, sampling=self._sampling
            )
        if self.plan.jitter:
            apart = torch.from_numpy(self._sampling.normal(features.numel()))
            features = features + (self.plan.jitter * apart).to(features).view_as(features)
        if self.plan.sampled:
            chance = torch.from_numpy(self._sampling.normal(len(features) * self.plan.sampled))
            chance = chance.to(features).view(len(features), self.plan.sampled)
            features = torch.cat([features, chance], dim=1)
        return Chunk(
            features=features,
            labels=patients.labels.index_select(0, rows),
            sizes=torch.from_numpy(piece.sizes * copies),
        )

    def _shifted(self, features: torch.Tensor) -> torch.Tensor:
        """Every image moved by a draw of its own, its edge repeated; no other image enters."""
        (height, width), most = self.plan.image, self.plan.shift
        drawn = self._sampling.uniform(2 * len(features)).reshape(-1, 2)
        down, right = torch.from_numpy(np.floor(drawn * (2 * most + 1)) - most).long().T
        rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1)
        pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1).to(features.device)
        planes = features.shape[1:].numel() // (height * width)
        channels = features.reshape(len(features), planes, height * width)
        taken = pixels[:, None, :].expand(-1, planes, -1)
        return channels.gather(2, taken).view_as(features)

    def _draw_noise(self, device: torch.device) -> torch.Tensor:
        """A standard normal number for each parameter, float64."""
        noise = self._noise.normal(self._parameters)
        if noise.shape != (self._parameters,) or not np.isfinite(noise).all():
            raise RuntimeError("noise source: expected a finite number for each parameter")
        return torch.from_numpy(noise).to(device)
