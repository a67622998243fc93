"""What a model says of patients: the inputs of training, without anybody's label."""

import csv
import json
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedward_client.cli import app
from fedward_client.data.site import SiteSource
from fedward_client.models import OpenedModel, open_model
from fedward_client.predict.patients import answer_patients
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_client.training.weights import record_scores
from fedward_common.errors import ConfigError, DataError
from fedward_common.ids import SiteId
from fedward_common.study.files import parse_study
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import value_range
from fedward_server.cohort.make import make_cohort
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from tests.support.ehr_studies import SITES as EHR_SITES
from tests.support.ehr_studies import STUDIES, write_study
from tests.support.packages import Package, make_package
from tests.support.row_studies import profiles
from tests.support.studies import LEAD, make_dp, make_rows, make_spec, site_keys, write_table

FIRST, LAST = SiteId("made-up-01"), SiteId("made-up-03")
NOTE = "not for clinical use"
ORIGIN = ("study", "study_sha256", "model_sha256", "intended_use")
PROFILE_FILES = """
[[data]]
kind = "profiles"
path = "patients.csv"
patient_key = "patient_id"
matrices = [
  { layer = "rna", path = "rna.csv", scale = "z-score" },
  { layer = "cn", path = "cn.csv", scale = "copy-number" },
]
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "made-up"
    make_cohort(folder, sites=3, patients=24, seed=5)
    return folder


@pytest.fixture(scope="module")
def prepared(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    inputs = Inputs.parse(study=None, sites=[], data=cohort)
    return prepare(inputs, out=tmp_path_factory.mktemp("out") / "out")


@pytest.fixture(scope="module")
def package(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("package"), prepared.study)


def opened(package: Package) -> OpenedModel:
    return open_model(
        package.folder,
        approved=None,
        public_key=package.key.public_hex,
        study_file=package.study_file,
    )


def settings_of(prepared: Prepared, site: SiteId) -> SiteSettings:
    return load_site_settings(prepared.layout.sites[site].settings_file)


def table(out: Path) -> dict[str, list[float]]:
    with (out / "scores.csv").open(newline="") as lines:
        rows = list(csv.reader(lines))
    facts = json.loads((out / "answer.json").read_bytes())
    assert rows[0] == ["patient", *facts["scores"], *ORIGIN]
    assert all(row[-len(ORIGIN) :] == [facts[name] for name in ORIGIN] for row in rows[1:])
    return {name: [float(value) for value in values[: -len(ORIGIN)]] for name, *values in rows[1:]}


def expected(study: StudySpec, model: OpenedModel, source: SiteSource) -> dict[str, float]:
    """The scores of everybody with a label, read as training and evaluation read them."""
    found = {}
    for part in ("train", "test"):
        records = source.records(study, part=part)
        scores = record_scores(study, model.weights, records.features)
        found |= dict(zip(records.ids, scores.tolist(), strict=True))
    return found


@pytest.mark.parametrize(("site", "absent"), [(FIRST, []), (LAST, ["image"])])
def test_whole_patients_get_the_scores_of_training_and_evaluation(
    cohort: Path,
    prepared: Prepared,
    package: Package,
    tmp_path: Path,
    site: SiteId,
    absent: list[str],
) -> None:
    settings, model = settings_of(prepared, site), opened(package)

    found = answer_patients(
        model, settings, patients=cohort / "sites" / site / "settings.toml", out=tmp_path / "out"
    )

    scores = table(tmp_path / "out")
    known = expected(model.study, model, SiteSource(settings))
    assert len(known) > 10
    assert {name: scores[name][0] for name in known} == pytest.approx(known, rel=1e-5)
    facts = json.loads((tmp_path / "out" / "answer.json").read_bytes())
    assert facts == found.facts
    assert (facts["absent_modalities"], facts["intended_use"]) == (absent, NOTE)
    assert (facts["patients"], facts["model_sha256"]) == (len(scores), model.sha256)
    assert NOTE in found.text
    for name in facts["files"]:
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == 0o600
    assert not any(name in json.dumps(facts) for name in scores)


def test_whoever_has_only_genotypes_is_answered_too(
    cohort: Path, prepared: Prepared, package: Package, tmp_path: Path
) -> None:
    text = (cohort / "sites" / FIRST / "settings.toml").read_text()
    entries = text.split("[[data]]")
    (only,) = [entry for entry in entries if 'modality = "variants"' in entry]
    where = cohort / "sites" / FIRST / "only.toml"
    where.write_text("[[data]]" + only)

    found = answer_patients(
        opened(package), settings_of(prepared, FIRST), patients=where, out=tmp_path / "out"
    )

    assert found.facts["absent_modalities"] == ["image", "records"]
    assert len(table(tmp_path / "out")) == found.facts["patients"] > 10


def test_whoever_is_of_a_family_is_answered_alone(tmp_path: Path) -> None:
    """INPUT says who is kin, as site.toml does, and the model learned from families."""
    make_cohort(tmp_path / "kin", sites=3, patients=24, seed=5, families=True)
    inputs = Inputs.parse(study=None, sites=[], data=tmp_path / "kin")
    made = prepare(inputs, out=tmp_path / "made")
    model = opened(make_package(tmp_path / "package", made.study))
    settings = settings_of(made, FIRST)
    patients = tmp_path / "kin" / "sites" / FIRST / "settings.toml"
    assert 'family_key = "family"' in patients.read_text()

    answer_patients(model, settings, patients=patients, out=tmp_path / "out")

    records = [SiteSource(settings).records(made.study, part=part) for part in ("train", "test")]  # type: ignore[arg-type]
    known = np.concatenate(
        [record_scores(model.study, model.weights, one.features) for one in records]
    )
    found = table(tmp_path / "out")
    assert set(found) == {f"{FIRST}-{number + 1:04d}" for number in range(24)}
    scores = sorted(score for (score,) in found.values())
    assert scores == pytest.approx(sorted(known.tolist()), abs=1e-5)


def table_input(folder: Path, *, drop: tuple[str, ...] = (), records: int = 2) -> Path:
    rows = [{k: v for k, v in row.items() if k not in drop} for row in make_rows(records=records)]
    write_table(folder / "new.csv", rows)
    text = '[[data]]\nkind = "csv"\npath = "new.csv"\npatient_key = "patient_id"\n'
    (folder / "patients.toml").write_text(text)
    return folder / "patients.toml"


def test_a_table_needs_neither_label_nor_split_and_a_patient_the_mean_of_the_records(
    prepared: Prepared, tmp_path: Path
) -> None:
    package = make_package(tmp_path, make_spec(dp=make_dp(max_records_per_patient=2)))
    model, settings = opened(package), settings_of(prepared, FIRST)

    with_label = answer_patients(
        model, settings, patients=table_input(tmp_path / "a"), out=tmp_path / "with"
    )
    answer_patients(
        model,
        settings,
        patients=table_input(tmp_path / "b", drop=("stage", "split")),
        out=tmp_path / "without",
    )

    assert with_label.facts["scores"] == ["stage"]
    scores = table(tmp_path / "without")
    assert scores == table(tmp_path / "with")
    source = SiteSource(settings.model_copy(update={"data": _entries(tmp_path / "a")}))
    records = source.records(model.study, part="train")
    alone = record_scores(model.study, model.weights, records.features)
    means = {
        name: np.mean(alone[records.patient == number]) for number, name in enumerate(records.ids)
    }
    assert {name: scores[name][0] for name in means} == pytest.approx(means, rel=1e-5)


def _entries(folder: Path) -> tuple[object, ...]:
    from fedward_client.predict.patients import PatientFiles

    return PatientFiles.read(folder / "patients.toml").data


def parsed(folder: Path, name: str) -> StudySpec:
    """A study of `ehr_studies` as it would be signed."""
    path = write_study(folder, STUDIES[name][0])
    keys = site_keys(EHR_SITES)
    return parse_study(path.read_text(), source="study.toml", keys=keys, lead_key_sha256=LEAD)


WHOLE_FILES = """
[[data]]
modality = "table"
kind = "csv"
path = "table/patients.csv"
patient_key = "patient_id"
"""


def test_whole_patients_get_the_chance_of_the_event_by_the_horizon_and_no_time_is_looked_for(
    prepared: Prepared, tmp_path: Path
) -> None:
    study = parsed(tmp_path, "whole-survival")
    STUDIES["whole-survival"][1](tmp_path / "in")
    without_tissue = tmp_path / "in" / EHR_SITES[-1]
    rows = list(csv.DictReader((without_tissue / "table" / "patients.csv").open()))
    asked = [{"patient_id": row["patient_id"], "age": row["age"]} for row in rows]
    write_table(without_tissue / "table" / "patients.csv", asked)
    (without_tissue / "patients.toml").write_text(WHOLE_FILES)
    package = make_package(tmp_path, study)

    found = answer_patients(
        opened(package),
        settings_of(prepared, FIRST),
        patients=without_tissue / "patients.toml",
        out=tmp_path / "out",
    )

    scores = [value for (value,) in table(tmp_path / "out").values()]
    assert found.facts["scores"] == ["event by day 730"]
    assert found.facts["absent_modalities"] == ["tissue"]
    assert len(scores) == len(rows)
    assert all(0 < score < 1 for score in scores)


def test_a_measured_value_comes_in_its_unit(prepared: Prepared, tmp_path: Path) -> None:
    study = parsed(tmp_path, "regression")
    STUDIES["regression"][1](tmp_path / "in")
    rows = tmp_path / "in" / EHR_SITES[0] / "patients.csv"
    where = rows.with_name("patients.toml")
    where.write_text('[[data]]\nkind = "csv"\npath = "patients.csv"\npatient_key = "patient_id"\n')
    package = make_package(tmp_path, study)

    found = answer_patients(
        opened(package), settings_of(prepared, FIRST), patients=where, out=tmp_path / "out"
    )

    low, high = value_range(study.data)
    scores = [value for (value,) in table(tmp_path / "out").values()]
    assert high - low > 2.0
    assert low <= min(scores) < max(scores) <= high
    assert len(scores) == found.facts["patients"] > 10


def test_profiles_give_the_chance_of_the_event_by_the_horizon(
    prepared: Prepared, tmp_path: Path
) -> None:
    study = parsed(tmp_path, "profiles")
    profiles(tmp_path / "patients.csv", seed=3, patients=20)
    where = tmp_path / "patients.toml"
    where.write_text(PROFILE_FILES)
    text = (tmp_path / "patients.csv").read_text().splitlines()
    kept = [line.split(",")[:2] for line in text]  # the id and the age: nobody knows the rest
    (tmp_path / "patients.csv").write_text("\n".join(map(",".join, kept)) + "\n")
    package = make_package(tmp_path, study)

    found = answer_patients(
        opened(package), settings_of(prepared, FIRST), patients=where, out=tmp_path / "out"
    )

    assert found.facts["scores"] == ["event by day 730"]
    scores = [value for (value,) in table(tmp_path / "out").values()]
    assert len(scores) == 20
    assert 0.0 <= min(scores) < max(scores) <= 1.0


def _refusals() -> list[tuple[str, Callable[[Path], Path], type[Exception], str]]:
    def missing(folder: Path) -> Path:
        return folder / "nothing.toml"

    def other(folder: Path) -> Path:
        (folder / "a.toml").write_text("answer = 42\n")
        return folder / "a.toml"

    def stranger(folder: Path) -> Path:
        text = '[[data]]\nkind = "csv"\nmodality = "gait"\npath = "x.csv"\n'
        (folder / "a.toml").write_text(text)
        return folder / "a.toml"

    def absent(folder: Path, name: str) -> Path:
        text = f'absent_modalities = ["{name}"]\n[[data]]\nkind = "fhir"\n'
        (folder / "a.toml").write_text(text + 'modality = "records"\npath = "fhir"\n')
        return folder / "a.toml"

    def empty(folder: Path) -> Path:
        (folder / "fhir").mkdir()
        text = '[[data]]\nkind = "fhir"\nmodality = "records"\npath = "fhir"\n'
        (folder / "a.toml").write_text(text)
        return folder / "a.toml"

    return [
        ("no file", missing, ConfigError, "expected"),
        ("another file", other, ConfigError, "data"),
        ("a modality of another study", stranger, ConfigError, "image, records, variants"),
        ("no such modality", lambda to: absent(to, "gait"), ConfigError, "found gait"),
        ("here and absent", lambda to: absent(to, "records"), ConfigError, "found records"),
        ("nobody", empty, DataError, "expected"),
    ]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [case[1:] for case in _refusals()],
    ids=[case[0] for case in _refusals()],
)
def test_what_cannot_be_answered_is_refused_and_nothing_is_written(
    prepared: Prepared,
    package: Package,
    tmp_path: Path,
    make: Callable[[Path], Path],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        answer_patients(
            opened(package),
            settings_of(prepared, FIRST),
            patients=make(tmp_path),
            out=tmp_path / "out",
        )

    assert not (tmp_path / "out").exists()


def test_a_broken_record_is_named_and_not_left_out(prepared: Prepared, tmp_path: Path) -> None:
    package = make_package(tmp_path, make_spec())
    where = table_input(tmp_path / "in", records=1)
    text = (tmp_path / "in" / "new.csv").read_text()
    (tmp_path / "in" / "new.csv").write_text(text.replace(",30,", ",old,"))

    with pytest.raises(DataError, match="age"):
        answer_patients(
            opened(package),
            settings_of(prepared, FIRST),
            patients=where,
            out=tmp_path / "out",
        )

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sequences", "no_patient_key"),
        ("tags", "text-ner"),
        ("autoencoder", "autoencoder"),
        ("alike", "site-harmonisation"),
    ],
)
def test_a_model_that_says_nothing_of_a_patient_is_refused(
    prepared: Prepared, tmp_path: Path, name: str, words: str
) -> None:
    package = make_package(tmp_path, parsed(tmp_path, name))

    with pytest.raises(ConfigError, match=words):
        answer_patients(
            opened(package),
            settings_of(prepared, FIRST),
            patients=table_input(tmp_path / "in"),
            out=tmp_path / "out",
        )


def test_the_command_answers_and_refuses_what_is_of_images(
    cohort: Path, prepared: Prepared, package: Package, tmp_path: Path
) -> None:
    config = prepared.layout.sites[FIRST].settings_file
    words = [
        "predict",
        str(package.folder),
        str(cohort / "sites" / FIRST / "settings.toml"),
        "--study",
        str(package.study_file),
        "--key",
        package.key.public_hex,
        "--config",
        str(config),
        "--out",
        str(tmp_path / "out"),
    ]

    done = CliRunner().invoke(app, [*words, "--json"])
    refused = CliRunner().invoke(app, [*words, "--explain", "grad-cam"])

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["patients"] == len(table(tmp_path / "out"))
    assert isinstance(refused.exception, ConfigError)
