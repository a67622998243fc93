"""Studies of affinities: a molecule's and a protein's encoder, joined, on the patient engine.

There is no set of measured affinities: the pairs are made up by a known function of both parts
(tests/support/row_studies.py), so that what a model can reach with one part alone is known too.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.audit.made_up_rows import load_rows
from fedward_client.audit.sensitivity import probe_loader
from fedward_client.data.site import SiteSource
from fedward_client.data_check import check_data
from fedward_client.held_out import HeldOut
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.errors import ConfigError, DataError
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.files import parse_study
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task
from fedward_server.clinical_figures import value_figures
from fedward_server.private_measures import private_measures
from fedward_server.sandbox import baselines
from fedward_server.sandbox.figures import concordance, model_figures
from tests.support.ehr_studies import PER_RECORD
from tests.support.guard_site import make_site
from tests.support.row_studies import DRUG_TARGETS, drug_targets
from tests.support.studies import LEAD, site_keys, write_table
from tests.support.trained import trained

pytest.importorskip("rdkit")

SITES = "".join(f'\n[[sites]]\nid = "{site}"\npatients = 80\n' for site in ("north", "east"))
NORTH = SiteId("north")


def study(text: str = DRUG_TARGETS) -> StudySpec:
    whole = "genomic = true\n" + PER_RECORD.replace("quorum = 3", "quorum = 1") + text + SITES
    return parse_study(
        whole,
        source="study.toml",
        keys=site_keys(["north", "east"]),
        lead_key_sha256=LEAD,
        resolve=lambda _study, _unknown: 3.0,
    )


def settings_of(folder: Path, *, seed: int = 0, count: int = 120, **keys: Any) -> SiteSettings:
    table = drug_targets(folder / "pairs.csv", seed=seed, count=count)
    entry = {"kind": "drug-targets", "path": str(table), "no_patient_key": True}
    site = make_site(folder / "site", top={"data": [entry | keys]})
    return load_site_settings(site.folder / "site.toml")


def changed(spec: StudySpec, **changes: Any) -> StudySpec:
    return StudySpec.model_validate(spec.model_dump(mode="json") | changes)


GRAPHS = DRUG_TARGETS.replace(
    'kind = "morgan", bits = 64, descriptors = false', 'kind = "graph", atoms = 16'
).replace('name = "mlp"\nhidden = [8]', 'name = "graph-network"\nhidden = [8, 8]\nshape = [24, 16]')
WORDS = DRUG_TARGETS.replace(
    '{ kind = "one-hot" }', '{ kind = "k-mers", k = 1 }\nambiguous = "unknown"'
).replace(
    'name = "cnn1d"\nhidden = [8]\nshape = [20, 16]',
    'name = "sequence-transformer"\nhidden = [4, 4]\nshape = [1, 22]',
)


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        pytest.param(DRUG_TARGETS, "loop", id="prints-loop"),
        pytest.param(DRUG_TARGETS, "bookkeeping", id="prints-bookkeeping"),
        pytest.param(GRAPHS, "bookkeeping", id="graphs-bookkeeping"),
        pytest.param(WORDS, "loop", id="words-loop"),
    ],
)
def test_both_encoders_are_trained_on_the_patient_engine(
    text: str, backend: Any, tmp_path: Path
) -> None:
    spec = study(text.replace('"concatenation"', '"attention"'))
    source = SiteSource(settings_of(tmp_path, count=36))

    weights = trained(spec, source, backend)

    held_out = source.records(spec, part="test")
    counts = HeldOut(study=spec, weights=weights, records=held_out).counts()
    assert counts.sum() == 12
    shown = model_figures(spec, weights, {NORTH: held_out}).pooled.more
    assert set(shown) == {"rmse", "mae", "r2", "pearson", "c_index"}
    private_measures(spec, spec.releases[0], counts, noise=3.0)  # type: ignore[arg-type]


def without(part: str, spec: StudySpec, records: PatientRecords) -> PatientRecords:
    """The records with one part missing, as of a hospital that does not have it."""
    (name, one), (_, other) = spec.data.parts.items()  # type: ignore[attr-defined]
    cut = 2 + one.input_size
    features = records.features.copy()
    features[:, 0 if part == name else 1] = 0.0
    features[:, slice(2, cut) if part == name else slice(cut, cut + other.input_size)] = 0.0
    return replace(records, features=features)


def test_the_joined_model_beats_either_encoder_alone(tmp_path: Path) -> None:
    """The same model and training without noise; of the variance 0.26 is the molecule's, 0.20 the
    protein's and 0.01 noise, so that one part alone explains a half at most.
    """
    spec = study()
    source = SiteSource(settings_of(tmp_path, count=450))
    parts = [source.records(spec, part=part) for part in ("train", "test")]
    found = {}
    for missing in ("nothing", "molecule", "protein"):
        train, test = (
            one if missing == "nothing" else without(missing, spec, one) for one in parts
        )
        weights = baselines.fit(spec, train)
        found[missing] = model_figures(spec, weights, {NORTH: test}).pooled.more

    joined, protein, molecule = (found[name] for name in ("nothing", "molecule", "protein"))
    assert joined["r2"] > 0.8 > max(protein["r2"], molecule["r2"]) + 0.1
    assert joined["c_index"] > max(protein["c_index"], molecule["c_index"]) + 0.1
    assert joined["pearson"] > 0.9


def test_the_concordance_of_affinities_is_that_of_all_pairs(tmp_path: Path) -> None:
    draws = np.random.default_rng(3)
    true = np.round(draws.uniform(5, 10, 60), 1)
    guess = np.round(true + draws.normal(0, 2, 60), 1)
    pairs = [(i, j) for i in range(60) for j in range(60) if true[i] < true[j]]
    naive = sum(1.0 if guess[i] < guess[j] else 0.5 * (guess[i] == guess[j]) for i, j in pairs)

    right, comparable = concordance(-guess, true)

    assert right / comparable == pytest.approx(naive / len(pairs))


def test_the_private_figures_of_affinities_are_near_the_exact_ones() -> None:
    draws = np.random.default_rng(4)
    true = draws.uniform(0, 1, 20_000)
    guess = np.clip(true + draws.normal(0, 0.2, 20_000), 0, 1)
    counts, _, _ = np.histogram2d(true, guess, bins=10, range=[[0, 1], [0, 1]])

    found = value_figures(counts, noise=3.0, low=5.0, high=10.0)

    value, low, high = found["pearson"]
    assert low < value < high
    assert value == pytest.approx(np.corrcoef(true, guess)[0, 1], abs=0.02)
    right, comparable = concordance(-guess[:2000], true[:2000] + 1.0)
    assert found["c_index"][0] == pytest.approx(right / comparable, abs=0.03)


def test_letters_may_stand_in_a_fasta_file(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, count=12)
    plain = SiteSource(settings).records(study(), part="train")
    table = (tmp_path / "pairs.csv").read_text().splitlines()
    header, *lines = [line.split(",") for line in table]
    fasta = "".join(f">t{number}\n{line[1]}\n" for number, line in enumerate(lines))
    (tmp_path / "targets.fasta").write_text(fasta)
    rows = [
        dict(zip(header, line, strict=True)) | {"target": f"t{n}"} for n, line in enumerate(lines)
    ]
    named = settings.data[0].model_copy(update={"fasta": tmp_path / "targets.fasta"})
    write_table(tmp_path / "pairs.csv", rows)

    found = SiteSource(settings.model_copy(update={"data": (named,)})).records(
        study(), part="train"
    )

    assert np.array_equal(found.features, plain.features)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"compound": "no molecule"}, "RDKit"),
        ({"target": "AC??"}, "letters of protein"),
        ({"pkd": "strong"}, "number in pKd"),
    ],
)
def test_a_pair_that_does_not_fit_is_absent_and_changes_no_other(
    cells: dict[str, str], message: str, tmp_path: Path
) -> None:
    source = SiteSource(settings_of(tmp_path, count=12))
    before = source.records(study(), part="train")
    header, *lines = [one.split(",") for one in (tmp_path / "pairs.csv").read_text().splitlines()]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    write_table(tmp_path / "pairs.csv", [rows[0] | cells, *rows[1:]])

    after = source.records(study(), part="train")

    assert np.array_equal(after.features, before.features[1:])
    with pytest.raises(DataError, match=message) as refused:
        source.checked_records(study(), part="train")
    assert next(iter(cells.values())) not in str(refused.value)


def test_scaffolds_of_pairs_stay_on_one_side(tmp_path: Path) -> None:
    text = DRUG_TARGETS.replace(
        'kind = "column"\ncolumn = "split"', 'kind = "scaffold"\nsalt = "b"\nheld_out = 0.4'
    )
    spec, source = study(text), SiteSource(settings_of(tmp_path, count=60))

    sides = [source.records(spec, part=part) for part in ("train", "test")]

    assert sum(side.patients for side in sides) == 60
    assert min(side.patients for side in sides) > 10


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "mlp", "hidden": [8]}},
        {"task": {"kind": "molecule-property"}},
        {"releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}]},
    ],
    ids=["another model", "another task", "another evaluation"],
)
def test_a_study_of_pairs_that_does_not_fit_together_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        check_task(changed(study(), **changes))


def test_a_made_up_pair_is_in_range_and_moves_no_other() -> None:
    for text in (DRUG_TARGETS, GRAPHS, WORDS):
        findings, patients = probe_loader(study(text), load_rows)

        assert {one.name for one in findings if not one.passed} == set()
        assert len(patients) >= 4


def test_the_data_check_counts_pairs_and_letters(tmp_path: Path) -> None:
    found = check_data(study(), SiteSource(settings_of(tmp_path, count=36)))

    assert (found.people, found.training, found.held_out) == (36, 24, 12)
    assert [one.name for one in found.features] == ["letters", "ambiguous letters"]
