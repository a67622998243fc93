"""Statistics about genotypes as releases: allele frequencies, association scores, covariance.

As of `ColumnStatistics`, a release is one vector per site, to which every patient (or family) adds
a vector of its own; no entry moves by more than 1, and `weight` bounds its squared length. It
follows from the study alone. Post-processing turns the sums into what geneticists read.

Sources: Li and Lin 2010 (score statistics from sums); Neyman 1959, C(alpha) (scores about a null
model that is only near its maximum); Price et al. 2006 (principal components of genotypes).
"""

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from fedward_common.errors import ConfigError
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.registry import DataSpec, ReleaseSpec, register
from fedward_common.study.spec import Positive
from fedward_common.study.tabular import LabelRule, NumberLabel

MAX_SUMS: Final = 65_536
Coefficient = Annotated[float, Field(allow_inf_nan=False, ge=-50, le=50)]


class VariantRelease(ReleaseSpec):
    """Noised sums about the genotypes of a panel, with the noise of `ColumnStatistics`.

    `noise_multiplier`: the standard deviation over the sensitivity in L2.
    """

    mechanism: Literal["gaussian"] = "gaussian"
    noise_multiplier: Positive
    min_cell_size: int = Field(default=10, ge=1, le=10_000)

    @property
    def counts_weight(self) -> int:
        """None of the discrete mechanism's numbers."""
        return 0

    @property
    def said(self) -> str:
        """What is released, in words for a hospital."""
        raise NotImplementedError

    def sums(self, data: Genotypes) -> int:
        """How many numbers there are."""
        raise NotImplementedError

    def weight(self, data: Genotypes) -> int:
        """At most the squared length of what one patient adds."""
        raise NotImplementedError


@register
class AlleleFrequencies(VariantRelease):
    """For each locus: patients with a genotype, and the sum of their copies of `alt` over 2.

    After the noise a locus is left out of the report where fewer than `min_cell_size` copies of
    either allele are seen, or the rarer one has a share below `min_frequency`: rare variants point
    to people. The coordinator gets the noised sums of all.
    """

    kind: Literal["allele-frequencies"] = "allele-frequencies"
    min_frequency: float = Field(default=0.01, ge=0, lt=0.5)

    @property
    def said(self) -> str:
        """What is released, in words for a hospital."""
        return (
            f"allele frequencies; alleles seen fewer than {self.min_cell_size} times or in a share "
            f"below {self.min_frequency:g} are left out of the report (noised sums of all leave)"
        )

    def sums(self, data: Genotypes) -> int:
        """Two for each locus: all genotypes, then all copies."""
        return 2 * len(data.loci)

    def weight(self, data: Genotypes) -> int:
        """Each number at most 1."""
        return self.sums(data)


@register
class VariantScores(VariantRelease):
    """The sums from which a test of each locus follows, with covariates: a GWAS.

    With z = (1, inputs of the columns), the label y on the scale [-1, 1] (0 or 1 of a class), and x
    = copies - 1, what is missing filled with the panel's frequency:

    * `linear`: the upper triangle of (z, y)(z, y)', and for each locus x (z, y) and x^2;
    * `logistic`: about the null model `null` (a coefficient for each z), p = logistic(null' z) and
      w = 4 p (1 - p): (y - p) z, the upper triangle of w z z', and for each locus x (y - p),
      w x z and w x^2. `null` is a public constant, such as the model of an earlier study: the test
      corrects for what it lacks to the maximum to first order.
    """

    kind: Literal["variant-scores"] = "variant-scores"
    model: Literal["linear", "logistic"]
    null: tuple[Coefficient, ...] = Field(default=(), max_length=257, strict=False)

    @property
    def said(self) -> str:
        """What is released, in words for a hospital."""
        return f"sums for a {self.model} test of every locus with the study's covariates (GWAS)"

    def sums(self, data: Genotypes) -> int:
        """Those of the null model, then those of each locus."""
        _check_scores(self, data)
        width = covariates(data)
        if self.model == "linear":
            return (width + 1) * (width + 2) // 2 + len(data.loci) * (width + 2)
        return width + width * (width + 1) // 2 + len(data.loci) * (width + 2)

    def weight(self, data: Genotypes) -> int:
        """Each number at most 1."""
        return self.sums(data)

    @model_validator(mode="after")
    def _fitting(self) -> "VariantScores":
        if (self.model == "logistic") != bool(self.null):
            raise ValueError(
                "null: expected the coefficients of a logistic null model, and only so"
            )
        return self


@register
class GenotypeCovariance(VariantRelease):
    """The sums from which principal components of the panel follow.

    u = (copies - 2 f) / sqrt(2 f (1 - f)) by the panel's frequencies f, all of it divided by `norm`
    and cut to the length 1: a patient's u, and the upper triangle of u u'. Nobody's own position
    along a component is released; a hospital computes those of its patients itself.
    """

    kind: Literal["genotype-covariance"] = "genotype-covariance"
    norm: float = Field(gt=0, le=1e4, description="few patients should be longer than that")
    components: int = Field(default=10, ge=1, le=64)

    @property
    def said(self) -> str:
        """What is released, in words for a hospital."""
        return "sums for principal components of the panel (no patient's position on them)"

    def sums(self, data: Genotypes) -> int:
        """How many patients, u, and the triangle."""
        size = len(data.loci)
        if any(not 0 < locus.frequency < 1 for locus in data.loci):
            raise ConfigError("data.loci: expected frequencies above 0 and below 1 for components")
        return 1 + size + size * (size + 1) // 2

    def weight(self, data: Genotypes) -> int:
        """1 for the count, and at most 1 for each of u and the triangle of u u'."""
        self.sums(data)
        return 3


def genotypes_of(data: DataSpec) -> Genotypes:
    """`data` as genotypes. Raises ConfigError where they are others."""
    if not isinstance(data, Genotypes):
        raise ConfigError(f"data.kind: expected genotypes for this release, found {data.kind!r}")
    return data


def covariates(data: Genotypes) -> int:
    """The length of z: 1, and the inputs of the columns."""
    return 1 + data.input_size - len(data.loci) * data.channels


def variant_sums(release: VariantRelease, data: DataSpec) -> int:
    """How many numbers a release has.

    Raises:
        ConfigError: data of another kind, a label that does not fit, or too many numbers.
    """
    found = release.sums(genotypes_of(data))
    if found > MAX_SUMS:
        raise ConfigError(f"releases: expected at most {MAX_SUMS} numbers, found {found}")
    return found


def _check_scores(release: VariantScores, data: Genotypes) -> None:
    wanted = NumberLabel if release.model == "linear" else LabelRule
    if not isinstance(data.label, wanted):
        raise ConfigError(f"data.label: expected one for a {release.model} test, found another")
    if release.null and len(release.null) != covariates(data):
        raise ConfigError(
            f"releases.null: expected {covariates(data)} coefficients (of 1 and of each input of "
            f"the columns), found {len(release.null)}"
        )
