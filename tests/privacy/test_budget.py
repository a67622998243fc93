"""What a hospital reads as its epsilon, against two computations that share no code with ours.

Opacus' PRV accountant is an independent implementation of the tight figure; the Renyi bound is
written out here from the papers and can only lie above it.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from opacus.accountants import PRVAccountant

from fedward_client.adapters.sqlite_ledger import SqliteLedger
from fedward_client.budget import budget_report
from fedward_client.policy import SitePolicy
from fedward_common.errors import BudgetExceeded
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.privacy.ledger import Reservation
from fedward_common.study.evaluation import BinnedScores
from fedward_common.study.spec import DpSgd, StudySpec
from tests.support.guard_site import a_study, make_site
from tests.support.ledger_fakes import Ticking


def plan(study: StudySpec) -> DpSgd:
    assert isinstance(study.dp, DpSgd)
    return study.dp


def prv_epsilon(study: StudySpec) -> float:
    """Opacus' PRV figure of all steps and every release, eps_error 1e-3."""
    accountant, dp = PRVAccountant(), plan(study)
    accountant.history = [(dp.noise_multiplier, dp.sampling_probability, dp.steps)]
    for release in study.releases:
        assert isinstance(release, BinnedScores)
        # As good as unsampled: the accountant divides by 1 - q.
        accountant.history.append((release.noise_multiplier, 1 - 1e-9, 1))
    return float(accountant.get_epsilon(dp.delta, eps_error=1e-3, delta_error=dp.delta / 1000))


def renyi_bound(study: StudySpec) -> float:
    """Mironov, Talwar and Zhang 2019, section 3.3, for whole orders; conversion of Mironov 2017,
    Proposition 3.
    """
    dp = plan(study)
    q, sigma = dp.sampling_probability, dp.noise_multiplier
    bounds = []
    for order in range(2, 200):
        terms = [
            math.log(math.comb(order, k))
            + k * math.log(q)
            + (order - k) * math.log1p(-q)
            + k * (k - 1) / (2 * sigma**2)
            for k in range(order + 1)
        ]
        largest = max(terms)
        step = largest + math.log(sum(math.exp(term - largest) for term in terms))
        divergence = dp.steps * step / (order - 1)
        for release in study.releases:
            assert isinstance(release, BinnedScores)
            divergence += order / (2 * release.noise_multiplier**2)
        bounds.append(divergence + math.log(1 / dp.delta) / (order - 1))
    return min(bounds)


STUDIES: list[dict[str, Any]] = [
    {"rounds": 30, "local_steps": 4, "noise_multiplier": 3.0, "sampling_probability": 0.1},
    {"rounds": 10, "local_steps": 20, "noise_multiplier": 2.0, "sampling_probability": 0.05},
    {"rounds": 20, "local_steps": 1, "noise_multiplier": 2.5, "sampling_probability": 0.3},
]


@pytest.mark.parametrize("releases", [0, 1], ids=["training", "training and evaluation"])
@pytest.mark.parametrize("parameters", STUDIES, ids=["heart", "long rounds", "large batches"])
def test_the_reported_epsilon_is_opacus_prv_within_one_percent_and_below_the_renyi_bound(
    tmp_path: Path, parameters: dict[str, Any], releases: int
) -> None:
    study = a_study(releases=releases, epsilon=9.0, **parameters)
    site = make_site(tmp_path, study, max_epsilon_per_study=9.0, max_epsilon_total=9.0)
    site.settings.folders.state.mkdir(exist_ok=True)
    ledger = SqliteLedger(
        site.settings.ledger_path, limits=SitePolicy.of(site.settings).limits, clock=Ticking()
    )
    ledger.reserve(Reservation.of(study))
    ledger.close()

    (reported,) = budget_report(site.settings)["studies"]

    assert reported["epsilon_pld"] == pytest.approx(prv_epsilon(study), rel=0.01)
    assert reported["epsilon_pld"] < reported["epsilon_admission"] < renyi_bound(study)
    assert reported["delta"] == plan(study).delta


@pytest.mark.parametrize("kind", ["admission", "pld"])
def test_a_calibrated_study_costs_no_more_than_it_declares_by_opacus_too(kind: Any) -> None:
    noise = calibrate_noise_multiplier(
        epsilon=2.0,
        epsilon_is=kind,
        delta=1e-4,
        sampling_probability=0.1,
        steps=120,
        releases=a_study().releases,
    )
    study = a_study(rounds=30, noise_multiplier=noise, epsilon=2.0)

    # PRV states its figure with an error of 1e-3.
    assert prv_epsilon(study) <= 2.0 + 2e-3


def test_a_site_does_not_believe_the_declared_epsilon(tmp_path: Path) -> None:
    study = a_study(rounds=30, noise_multiplier=0.7, epsilon=2.0)
    site = make_site(tmp_path, study)
    site.settings.folders.state.mkdir(exist_ok=True)
    ledger = SqliteLedger(
        site.settings.ledger_path, limits=SitePolicy.of(site.settings).limits, clock=Ticking()
    )

    with pytest.raises(BudgetExceeded, match="declared epsilon 2"):
        ledger.reserve(Reservation.of(study))

    ledger.close()
    assert budget_report(site.settings)["studies"] == []
