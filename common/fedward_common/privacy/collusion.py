"""What dropouts and collusion do to the epsilon of distributed noise: computed, never guessed.

Every site adds N(0, sigma^2 C^2 / (n - d - c)). With l sites lost and k sites whose noise is known
to who looks, n - l - k shares count. Declared is the worst of l <= d and k = c.
"""

import math
from typing import Any

from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.mechanism import alone_study, study_event
from fedward_common.study.spec import StudySpec


def collusion_facts(study: StudySpec) -> dict[str, Any] | None:
    """Thresholds and epsilons (admission figures) of distributed noise; None with local noise.

    `by_collusion`: epsilon with d sites lost and so many colluding; the last is a site whose own
    share alone protects. `nobody_drops`: epsilon with all sites there and c colluding.

    Raises:
        ConfigError: a plan or a release without known accounting.
    """
    alone = alone_study(study)
    delta = getattr(study.dp, "delta", None)
    if alone is None or delta is None:
        return None
    limits = study.thresholds

    def epsilon(shares: int) -> float | None:
        scale = math.sqrt(shares)
        releases = tuple(_scaled(release, scale) for release in alone.releases)
        plan = alone.model_copy(update={"dp": _scaled(alone.dp, scale), "releases": releases})
        found = epsilon_admission([study_event(plan)], delta=delta)
        return found if math.isfinite(found) else None

    most = limits.sites - limits.dropouts
    return {
        "sites": limits.sites,
        "mode": limits.mode,
        "threshold": limits.threshold,
        "dropouts_borne": limits.dropouts,
        "colluding_sites_borne": limits.discounted,
        "noise_of_a_site_over_sigma": limits.site_noise_factor,
        "noise_over_sigma_if_nobody_drops": limits.excess_noise,
        "delta": delta,
        "epsilon_declared": epsilon(limits.noisy_sites),
        "epsilon_if_nobody_drops": epsilon(limits.sites - limits.discounted),
        "epsilon_if_all_others_collude": epsilon(1),
        "by_collusion": [
            {"colluding": colluding, "epsilon": epsilon(most - colluding)}
            for colluding in range(limits.discounted, most)
        ],
    }


def _scaled(part: Any, scale: float) -> Any:
    noise = getattr(part, "noise_multiplier", None)
    return part if noise is None else part.model_copy(update={"noise_multiplier": noise * scale})
