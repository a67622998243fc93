"""result.json of a sandbox run (schema fedward-result/1) from what the run and the parent know."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedward_common.arrays import Array, Tensors, tensors_from_bytes
from fedward_common.ids import SiteId
from fedward_common.models.registry import model_shapes
from fedward_common.study.evaluation import BinnedScores, evaluation_of
from fedward_common.study.grouped_scores import GroupedScores, ValueScores
from fedward_common.study.imaging import ImageMasks
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.tasks import value_range
from fedward_server.adapters.run_files import MODEL
from fedward_server.clinical_evaluation import clinical_evaluation, total_counts
from fedward_server.clinical_figures import value_figures
from fedward_server.evaluation import (
    Estimate,
    PooledCounts,
    PrivateFigures,
    evaluate,
    figures,
)
from fedward_server.private_measures import private_measures
from fedward_server.sandbox.baselines import each_site_alone, pooled_no_privacy
from fedward_server.sandbox.figures import ModelFigures, model_figures, roc_points
from fedward_server.sandbox.measures import DRAWS, rounds_facts
from fedward_server.sandbox.parent_copy import ParentCopy

EXACT: Final = "exact: computed by the sandbox's parent from its own copy of the held-out patients"
PRIVATE: Final = "private: estimated from noised bins, which is all a coordinator knows"
PACKAGES: Final = {
    "torch": "torch",
    "flwr": "flwr",
    "opacus": "opacus",
    "dp_accounting": "dp-accounting",
    "fedward": "fedward-server",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a finished run left: model, checkpoints, noised counts, and what the sites report."""

    model: dict[str, Array]
    checkpoints: dict[int, bytes]
    counts: dict[SiteId, np.ndarray]
    pooled: PooledCounts | None
    rounds: Mapping[str, Any]
    budgets: Mapping[SiteId, Mapping[str, Any]]
    journals: Mapping[SiteId, Mapping[str, Any]]
    timings: Mapping[str, float]
    alone: Mapping[SiteId, Sequence[Tensors]]


def read_outcome(
    folder: Path,
    facts: Mapping[str, Any],
    *,
    budgets: Mapping[SiteId, Mapping[str, Any]],
    journals: Mapping[SiteId, Mapping[str, Any]],
    timings: Mapping[str, float],
    alone: Mapping[SiteId, Sequence[Tensors]],
) -> Outcome:
    """The outcome of the finished run in `folder`."""
    return Outcome(
        model=tensors_from_bytes((folder / MODEL).read_bytes()),
        checkpoints={
            int(path.stem.removeprefix("round-")): path.read_bytes()
            for path in sorted(folder.glob("round-*.safetensors"))
        },
        counts={SiteId(site): np.asarray(rows) for site, rows in facts["counts"].items()},
        pooled=PooledCounts.from_json(facts["pooled"]) if facts.get("pooled") else None,
        rounds=rounds_facts(facts),
        budgets=budgets,
        journals=journals,
        timings=timings,
        alone=alone,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """The figures of the models that stand beside each other.

    `alone`: each site with the study's own noise, rounds and steps but no partners, several noise
    draws. `alone_no_privacy`: each site for itself, which needs no noise as long as nothing leaves.
    """

    federated: ModelFigures
    alone: Mapping[SiteId, Sequence[ModelFigures]]
    alone_no_privacy: Mapping[SiteId, ModelFigures]
    pooled: ModelFigures


def assemble_result(
    study: StudySpec, copy: ParentCopy, outcome: Outcome, *, seconds: float
) -> dict[str, Any]:
    """The result as a JSON value; figures that do not exist are None, never a stand-in."""

    def judge(model: Tensors) -> ModelFigures:
        return model_figures(study, model, copy.held_out)

    compared = Compared(
        federated=model_figures(study, outcome.model, copy.held_out, draws=DRAWS),
        alone={site: [judge(m) for m in models] for site, models in outcome.alone.items()},
        alone_no_privacy={s: judge(m) for s, m in each_site_alone(study, copy.training).items()},
        pooled=judge(pooled_no_privacy(study, copy.training)),
    )
    private = _private(study, outcome)
    budgets = {site: _budget(report, study.digest) for site, report in outcome.budgets.items()}
    bytes_sent = {site: report["bytes_out"] for site, report in outcome.journals.items()}
    dp = study.dp
    return {
        "format": "fedward-result/1",
        "study": _study(study),
        "auc": _auc(compared, private),
        "accuracy": _accuracy(compared, private),
        "figures": _own_figures(
            compared, _private_values(study, outcome) | _private_measures(study, outcome)
        ),
        "clinical": clinical_evaluation(study, outcome.counts, outcome.pooled),
        "per_site": {
            site: _site(site, compared, budgets.get(site, {}), bytes_sent.get(site, 0))
            | {"figures_private": _site_private(study, outcome, site)}
            for site in compared.federated.per_site
        },
        "epsilon": {site: budget["epsilon_admission"] for site, budget in budgets.items()},
        "epsilon_if_all_others_collude": {
            site: budget.get("epsilon_if_all_others_collude", budget["epsilon_admission"])
            for site, budget in budgets.items()
        },
        "epsilon_is": "admission",
        "epsilon_pld": {site: budget["epsilon_pld"] for site, budget in budgets.items()},
        "delta": dp.delta if isinstance(dp, DpSgd) else None,
        "unit": dp.unit if isinstance(dp, DpSgd) else "patient",
        "bytes_sent": bytes_sent,
        "seconds": round(seconds, 2),
        "timings": {name: round(value, 2) for name, value in outcome.timings.items()},
        "rounds": outcome.rounds,
        "curve": _curve(study, copy, outcome),
        "roc": {
            "exact": roc_points(study, outcome.model, copy.held_out),
            "private": private.roc if private is not None else (),
        },
        "environment": {
            "python": platform.python_version(),
            **{name: version(package) for name, package in PACKAGES.items()},
            "machine": f"{platform.system()} {platform.machine()}, {_cores()} cores",
        },
        "seed": None,
        "labels": {
            "federated": EXACT,
            "federated_private": PRIVATE,
            "alone_mean": EXACT,
            "pooled_no_privacy": EXACT,
        },
    }


def _cores() -> int:

    return os.cpu_count() or 1


def _private(study: StudySpec, outcome: Outcome) -> PrivateFigures | None:
    """AUC and accuracy from the noised counts; of several classes their mean and the answers."""
    release = evaluation_of(study)
    if isinstance(release, GroupedScores):
        found = total_counts(study, outcome.counts, outcome.pooled)
        return None if found is None else figures(found.counts[:2], noise=found.noise)
    if isinstance(release, ValueScores):
        return None
    if isinstance(release, BinnedScores):
        if outcome.pooled is not None:
            return outcome.pooled.figures
        return evaluate(outcome.counts, release=release).pooled if outcome.counts else None
    own = _private_measures(study, outcome)
    return PrivateFigures(auc=own.get("auc"), accuracy=own.get("accuracy"))


def _study(study: StudySpec) -> dict[str, Any]:
    dp = study.dp.model_dump(mode="json")
    kept = ("unit", "noise_multiplier", "clip_norm", "sampling_probability", "steps", "placement")
    return {
        "id": study.id,
        "title": study.title,
        "digest": study.digest,
        "task": study.task.kind,
        "model": study.model.model_dump(mode="json"),
        "rounds": study.rounds,
        "local_steps": study.local_steps,
        **{name: dp[name] for name in (*kept, "max_records_per_patient")},
        "aggregation": study.aggregation.model_dump(mode="json"),
        "sites": [{"id": site.id, "patients": site.patients} for site in study.sites],
    }


def _auc(compared: Compared, private: PrivateFigures | None) -> dict[str, Any]:
    return {
        "federated": compared.federated.pooled.auc,
        "federated_interval": compared.federated.pooled.intervals.get("auc"),
        **_estimate(private.auc if private else None),
        "alone_mean": _mean([f.pooled.auc for draws in compared.alone.values() for f in draws]),
        "alone_no_privacy_mean": _mean([f.pooled.auc for f in compared.alone_no_privacy.values()]),
        "pooled_no_privacy": compared.pooled.pooled.auc,
    }


def _accuracy(compared: Compared, private: PrivateFigures | None) -> dict[str, Any]:
    federated, alone = compared.federated, compared.alone
    return {
        "federated": federated.pooled.accuracy,
        "federated_interval": federated.pooled.intervals.get("accuracy"),
        **_estimate(private.accuracy if private else None),
        "alone_mean": _mean([f.pooled.accuracy for draws in alone.values() for f in draws]),
        "alone_no_privacy_mean": _mean(
            [f.pooled.accuracy for f in compared.alone_no_privacy.values()]
        ),
        "pooled_no_privacy": compared.pooled.pooled.accuracy,
        "majority": federated.pooled.majority,
        "standard_error": federated.pooled.accuracy_error,
        "federated_site_mean": federated.site_mean_accuracy,
        "federated_site_mean_standard_error": federated.site_mean_accuracy_error,
        "alone_site_mean": _mean(
            [
                f.per_site[site].accuracy
                for site, draws in alone.items()
                for f in draws
                if site in f.per_site
            ]
        ),
        "alone_no_privacy_site_mean": _mean(
            [
                f.per_site[site].accuracy
                for site, f in compared.alone_no_privacy.items()
                if site in f.per_site
            ]
        ),
        "pooled_no_privacy_site_mean": compared.pooled.site_mean_accuracy,
        "majority_site_mean": federated.site_mean_majority,
    }


def _private_values(study: StudySpec, outcome: Outcome) -> dict[str, Estimate]:
    """The figures of a regression from noised counts; empty for any other task."""
    release, total = evaluation_of(study), total_counts(study, outcome.counts, outcome.pooled)
    if total is None or not isinstance(release, ValueScores):
        return {}
    low, high = value_range(study.data)
    found = value_figures(total.counts, noise=total.noise, low=low, high=high)
    return {
        name: Estimate(value=value, low=below, high=above)
        for name, (value, below, above) in found.items()
    }


def _own_figures(compared: Compared, private: Mapping[str, Estimate]) -> dict[str, Any]:
    """What only this kind of task has (as the C-index): figure -> model -> value.

    Exact, with a bootstrap interval where there is one, and the private estimate beside it.
    """
    bootstrap = compared.federated.pooled.intervals
    models = {
        "federated": [compared.federated],
        "alone_mean": [f for draws in compared.alone.values() for f in draws],
        "alone_no_privacy_mean": list(compared.alone_no_privacy.values()),
        "pooled_no_privacy": [compared.pooled],
    }
    return {
        name: {
            model: _mean([one.pooled.more.get(name) for one in found])
            for model, found in models.items()
        }
        | ({"federated_interval": list(bootstrap[name])} if name in bootstrap else {})
        | (_estimate(private[name]) if name in private else {})
        for name in compared.federated.pooled.more
    }


def _private_measures(study: StudySpec, outcome: Outcome) -> dict[str, Estimate]:
    """The pooled private figures of a study of images, by name."""
    release, total = evaluation_of(study), total_counts(study, outcome.counts, outcome.pooled)
    if release is None or total is None:
        return {}
    return private_measures(study, release, total.counts, noise=total.noise)


def _site_private(study: StudySpec, outcome: Outcome, site: SiteId) -> dict[str, Any]:
    """What a site's own noised counts say, by name: value and interval."""
    release, counts = evaluation_of(study), outcome.counts.get(site)
    if release is None or counts is None:
        return {}
    found = private_measures(study, release, counts, noise=release.noise_std)
    return {name: [one.value, one.low, one.high] for name, one in found.items()}


def _estimate(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"federated_private": None, "federated_private_interval": None}
    return {
        "federated_private": estimate.value,
        "federated_private_interval": [estimate.low, estimate.high],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the figures; None when one of them does not exist."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _site(
    site: SiteId, compared: Compared, budget: Mapping[str, Any], bytes_sent: int
) -> dict[str, Any]:
    figures = compared.federated.per_site[site]
    own = [f.per_site[site] for f in compared.alone.get(site, [])]
    return {
        "held_out": figures.held_out,
        "auc": figures.auc,
        "accuracy": figures.accuracy,
        "figures": dict(figures.more),
        "alone_auc": _mean([one.auc for one in own]),
        "alone_accuracy": _mean([one.accuracy for one in own]),
        "epsilon_admission": budget.get("epsilon_admission"),
        "epsilon_pld": budget.get("epsilon_pld"),
        "bytes_sent": bytes_sent,
        "rounds_charged": budget.get("rounds_charged", 0),
    }


def _budget(report: Mapping[str, Any], digest: str) -> Mapping[str, Any]:
    for entry in report["studies"]:
        if entry["digest"] == digest:
            found: Mapping[str, Any] = entry
            return found
    return {"epsilon_admission": 0.0, "epsilon_pld": 0.0, "rounds_charged": 0}


def _curve(study: StudySpec, copy: ParentCopy, outcome: Outcome) -> list[dict[str, Any]]:
    """AUC and accuracy of the global model after each committed round, exact."""
    if isinstance(study.data, ImageMasks):
        return []  # to look through every image after every round takes longer than the study
    shapes = model_shapes(study.model, inputs=input_size(study.data))
    points = []
    for number, content in sorted(outcome.checkpoints.items()):
        pooled = model_figures(
            study, tensors_from_bytes(content, shapes=shapes), copy.held_out
        ).pooled
        points.append({"round": number, "auc": pooled.auc, "accuracy": pooled.accuracy})
    return points
