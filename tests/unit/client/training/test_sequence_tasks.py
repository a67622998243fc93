"""Studies of sequences: every model on the patient engine, and what a site's table needs."""

from pathlib import Path
from typing import Any

import pytest

from fedward_client.data.site import SiteSource
from fedward_client.data_check import check_data
from fedward_client.held_out import HeldOut
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.errors import ConfigError, DataError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task
from fedward_server.private_measures import private_measures
from fedward_server.sandbox.figures import model_figures
from tests.support.guard_site import make_site
from tests.support.studies import make_dp, make_spec, write_table
from tests.support.trained import trained

WORDS = {"kind": "k-mers", "k": 2}
CLASSES = ["donor", "acceptor", "neither"]
MODELS: dict[str, dict[str, Any]] = {
    "linear": {},
    "lstm": {"hidden": [4], "steps": 4},
    "gru": {"hidden": [4], "steps": 2},
    "cnn1d": {"hidden": [4, 4], "shape": [4, 8]},
    "sequence-transformer": {"hidden": [4, 4], "shape": [1, 18]},
}


def study(model: str = "linear", *, binary: bool = False, **changes: Any) -> StudySpec:
    words = model == "sequence-transformer"
    release = {"kind": "class-scores", "classes": 3, "exclusive": True}
    settings = {
        "genomic": True,
        "task": {"kind": "sequence-classification"},
        "model": {"name": model, "outputs": 1 if binary else 3} | MODELS[model],
        "data": {
            "kind": "sequence",
            "alphabet": "dna",
            "length": 8,
            "encoding": WORDS if words else {"kind": "one-hot"},
            "ambiguous": "unknown",
            "label": {"column": "code", "low": 0, "high": 2, "positive_from": 1}
            if binary
            else {"column": "site", "classes": CLASSES},
            "split": {"kind": "column", "column": "split"},
        },
        "rounds": 1,
        "local_steps": 2,
        "dp": make_dp(steps=2),
        "releases": [
            {"bins": 4, "noise_multiplier": 3.0}
            | ({"kind": "binned-scores"} if binary else release)
        ],
    }
    return make_spec(**(settings | changes))


def settings_of(folder: Path, *, patients: int = 36, fasta: bool = False) -> SiteSettings:
    letters = ["ACGTACGT"[n % 4 :] + "ACGTACGT"[: n % 4] for n in range(patients)]
    write_table(
        folder / "table.csv",
        [
            {
                "patient_id": f"p{number}",
                "sequence": f"r{number}" if fasta else letters[number],
                "site": CLASSES[number % 3],
                "code": str(number % 3),
                "split": "test" if number % 4 == 3 else "train",
            }
            for number in range(patients)
        ],
    )
    entry = {"kind": "sequences", "path": str(folder / "table.csv"), "patient_key": "patient_id"}
    if fasta:
        text = "".join(f">r{n}\n{one}\n" for n, one in enumerate(letters))
        (folder / "x.fasta").write_text(text)
        entry["fasta"] = str(folder / "x.fasta")
    site = make_site(folder / "site", top={"data": [entry]})
    return load_site_settings(site.folder / "site.toml")


@pytest.mark.parametrize("backend", ["loop", "bookkeeping"])
@pytest.mark.parametrize("model", [name for name in MODELS if name != "sequence-transformer"])
@pytest.mark.parametrize("binary", [False, True], ids=["classes", "answer"])
def test_a_model_of_sequences_trains_on_the_patient_engine(
    binary: bool, model: str, backend: Any, tmp_path: Path
) -> None:
    trains(study(model, binary=binary), backend, tmp_path)


@pytest.mark.parametrize("backend", ["loop", "opacus"])
@pytest.mark.parametrize("binary", [False, True], ids=["classes", "answer"])
def test_a_transformer_of_words_trains_on_the_patient_engine(
    binary: bool, backend: Any, tmp_path: Path
) -> None:
    trains(study("sequence-transformer", binary=binary), backend, tmp_path)


def trains(spec: StudySpec, backend: Any, folder: Path) -> None:
    source = SiteSource(settings_of(folder))

    weights = trained(spec, source, backend)

    held_out = source.records(spec, part="test")
    counts = HeldOut(study=spec, weights=weights, records=held_out).counts()
    assert counts.sum() == 9 * spec.releases[0].marks  # type: ignore[attr-defined]
    figures = model_figures(spec, weights, {SiteId("north"): held_out}).pooled
    assert figures.held_out == 9
    assert 0 <= float(figures.accuracy or 0) <= 1
    assert private_measures(spec, spec.releases[0], counts, noise=3.0) == {}  # type: ignore[arg-type]


def test_the_letters_may_stand_in_a_fasta_file(tmp_path: Path) -> None:
    here, named = (
        SiteSource(settings_of(tmp_path / str(fasta), fasta=fasta)).records(study(), part="train")
        for fasta in (False, True)
    )

    assert (here.features == named.features).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "lstm", "hidden": [4], "steps": 3, "outputs": 3}},
        {"model": {"name": "cnn1d", "hidden": [4], "shape": [8, 4], "outputs": 3}},
        {"model": {"name": "linear", "outputs": 1}},
        {"task": {"kind": "tabular-classification"}},
        {"task": {"kind": "sequence-classification", "class_weights": [1.0, 2.0]}},
        {"releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}]},
    ],
    ids=["steps", "shape", "outputs", "another task", "weights", "another evaluation"],
)
def test_a_study_of_sequences_that_does_not_fit_together_is_refused(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError):
        check_task(StudySpec.model_validate(study().model_dump(mode="json") | changes))


def test_the_data_check_counts_lengths_and_ambiguous_letters(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, patients=24)
    table = tmp_path / "table.csv"
    table.write_text(table.read_text().replace("ACGTACGT", "ACGNACG"))

    found = check_data(study(), SiteSource(settings))

    letters, unclear = found.features
    assert (found.people, found.training, found.held_out) == (24, 12, 6)
    assert found.absent == {"rows that do not fit": 6}
    assert (letters.outside, letters.unmapped, sum(unclear.values)) == (6, 0, 6)


def test_another_patient_key_than_the_site_s_is_refused(tmp_path: Path) -> None:
    source = SiteSource(settings_of(tmp_path))
    spec = study(data=study().data.model_dump(mode="json") | {"patient_key": "site_id"})

    with pytest.raises(DataError, match="patient_key"):
        source.records(spec, part="train")
