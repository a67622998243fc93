"""Layer 3 of the audit, part one: canaries in one training run, to see what epsilon really allows.

Two kinds. Coordinates of their own in the engine, for as many steps as the study takes: the
strongest canary there is, and the noise alone stands against it. Mislabelled patients among
ordinary ones, in the study's own trainer from its first to its last round: what somebody sees who
has the model alone. All are made up. It fails only when a run proves more than the study claims.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from fedward_client.audit.one_run import CONFIDENCE, DOUBT, OneRun, judge
from fedward_client.audit.report import Finding
from fedward_client.audit.sensitivity import AuditPorts, Patient, StepProbe
from fedward_client.tasks.tabular_classification import TabularClassificationTask
from fedward_client.training.patient_dp.back_end import Chunk
from fedward_client.training.patient_dp.plan import PatientTensors
from fedward_client.training.trainer import PerformanceFlags
from fedward_client.training.weights import load_weights
from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model
from fedward_common.privacy.accounting import epsilon_pld
from fedward_common.privacy.mechanism import training_event
from fedward_common.privacy.randomness import Float64Array, RandomSource
from fedward_common.study.spec import StudySpec

Members = npt.NDArray[np.bool_]

BLOCK_CANARIES = 2048
PATIENT_CANARIES = 128
AUDIT_DELTA = 1e-8
MOST_STEPS = 2000
"""Steps that are audited; a longer study is compared with what it claims for so many."""
NOTHING = (
    "that epsilon is as small as claimed: a bound below the claim proves nothing, and stronger "
    "attacks than these may exist."
)


def canary_findings(
    study: StudySpec, site: SiteId, *, probe: StepProbe, flags: PerformanceFlags, ports: AuditPorts
) -> list[Finding]:
    """The findings of one run with canaries of both kinds."""
    rounds = max(1, min(study.rounds, MOST_STEPS // study.local_steps))
    local = min(study.local_steps, MOST_STEPS)
    steps = rounds * local
    # The plan's epsilon holds at every delta. At a small one, luck of size delta times the number
    # of canaries cannot explain the guesses away.
    delta = AUDIT_DELTA
    claim = epsilon_pld(training_event(study.dp, steps=steps), delta=delta)
    block = judge(*_block_scores(probe, ports=ports, steps=steps), delta=delta)
    shortened = study.model_copy(update={"rounds": rounds, "local_steps": local})
    people = judge(
        *_patient_scores(shortened, site, probe=probe, flags=flags, ports=ports), delta=delta
    )
    return [
        _finding("canary-block", block, claim=claim, delta=delta, what="coordinates of their own"),
        _finding("canary-patients", people, claim=claim, delta=delta, what="mislabelled patients"),
    ]


def _finding(name: str, run: OneRun, *, claim: float, delta: float, what: str) -> Finding:
    estimate = f"{run.estimate:.2f}" if math.isfinite(run.estimate) else "unbounded"
    return Finding.at_most(
        name,
        run.proven,
        claim,
        layer=3,
        unit=f"epsilon at delta {delta:g} that one run proves beyond doubt; its {CONFIDENCE:.0%} "
        f"lower bound is {run.lower_bound:.3g}, with {run.canaries} canaries ({what}) and "
        f"{run.right} of {run.guessed} guesses right; a Gaussian fitted to the scores: {estimate}",
        proves="one run of this code does not give away more than the study claims.",
        does_not_prove=NOTHING,
        false_alarm=DOUBT,
    )


class _Coordinates:
    """A back end on which patient p has the gradient C on coordinate p and nothing else."""

    def __init__(self, *, count: int, size: float) -> None:
        self._count, self._size = count, size

    def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
        """One block [patients, count]."""
        firsts = torch.cumsum(chunk.sizes, dim=0) - chunk.sizes
        rows = torch.zeros((len(chunk.sizes), self._count), dtype=torch.float64)
        rows[range(len(chunk.sizes)), chunk.labels.cpu()[firsts].to(torch.int64)] = self._size
        yield rows


def _members(source: RandomSource, count: int) -> Members:
    """Who takes part: each with probability 1/2 and by itself, or the bound would not hold."""
    return source.uniform(count) < 0.5


def _block_scores(
    probe: StepProbe, *, ports: AuditPorts, steps: int
) -> tuple[Float64Array, Members]:
    """What each coordinate added up to over all steps, and whose patient took part."""
    took_part = _members(ports.sampling, BLOCK_CANARIES)
    inside = np.flatnonzero(took_part)
    people = PatientTensors(
        features=torch.zeros((len(inside), 1)),
        labels=torch.from_numpy(inside.astype(np.float32)),
        starts=np.arange(len(inside) + 1, dtype=np.int64),
    )
    engine = ports.engine(
        _Coordinates(count=BLOCK_CANARIES, size=probe.plan.clip_norm),
        # These records are no images.
        replace(probe.plan, copies=1, jitter=0.0, shift=0, augment=()),
        parameters=BLOCK_CANARIES,
        sampling=ports.sampling,
        noise=ports.noise,
        max_records_per_chunk=BLOCK_CANARIES,
    )
    total = np.zeros(BLOCK_CANARIES)
    for _ in range(steps):
        total += engine.step(people).numpy()
    return total, took_part


def _patient_scores(
    study: StudySpec, site: SiteId, *, probe: StepProbe, flags: PerformanceFlags, ports: AuditPorts
) -> tuple[Float64Array, Members]:
    """By how much each canary's loss fell from the first to the last model of a run at one site."""
    took_part = _members(ports.sampling, PATIENT_CANARIES)
    examples = probe.task.examples(device=torch.device("cpu"))
    canaries = [_one(examples(1), label) for label in ports.sampling.uniform(PATIENT_CANARIES)]
    classes = isinstance(probe.task, TabularClassificationTask)
    ordinary = [
        _one(examples(1), None) if classes else _as_made_up(examples(1))
        for _ in range(min(probe.plan.public_patients, 200))
    ]
    chosen = [canary for canary, inside in zip(canaries, took_part, strict=True) if inside]
    records = probe.records([*ordinary, *chosen])
    trainer = ports.trainer(study, site, sampling=ports.sampling, noise=ports.noise, flags=flags)
    weights: Tensors = probe.start
    for number in range(1, study.rounds + 1):
        weights = trainer.train(weights, records, round_number=number).tensors
    fell = _losses(study, probe, probe.start, canaries) - _losses(study, probe, weights, canaries)
    return np.nan_to_num(fell), took_part


def _one(example: tuple[torch.Tensor, torch.Tensor], uniform: float | None) -> Patient:
    features, labels = example[0].numpy(), example[1].numpy()
    if uniform is None:
        # A rule that can be learned, so that the canaries' labels are the odd ones out.
        return features, (features.reshape(1, -1)[:, :1].mean(axis=1) > 0).astype(np.float32)
    return features, np.full_like(labels, float(uniform < 0.5))


def _as_made_up(example: tuple[torch.Tensor, torch.Tensor]) -> Patient:
    return example[0].numpy(), example[1].numpy()


def _losses(
    study: StudySpec, probe: StepProbe, weights: Tensors, people: list[Patient]
) -> Float64Array:
    model = build_model(study.model, probe.inputs).eval()
    load_weights(model, weights)
    features = torch.from_numpy(np.concatenate([x for x, _ in people]))
    labels = torch.from_numpy(np.concatenate([y for _, y in people]))
    with torch.inference_mode():
        return probe.task.losses(model(features), labels).to(torch.float64).numpy()
