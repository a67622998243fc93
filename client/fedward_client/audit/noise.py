"""Layer 2 of the audit: that the noise is the declared noise, and what it is added to.

Two instruments. Noise-only steps: the study's own trainer on nobody, read from the bytes that would
leave. The audit block: extra coordinates beside the model's, one for each made-up canary, that pass
the real sampling, clipping and noise, so that who was drawn, what was clipped and what was added
can be told apart.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch

from fedward_client.audit.report import Finding
from fedward_client.audit.sensitivity import AuditPorts, Quiet, StepProbe
from fedward_client.tasks.made_up import with_chance
from fedward_client.training.patient_dp.back_end import BackEnd, Chunk, trainable_parameters
from fedward_client.training.patient_dp.choice import Load, choose_back_end
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_client.training.trainer import ExecutedPlan, PerformanceFlags
from fedward_common.privacy.randomness import Float64Array, RandomSource
from fedward_common.study.spec import StudySpec

NOISE_ERRORS = 4.0
"""Standard errors by which the scale of the noise may be off: 6.3e-5 of healthy audits."""
OTHER_ERRORS = 4.6
"""The same for every other statistic, so that all together stay below 1e-4: 4.2e-6 each."""
MINIMUM_STEPS = 16

_CANARIES, _BLOCK_STEPS = 256, 8
_FIRST_CANARY = -float(1 << 20)
"""The label of canary 0, below every day of a follow-up and every other label; exact in float32."""
_CANARY_SIZE = 10.0
"""Canaries arrive at this many times C and must leave at C."""
_KEPT_NUMBERS = 1 << 15
_BLOCK_ELEMENTS = 1 << 20


def two_sided(errors: float) -> float:
    """The chance that a normal number is more than `errors` standard deviations off."""
    return math.erfc(errors / math.sqrt(2.0))


@dataclass(slots=True)
class NoiseSteps:
    """What noise-only steps added, in units of the declared standard deviation."""

    squares: Float64Array
    """Per parameter, the sum of squares over all steps."""
    steps: int = 0
    lagged: float = 0.0
    """The sum over parameters and steps of a number times the one of the step before."""
    kept: list[Float64Array] = field(default_factory=list)
    """Evenly spread parameters of each step, at most 32768 numbers in all."""
    executed: set[ExecutedPlan] = field(default_factory=set)

    @property
    def ratio(self) -> float:
        """Measured over declared standard deviation; infinite where the numbers overflowed."""
        ratio = math.sqrt(float(self.squares.sum()) / (self.steps * self.squares.size))
        return ratio if math.isfinite(ratio) else math.inf


def run_noise_steps(probe: StepProbe, ports: AuditPorts, *, steps: int) -> NoiseSteps:
    """`steps` steps of the study's trainer on nobody, each a round of its own."""
    trainer = probe.trainer(sampling=ports.sampling, noise=ports.noise)
    nobody = probe.records([])
    width = probe.parameters
    shown = np.linspace(0, width - 1, min(width, max(1, _KEPT_NUMBERS // steps))).astype(np.int64)
    seen, before = NoiseSteps(squares=np.zeros(width)), np.zeros(width)
    for _ in range(steps):
        moved, update = probe.run(trainer, probe.start, nobody)
        numbers = moved / probe.plan.noise_multiplier
        seen.squares += numbers**2
        seen.lagged += float(numbers @ before)
        seen.kept.append(numbers[shown])
        seen.executed.add(update.executed)
        seen.steps, before = seen.steps + 1, numbers
    return seen


def noise_findings(seen: NoiseSteps, probe: StepProbe) -> list[Finding]:
    """The findings about the noise-only steps."""
    steps, width = seen.steps, seen.squares.size
    drawn = f"{steps} steps of {width} numbers"
    total = float(seen.squares.sum())
    correlation = abs(seen.lagged) / total * math.sqrt((steps - 1) * width) if total else math.inf
    extremes = (float(seen.squares.min()), float(seen.squares.max()))
    worst = max(abs(_scale_error(squares, steps)) for squares in extremes)
    return [
        _declared_plan(seen, probe.plan),
        Finding.at_most(
            "noise-scale",
            abs(_scale_error(total, steps * width)),
            NOISE_ERRORS,
            layer=2,
            unit=f"standard errors off; the noise is {seen.ratio:.4f} times sigma C, from {drawn}",
            proves="the update that would leave, as bytes, carries noise of sigma C per step, to "
            "the precision of the standard error.",
            does_not_prove="that the noise cannot be predicted: a seeded source has this scale.",
            false_alarm=two_sided(NOISE_ERRORS),
        ),
        Finding.at_most(
            "noise-everywhere",
            worst,
            _among(width),
            layer=2,
            unit=f"standard errors off at the worst of {width} parameters",
            proves="every parameter by itself gets the noise; no layer is left out.",
            does_not_prove=f"a small error at one parameter: it was drawn {steps} times only.",
            false_alarm=two_sided(OTHER_ERRORS),
        ),
        Finding.at_most(
            "noise-fresh",
            correlation,
            OTHER_ERRORS,
            layer=2,
            unit="standard errors of the correlation between a round and the next",
            proves="noise is not used twice in a row.",
            does_not_prove="that it never repeats later or at another site.",
            false_alarm=two_sided(OTHER_ERRORS),
        ),
        Finding.at_most(
            "noise-shape",
            _kolmogorov(np.concatenate(seen.kept)),
            _KOLMOGOROV_BOUND,
            layer=2,
            unit="Kolmogorov-Smirnov distance to the normal curve, times the root of the count",
            proves="the noise has the shape of a Gaussian.",
            does_not_prove="its far tails, of which a run of this length shows nothing.",
            false_alarm=two_sided(OTHER_ERRORS),
        ),
    ]


def _declared_plan(seen: NoiseSteps, plan: PatientDpPlan) -> Finding:
    declared = ExecutedPlan(
        steps=1,
        noise_multiplier=plan.noise_multiplier,
        clip_norm=plan.clip_norm,
        sampling_probability=plan.sampling_probability,
        denominator=plan.denominator,
    )
    return Finding.at_most(
        "declared-plan",
        len(seen.executed - {declared}),
        0.0,
        layer=2,
        unit="plans that ran and are not the signed study's",
        proves="the trainer ran the study's noise multiplier, clip norm, sampling probability and "
        "denominator, one step for one step charged.",
        does_not_prove="that the code does what its plan says; the other findings look.",
    )


class CanaryBackEnd:
    """A back end with a block of extra coordinates behind those of `inner`.

    A patient whose labels are `_FIRST_CANARY` - j is canary j: nothing in the model's coordinates,
    10 C in coordinate j of the block. Every other patient is `inner`'s, with nothing in the block.
    """

    def __init__(self, inner: BackEnd, *, width: int, size: float) -> None:
        self._inner, self._width, self._size = inner, width, size
        self.drawn: dict[int, int] = {}
        """The canaries of the calls since `drawn` was last cleared, with their records."""

    def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
        """Blocks [patients, width + canaries]; canaries come after all other patients."""
        firsts = torch.cumsum(chunk.sizes, dim=0) - chunk.sizes
        # Of a label of many numbers (a mask, tags) all are the canary's.
        owners = chunk.labels.cpu()[firsts]
        owners = owners if owners.ndim == 1 else owners.flatten(1)[:, 0]
        people = int((owners > _FIRST_CANARY).sum())
        if people:
            records = int(chunk.sizes[:people].sum())
            ordinary = Chunk(
                features=chunk.features[:records],
                labels=chunk.labels[:records],
                sizes=chunk.sizes[:people],
            )
            for rows in self._inner.patient_gradients(ordinary):
                yield torch.nn.functional.pad(rows.to(torch.float64), (0, _CANARIES))
        numbers = (_FIRST_CANARY - owners[people:]).to(torch.int64).tolist()
        self.drawn.update(zip(numbers, chunk.sizes[people:].tolist(), strict=True))
        at_once = max(1, _BLOCK_ELEMENTS // (self._width + _CANARIES))
        for first in range(0, len(numbers), at_once):
            some = numbers[first : first + at_once]
            block = torch.zeros((len(some), self._width + _CANARIES), dtype=torch.float64)
            block[range(len(some)), [self._width + number for number in some]] = self._size
            yield block.to(chunk.features.device)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockSteps:
    """What the audit block showed, in units of C; rows are steps, columns canaries."""

    exact: Float64Array
    """A step in which everybody is drawn and nothing is added."""
    noisy: Float64Array
    drawn: npt.NDArray[np.bool_]
    most_records: int


def run_block_steps(
    study: StudySpec, probe: StepProbe, *, flags: PerformanceFlags, ports: AuditPorts
) -> BlockSteps:
    """Steps of the real engine on six ordinary patients and 256 canaries, all made up."""
    device, task = torch.device(flags.device), probe.task
    model = probe.model().to(device)
    inner = choose_back_end(
        flags.backend,
        model,
        loss=task.losses,
        examples=with_chance(task.examples(device=device), study.model.sampled),
        load=Load(
            most_records=probe.plan.most_records,
            max_records_per_chunk=flags.max_records_per_chunk,
            patients_drawn=probe.plan.denominator * study.rounds * study.local_steps,
            study=study.digest,
        ),
        precision=flags.precision,
        replicas=flags.replicas,
    )
    width = sum(p.numel() for p in trainable_parameters(model).values())
    back_end = CanaryBackEnd(inner, width=width, size=_CANARY_SIZE * probe.plan.clip_norm)
    people = _with_canaries(probe, device=device)

    def steps(count: int, *, sampling: RandomSource, noise: RandomSource) -> _Rows:
        engine = ports.engine(
            back_end,
            probe.plan,
            parameters=width + _CANARIES,
            sampling=sampling,
            noise=noise,
            max_records_per_chunk=flags.max_records_per_chunk,
        )
        values, drawn, most = [], np.zeros((count, _CANARIES), dtype=np.bool_), 0
        for number in range(count):
            back_end.drawn.clear()
            total = engine.step(people) * (probe.plan.denominator / probe.plan.clip_norm)
            values.append(total[width:].cpu().numpy())
            drawn[number, list(back_end.drawn)] = True
            most = max(most, *back_end.drawn.values(), 0)
        return _Rows(values=np.stack(values), drawn=drawn, most=most)

    exact = steps(1, sampling=Quiet(), noise=Quiet())
    noisy = steps(_BLOCK_STEPS, sampling=ports.sampling, noise=ports.noise)
    return BlockSteps(
        exact=exact.values,
        noisy=noisy.values,
        drawn=noisy.drawn,
        most_records=max(exact.most, noisy.most),
    )


def block_findings(seen: BlockSteps, probe: StepProbe) -> list[Finding]:
    """The findings about the audit block."""
    q, sigma = probe.plan.sampling_probability, probe.plan.noise_multiplier
    count = seen.drawn.size
    off, spread = abs(int(seen.drawn.sum()) - q * count), math.sqrt(count * q * (1.0 - q))
    # With q = 1 there is no chance left: everybody must be drawn.
    sampling = off / spread if spread > 0 else (0.0 if off == 0 else math.inf)
    residual = (seen.noisy - seen.drawn) / sigma
    contribution = float(np.max(np.abs(seen.exact)))
    block = f"{_CANARIES} canaries, {_BLOCK_STEPS} steps"
    return [
        Finding.at_most(
            "block-clip",
            contribution,
            1.0 + 1e-6,
            layer=2,
            unit=f"times C, the most that a canary of {_CANARY_SIZE:g} C left in the sum",
            proves="the engine clips a contribution that is known to be too large to C.",
            does_not_prove="that the model's gradients are right; layer 1 probes those.",
        ),
        Finding.at_most(
            "block-records",
            seen.most_records,
            probe.plan.most_records,
            layer=2,
            unit="records of one canary in a step, copies included",
            proves="a patient with more records than the study takes enters with no more.",
            does_not_prove="anything about privacy by itself: the clip bounds a patient.",
        ),
        Finding.at_most(
            "block-sampling",
            sampling,
            OTHER_ERRORS,
            layer=2,
            unit=f"standard errors off in how many were drawn, {block}",
            proves="patients are drawn with the study's probability, which epsilon rests on.",
            does_not_prove="that draws of different patients or steps are independent.",
            false_alarm=two_sided(OTHER_ERRORS) if spread > 0 else 0.0,
        ),
        Finding.at_most(
            "block-noise",
            abs(_scale_error(float(np.square(residual).sum()), count)),
            OTHER_ERRORS,
            layer=2,
            unit=f"standard errors off, {block}, after taking out who was drawn",
            proves="steps with patients in them carry the same noise as steps on nobody.",
            does_not_prove="that the noise cannot be predicted.",
            false_alarm=two_sided(OTHER_ERRORS),
        ),
    ]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Rows:
    values: Float64Array
    drawn: npt.NDArray[np.bool_]
    most: int


def _with_canaries(probe: StepProbe, *, device: torch.device) -> PatientTensors:
    """Six ordinary patients, then the canaries, of which the first has one record too many."""
    features, labels = probe.task.examples(device=device)(6)
    owned = np.ones(_CANARIES, dtype=np.int64)
    owned[0] = probe.plan.max_records_per_patient + 1
    names = torch.from_numpy(np.repeat(_FIRST_CANARY - np.arange(_CANARIES), owned)).to(labels)
    names = names.reshape(-1, *(1 for _ in labels.shape[1:])).expand(-1, *labels.shape[1:])
    empty = torch.zeros((len(names), *features.shape[1:]), device=device)
    sizes = np.concatenate([np.ones(6, dtype=np.int64), owned])
    return PatientTensors(
        features=torch.cat([features, empty]),
        labels=torch.cat([labels, names]),
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )


def _scale_error(squares: float, count: int) -> float:
    """How many standard errors a sum of `count` squared standard normals is off.

    Source: Wilson & Hilferty 1931, the cube root of a chi-square is nearly normal. From 16 numbers
    up, being 4 or more errors off is at most as likely as for a normal number (0.73 times as likely
    at 16, 0.97 at 128), so the false alarm that is stated is not exceeded.
    """
    variance = 2.0 / (9.0 * count)
    return float((np.cbrt(squares / count) - (1.0 - variance)) / math.sqrt(variance))


def _among(count: int) -> float:
    """The bound in standard errors that the worst of `count` numbers keeps as one keeps OTHER."""
    return -NormalDist().inv_cdf(two_sided(OTHER_ERRORS) / (2.0 * count))


_KOLMOGOROV_BOUND = math.sqrt(-0.5 * math.log(two_sided(OTHER_ERRORS) / 2.0))


def _kolmogorov(numbers: Float64Array) -> float:
    """The distance of `numbers` from a normal curve of their own scale, times root of the count.

    Fitting the scale makes it smaller, so that the bound is on the safe side of false alarms.
    Source: Kolmogorov 1933; P(distance > x) is at most 2 exp(-2 x^2) (Massart 1990).
    """
    scale = math.sqrt(float(np.mean(np.square(numbers))))
    if not (math.isfinite(scale) and scale > 0):
        return math.inf
    curve = torch.special.ndtr(torch.from_numpy(np.sort(numbers / scale))).numpy()
    grid = np.arange(len(curve) + 1) / len(curve)
    distance = max(np.max(grid[1:] - curve), np.max(curve - grid[:-1]))
    return float(distance * math.sqrt(len(curve)))
