"""Studies of molecules: fingerprints and graphs on the patient engine, with missing answers."""

from pathlib import Path
from typing import Any

import pytest

from fedward_client.data.site import SiteSource
from fedward_client.data_check import check_data
from fedward_client.held_out import HeldOut
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task
from fedward_server.private_measures import private_measures
from fedward_server.sandbox.figures import model_figures
from tests.support.guard_site import make_site
from tests.support.studies import make_dp, make_spec, write_table
from tests.support.trained import trained

pytest.importorskip("rdkit")

SMILES = ["CCO", "CCN", "c1ccccc1", "CC(=O)O", "CCCl", "C1CCCCC1"]
LABELS: dict[str, dict[str, Any]] = {
    "several": {"answers": ["toxic", "bitter"]},
    "one": {"column": "toxic", "low": 0, "high": 1, "positive_from": 1},
    "number": {"column": "logd", "unit": "1", "low": -2.0, "high": 6.0},
}
RELEASES: dict[str, dict[str, Any]] = {
    "several": {"kind": "class-scores", "classes": 2, "exclusive": False},
    "one": {"kind": "binned-scores"},
    "number": {"kind": "value-scores"},
}
ENCODINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mlp": ({"kind": "morgan", "bits": 64}, {"hidden": [8]}),
    "graph-network": ({"kind": "graph", "atoms": 8}, {"hidden": [8, 8], "shape": [24, 8]}),
}


def study(model: str = "mlp", label: str = "several", **changes: Any) -> StudySpec:
    encoding, sizes = ENCODINGS[model]
    settings = {
        "task": {"kind": "molecule-property"},
        "model": {"name": model, "outputs": 2 if label == "several" else 1} | sizes,
        "data": {
            "kind": "molecule",
            "no_patient_key": True,
            "encoding": encoding,
            "label": LABELS[label],
            "split": {"kind": "column", "column": "split"},
        },
        "rounds": 1,
        "local_steps": 2,
        "dp": make_dp(steps=2, unit="record"),
        "releases": [{"bins": 4, "noise_multiplier": 3.0} | RELEASES[label]],
    }
    return make_spec(**(settings | changes))


def settings_of(folder: Path, *, molecules: int = 36) -> SiteSettings:
    write_table(
        folder / "table.csv",
        [
            {
                "smiles": SMILES[number % 6],
                "toxic": "" if number == 1 else str(number % 2),
                "bitter": ["0", "1", ""][number % 3],
                "logd": str(number % 7 - 1),
                "split": "test" if number % 4 == 3 else "train",
            }
            for number in range(molecules)
        ],
    )
    entry = {"kind": "molecules", "path": str(folder / "table.csv"), "no_patient_key": True}
    site = make_site(folder / "site", top={"data": [entry]})
    return load_site_settings(site.folder / "site.toml")


@pytest.mark.parametrize("backend", ["loop", "bookkeeping"])
@pytest.mark.parametrize("model", list(ENCODINGS))
@pytest.mark.parametrize("label", list(LABELS))
def test_a_model_of_molecules_trains_on_the_patient_engine(
    label: str, model: str, backend: Any, tmp_path: Path
) -> None:
    spec = study(model, label)
    source = SiteSource(settings_of(tmp_path))

    weights = trained(spec, source, backend)

    held_out = source.records(spec, part="test")
    counts = HeldOut(study=spec, weights=weights, records=held_out).counts()
    marks = {"several": 9 + 6, "one": 9, "number": counts.sum()}[label]
    assert counts.sum() == marks
    assert model_figures(spec, weights, {SiteId("north"): held_out}).pooled.held_out == 9
    private_measures(spec, spec.releases[0], counts, noise=3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "graph-network", "hidden": [8, 8], "shape": [24, 8], "outputs": 2}},
        {"model": {"name": "mlp", "hidden": [8], "outputs": 1}},
        {"releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}]},
        {"task": {"kind": "tabular-classification"}},
    ],
    ids=["a graph's model", "outputs", "another evaluation", "another task"],
)
def test_a_study_of_molecules_that_does_not_fit_together_is_refused(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError):
        check_task(StudySpec.model_validate(study().model_dump(mode="json") | changes))


def test_the_data_check_counts_molecules_and_answers(tmp_path: Path) -> None:
    found = check_data(study(), SiteSource(settings_of(tmp_path)))

    assert (found.people, found.training, found.held_out) == (36, 27, 9)
    assert [(one.name, one.patients) for one in found.features] == [
        ("toxic", 35),
        ("bitter", 24),
    ]
