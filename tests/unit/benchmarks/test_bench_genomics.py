"""One command runs every genomics benchmark; each line is one that its program takes."""

import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.genomics import BENCHES, Bench, command, main, run_all
from benchmarks.genomics_breast import Cohort, Try, cohort, dealt, parted, plain, study
from benchmarks.genomics_tcga import FEW, c_index, encoded, few_genes
from benchmarks.multimodal import private_study, study_of
from benchmarks.omics_runs import distributed, privacy, rehearsed
from benchmarks.wheel_data import packaged
from fedward_common.models.registry import initial_tensors
from fedward_common.study.inputs import input_size


class _Parsed(Exception):
    """The arguments were taken; nothing was run."""


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.name)
def test_every_program_takes_its_line(
    bench: Bench, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = import_module(f"benchmarks.{bench.module}")
    line = command(
        bench,
        shared=Path("data"),
        out=Path("runs"),
        quick=quick,
        plink2="plink2",
        wheels=Path("wheels"),
    )
    parse = module.argparse.ArgumentParser.parse_args

    def stop(parser: Any, *_: Any, **__: Any) -> None:
        parse(parser, line[3:])
        raise _Parsed

    monkeypatch.setattr(module.argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(_Parsed):
        module.main()
    assert ("-quick.json" in " ".join(line)) == quick


def test_one_that_fails_is_named_and_stops_no_other() -> None:
    seen: list[str] = []

    def run(line: list[str]) -> int:
        seen.append(line[0])
        return int(line[0] == "b")

    assert run_all([(name, [name]) for name in "abc"], run=run) == ["b"]
    assert seen == ["a", "b", "c"]
    assert main(["--shared", "nowhere", "--only", "no such name"]) == 1


@pytest.mark.parametrize("module", ["genomics_breast", "genomics_cells"])
def test_without_the_package_that_ships_the_data_it_says_so_and_is_no_failure(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench: Any = import_module(f"benchmarks.{module}")
    monkeypatch.setattr("benchmarks.wheel_data.find_spec", lambda _: None)
    monkeypatch.setattr("sys.argv", [module])

    bench.main()

    assert "skipped: the data set is in the package" in capsys.readouterr().out


def test_a_data_set_is_read_out_of_a_wheel_without_an_import(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some/__init__.py", "raise SystemExit")
        wheel.writestr("some/data/a.csv", "x")

    found = packaged("some", "data/a.csv", project="some-package", wheels=tmp_path)

    assert found == b"x"
    assert packaged("nowhere_at_all", "a", project="nowhere", wheels=tmp_path) is None


ARFF = """@relation r
@attribute age numeric
@attribute size numeric
@attribute grade {'well differentiated',intermediate,'poorly differentiated',unkown}
@attribute er {negative,positive}
@attribute t.tdm numeric
@attribute e.tdm {0,1}
@attribute X1_at numeric
@attribute X2_at numeric
@data
"""


def cohort_of(tmp_path: Path, *, patients: int = 60) -> Cohort:
    """Made-up patients, whose first gene shortens the time to metastasis."""
    draws = np.random.default_rng(1)
    lines = []
    for _ in range(patients):
        genes = draws.uniform(4, 12, size=2)
        days = 30 + draws.exponential(4000 * np.exp(-(genes[0] - 8)))
        event = int(days < 4000)
        lines.append(
            f"50,2,intermediate,positive,{min(days, 4000):.0f},{event},{genes[0]},{genes[1]}"
        )
    return cohort((ARFF + "\n".join(lines) + "\n").encode(), tmp_path)


def test_genes_of_made_up_patients_tell_their_time_and_folds_are_apart(tmp_path: Path) -> None:
    one = cohort_of(tmp_path)
    plan = Try(weight=1.0, steps=60, rate=0.05)
    spec = study(one, "genes", plan)
    tables = encoded(spec, one.rows, [one.layer])
    places = dealt(one, 3, "test")

    seen = 0
    for fold in range(3):
        training, held_out = parted(tables, places, fold)
        sizes = [sum(part.patients for part in table.values()) for table in (training, held_out)]
        assert sum(sizes) == 60
        seen += sizes[1]
        assert c_index(spec, plain(spec, training, plan), held_out) > 0.7
    assert seen == 60


def test_a_rehearsal_takes_the_steps_of_the_sites_where_there_is_no_chance(tmp_path: Path) -> None:
    """Everybody drawn and next to no noise: both give the same model, but for the grid."""
    one = cohort_of(tmp_path)
    spec = study(one, "fusion", Try(weight=1.0, steps=4, rate=0.05))
    quiet = {"noise_multiplier": 1e-4, "sampling_probability": 1.0}
    spec = spec.model_copy(
        update={
            "dp": spec.dp.model_copy(update=quiet),
            # Adam would make as much of the noise of a column that nobody differs in as of others.
            "training": spec.training.model_copy(update={"optimizer": "sgd", "learning_rate": 1.0}),
        }
    )
    tables = encoded(spec, one.rows, [one.layer])

    rehearsal, model = rehearsed(spec, tables), distributed(spec, tables)

    assert set(rehearsal) == set(model)
    assert all(np.allclose(rehearsal[name], model[name], atol=2e-3) for name in model)
    start = initial_tensors(spec.model, input_size(spec.data))
    assert any(np.abs(model[name] - start[name]).max() > 0.05 for name in model)


def test_whole_patients_within_epsilon_8_are_three_sites_with_distributed_noise() -> None:
    column = {"name": "a", "type": "number", "unit": "one", "low": 0.0, "high": 1.0}
    label = {"column": "y", "low": 0, "high": 1, "positive_from": 1}
    table = {"kind": "tabular", "patient_key": "id", "columns": [column], "label": label}
    spec = study_of(
        [{"name": name, "data": table} for name in ("one", "two")],
        [{"modality": name, "name": "linear"} for name in ("one", "two")],
        label_from="one",
        how="concatenation",
    )

    own = private_study(spec, 71)

    assert len(own.sites) == 3
    assert own.secure_sum
    told = privacy(own)
    assert told["placement"] == "distributed"
    assert told["delta"] <= 1 / (10 * 71)
    assert told["epsilon_admission"] <= 8.0


def test_genes_are_chosen_by_what_other_patients_show() -> None:
    draws = np.random.default_rng(2)
    others = []
    for _ in range(120):
        values = draws.normal(size=20)
        months = float(draws.exponential(np.exp(-1.5 * values[7])))
        own = {f"G{k}_rnaseq": f"{values[k]:.4f}" for k in range(20)}
        others.append(own | {"survival_months": f"{months:.4f}", "censorship": "0.0"})

    found = few_genes(others, [f"G{k}" for k in range(1, 20)])

    assert len(found) == FEW
    assert found[0] == "G7"
    assert "G0" not in found
