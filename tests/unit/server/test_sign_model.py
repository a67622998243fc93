"""A finished model is handed on under its lead's signature, with where it came from, or not."""

from pathlib import Path

import pytest

from fedward_common.arrays import tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError, LedgerError, SignatureRefused, StartError
from fedward_common.log.events import EventLog, read_events
from fedward_common.trust.signing import SigningKey
from fedward_server import sign_model as signing
from fedward_server.adapters.model_package import MANIFEST, MODEL, STUDY, verify_package
from fedward_server.adapters.run_files import LOG, RunFolder, run_path
from fedward_server.models import package_path
from fedward_server.sign_model import declared_epsilon, sign_model
from tests.support.finished_run import FinishedRun, finished_run, round_model
from tests.support.pki import Authority, Site


@pytest.fixture(scope="module")
def sites() -> tuple[Site, ...]:
    authority = Authority()
    return tuple(authority.site(name) for name in ("alpha", "beta", "gamma"))


@pytest.fixture
def run(tmp_path: Path, sites: tuple[Site, ...]) -> FinishedRun:
    return finished_run(tmp_path, *sites)


def test_a_signed_model_verifies_under_its_leads_key(run: FinishedRun) -> None:
    sign_model(run.state, run.name, key=run.lead)

    manifest = verify_package(package_path(run.state, run.name), public_key=run.lead.public_hex)
    assert manifest["study"]["digest"] == run.study.digest


def test_the_manifest_says_from_which_rounds_and_sites_the_model_came(run: FinishedRun) -> None:
    lineage = sign_model(run.state, run.name, key=run.lead)["lineage"]

    assert [entry["round"] for entry in lineage["rounds"]] == [1, 2, 3]
    assert lineage["rounds"][1] == {
        "round": 2,
        "sites": ["alpha", "beta", "gamma"],
        "model_sha256": sha256_hex(tensors_to_bytes(round_model(2))),
    }
    assert lineage["run"] == run.name


def test_the_declared_cost_of_the_whole_study_stands_in_the_manifest(run: FinishedRun) -> None:
    privacy = sign_model(run.state, run.name, key=run.lead)["privacy"]

    assert privacy["epsilon_admission"]["alpha"] == declared_epsilon(run.study) > 0


def test_the_manifests_digest_is_an_event_of_the_runs_log(run: FinishedRun) -> None:
    sign_model(run.state, run.name, key=run.lead)

    event = list(read_events(run_path(run.state, run.name) / LOG))[-1]
    content = (package_path(run.state, run.name) / MANIFEST).read_bytes()
    assert (event.action, event.fields["sha256"]) == ("model.signed", sha256_hex(content))


def test_another_key_than_the_leads_is_refused(run: FinishedRun) -> None:
    with pytest.raises(SignatureRefused, match="key of the lead"):
        sign_model(run.state, run.name, key=SigningKey.generate())
    assert not package_path(run.state, run.name).exists()


def test_a_model_that_is_not_the_logged_one_is_refused(run: FinishedRun) -> None:
    (run_path(run.state, run.name) / MODEL).write_bytes(b"another model")

    with pytest.raises(SignatureRefused, match="whose digest the log holds"):
        sign_model(run.state, run.name, key=run.lead)


def test_a_log_that_was_edited_is_refused(run: FinishedRun) -> None:
    log = run_path(run.state, run.name) / LOG
    log.write_bytes(log.read_bytes().replace(b'"round":2', b'"round":9', 1))

    with pytest.raises(LedgerError, match="unbroken chain"):
        sign_model(run.state, run.name, key=run.lead)


def test_a_run_that_goes_on_has_no_model_to_sign(tmp_path: Path, run: FinishedRun) -> None:
    RunFolder(run_path(tmp_path, "goes-on"))

    with pytest.raises(ConfigError, match="found none yet"):
        sign_model(tmp_path, "goes-on", key=run.lead)


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "."])
def test_a_name_that_is_no_runs_leads_nowhere(run: FinishedRun, name: str) -> None:
    with pytest.raises(ConfigError, match="expected a name"):
        sign_model(run.state, name, key=run.lead)


def test_a_log_that_the_serverapp_does_not_let_go_of_is_named(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "LOG_SECONDS", 0.3)
    held = EventLog(run_path(run.state, run.name) / LOG)

    with pytest.raises(StartError, match="no other process"):
        sign_model(run.state, run.name, key=run.lead)
    held.close()


def test_a_package_with_the_study_of_another_lead_is_refused(
    run: FinishedRun, tmp_path: Path, sites: tuple[Site, ...]
) -> None:
    """Its files may be whole and signed: the study in it must be the manifest's, by its signer."""
    sign_model(run.state, run.name, key=run.lead)
    other = finished_run(tmp_path / "other", *sites)
    folder = package_path(run.state, run.name)
    (folder / STUDY).write_bytes(other.signed.canonical)

    with pytest.raises(SignatureRefused, match="files that were signed"):
        verify_package(folder)
