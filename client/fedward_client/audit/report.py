"""What an audit found: values, as one JSON object, and as text for the person on duty."""

import math
import textwrap
from dataclasses import dataclass
from typing import Any, Literal

from fedward_common.ids import Digest, SiteId

Layer = Literal[1, 2, 3]

SCOPE = (
    "Made-up patients only: no real patient was read, nothing was charged, nothing left this site."
)
LIMITS = (
    "Passing proves what each line says and no more. It is not a bound on epsilon: the accountant "
    "gives that, and it holds for the plan that these findings compare the code with."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One measurement against its bound.

    `measured` may be infinite (a probe that left the numbers), never NaN. `false_alarm` is the
    chance that a healthy study fails this finding: 0 where no chance takes part.
    """

    name: str
    layer: Layer
    passed: bool
    measured: float
    bound: float
    unit: str
    proves: str
    does_not_prove: str
    false_alarm: float = 0.0

    @classmethod
    def at_most(
        cls,
        name: str,
        measured: float,
        bound: float,
        *,
        layer: Layer,
        unit: str,
        proves: str,
        does_not_prove: str,
        false_alarm: float = 0.0,
    ) -> "Finding":
        """A finding that passes when `measured` is at most `bound`; NaN never passes."""
        found = math.inf if math.isnan(measured) else float(measured)
        return cls(
            name=name,
            layer=layer,
            passed=found <= bound,
            measured=found,
            bound=float(bound),
            unit=unit,
            proves=proves,
            does_not_prove=does_not_prove,
            false_alarm=false_alarm,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditReport:
    """All findings of one audit of one study on one site's installation."""

    study: str
    digest: Digest
    site: SiteId
    backend: str
    device: str
    noise_steps: int
    findings: tuple[Finding, ...]
    not_tried: tuple[str, ...] = ()
    """What could not be tried on this study, by name and with the reason."""
    model: str | None = None
    """SHA-256 of the released model that everything started from; None: the study's own start."""

    @property
    def passed(self) -> bool:
        """Whether every finding passed; a single one that failed fails the audit."""
        return bool(self.findings) and all(finding.passed for finding in self.findings)

    @property
    def false_alarm(self) -> float:
        """At most this is the chance that a healthy study fails (the sum over findings)."""
        return sum(finding.false_alarm for finding in self.findings)


def audit_json(report: AuditReport) -> dict[str, Any]:
    """The JSON object of `report`; a number that is not finite is null."""
    return {
        "study": report.study,
        "digest": report.digest,
        "model_sha256": report.model,
        "site": report.site,
        "backend": report.backend,
        "device": report.device,
        "noise_steps": report.noise_steps,
        "passed": report.passed,
        "false_alarm": report.false_alarm,
        "real_patients_read": 0,
        "charged": False,
        "scope": SCOPE,
        "limits": LIMITS,
        "not_tried": list(report.not_tried),
        "findings": [
            {
                "name": finding.name,
                "layer": finding.layer,
                "passed": finding.passed,
                "measured": finding.measured if math.isfinite(finding.measured) else None,
                "bound": finding.bound,
                "unit": finding.unit,
                "proves": finding.proves,
                "does_not_prove": finding.does_not_prove,
                "false_alarm": finding.false_alarm,
            }
            for finding in report.findings
        ],
    }


def audit_text(report: AuditReport) -> str:
    """`report` as lines of at most 100 characters, failed findings marked."""
    failed = [finding.name for finding in report.findings if not finding.passed]
    lines = [
        f"Audit of study {report.study} ({report.digest[:16]}...) at site {report.site}",
        *([] if report.model is None else [f"starting from the model {report.model[:16]}..."]),
        f"back end {report.backend} on {report.device}",
        *_wrapped(SCOPE),
    ]
    for finding in report.findings:
        verdict = "pass" if finding.passed else "FAIL"
        lines += [
            "",
            f"[{verdict}] {finding.name} (layer {finding.layer})",
            *_wrapped(
                f"measured {finding.measured:.6g}, bound {finding.bound:.6g} ({finding.unit})",
                indent=4,
            ),
            *_wrapped(f"Shows: {finding.proves}", indent=4),
            *_wrapped(f"Does not show: {finding.does_not_prove}", indent=4),
        ]
    for gap in report.not_tried:
        lines += ["", *_wrapped(f"[not tried] {gap}")]
    verdict = f"FAILED: {', '.join(failed)}. Do not approve this study." if failed else "PASSED."
    lines += ["", *_wrapped(verdict), *_wrapped(LIMITS)]
    if report.false_alarm > 0:
        lines += _wrapped(
            f"A healthy study fails by chance with probability at most {report.false_alarm:.1e}. A "
            f"failure that comes back on a second run is not chance."
        )
    return "\n".join(lines)


def _wrapped(text: str, *, indent: int = 0) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(text, width=100, initial_indent=margin, subsequent_indent=margin)
