"""Studies of profiles: survival and classes on the patient engine, from a site's matrices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.data.site import SiteSource
from fedward_client.data_check import check_data
from fedward_client.held_out import HeldOut
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task
from fedward_server.sandbox.figures import model_figures
from tests.support.guard_site import make_site
from tests.support.studies import make_dp, make_spec, write_table
from tests.support.trained import trained

GENES = [f"G{number}" for number in range(15)]
TASKS: dict[str, dict[str, Any]] = {
    "survival": {
        "task": {
            "kind": "survival", "likelihood": "proportional-hazards",
            "cuts": [100.0, 500.0], "horizon_days": 500.0,
        },
        "model": {"name": "proportional-hazards", "outputs": 2},
        "label": {"column": "days", "event_column": "dead", "longest_days": 500.0},
        "release": {"kind": "binned-scores"},
    },
    "classes": {
        "task": {"kind": "expression-classification"},
        "model": {"name": "mlp", "hidden": [8], "outputs": 3},
        "label": {"column": "subtype", "classes": ["basal", "luminal", "other"]},
        "release": {"kind": "class-scores", "classes": 3, "exclusive": True},
    },
    "answer": {
        "task": {"kind": "expression-classification"},
        "model": {"name": "linear"},
        "label": {"column": "dead", "low": 0, "high": 1, "positive_from": 1},
        "release": {"kind": "binned-scores"},
    },
}  # fmt: skip


def study(name: str = "survival", **changes: Any) -> StudySpec:
    parts = TASKS[name]
    settings = {
        "genomic": True,
        "task": parts["task"],
        "model": parts["model"],
        "data": {
            "kind": "profiles",
            "layers": [{"name": "rna", "scale": "z-score", "genes": GENES}],
            "clinical": [
                {"name": "age", "type": "number", "unit": "years", "low": 20.0, "high": 100.0}
            ],
            "label": parts["label"],
            "split": {"kind": "column", "column": "split"},
        },
        "rounds": 1,
        "local_steps": 2,
        "dp": make_dp(steps=2),
        "releases": [{"bins": 4, "noise_multiplier": 3.0} | parts["release"]],
    }
    return make_spec(**(settings | changes))


def settings_of(folder: Path, *, patients: int = 36) -> SiteSettings:
    draws = np.random.default_rng(0)
    subtypes = ["basal", "luminal", "other"]
    write_table(
        folder / "table.csv",
        [
            {
                "patient_id": f"p{number}",
                "age": str(30 + number),
                "days": str(50 + 17 * number),
                "dead": str(number % 2),
                "subtype": subtypes[number % 3],
                "split": "test" if number % 4 == 3 else "train",
            }
            for number in range(patients)
        ],
    )
    write_table(
        folder / "rna.csv",
        [
            {"id": f"p{number}"} | {gene: f"{draws.normal():.3f}" for gene in GENES}
            for number in range(patients - 1)
        ],
    )
    entry = {
        "kind": "profiles",
        "path": str(folder / "table.csv"),
        "patient_key": "patient_id",
        "matrices": [{"layer": "rna", "path": str(folder / "rna.csv"), "scale": "z-score"}],
    }
    site = make_site(folder / "site", top={"data": [entry]})
    return load_site_settings(site.folder / "site.toml")


@pytest.mark.parametrize("backend", ["loop", "bookkeeping"])
@pytest.mark.parametrize("name", list(TASKS))
def test_profiles_are_learned_on_the_patient_engine(
    name: str, backend: Any, tmp_path: Path
) -> None:
    spec = study(name)
    source = SiteSource(settings_of(tmp_path))

    weights = trained(spec, source, backend)

    held_out = source.records(spec, part="test")
    assert HeldOut(study=spec, weights=weights, records=held_out).counts().sum() > 0
    assert model_figures(spec, weights, {SiteId("north"): held_out}).pooled.held_out == 8


def test_a_patient_in_no_matrix_is_counted_as_absent(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)

    found = check_data(study(), SiteSource(settings))

    assert (found.people, found.training, found.held_out) == (36, 27, 8)
    assert found.absent == {"rows that do not fit": 1}
    assert [(one.name, one.patients, one.unmapped) for one in found.features] == [("rna", 35, 0)]
    assert tmp_path / "rna.csv" in settings.data_files


@pytest.mark.parametrize(
    "changes",
    [
        {"task": {"kind": "tabular-classification"}},
        {"model": {"name": "linear", "outputs": 2}},
        {"releases": [{"kind": "value-scores", "bins": 4, "noise_multiplier": 3.0}]},
    ],
)
def test_a_study_of_profiles_that_does_not_fit_together_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        check_task(StudySpec.model_validate(study().model_dump(mode="json") | changes))
