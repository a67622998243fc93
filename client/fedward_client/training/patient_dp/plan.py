"""The parameters that decide the guarantee, and the patients they are applied to."""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from fedward_common.errors import DataError
from fedward_common.study.augmentation import MOVING, Augmentation
from fedward_common.study.encoding import PatientRecords

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientDpPlan:
    """What one step of patient-level DP-SGD does; nothing here is about speed or memory.

    Neighbouring data sets differ by the presence of one patient with all records. One patient
    moves the sum before noise by at most `clip_norm`; exchanging one patient for another moves it
    by at most twice that.
    """

    noise_multiplier: float
    clip_norm: float
    sampling_probability: float
    max_records_per_patient: int
    public_patients: int
    clipping: Literal["flat", "auto-s"] = "flat"
    copies: int = 1
    """How many times each drawn record enters its patient's mean gradient."""
    jitter: float = 0.0
    """The standard deviation of the Gaussian that sets the copies apart."""
    shift: int = 0
    """By how many pixels at most a copy of an image is moved each way."""
    augment: tuple[Augmentation, ...] = ()
    """In which ways a copy of an image is changed besides."""
    image: tuple[int, int] = (0, 0)
    """Height and width where records are images."""
    sampled: int = 0
    """How many standard normal numbers each copy of a record comes with, drawn for it alone."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"noise multiplier: expected above 0, found {self.noise_multiplier}")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip norm: expected above 0, found {self.clip_norm}")
        if not 0 < self.sampling_probability <= 1:
            raise ValueError(
                f"sampling probability: expected in (0, 1], found {self.sampling_probability}"
            )
        if self.clipping not in ("flat", "auto-s") or self.copies < 1 or not self.jitter >= 0:
            raise ValueError("clipping, copies, jitter: expected a known kind, 1 up and 0 up")
        if self.shift and not 0 <= self.shift < min(self.image):
            raise ValueError("shift: expected an image and less than its sides")
        if any(isinstance(one, MOVING) for one in self.augment) and not min(self.image):
            raise ValueError("augment: expected an image where pixels move")
        if self.max_records_per_patient < 1 or self.public_patients < 1:
            raise ValueError("records per patient and public patients: expected at least 1 each")

    @property
    def most_records(self) -> int:
        """How many records, copies included, one patient has in a step at most."""
        return self.max_records_per_patient * self.copies

    @property
    def denominator(self) -> float:
        """The public constant q * N that every sum is divided by, however many were drawn."""
        return self.sampling_probability * self.public_patients

    @property
    def noise_std(self) -> float:
        """The standard deviation sigma * C of the noise on each coordinate of a sum."""
        return self.noise_multiplier * self.clip_norm


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatientTensors:
    """The records of a site's patients on the device that trains, grouped by patient.

    `features` [records, ...] and `labels` [records] (or masks, [records, ...]); patient p owns the
    records from `starts[p]` up to `starts[p + 1]`, at least one.
    """

    features: torch.Tensor
    labels: torch.Tensor
    starts: Int64Array

    def __post_init__(self) -> None:
        records = self.features.shape[0]
        if self.labels.shape[:1] != (records,):
            raise DataError("records: expected one label for each record, found another number")
        if self.starts[0] != 0 or self.starts[-1] != records or (np.diff(self.starts) < 1).any():
            raise DataError("records: expected every patient to own at least one, all contiguous")

    @classmethod
    def from_records(cls, records: PatientRecords, *, device: torch.device) -> Self:
        """The tensors of `records`. Raises DataError when patients are not 0..P-1 in order."""
        patient = records.patient
        steps = np.diff(patient, prepend=-1)
        if ((steps != 0) & (steps != 1)).any() or (patient.size and patient[0] != 0):
            raise DataError("records: expected patients numbered from 0, each one's contiguous")
        starts = np.append(np.flatnonzero(steps), patient.size).astype(np.int64)
        return cls(
            features=torch.tensor(records.features, device=device),
            labels=torch.tensor(records.labels, device=device),
            starts=starts,
        )

    @property
    def patients(self) -> int:
        """The exact number of patients. Private: it never leaves the site (rules 6)."""
        return len(self.starts) - 1
