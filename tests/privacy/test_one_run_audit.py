"""Layer 3 of the audit: bounds from one run, and what an update gives away.

Tests on whole runs use repeatable sources, so that they pass always or never.
"""

import math

import numpy as np
import pytest
import torch

from fedward_client.audit import AuditReport, audit_study, audit_text
from fedward_client.audit.canaries import _members
from fedward_client.audit.one_run import gaussian_epsilon, judge, lower_bound
from fedward_client.audit.sensitivity import AuditPorts
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.ids import SiteId
from tests.support.naive_dp import Repeatable
from tests.support.studies import load_example


@pytest.mark.parametrize(
    ("guesses", "bound"), [(50, 2.78), (100, 3.49), (500, 5.11), (1000, 5.81), (5000, 7.42)]
)
def test_all_guesses_right_prove_what_the_paper_says(guesses: int, bound: float) -> None:
    """At 95 % confidence and delta 0, (1 / 0.05)^(-1/r) is the chance of one right guess."""
    found = lower_bound(canaries=guesses, guessed=guesses, right=guesses, delta=0.0, error=0.05)
    one = 0.05 ** (1 / guesses)

    assert found == pytest.approx(bound, abs=0.01)
    assert found == pytest.approx(math.log(one / (1 - one)), abs=1e-6)


def test_chance_guesses_prove_nothing_and_delta_weakens_a_bound() -> None:
    exact = lower_bound(canaries=400, guessed=200, right=180, delta=0.0, error=0.05)
    weaker = lower_bound(canaries=400, guessed=200, right=180, delta=1e-4, error=0.05)

    assert lower_bound(canaries=400, guessed=200, right=100, delta=0.0, error=0.05) == 0.0
    assert 0 < weaker < exact


def test_the_bound_of_a_gaussian_mechanism_stays_below_its_epsilon() -> None:
    """Scores of a mechanism that is known exactly: mu = 1, epsilon 4.38 at delta 1e-5."""
    source = Repeatable(3)
    took_part = source.uniform(2000) < 0.5
    scores = source.normal(2000) + took_part

    run = judge(scores, took_part, delta=1e-5)

    assert gaussian_epsilon(1.0, delta=1e-5) == pytest.approx(4.377, abs=0.01)
    assert 0.3 < run.lower_bound < 4.38
    assert run.proven <= run.lower_bound
    assert run.gaussian_mu == pytest.approx(1.0, abs=0.15)


def test_every_canary_takes_part_by_a_fair_draw_of_its_own() -> None:
    """The theorem asks for it: two canaries whose side is known are two guesses for nothing.

    2,000 draws of four: a share has an SD of 1.1 %, a canary with a fixed side is 45 of them.
    """
    source = Repeatable(9)

    sides = np.array([_members(source, 4) for _ in range(2000)])

    assert np.abs(sides.mean(axis=0) - 0.5).max() < 0.06
    assert np.abs(np.corrcoef(sides.T) - np.eye(4)).max() < 0.12


class NoNoiseEngine(PatientDpEngine):
    """Forgets the noise."""

    def _draw_noise(self, device: torch.device) -> torch.Tensor:
        return torch.zeros(self._parameters, dtype=torch.float64, device=device)


def run_audit(engine: type[PatientDpEngine] = PatientDpEngine) -> AuditReport:
    study = load_example("breast-cancer", noise_multiplier=4.0)
    ports = AuditPorts(sampling=Repeatable(5), noise=Repeatable(6), engine=engine)
    site = SiteId(study.sites[0].id)
    return audit_study(
        study, site, flags=PerformanceFlags(), noise_steps=16, canaries=True, ports=ports
    )


def test_a_healthy_study_is_not_called_broken_and_the_estimate_is_near_the_claim() -> None:
    report = run_audit()
    layer = {finding.name: finding for finding in report.findings if finding.layer == 3}

    assert set(layer) == {"canary-block", "canary-patients", "gradient-inversion"}
    assert all(finding.passed for finding in layer.values())
    assert report.false_alarm < 1.1e-4
    estimate = float(layer["canary-block"].unit.rsplit(" ", 1)[1])
    assert estimate == pytest.approx(layer["canary-block"].bound, rel=0.25)
    assert "proves nothing" in audit_text(report)


def test_training_without_noise_is_proven_to_break_the_claim() -> None:
    report = run_audit(NoNoiseEngine)
    failed = {finding.name for finding in report.findings if not finding.passed}

    assert "canary-block" in failed


def test_a_clean_update_gives_a_patient_away_and_the_noised_one_does_not() -> None:
    report = run_audit()
    finding = next(f for f in report.findings if f.name == "gradient-inversion")

    assert "100% of patients from their own update" in finding.unit
    assert finding.measured == 0.0


def test_too_few_canaries_are_an_error() -> None:
    with pytest.raises(ValueError, match="16 canaries"):
        judge(np.zeros(8), np.arange(8) < 4, delta=1e-5)
