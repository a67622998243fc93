"""The audit's values, its JSON and its text, and what it refuses."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from fedward_client.audit import AuditReport, Finding, audit_json, audit_study, audit_text
from fedward_client.audit.made_up_rows import load_rows
from fedward_client.audit.noise import _FIRST_CANARY, CanaryBackEnd, _scale_error, two_sided
from fedward_client.audit.sensitivity import AuditPorts, StepProbe, probe_loader
from fedward_client.training.patient_dp.back_end import Chunk
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.errors import ConfigError
from fedward_common.ids import Digest, SiteId
from tests.support.studies import SITES, make_data, make_dp, make_spec

SITE = SiteId(SITES[0])


def make_finding(measured: float = 0.5, **changes: Any) -> Finding:
    texts = {"unit": "times C", "proves": "this.", "does_not_prove": "that."}
    return Finding.at_most("probe", measured, 1.0, **({"layer": 1} | texts | changes))


def make_report(*findings: Finding) -> AuditReport:
    return AuditReport(
        study="made-up",
        digest=Digest("a" * 64),
        site=SITE,
        backend="loop",
        device="cpu",
        noise_steps=16,
        findings=findings,
    )


@pytest.mark.parametrize(
    ("measured", "passed"), [(1.0, True), (1.1, False), (math.inf, False), (math.nan, False)]
)
def test_a_finding_passes_up_to_its_bound_and_never_on_nan(measured: float, passed: bool) -> None:
    assert make_finding(measured).passed is passed


def test_one_failed_finding_fails_the_audit_and_none_at_all_does_too() -> None:
    assert make_report(make_finding()).passed
    assert not make_report(make_finding(), make_finding(2.0)).passed
    assert not make_report().passed


def test_the_json_is_json_and_says_that_nothing_was_read_or_charged() -> None:
    report = make_report(make_finding(math.inf, false_alarm=1e-5))

    found = json.loads(json.dumps(audit_json(report), allow_nan=False))

    assert found["passed"] is False
    assert found["charged"] is False
    assert found["real_patients_read"] == 0
    assert found["false_alarm"] == 1e-5
    assert found["findings"][0]["measured"] is None
    assert found["findings"][0]["does_not_prove"] == "that."


def test_the_text_names_what_failed_and_what_passing_does_not_prove() -> None:
    text = audit_text(make_report(make_finding(2.0, unit="times C " * 20)))

    assert "no real patient was read, nothing was charged" in text
    assert "[FAIL] probe (layer 1)" in text
    assert "FAILED: probe. Do not approve this study." in text
    assert "Does not show: that." in text
    assert "not a bound on epsilon" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_site_outside_the_study_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a study with the site"):
        audit_study(make_spec(), SiteId("nowhere"), flags=PerformanceFlags())


def test_too_few_noise_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected 16 or more, found 3"):
        audit_study(make_spec(), SITE, flags=PerformanceFlags(), noise_steps=3)


def test_a_step_is_read_in_units_of_c_whatever_the_clip_norm_and_the_site_size() -> None:
    far = (np.full((1, 3), 1e4, np.float32), np.ones(1, np.float32))

    for clip_norm in (0.01, 50.0):
        study = make_spec(dp=make_dp(clip_norm=clip_norm))
        probe = StepProbe(study, SITE, flags=PerformanceFlags(), ports=AuditPorts())
        total = probe.exact_sum(probe.start, [far, far])

        assert np.linalg.norm(total) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize(
    "split", [{"kind": "hash", "salt": "s", "held_out": 0.9}, make_data()["split"]]
)
def test_made_up_rows_reach_training_under_every_kind_of_split(split: dict[str, Any]) -> None:
    study = make_spec(data=make_data(split=split), dp=make_dp(max_records_per_patient=4))

    findings, patients = probe_loader(study, load_rows)

    assert all(finding.passed for finding in findings)
    assert len(patients) >= 6
    assert max(len(labels) for _, labels in patients) == 3


class OneEach:
    """A back end whose gradient of a patient is its number of records in every coordinate."""

    def patient_gradients(self, chunk: Chunk) -> Any:
        yield chunk.sizes.unsqueeze(1).expand(-1, 2).float()


def test_canaries_and_patients_keep_to_their_own_coordinates() -> None:
    back_end = CanaryBackEnd(OneEach(), width=2, size=5.0)
    chunk = Chunk(
        features=torch.zeros(6, 3),
        labels=torch.tensor([1.0, 0.0, -900.0, *[_FIRST_CANARY] * 2, _FIRST_CANARY - 3]),
        sizes=torch.tensor([1, 2, 2, 1]),
    )

    rows = torch.cat(list(back_end.patient_gradients(chunk)))

    assert rows[:, :2].tolist() == [[1, 1], [2, 2], [0, 0], [0, 0]]
    assert rows[:, 2:].sum(dim=1).tolist() == [0, 0, 5, 5]
    assert (rows[2, 2 + 0], rows[3, 2 + 3]) == (5, 5)
    assert back_end.drawn == {0: 2, 3: 1}


@pytest.mark.parametrize("count", [16, 128, 4096])
@pytest.mark.parametrize("errors", [4.0, 4.6])
def test_the_stated_false_alarm_is_not_exceeded(count: int, errors: float) -> None:
    """Against the exact chi-square: the bounds in squares are found by bisection."""

    def edge(sign: float) -> float:
        low, high = (0.0, float(count)) if sign < 0 else (float(count), 30.0 * count)
        for _ in range(200):
            middle = (low + high) / 2
            inside = abs(_scale_error(middle, count)) <= errors
            low, high = (low, middle) if inside == (sign < 0) else (middle, high)
        return (low + high) / 2

    chance = chi2.cdf(edge(-1.0), count) + chi2.sf(edge(1.0), count)

    assert 0.5 * two_sided(errors) < chance <= two_sided(errors)
