"""Harmonisation as part of a study: columns whose scales differ by hospital are made alike.

The location and scale model of ComBat (Johnson et al. 2007), without its covariates and without
empirical Bayes. A hospital's own location and scale are noised sums over its training patients,
drawn once, charged as a release, and kept there; what they are adjusted to, the federation's,
stands in the study (from a study of statistics, or from clinical knowledge). An exact mean of the
site would be a constant fitted on its own patients, in which every patient moves all others'
tensors (rules 6): no gradient would be one patient's own.
"""

import math
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from fedward_common.errors import ConfigError
from fedward_common.study.registry import ReleaseSpec, register
from fedward_common.study.spec import DpSgd, FedAdam, FedAvg, FedProx, Positive, StudySpec
from fedward_common.study.statistics import ColumnStatistics, weight
from fedward_common.study.tabular import Name, NumberColumn, TabularData

LOCATION: Final = "harmonisation.location"
SCALE: Final = "harmonisation.scale"
"""The names of a site's constants, float32 [columns], in inputs: the range is [-1, 1]."""
LARGEST_ERROR: Final = 0.25
"""Location and scale may be off by this part of the federation's scale, at one deviation of noise.
"""

Finite = Annotated[float, Field(allow_inf_nan=False)]


@register
class SiteHarmonisation(ReleaseSpec):
    """Every site's location and scale of some number columns, for the site itself: nothing leaves.

    The value x of a column becomes (x - own location) / own scale * `scales` + `locations`, in the
    column's unit, clipped to its range; a scale changes by at most the factor `most`. A site's
    own figures are the mean over its training patients (of each one's readable values) and the
    standard deviation, from count, sum and sum of squares with Gaussian noise of
    `noise_multiplier` over their L2 sensitivity.
    """

    kind: Literal["site-harmonisation"] = "site-harmonisation"
    columns: tuple[Name, ...] = Field(min_length=1, max_length=64, strict=False)
    locations: tuple[Finite, ...] = Field(min_length=1, max_length=64, strict=False)
    scales: tuple[Positive, ...] = Field(min_length=1, max_length=64, strict=False)
    noise_multiplier: Positive
    most: float = Field(default=4.0, gt=1, le=100)

    @property
    def statistics(self) -> ColumnStatistics:
        """The mechanism: the sums as a statistics release has them."""
        return ColumnStatistics(
            columns=self.columns,
            statistics=("count", "mean", "variance"),
            noise_multiplier=self.noise_multiplier,
        )

    @model_validator(mode="after")
    def _consistent(self) -> "SiteHarmonisation":
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("columns: expected each once")
        if not len(self.columns) == len(self.locations) == len(self.scales):
            raise ValueError("expected one of locations and of scales for each of columns")
        return self


def harmonisation_of(study: StudySpec) -> SiteHarmonisation | None:
    """The study's harmonisation; None where it has none.

    Raises:
        ConfigError: as `check_harmonisation`.
    """
    found = [release for release in study.releases if isinstance(release, SiteHarmonisation)]
    if not found:
        return None
    if len(found) > 1:
        raise ConfigError("releases: expected one site-harmonisation at most, found more")
    check_harmonisation(study, found[0])
    return found[0]


def check_harmonisation(study: StudySpec, release: SiteHarmonisation) -> None:
    """Returns when the columns of a study can be harmonised rightly; unknown means no.

    1. Patient by patient DP-SGD with local noise: a share of noise would not cover what one site
       computes for itself. 2. An aggregation under which sites keep nothing else. 3. Several sites.
    4. One table whose missing values drop the row: a public fill value must not be shifted. 5. The
    columns are numbers of it, and so not its label. 6. The federation's figures lie
    in the range. 7. The noise leaves something: location and scale are known to a quarter of the
    scale.

    Raises:
        ConfigError: which of these is not so.
    """
    data, dp, where = study.data, study.dp, "releases.site-harmonisation"
    if not isinstance(dp, DpSgd) or dp.placement != "local":  # 1
        raise ConfigError(f"{where}: expected dp-sgd with local noise, found another plan")
    if not isinstance(study.aggregation, FedAvg | FedProx | FedAdam):  # 2
        raise ConfigError(
            f"{where}: expected fedavg, fedprox or fedadam, found {study.aggregation.name}"
        )
    if len(study.sites) < 2:  # 3
        raise ConfigError(f"{where}: expected at least two sites, found one")
    if not isinstance(data, TabularData) or data.missing != "drop" or data.label is None:  # 4
        raise ConfigError(
            f"{where}: expected one table with a label and missing = 'drop' (a fill value is the "
            "same everywhere and must not be moved), found other data"
        )
    known = {column.name: column for column in data.columns}
    names = zip(release.columns, release.locations, release.scales, strict=True)
    for name, location, scale in names:
        column = known.get(name)
        if not isinstance(column, NumberColumn):  # 5
            raise ConfigError(f"{where}: expected number columns of data.columns, found {name!r}")
        span = column.high - column.low
        if not column.low <= location <= column.high or scale > span / 2:  # 6
            raise ConfigError(
                f"{where}: expected a location of {name!r} from {column.low:g} to {column.high:g} "
                f"and a scale of at most {span / 2:g}, found {location:g} and {scale:g}"
            )
        _check_noise(study, release, name=name, scale=2.0 * scale / span)  # 7


def _check_noise(study: StudySpec, release: SiteHarmonisation, *, name: str, scale: float) -> None:
    """By public numbers: the planned patients of each site, never how many there are."""
    noise = release.noise_multiplier * math.sqrt(weight(release.statistics, study.data))
    fewest = min(study.sites, key=lambda site: site.patients)
    # A mean is off by the noise over the patients, a deviation by that over twice its size.
    error = noise / fewest.patients * max(1.0 / scale, 0.5 / scale**2)
    if error > LARGEST_ERROR:
        raise ConfigError(
            f"releases.site-harmonisation: expected location and scale of {name!r} "
            f"known to {LARGEST_ERROR:g} of its scale at every site, found {error:.2g} at "
            f"{fewest.id} ({fewest.patients} patients); take fewer columns or less noise"
        )
