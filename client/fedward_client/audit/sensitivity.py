"""Layer 1 of the audit: how far one patient moves what a step sums up, measured.

Everything runs through the study's own loader, model, loss and trainer, on made-up patients that
are as bad as patients can be. No noise is added here, so that the movement is seen exactly.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedward_client.audit.input_limits import input_limits, outermost
from fedward_client.audit.made_up_rows import load_rows, made_up_rows
from fedward_client.audit.report import Finding
from fedward_client.audit.source_rows import SourceRow
from fedward_client.tasks.registry import task_of
from fedward_client.training.descent import freeze
from fedward_client.training.patient_dp.back_end import trainable_parameters
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.plan import PatientDpPlan
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags, TrainedUpdate
from fedward_common.arrays import Array, Tensors, tensors_from_bytes, tensors_to_bytes
from fedward_common.errors import ConfigError, DataError
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.privacy.randomness import Csprng, Float64Array, RandomSource
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.imaging import ImageData
from fedward_common.study.spec import DpSgd, FedAvg, StudySpec, TrainingSpec

TOLERANCE = 1e-3
"""Relative to C. Weights travel as float32, which costs about 1e-7 a number; bugs cost 0.1 up."""

LARGE, HUGE, TINY = 1e4, 1e30, 1e-6
Patient = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Features [records, inputs] and labels [records, ...] of one made-up patient."""
Loader = Callable[[StudySpec, Sequence[SourceRow]], PatientRecords]
"""(study, rows of a source) -> the records to train on; a faulty patient counts as absent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditPorts:
    """What the audit probes; the defaults are what a site runs. Tests plant their bugs here."""

    sampling: RandomSource = field(default_factory=Csprng)
    noise: RandomSource = field(default_factory=Csprng)
    trainer: type[LocalTrainer] = LocalTrainer
    engine: type[PatientDpEngine] = PatientDpEngine
    loader: Loader = load_rows


class Quiet:
    """Everybody is drawn, with first records, and nothing is added: a step shows its exact sum.

    For made-up patients in this package only. Nothing it takes part in ever leaves the process;
    training has no way to reach it (rules 11).
    """

    def uniform(self, count: int) -> Float64Array:
        """`count` zeros, which lie below every sampling probability."""
        return np.zeros(count)

    def normal(self, count: int) -> Float64Array:
        """`count` zeros."""
        return np.zeros(count)


class StepProbe:
    """One step of the study's own trainer, read back from the bytes that would leave the site.

    The study is changed where it is post-processing only: one local step, no momentum, decay or
    proximal term, and a learning rate of q N / C, so that the weights move by exactly the sum of
    the step in units of C. Model, loss, back end, sampling, clipping and noise are the study's.
    With `weights` the model starts from these, as a trained one, else as the study starts it.

    Raises:
        ConfigError: the study does not include the site, or this installation cannot run it.
    """

    def __init__(
        self,
        study: StudySpec,
        site: SiteId,
        *,
        flags: PerformanceFlags,
        ports: AuditPorts,
        weights: Tensors | None = None,
    ) -> None:
        self.plan = site_plan(study, site)
        rate = self.plan.denominator / self.plan.clip_norm
        changes = {
            "local_steps": 1,
            "training": TrainingSpec(
                learning_rate=rate,
                frozen=study.training.frozen,
                jitter=study.training.jitter,
                pseudo_labels=study.training.pseudo_labels,
            ),
            "aggregation": FedAvg(),
        }
        self._study = study.model_copy(update=changes)
        self._site, self._flags, self._ports = site, flags, ports
        self.task = task_of(study)
        self.inputs = self.task.inputs
        labels = self.task.examples(device=torch.device("cpu"))(1)[1]
        self.label_shape: tuple[int, ...] = tuple(labels.shape[1:])
        """Of one record's label: nothing of a number, [words] of tags, [pixels] of a mask."""
        self._names = sorted(trainable_parameters(self.model()))
        self.start: Tensors = (
            initial_tensors(study.model, self.inputs) if weights is None else weights
        )

    def model(self) -> nn.Module:
        """The study's model at its start, in training, with what the study freezes frozen."""
        model = build_model(self._study.model, self.inputs).train()
        freeze(model, self._study.training)
        return model

    @property
    def parameters(self) -> int:
        """How many numbers training changes."""
        return sum(self.start[name].size for name in self._names)

    def trainer(self, *, sampling: RandomSource, noise: RandomSource) -> LocalTrainer:
        """A trainer of the one-step study on these sources."""
        return self._ports.trainer(
            self._study, self._site, sampling=sampling, noise=noise, flags=self._flags
        )

    def run(
        self, trainer: LocalTrainer, weights: Tensors, records: PatientRecords
    ) -> tuple[Float64Array, TrainedUpdate]:
        """What the step added up in units of C [parameters], after encoding; with the update."""
        update = trainer.train(weights, records)
        shapes = {name: array.shape for name, array in weights.items()}
        sent = tensors_from_bytes(tensors_to_bytes(update.tensors), shapes=shapes)
        moved = [(np.float64(weights[n]) - np.float64(sent[n])).ravel() for n in self._names]
        return np.concatenate(moved), update

    def exact_sum(self, weights: Tensors, patients: Sequence[Patient]) -> Float64Array:
        """The clipped sum of `patients` in units of C, without noise; NaN where it overflowed."""
        trainer = self.trainer(sampling=Quiet(), noise=Quiet())
        try:
            return self.run(trainer, weights, self.records(patients))[0]
        # The trainer refuses to hand out weights that are not finite; a model of words may look up
        # a word by a number that is none.
        except (ConfigError, IndexError):
            return np.full(self.parameters, np.nan)

    def records(self, patients: Sequence[Patient]) -> PatientRecords:
        """`patients` as the records that a loader would hand to the trainer."""
        return as_records(patients, inputs=self.inputs, label_shape=self.label_shape)


def site_plan(study: StudySpec, site: SiteId) -> PatientDpPlan:
    """The plan that the study gives the site; read from the study, not from the trainer."""
    member, dp = study.site(site), study.dp
    if member is None:
        raise ConfigError(f"audit: expected a study with the site {site}, found one without it")
    if not isinstance(dp, DpSgd):
        raise ConfigError(f"audit: expected dp of kind dp-sgd, found {dp.kind}")
    jitter, data = study.training.jitter, study.data
    flat = isinstance(data, ImageData) and not data.depth
    return PatientDpPlan(
        noise_multiplier=dp.noise_multiplier,
        clip_norm=dp.clip_norm,
        sampling_probability=dp.sampling_probability,
        max_records_per_patient=dp.max_records_per_patient,
        public_patients=member.patients,
        clipping=dp.clipping,
        copies=1 if jitter is None else jitter.copies,
        jitter=0.0 if jitter is None else jitter.scale,
        shift=jitter.shift if jitter is not None and flat else 0,
        augment=() if jitter is None else jitter.augment,
        image=(data.height, data.width) if isinstance(data, ImageData) and flat else (0, 0),
        sampled=study.model.sampled,
    )


def as_records(
    patients: Sequence[Patient], *, inputs: int, label_shape: tuple[int, ...]
) -> PatientRecords:
    """`patients` as the records that a loader would hand to the trainer."""
    sizes = [len(labels) for _, labels in patients]
    nothing = np.zeros((0, *label_shape), np.float32)
    return PatientRecords(
        features=np.concatenate([np.zeros((0, inputs), np.float32), *(x for x, _ in patients)]),
        labels=np.concatenate([nothing, *(y for _, y in patients)]),
        patient=np.repeat(np.arange(len(patients)), sizes).astype(np.int64),
    )


def probe_loader(study: StudySpec, loader: Loader) -> tuple[list[Finding], list[Patient]]:
    """The findings about the loader, and its made-up patients as it encoded them."""
    groups = made_up_rows(study)
    alone = [_loaded(study, loader, group) for group in groups]
    present = [patient for patient in alone if patient is not None]
    limits = input_limits(study.data)
    largest = max((outermost(features, limits) for features, _ in present), default=0.0)
    changed = sum(
        not _same_without(study, loader, groups, alone, left_out=left_out)
        for left_out in (None, *range(len(groups)))
    )
    return [
        Finding.at_most(
            "loader-range",
            largest,
            1.0,
            layer=1,
            unit="largest input of a model, of words over the most that the study knows",
            proves="cells far outside the study's range, or no numbers at all, reach the model "
            "within [-1, 1] or not at all; words as one of the study's whole numbers.",
            does_not_prove="that the study's ranges suit this hospital's data.",
        ),
        Finding.at_most(
            "loader-neighbours",
            changed,
            0.0,
            layer=1,
            unit=f"tables of {len(groups) + 1} in which one patient changed another's numbers",
            proves="a patient who comes, goes or is faulty changes no other patient's numbers by a "
            "single bit; nothing is fitted on the table.",
            does_not_prove="anything about the site's own file, which is not opened.",
        ),
    ], present


def probe_sensitivity(probe: StepProbe, loaded: Sequence[Patient]) -> list[Finding]:
    """The findings about add or remove one, replace one, and faulty patients.

    Raises:
        ModelRefused: the trainer's own check refused the study's model or loss.
    """
    base = _ordinary(probe)
    cases = [*_worst_cases(probe), base[0], *loaded]
    faulty = _faulty(probe)
    added, replaced, spoiled = 0.0, 0.0, 0.0
    for weights in (probe.start, _scattered(probe.start)):
        for others in ([], base, [base[0]] * 8):
            half = len(others) // 2
            without = probe.exact_sum(weights, others)
            sums = [
                probe.exact_sum(weights, [*others[:half], case, *others[half:]])
                for case in (*cases, *faulty)
            ]
            moves = [_distance(total, without) for total in sums]
            added = max(added, *moves[: len(cases)])
            spoiled = max(spoiled, *moves[len(cases) :])
            replaced = max(replaced, *(_distance(a, b) for a, b in combinations(sums, 2)))
    tried = f"{len(cases)} made-up patients, 3 cohorts, 2 sets of weights"
    rest = (
        "every input, cohort and set of weights: it is a search for violations, not a proof. "
        "Weights made on purpose against the rounding of the back end opacus are not tried."
    )
    unit = f"times C, over {tried}"
    return [
        Finding.at_most(
            "add-or-remove-one",
            added,
            1.0 + TOLERANCE,
            layer=1,
            unit=unit,
            proves="one patient more or less moved the sum before noise by at most C: at the edge "
            "of the range, far beyond it, tiny, repeated, contradicting itself.",
            does_not_prove=rest,
        ),
        Finding.at_most(
            "replace-one",
            replaced,
            2.0 + TOLERANCE,
            layer=1,
            unit=unit,
            proves="another patient in one's place moved the sum before noise by at most 2 C. The "
            "study's epsilon is for add or remove one; for replace one it is larger.",
            does_not_prove=rest,
        ),
        Finding.at_most(
            "faulty-patients",
            spoiled,
            1.0 + TOLERANCE,
            layer=1,
            unit=f"times C, over {len(faulty)} patients with NaN or infinity",
            proves="a patient whose numbers are NaN or infinite leaves the sum finite and moves it "
            "by no more than anybody else.",
            does_not_prove=rest,
        ),
    ]


def _distance(one: Float64Array, other: Float64Array) -> float:
    distance = float(np.linalg.norm(one - other))
    return distance if math.isfinite(distance) else math.inf


def _scattered(start: Tensors) -> dict[str, Array]:
    """Weights of the same shapes in [-1, 1), none of them zero, by a fixed rule."""
    golden, result, first = (math.sqrt(5.0) - 1.0) / 2.0, {}, 1
    for name, array in start.items():
        index = np.arange(first, first + array.size, dtype=np.float64)
        spread = 2.0 * np.modf(np.square(index) * golden)[0] - 1.0
        result[name] = spread.reshape(array.shape).astype(np.float32)
        first += array.size
    return result


def _ordinary(probe: StepProbe) -> list[Patient]:
    """Six patients within the range, of one to three records, as the study's task makes them up."""
    examples = probe.task.examples(device=torch.device("cpu"))
    sizes = [1 + number % 3 for number in range(6)]
    pairs = [examples(size) for size in sizes]
    return [(features.numpy(), labels.numpy()) for features, labels in pairs]


def _worst_cases(probe: StepProbe) -> Iterator[Patient]:
    """Patients in the range and beyond it: edges, large, tiny, repeated, contradicting."""
    edge = np.ones(probe.inputs, np.float32)
    zigzag = np.where(np.arange(probe.inputs) % 2 == 0, 1.0, -1.0).astype(np.float32)
    for numbers in (edge, zigzag, LARGE * edge, LARGE * zigzag, HUGE * zigzag, TINY * zigzag):
        for label in (0.0, 1.0):
            yield _patient(probe, [numbers], [label])
    large = LARGE * zigzag
    repeated = probe.plan.max_records_per_patient + 1
    yield _patient(probe, [large] * min(repeated, 64), [1.0] * min(repeated, 64))
    yield _patient(probe, [large, large], [0.0, 1.0])
    yield _patient(probe, [large, -large], [1.0, 1.0])


def _faulty(probe: StepProbe) -> list[Patient]:
    """Patients with numbers that no loader should let through."""
    good, one_bad = np.ones(probe.inputs, np.float32), np.ones(probe.inputs, np.float32)
    one_bad[0] = np.nan
    infinite = np.full(probe.inputs, np.inf, np.float32)
    return [
        _patient(probe, [one_bad], [1.0]),
        _patient(probe, [infinite], [0.0]),
        _patient(probe, [one_bad, good], [1.0, 0.0]),
        _patient(probe, [good], [math.nan]),
    ]


def _patient(
    probe: StepProbe, features: Sequence[npt.NDArray[np.float32]], labels: Sequence[float]
) -> Patient:
    """A patient of these records; where a label has many numbers, all are the one that is given."""
    each = np.array(labels, dtype=np.float32).reshape(-1, *(1 for _ in probe.label_shape))
    whole = np.broadcast_to(each, (len(labels), *probe.label_shape)).copy()
    return np.stack(features).astype(np.float32), whole


def _loaded(study: StudySpec, loader: Loader, rows: Sequence[SourceRow]) -> Patient | None:
    """The only patient of `rows`; None where there is none to train on."""
    try:
        records = loader(study, rows)
    except DataError:
        return None
    return (records.features, records.labels) if records.patients else None


def _same_without(
    study: StudySpec,
    loader: Loader,
    groups: Sequence[Sequence[SourceRow]],
    alone: Sequence[Patient | None],
    *,
    left_out: int | None,
) -> bool:
    """Whether the table without one patient holds every other one's numbers as when alone."""
    kept = [number for number in range(len(groups)) if number != left_out]
    expected = [patient for number in kept if (patient := alone[number]) is not None]
    try:
        found = loader(study, [row for number in kept for row in groups[number]])
    except DataError:  # A refusal that depends on one patient tells something about that patient.
        return False
    wanted = as_records(
        expected, inputs=found.features.shape[1], label_shape=found.labels.shape[1:]
    )
    return (
        found.features.tobytes() == wanted.features.tobytes()
        and found.labels.tobytes() == wanted.labels.tobytes()
        and np.array_equal(found.patient, wanted.patient)
    )
