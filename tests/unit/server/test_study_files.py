"""The study lead's files: a template that is valid, problems line by line, keys as confirmed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_server.adapters.registry import open_registry
from fedward_server.adapters.run_files import read_study
from fedward_server.settings import CoordinatorSettings, load_coordinator_settings
from fedward_server.study_files import (
    KeysFile,
    Problems,
    check_study,
    init_study,
    key_words,
    keys_document,
    new_lead,
    read_lead_key,
    template_kinds,
)
from fedward_server.study_submit import Submission
from fedward_server.study_summary import leaves, summary, summary_text
from tests.support.pki import Authority, Site
from tests.support.studies import STUDY_FILES, site_keys

HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")


@pytest.fixture(scope="module")
def sites() -> dict[str, Site]:
    authority = Authority()
    return {name: authority.site(name) for name in HOSPITALS}


@pytest.fixture
def settings(tmp_path: Path, sites: dict[str, Site]) -> CoordinatorSettings:
    path = tmp_path / "coordinator.toml"
    path.write_text(
        'federation = "north"\n[tls]\ncertificate = "a.pem"\nkey = "a.key"\nca = "root.pem"\n'
    )
    loaded = load_coordinator_settings(path)
    registry = open_registry(loaded.database)
    for site in sites.values():
        registry.add(site.record)
    registry.close()
    return loaded


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The template with a noise multiplier, so that no accountant has to search for one."""
    path = tmp_path / "study.toml"
    init_study(path, kind="tabular-classification", study_id="first-study")
    path.write_text(path.read_text().replace("epsilon = 2.0 ", "noise_multiplier = 6.0 "))
    return path


@pytest.fixture
def keys(tmp_path: Path, sites: dict[str, Site]) -> Path:
    path = tmp_path / "keys.json"
    records = [site.record for site in sites.values()]
    path.write_text(json.dumps(keys_document(records, federation="north")))
    return path


# init.


@pytest.mark.parametrize("kind", template_kinds())
def test_a_template_is_a_valid_study_as_it_is(tmp_path: Path, kind: str) -> None:
    init_study(tmp_path / "study.toml", kind=kind, study_id="first-study")

    checked = check_study(tmp_path / "study.toml", keys=None, lead_key_sha256=None)

    assert isinstance(checked, StudySpec), checked
    assert (checked.id, checked.task.kind) == ("first-study", kind)


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("mine")

    with pytest.raises(ConfigError, match="expected no file"):
        init_study(tmp_path / "study.toml", kind="tabular-classification", study_id="a")
    assert (tmp_path / "study.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "study_id"),
    [("image-thing", "a"), ("../../x", "a"), ("tabular-classification", "A b")],
)
def test_another_kind_or_name_is_refused(tmp_path: Path, kind: str, study_id: str) -> None:
    with pytest.raises(ConfigError):
        init_study(tmp_path / "study.toml", kind=kind, study_id=study_id)
    assert not (tmp_path / "study.toml").exists()


# validate.


def test_every_problem_of_a_study_is_one_line(tmp_path: Path) -> None:
    text = (STUDY_FILES / "breast-cancer.toml").read_text()
    (tmp_path / "s.toml").write_text(
        text.replace("deadline_seconds = 60", "deadline_seconds = 0").replace(
            "quorum = 3", 'quorum = "three"'
        )
    )

    checked = check_study(tmp_path / "s.toml", keys=None, lead_key_sha256=None)

    assert isinstance(checked, Problems)
    assert len(checked.lines) == 2
    assert any("deadline_seconds: expected a number above 0" in line for line in checked.lines)
    assert any("quorum: expected a whole number, found 'three'" in line for line in checked.lines)


@pytest.mark.parametrize("text", ["", "sites = 3", "sites = [[1]]", "= broken", "id = 'x'\n"])
def test_a_file_that_is_no_study_is_a_list_of_problems(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)

    checked = check_study(tmp_path / "s.toml", keys=None, lead_key_sha256=None)

    assert isinstance(checked, Problems)
    assert checked.lines


def test_a_missing_file_is_a_problem_too(tmp_path: Path) -> None:
    checked = check_study(tmp_path / "none.toml", keys=None, lead_key_sha256=None)

    assert isinstance(checked, Problems)
    assert "found none" in checked.lines[0]


def test_the_summary_says_what_leaves_and_what_it_costs(study: Path) -> None:
    spec = check_study(study, keys=None, lead_key_sha256=None)
    assert isinstance(spec, StudySpec)

    facts = summary(spec, final=False)
    text = summary_text(facts)

    assert facts["digest"] is None
    assert 0 < facts["epsilon_pld"] < facts["epsilon_admission"]
    assert leaves(spec)[0] == (
        "in each of 8 rounds: a model of 3 numbers, trained with noise 6 x clip norm 0.5 in every "
        "step"
    )
    assert "held-out patients per class in 4 score bins" in text
    assert "age, sex" in text


# Keys.


def test_the_keys_of_the_registry_come_back_from_their_file(
    keys: Path, sites: dict[str, Site]
) -> None:
    read = KeysFile.read(keys).site_keys

    record = sites["hospital-b"].record
    assert (read["hospital-b"].key_sha256, read["hospital-b"].node_key_sha256) == (
        record.key_sha256,
        record.node_key_sha256,
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format":"fedward-keys/2","federation":"n","sites":{}}', "[" * 9000]
)
def test_a_file_of_another_form_is_no_keys_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)

    with pytest.raises(ConfigError):
        KeysFile.read(tmp_path / "keys.json")


def test_the_words_of_a_site_change_with_either_of_its_keys() -> None:
    keys = site_keys(("north",))["north"]

    others = {
        key_words(replace(keys, key_sha256="0" * 64)),
        key_words(replace(keys, node_key_sha256="0" * 64)),
    }
    assert key_words(keys) not in others
    assert len(others) == 2
    assert key_words(keys) == key_words(replace(keys))


def test_a_lead_key_is_private_and_signs(tmp_path: Path) -> None:
    public = new_lead(tmp_path / "lead.pem")

    assert (tmp_path / "lead.pem").stat().st_mode & 0o777 == 0o600
    assert read_lead_key(tmp_path / "lead.pem").public_hex == public
    with pytest.raises(ConfigError, match="never written over"):
        new_lead(tmp_path / "lead.pem")


def test_a_lead_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    new_lead(tmp_path / "lead.pem")
    (tmp_path / "lead.pem").chmod(0o644)

    with pytest.raises(ConfigError, match="chmod 600"):
        read_lead_key(tmp_path / "lead.pem")


# submit.


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_submitted_study_is_signed_stored_and_written_for_the_hospitals(
    settings: CoordinatorSettings, study: Path, keys: Path, sites: dict[str, Site], confirmed: bool
) -> None:
    key = SigningKey.generate()
    submission = Submission.prepare(settings, study, keys_file=keys if confirmed else None)

    submitted = submission.sign(submission.spec(key), key, out=None)

    spec = SignedStudy.parse(submitted.file.read_bytes()).verify()
    assert submitted.file.name == "first-study.signed.json"
    assert spec.lead_key_sha256 == key_sha256(key.public_hex)
    assert {site.key_sha256 for site in spec.sites} == {
        site.record.key_sha256 for site in sites.values()
    }
    assert read_study(settings.state, spec.digest) == submitted.signed.canonical


def test_a_confirmed_key_that_is_not_the_coordinators_is_named_before_anything_is_signed(
    settings: CoordinatorSettings, study: Path, keys: Path
) -> None:
    """Somebody put another key in a hospital's place: in the file or on the coordinator."""
    document = json.loads(keys.read_text())
    document["sites"]["hospital-b"]["key_sha256"] = "0" * 64
    keys.write_text(json.dumps(document))

    with pytest.raises(ConfigError, match="hospital-b"):
        Submission.prepare(settings, study, keys_file=keys)


def test_keys_of_another_federation_are_refused(
    settings: CoordinatorSettings, study: Path, keys: Path
) -> None:
    keys.write_text(keys.read_text().replace('"north"', '"south"'))

    with pytest.raises(ConfigError, match="another's"):
        Submission.prepare(settings, study, keys_file=keys)


def test_a_site_that_is_not_enrolled_cannot_be_in_a_study(
    settings: CoordinatorSettings, study: Path
) -> None:
    study.write_text(study.read_text().replace('id = "hospital-c"', 'id = "hospital-d"'))
    submission = Submission.prepare(settings, study, keys_file=None)

    with pytest.raises(ConfigError, match="enrol it first"):
        submission.spec(SigningKey.generate())
