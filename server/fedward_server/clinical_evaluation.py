"""A finished study's counts as the evaluation that a clinician reads."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedward_common.ids import SiteId
from fedward_common.study.evaluation import evaluation_of
from fedward_common.study.grouped_scores import GroupedScores
from fedward_common.study.spec import StudySpec
from fedward_server.clinical_figures import clinical_figures
from fedward_server.evaluation import Numbers, PooledCounts


def total_counts(
    study: StudySpec, counts: Mapping[SiteId, Numbers], pooled: PooledCounts | None
) -> PooledCounts | None:
    """The counts over all sites, summed in secret or here; None where there are none."""
    release = evaluation_of(study)
    if pooled is not None or release is None or not counts:
        return pooled
    total = np.stack(list(counts.values())).sum(axis=0, dtype=np.float64)
    noise = release.noise_std * math.sqrt(len(counts))
    return PooledCounts(counts=total, sites=tuple(counts), noise=noise)


def clinical_evaluation(
    study: StudySpec, counts: Mapping[SiteId, Numbers], pooled: PooledCounts | None
) -> dict[str, Any] | None:
    """The evaluation as a JSON value; None where the study does not count groups of patients.

    After a secret sum nothing is known of one site, so that sites are no groups then.
    """
    release, total = evaluation_of(study), total_counts(study, counts, pooled)
    if not isinstance(release, GroupedScores) or total is None:
        return None
    sites = {} if pooled is not None else counts
    found = clinical_figures(release, total.counts, noise=total.noise, sites=sites)
    return found.as_json()
