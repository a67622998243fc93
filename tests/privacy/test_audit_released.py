"""The audit of a model package: proven whole first, and everything starts from its weights."""

from pathlib import Path

import numpy as np
import pytest

from fedward_client.audit import (
    AuditPorts,
    AuditReport,
    ReleasedModel,
    audit_json,
    audit_study,
    audit_text,
)
from fedward_client.audit.sensitivity import StepProbe
from fedward_client.models import open_model
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.canonical import sha256_hex
from fedward_common.errors import SignatureRefused
from fedward_common.ids import SiteId
from fedward_common.model_package import MODEL
from fedward_common.privacy.randomness import Float64Array
from tests.support.naive_dp import Repeatable
from tests.support.packages import Package, make_package
from tests.support.studies import make_dp, make_spec

STUDY = make_spec(rounds=2, local_steps=2, dp=make_dp(steps=4), releases=[])
SITE = SiteId(STUDY.sites[0].id)
FLAGS = PerformanceFlags(backend="loop")


class HalfNoise(Repeatable):
    """A source whose normals have half the standard deviation."""

    def normal(self, count: int) -> Float64Array:
        return 0.5 * super().normal(count)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return make_package(tmp_path, STUDY)


def audited(package: Package, *, noise: Repeatable) -> AuditReport:
    opened = open_model(
        package.folder,
        approved=None,
        public_key=package.key.public_hex,
        study_file=package.study_file,
    )
    return audit_study(
        opened.study,
        SITE,
        flags=FLAGS,
        noise_steps=32,
        canaries=True,
        ports=AuditPorts(sampling=Repeatable(7), noise=noise),
        model=ReleasedModel(weights=opened.weights, sha256=opened.sha256),
    )


def test_a_released_model_passes_all_three_layers_and_is_named(package: Package) -> None:
    report = audited(package, noise=Repeatable(8))

    assert report.passed
    assert {finding.layer for finding in report.findings} == {1, 2, 3}
    assert report.model == sha256_hex((package.folder / MODEL).read_bytes())
    assert f"starting from the model {report.model[:16]}" in audit_text(report)
    assert audit_json(report)["model_sha256"] == report.model


def test_halved_noise_is_found_from_a_released_model_too(package: Package) -> None:
    report = audited(package, noise=HalfNoise(8))

    assert "noise-scale" in {finding.name for finding in report.findings if not finding.passed}


def test_the_probe_starts_from_the_weights_of_the_package(package: Package) -> None:
    weights = open_model(
        package.folder,
        approved=None,
        public_key=package.key.public_hex,
        study_file=package.study_file,
    ).weights

    probe = StepProbe(STUDY, SITE, flags=FLAGS, ports=AuditPorts(), weights=weights)

    for name, array in weights.items():
        assert np.array_equal(probe.start[name], array)
    fresh = StepProbe(STUDY, SITE, flags=FLAGS, ports=AuditPorts()).start
    assert any(not np.array_equal(fresh[name], probe.start[name]) for name in fresh)


def test_a_package_that_was_changed_is_not_audited(package: Package) -> None:
    weights = package.folder / MODEL
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    with pytest.raises(SignatureRefused):
        audited(package, noise=Repeatable(8))
