"""The privacy audit of a study or of a released model at one site, layers 1 to 3.

It measures what the code does and compares it with what the signed study declares, before a site
approves. It works on made-up patients only, so it costs no privacy and may run at any time. No
import here has effects.
"""

from dataclasses import dataclass

from fedward_client.audit.canaries import canary_findings
from fedward_client.audit.inversion import inversion_findings, why_not_tried
from fedward_client.audit.noise import (
    MINIMUM_STEPS,
    block_findings,
    noise_findings,
    run_block_steps,
    run_noise_steps,
)
from fedward_client.audit.report import AuditReport, Finding, audit_json, audit_text
from fedward_client.audit.sensitivity import (
    AuditPorts,
    StepProbe,
    probe_loader,
    probe_sensitivity,
)
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.arrays import Tensors
from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec

__all__ = [
    "AuditPorts",
    "AuditReport",
    "Finding",
    "ReleasedModel",
    "audit_json",
    "audit_study",
    "audit_text",
]

DEFAULT_NOISE_STEPS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasedModel:
    """The weights of a model package that was proven whole, and its digest."""

    weights: Tensors
    sha256: str


def audit_study(
    study: StudySpec,
    site: SiteId,
    *,
    flags: PerformanceFlags,
    noise_steps: int = DEFAULT_NOISE_STEPS,
    canaries: bool = False,
    ports: AuditPorts | None = None,
    model: ReleasedModel | None = None,
) -> AuditReport:
    """What the layers find about `study` as this installation would run it at `site`.

    With `model` every layer starts from its weights, as one more round of the study would.

    1. The loader, on made-up rows within and far beyond the study's ranges.
    2. The model and the loss, by the trainer's own check; where it refuses, nothing more runs.
    3. Sensitivity of a step: add or remove one patient, replace one, faulty patients.
    4. Noise-only steps of the trainer, read from the encoded update.
    5. The audit block: canaries through sampling, clipping and noise of the engine.
    6. With `canaries`: one whole training run with canaries, and gradient inversion (layer 3).

    No real patient is read and nothing is charged. A healthy study fails by chance with
    probability `AuditReport.false_alarm`, below 1e-4.

    Raises:
        ConfigError: the study does not include the site, this installation cannot run it, or
            `noise_steps` are too few to say anything.
    """
    if noise_steps < MINIMUM_STEPS:
        raise ConfigError(f"noise steps: expected {MINIMUM_STEPS} or more, found {noise_steps}")
    ports = AuditPorts() if ports is None else ports
    weights = None if model is None else model.weights
    probe = StepProbe(study, site, flags=flags, ports=ports, weights=weights)
    findings, loaded = probe_loader(study, ports.loader)
    not_tried: tuple[str, ...] = ()
    try:
        sensitivity = probe_sensitivity(probe, loaded)
        noise = noise_findings(run_noise_steps(probe, ports, steps=noise_steps), probe)
        block = block_findings(run_block_steps(study, probe, flags=flags, ports=ports), probe)
        findings += [_model_and_loss(None), *sensitivity, *noise, *block]
        if canaries:
            findings += canary_findings(study, site, probe=probe, flags=flags, ports=ports)
            findings += inversion_findings(study, probe=probe, ports=ports)
            not_tried = why_not_tried(probe)
    except ModelRefused as refusal:
        findings.append(_model_and_loss(refusal))
    return AuditReport(
        study=study.id,
        digest=study.digest,
        site=site,
        backend=flags.backend,
        device=flags.device,
        noise_steps=noise_steps,
        findings=tuple(findings),
        not_tried=not_tried,
        model=None if model is None else model.sha256,
    )


def _model_and_loss(refusal: ModelRefused | None) -> Finding:
    reason = f"; {refusal} - nothing further was measured" if refusal else ""
    return Finding.at_most(
        "model-and-loss",
        0.0 if refusal is None else 1.0,
        0.0,
        layer=1,
        unit=f"refusals by the trainer's own check{reason}",
        proves="the model keeps patients apart and the loss is one number for each record.",
        does_not_prove="what a model does on inputs that the check and the probes do not try.",
    )
