"""A site's part of one training round: weights in, a protected update out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedward_client.tasks.made_up import with_chance
from fedward_client.tasks.registry import task_of
from fedward_client.training.descent import LocalDescent, check_kept, freeze
from fedward_client.training.patient_dp.back_end import (
    BackEndName,
    Precision,
    trainable_parameters,
)
from fedward_client.training.patient_dp.choice import Load, choose_back_end
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.model_check import (
    check_model,
    check_untrained_state,
    untrained_state,
)
from fedward_client.training.patient_dp.plan import Int64Array, PatientDpPlan, PatientTensors
from fedward_client.training.pseudo_labels import with_pseudo_labels
from fedward_client.training.weights import load_weights
from fedward_common.arrays import Array, Tensors
from fedward_common.errors import ConfigError, ModelRefused, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, model_tensors
from fedward_common.privacy.randomness import RandomSource
from fedward_common.secagg.fixedpoint import FixedPoint
from fedward_common.secagg.sums import summed
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.imaging import ImageData, Pictures
from fedward_common.study.spec import DpSgd, StudySpec


@dataclass(frozen=True, kw_only=True, slots=True)
class PerformanceFlags:
    """What a site may choose by itself. The guarantee is the same, but for one case: the back end
    `opacus` keeps it up to rounding only (see `OpacusBackEnd`).
    """

    device: str = "cpu"
    backend: BackEndName = "auto"
    max_records_per_chunk: int = 256
    precision: Precision = "float32"
    replicas: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutedPlan:
    """What really ran, read from the engine afterwards and compared with what was charged."""

    steps: int
    noise_multiplier: float
    clip_norm: float
    sampling_probability: float
    denominator: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedUpdate:
    """A site's weights after its local steps, and the plan that made them.

    `tensors` depend on patients only through the noisy gradients: everything after the noise works
    on public numbers. There is no loss, count, norm or time in here (rules 7).
    """

    tensors: dict[str, Array]
    executed: ExecutedPlan


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerSum:
    """A site's part of a pooled step: whole numbers in the order of the study's secret sum.

    They are patient data, without noise: they go to the guard and nowhere else.
    """

    vector: Int64Array
    executed: ExecutedPlan


class LocalTrainer:
    """Runs the local steps of one round of `study` at one site.

    Raises:
        ProtocolError: the study does not include the site.
        ConfigError: a device, task, model or DP plan that this installation cannot run.
    """

    def __init__(
        self,
        study: StudySpec,
        site_id: SiteId,
        *,
        sampling: RandomSource,
        noise: RandomSource,
        flags: PerformanceFlags,
    ) -> None:
        self._study = study
        self._plan = _site_plan(study, site_id)
        self._task = task_of(study)
        self._device = _device(flags.device)
        self._sampling = sampling
        self._noise = noise
        self._flags = flags

    def train(
        self,
        weights: Tensors,
        records: PatientRecords,
        *,
        round_number: int | None = None,
        correction: Tensors | None = None,
    ) -> TrainedUpdate:
        """The weights after `local_steps` steps of DP-SGD from `weights`.

        `round_number` (1..) is needed where the study has a schedule: the rate depends on it.
        `correction`, by name, is added to every noisy gradient (SCAFFOLD). Records without a label
        get one of `weights`, or have no part (`with_pseudo_labels`).

        The model is checked on made-up records before `records` are touched, and once more
        afterwards that nothing but the trained parameters has changed.

        Raises:
            ModelRefused: the model cannot have a patient-level guarantee.
            ProtocolError: `weights` are not the finite weights of the study's model.
            DataError: `records` are not grouped by patient.
            ConfigError: the weights overflowed; the study's learning rate is too high. Or a
                schedule, and no number of the round.
        """
        rates = self._rates(round_number)
        model, engine = self._prepared(weights)
        records = with_pseudo_labels(self._study, weights, records)
        untrained = untrained_state(model)
        patients = PatientTensors.from_records(records, device=self._device)
        self._descend(model, engine, patients, correction or {}, rates=rates)
        check_untrained_state(model, before=untrained)
        return TrainedUpdate(tensors=_finite(model), executed=_executed(engine))

    def integer_sum(
        self, weights: Tensors, records: PatientRecords, *, grid: FixedPoint
    ) -> IntegerSum:
        """One draw's clipped gradients on `grid`, added up, without noise: for the guard alone.

        The model is checked as in `train`, and after the step that it has not changed at all.

        Raises:
            ModelRefused, ProtocolError, DataError: as `train`.
        """
        model, engine = self._prepared(weights)
        records = with_pseudo_labels(self._study, weights, records)
        before = model_tensors(model)
        patients = PatientTensors.from_records(records, device=self._device)
        total = engine.integer_sum(patients, grid.quantise)
        after = model_tensors(model)
        if any(not np.array_equal(before[name], after[name]) for name in before):
            raise ModelRefused("model: expected a gradient to change nothing, found it otherwise")
        trained = trainable_parameters(model)
        ends = np.cumsum([parameter.numel() for parameter in trained.values()])
        parts = dict(zip(trained, np.split(total, ends[:-1]), strict=True))
        # A tensor without a gradient (a buffer) adds zeros.
        names = [name for name, _ in summed(self._study, {n: a.shape for n, a in before.items()})]
        vector = [parts.get(name, np.zeros(before[name].size, np.int64)) for name in names]
        return IntegerSum(vector=np.concatenate(vector), executed=_executed(engine))

    def _prepared(self, weights: Tensors) -> tuple[nn.Module, PatientDpEngine]:
        """The checked model with `weights`, and a fresh engine for it."""
        model = build_model(self._study.model, self._task.inputs).to(self._device).train()
        freeze(model, self._study.training)
        check_kept(model, self._study)
        examples = with_chance(self._task.examples(device=self._device), self._study.model.sampled)
        check_model(model, loss=self._task.losses, examples=examples)
        steps = self._study.rounds * self._study.local_steps
        back_end = choose_back_end(
            self._flags.backend,
            model,
            loss=self._task.losses,
            examples=examples,
            load=Load(
                most_records=self._plan.most_records,
                max_records_per_chunk=self._flags.max_records_per_chunk,
                patients_drawn=self._plan.denominator * steps,
                study=self._study.digest,
            ),
            precision=self._flags.precision,
            replicas=self._flags.replicas,
        )
        load_weights(model, weights)
        engine = PatientDpEngine(
            back_end,
            self._plan,
            parameters=sum(p.numel() for p in trainable_parameters(model).values()),
            sampling=self._sampling,
            noise=self._noise,
            max_records_per_chunk=self._flags.max_records_per_chunk,
        )
        return model, engine

    def _descend(
        self,
        model: nn.Module,
        engine: PatientDpEngine,
        patients: PatientTensors,
        correction: Tensors,
        *,
        rates: Sequence[float],
    ) -> None:
        trained = trainable_parameters(model)
        fixed = [torch.tensor(correction[name]) for name in trained] if correction else []
        descent = LocalDescent(self._study, list(trained.values()), correction=fixed)
        gradient: torch.Tensor | None = None
        for rate in rates:
            gradient = engine.step(patients, into=gradient)
            descent.step(gradient, rate=rate)

    def _rates(self, round_number: int | None) -> list[float]:
        """The learning rate of each local step."""
        if round_number is None and self._study.training.schedule is not None:
            raise ConfigError("training.schedule: expected the number of the round, found none")
        steps = range(self._study.local_steps)
        return [self._study.learning_rate(round_number or 1, step) for step in steps]


def _site_plan(study: StudySpec, site_id: SiteId) -> PatientDpPlan:
    site, dp = study.site(site_id), study.dp
    if site is None:
        raise ProtocolError(f"study {study.id}: expected to find site {site_id} in it, found none")
    if not isinstance(dp, DpSgd):
        raise ConfigError(f"study {study.id}: expected dp of kind dp-sgd, found {dp.kind}")
    jitter = study.training.jitter
    return PatientDpPlan(
        noise_multiplier=dp.noise_multiplier,
        clip_norm=dp.clip_norm,
        sampling_probability=dp.sampling_probability,
        max_records_per_patient=dp.max_records_per_patient,
        public_patients=site.patients,
        clipping=dp.clipping,
        copies=1 if jitter is None else jitter.copies,
        jitter=0.0 if jitter is None else jitter.scale,
        shift=0 if jitter is None else jitter.shift,
        augment=() if jitter is None else jitter.augment,
        image=_image(study),
        sampled=study.model.sampled,
    )


def _image(study: StudySpec) -> tuple[int, int]:
    """Height and width of the study's images; of nothing else can pixels move."""
    jitter = study.training.jitter
    if jitter is not None and jitter.augment and not isinstance(study.data, Pictures):
        raise ConfigError(
            f"training.jitter.augment: expected images with it, found {study.data.kind}"
        )
    if isinstance(study.data, ImageData) and not study.data.depth:
        return study.data.height, study.data.width
    if jitter is not None and jitter.moves:
        what = "shift" if jitter.shift else "augment"
        raise ConfigError(
            f"training.jitter.{what}: expected flat images with it, found {study.data.kind}"
        )
    return 0, 0


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected 'cpu' or 'cuda', found {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: found 'cuda' but no usable GPU; set device = 'cpu' in site.toml")
    return torch.device(name)


def _executed(engine: PatientDpEngine) -> ExecutedPlan:
    plan = engine.plan
    return ExecutedPlan(
        steps=engine.steps,
        noise_multiplier=plan.noise_multiplier,
        clip_norm=plan.clip_norm,
        sampling_probability=plan.sampling_probability,
        denominator=plan.denominator,
    )


def _finite(model: nn.Module) -> dict[str, Array]:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise ConfigError(
            "training.learning_rate: expected one that keeps the weights finite, found one that "
            "does not; choose a smaller learning rate or clip_norm"
        )
    return model_tensors(model)
