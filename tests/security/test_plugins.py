"""A model plugin at a hospital: nothing of it runs before a person approved exactly its files."""

import importlib
import itertools
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedward_client.adapters.key_files import write_signing_key
from fedward_client.decisions import Person, approve_plugin, revoke_plugin
from fedward_client.guard.client import Grant
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_client.studies import plugin_report, study_report
from fedward_client.study_text import study_text
from fedward_common.arrays import tensors_to_bytes
from fedward_common.errors import ConfigError, PolicyRefused, ProtocolError, SignatureRefused
from fedward_common.models import registry
from fedward_common.models.plugins import register_installed
from fedward_common.study.spec import ModelSpec, StudySpec
from tests.support.guard_site import (
    STEWARD,
    STEWARD_NAME,
    GuardSite,
    a_study,
    about,
    instruction,
    make_site,
    object_ids,
    signed,
)
from tests.support.tiny_plugin import MODEL, PACKAGE, install

COUNTER = itertools.count()
TENSORS = [
    {"name": "0.linear.bias", "shape": [1]},
    {"name": "0.linear.weight", "shape": [1, 2]},
]


def a_plugin_study(tensors: list[dict[str, Any]] = TENSORS) -> StudySpec:
    values = {"name": MODEL} | ({"tensors": tensors} if tensors else {})
    return a_study().model_copy(update={"model": ModelSpec.model_validate(values)})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The plugin's folder, installed; what was loaded of it is forgotten again."""
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    before = set(sys.modules)
    yield install(tmp_path / "installed", module=f"hospital_net_{next(COUNTER)}")
    for name in set(sys.modules) - before:
        if name.startswith("hospital_"):
            del sys.modules[name]


@pytest.fixture
def site(tmp_path: Path, package: Path) -> GuardSite:
    importlib.invalidate_caches()
    return make_site(tmp_path / "site")


@pytest.fixture
def guard(site: GuardSite) -> Iterator[RunningGuard]:
    running = start_guard(site.settings, object_ids=object_ids)
    yield running
    running.close()


@pytest.fixture
def steward(tmp_path: Path) -> Person:
    write_signing_key(tmp_path / "steward.pem", STEWARD)
    return Person(name=STEWARD_NAME, key_file=tmp_path / "steward.pem")


def begin(site: GuardSite, study: StudySpec, number: int = 1) -> Grant:
    grant = site.worker.begin(instruction(study, number), signed(study))
    assert isinstance(grant, Grant)
    return grant


def approve_study(site: GuardSite, study: StudySpec) -> None:
    site.admin.record(about(study).canonical, signed(study))


@pytest.mark.usefixtures("guard")
def test_an_approved_study_with_a_plugin_that_nobody_approved_is_refused(
    site: GuardSite, package: Path
) -> None:
    study = a_plugin_study()
    approve_study(site, study)

    with pytest.raises(PolicyRefused, match=f"nobody of this site approved the plugin {PACKAGE}"):
        begin(site, study)

    assert package.name not in sys.modules


@pytest.mark.usefixtures("guard")
def test_an_approved_plugin_runs_with_exactly_its_files(
    site: GuardSite, package: Path, steward: Person
) -> None:
    study = a_plugin_study()
    approve_study(site, study)
    plugin = approve_plugin(site.settings, MODEL, steward, now=datetime.now(UTC))

    grant = begin(site, study)
    register_installed(MODEL, sha256=grant.plugin_sha256)
    weights = registry.initial_tensors(study.model, inputs=2)

    assert grant.plugin_sha256 == plugin.sha256
    # The guard knows the shapes from the study; it ran nothing of the plugin to check them.
    site.worker.seal(grant.receipt, tensors_to_bytes(weights))


@pytest.mark.usefixtures("guard")
def test_a_plugin_that_was_changed_after_its_approval_is_refused(
    site: GuardSite, package: Path, steward: Person
) -> None:
    study = a_plugin_study()
    approve_study(site, study)
    approve_plugin(site.settings, MODEL, steward, now=datetime.now(UTC))
    grant = begin(site, study, 1)
    (package / "models.py").write_text("raise RuntimeError\n")

    with pytest.raises(PolicyRefused, match="nobody of this site approved the plugin"):
        begin(site, study, 2)
    # Changed between the guard's look and the worker's: the worker compares again.
    with pytest.raises(SignatureRefused):
        register_installed(MODEL, sha256=grant.plugin_sha256)


@pytest.mark.usefixtures("guard")
def test_a_revoked_plugin_is_refused(site: GuardSite, steward: Person) -> None:
    study = a_plugin_study()
    approve_study(site, study)
    approve_plugin(site.settings, MODEL, steward, now=datetime.now(UTC))
    begin(site, study, 1)

    revoke_plugin(site.settings, MODEL, steward, now=datetime.now(UTC))

    with pytest.raises(PolicyRefused, match="approved the plugin"):
        begin(site, study, 2)
    with pytest.raises(ConfigError, match="found none"):
        revoke_plugin(site.settings, MODEL, steward, now=datetime.now(UTC))


@pytest.mark.usefixtures("guard")
def test_a_study_that_does_not_write_out_the_tensors_of_its_plugin_is_refused(
    site: GuardSite, steward: Person
) -> None:
    study = a_plugin_study([])
    approve_study(site, study)
    approve_plugin(site.settings, MODEL, steward, now=datetime.now(UTC))

    with pytest.raises(ProtocolError, match="written out"):
        begin(site, study)


@pytest.mark.usefixtures("guard")
def test_an_update_of_other_tensors_than_the_study_writes_out_is_not_sealed(
    site: GuardSite, steward: Person
) -> None:
    study = a_plugin_study([{"name": "0.linear.weight", "shape": [1, 2]}])
    approve_study(site, study)
    approve_plugin(site.settings, MODEL, steward, now=datetime.now(UTC))
    grant = begin(site, study)
    register_installed(MODEL, sha256=grant.plugin_sha256)
    weights = registry.initial_tensors(study.model, inputs=2)

    with pytest.raises(ProtocolError, match="tensors"):
        site.worker.seal(grant.receipt, tensors_to_bytes(weights))


@pytest.mark.usefixtures("guard")
def test_whoever_reads_the_study_is_told_that_the_plugin_is_trusted_with_patients(
    site: GuardSite, steward: Person, package: Path
) -> None:
    study = a_plugin_study()
    before = study_text(study_report(site.settings, study, now=datetime.now(UTC)))
    approve_plugin(site.settings, MODEL, steward, now=datetime.now(UTC))
    after = plugin_report(site.settings, MODEL)

    assert "is a plugin, NOT approved here" in before
    assert "it is trusted with their data" in before
    assert after["approved"] is True
    assert package.name not in sys.modules
