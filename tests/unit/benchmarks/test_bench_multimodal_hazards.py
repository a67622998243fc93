"""Nested figures of whole patients: who is held out decides nothing, and both models see alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.genomics_breast import parted
from benchmarks.genomics_tcga import dealt, matrix_files
from benchmarks.multimodal_hazards import (
    INNER,
    LINEAR,
    Try,
    chosen,
    encodings,
    nearly_noised,
    places,
    plain,
    run_of,
    study,
)
from benchmarks.omics_runs import Tables, pooled, pooled_path
from fedward_common.study.tasks import check_task
from tests.support.survival_cohort import patients

FUSED = Try(how="concatenation", width=2, weight=0.5, rate=0.05, marks=(20, 100))
SIDE_BY_SIDE = Try(how=LINEAR, weight=0.5, rate=0.05, marks=(20, 100))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[Try, Tables]]:
    people = patients()
    rows = dealt(people)
    layers = matrix_files(people, Path(tmp_path_factory.mktemp("layers")))
    return people, rows, encodings(rows, people, [FUSED, SIDE_BY_SIDE], layers)


def test_both_models_are_studies_of_the_same_patients_inputs_and_privacy(
    cohort: tuple[Any, Any, dict[Try, Tables]],
) -> None:
    people, rows, found = cohort
    fused, linear = (study(rows, people, plan, seed=1) for plan in (FUSED, SIDE_BY_SIDE))

    for spec in (fused, linear):
        check_task(spec)
    assert (fused.dp, fused.sites, fused.task) == (linear.dp, linear.sites, linear.task)
    for site, joined in found[FUSED].items():
        side_by_side = found[SIDE_BY_SIDE][site]
        assert joined.labels.tolist() == side_by_side.labels.tolist()
        assert (joined.features[:, :3] == 1).all()  # nobody lacks a modality
        np.testing.assert_array_equal(joined.features[:, 3:], side_by_side.features)
    folds = [places(rows, found[plan], 5, "x") for plan in (FUSED, SIDE_BY_SIDE)]
    assert all(folds[0][site].tolist() == folds[1][site].tolist() for site in rows)


@pytest.mark.parametrize("fit", [plain, nearly_noised])
def test_what_a_fold_chooses_does_not_depend_on_whom_it_holds_out(
    fit: Any, cohort: tuple[Any, Any, dict[Try, Tables]]
) -> None:
    people, rows, found = cohort
    quick = {replace(plan, marks=(3, 6)): tables for plan, tables in found.items()}
    specs = {plan: study(rows, people, plan, seed=1) for plan in quick}
    fold = places(rows, found[FUSED], 5, "x")
    inner = places(rows, found[FUSED], INNER, "y")
    within = {site: np.where(fold[site] == 0, -1, inner[site]) for site in rows}
    seen: list[list[float]] = []

    def watched(spec: Any, training: Tables, plan: Try) -> Any:
        seen.append(sorted(abs(x) for one in training.values() for x in one.labels.tolist()))
        return fit(spec, training, plan)

    first = chosen(specs, quick, within, watched)

    _, held_out = parted(found[FUSED], fold, 0)
    gone = {abs(x) for one in held_out.values() for x in one.labels.tolist()}
    kept = {abs(x) for one in parted(found[FUSED], fold, 0)[0].values() for x in one.labels}
    assert not any((gone - kept).intersection(labels) for labels in seen)
    turned = {
        plan: {
            site: replace(one, labels=np.where(fold[site] == 0, -one.labels, one.labels))
            for site, one in tables.items()
        }
        for plan, tables in quick.items()
    }
    assert chosen(specs, turned, within, fit) == first


def test_a_run_finds_what_the_genes_say_and_names_what_each_fold_chose(
    cohort: tuple[Any, Any, dict[Try, Tables]],
) -> None:
    people, rows, found = cohort

    for plan in (FUSED, SIDE_BY_SIDE):
        value, plans = run_of(rows, people, {plan: found[plan]}, run=1, fits=(plain, plain))

        assert value > 0.65
        assert len(plans) == 5


def test_a_way_passes_the_models_that_shorter_ways_end_with(
    cohort: tuple[Any, Any, dict[Try, Tables]],
) -> None:
    people, rows, found = cohort
    spec = study(rows, people, FUSED, seed=1)
    settings = {"rate": 0.02, "decay": 0.1}

    way = pooled_path(spec, found[FUSED], marks=(2, 5), **settings)

    for steps, model in way.items():
        alone = pooled(spec, found[FUSED], steps=steps, **settings)
        assert all(np.array_equal(model[name], alone[name]) for name in alone)
