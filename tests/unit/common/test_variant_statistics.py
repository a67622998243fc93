"""Frequencies, association and components out of sums of sites: as plink2 on the pooled data.

The vectors are plink2's own output (see `source` in them); plink2 is GPL and an oracle only.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedward_client.policy import OUTPUTS
from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.genotypes.encoding import Person
from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.ledger import Reservation
from fedward_common.privacy.statistics import (
    check_values,
    exact_sums,
    noise_spread,
    noised,
    withheld,
)
from fedward_common.privacy.variant_statistics import share
from fedward_common.secagg.sums import sum_plan
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import cells, statistics_releases, weight
from fedward_common.study.variant_statistics import (
    AlleleFrequencies,
    GenotypeCovariance,
    VariantRelease,
    VariantScores,
)
from fedward_server.report.statistics import statistics_json, statistics_text
from fedward_server.statistics import Totals
from fedward_server.variant_figures import variant_figures
from tests.support.genotype_studies import schema
from tests.support.statistics import NoNoise, statistics_study

PLINK: Any = json.loads((Path(__file__).parents[2] / "vectors" / "plink2.json").read_text())
COLUMNS = [
    {"name": "age", "type": "number", "unit": "years", "low": 20.0, "high": 80.0},
    {"name": "sex", "type": "category", "values": ["0", "1"]},
]
HEIGHT = {"column": "height", "unit": "cm", "low": 100.0, "high": 220.0}
CASE = {"column": "case", "low": 0, "high": 1, "positive_from": 1}
NULL = (-0.3, 0.1, -0.4)


def panel(**changes: Any) -> Genotypes:
    return schema(loci=PLINK["loci"], columns=COLUMNS, split=None, **changes)


def everyone(data: Genotypes) -> list[Person]:
    """The people of the vectors, by the study's scales."""
    copies = np.array([[int(c) for c in row] for row in PLINK["genotypes"]], np.float32)
    found = []
    for number, own in enumerate(copies):
        label = 0.0
        if data.label is not None and data.label.column == "height":
            label = 2.0 * (PLINK["height"][number] - 100.0) / 120.0 - 1.0
        elif data.label is not None:
            label = float(PLINK["case"][number])
        age = 2.0 * (PLINK["age"][number] - 20.0) / 60.0 - 1.0
        found.append(
            Person(
                unit=f"patient {number}",
                part="train",
                label=label,
                copies=own,
                features=own,
                beside=(age, float(PLINK["sex"][number])),
            )
        )
    return found


def over_sites(release: VariantRelease, data: Genotypes) -> list[float]:
    """The sums of five hospitals, added up without noise."""
    people = everyone(data)
    return list(np.sum([exact_sums(release, data, people[n::5]) for n in range(5)], axis=0))


def figures(release: VariantRelease, data: Genotypes) -> dict[str, Any]:
    return variant_figures(release, data, over_sites(release, data), deviation=0.0)


def test_frequencies_of_five_hospitals_are_plink2_s_of_all_people() -> None:
    found = figures(AlleleFrequencies(noise_multiplier=1.0), panel(label=None))

    ours = [one["frequency"] for one in found["loci"]]
    np.testing.assert_allclose(ours, PLINK["frequencies"], atol=1e-5)


def test_the_linear_test_of_five_hospitals_is_plink2_s_of_all_people() -> None:
    release = VariantScores(model="linear", noise_multiplier=1.0)

    found = figures(release, panel(label=HEIGHT))["loci"]

    for ours, theirs in zip(found, PLINK["linear"], strict=True):
        assert ours["id"] == theirs["id"]
        for name in ("beta", "standard_error", "statistic", "p"):
            # plink2 prints six digits.
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name


def test_components_of_five_hospitals_have_plink2_s_eigenvalues() -> None:
    release = GenotypeCovariance(norm=100.0, components=5, noise_multiplier=1.0)

    found = figures(release, panel(label=None))

    np.testing.assert_allclose(found["eigenvalues"], PLINK["eigenvalues"], rtol=1e-5)


def score_test(null: np.ndarray) -> list[float]:
    """The textbook score statistic of each locus about a logistic model, on the pooled data."""
    people = everyone(panel(label=CASE))
    z = np.array([[1.0, *one.beside] for one in people])
    y = np.array([one.label for one in people])
    chance = 1.0 / (1.0 + np.exp(-z @ null))
    heavy = np.diag(chance * (1.0 - chance))
    found = []
    for number in range(len(PLINK["loci"])):
        x = np.array([one.copies[number] for one in people], float)
        rest = x - z @ np.linalg.solve(z.T @ heavy @ z, z.T @ heavy @ x)
        found.append(float(rest @ (y - chance) / np.sqrt(rest @ heavy @ rest)))
    return found


def fitted() -> np.ndarray:
    """The maximum of the null model, by Newton's method on the pooled data."""
    people = everyone(panel(label=CASE))
    z = np.array([[1.0, *one.beside] for one in people])
    y = np.array([one.label for one in people])
    null = np.zeros(3)
    for _ in range(30):
        chance = 1.0 / (1.0 + np.exp(-z @ null))
        heavy = (chance * (1.0 - chance))[:, None]
        null = null + np.linalg.solve(z.T @ (heavy * z), z.T @ (y - chance))
    return null


def test_the_logistic_score_test_of_five_hospitals_is_that_of_the_pooled_data() -> None:
    null = fitted()
    release = VariantScores(model="logistic", null=tuple(null.tolist()), noise_multiplier=1.0)

    found = figures(release, panel(label=CASE))["loci"]

    np.testing.assert_allclose([one["statistic"] for one in found], score_test(null), rtol=1e-5)


def test_a_null_model_that_is_not_the_maximum_gives_nearly_the_same_test() -> None:
    best = score_test(fitted())
    near = figures(
        VariantScores(
            model="logistic", null=tuple((fitted() + 0.1).tolist()), noise_multiplier=1.0
        ),
        panel(label=CASE),
    )["loci"]

    np.testing.assert_allclose([one["statistic"] for one in near], best, atol=0.1)


RELEASES = [
    (AlleleFrequencies(noise_multiplier=2.0), None),
    (VariantScores(model="linear", noise_multiplier=2.0), HEIGHT),
    (VariantScores(model="logistic", null=NULL, noise_multiplier=2.0), CASE),
    (GenotypeCovariance(norm=3.0, noise_multiplier=2.0), None),
]


@pytest.mark.parametrize(("release", "label"), RELEASES, ids=lambda v: getattr(v, "kind", ""))
def test_no_patient_moves_a_release_by_more_than_its_sensitivity(
    release: VariantRelease, label: Any
) -> None:
    data = panel(label=label)
    size = len(data.loci)
    worst = [np.zeros(size), np.full(size, 2.0), np.full(size, np.nan), np.tile([0.0, 2.0], 5)]

    for copies in worst:
        for y in (-1.0, 0.0, 1.0) if label is HEIGHT else (0.0, 1.0):
            for age in (-1.0, 1.0):
                person = Person(
                    unit="p",
                    part="train",
                    label=y,
                    copies=copies.astype(np.float32),
                    features=copies.astype(np.float32),
                    beside=(age, 1.0),
                )
                own = share(release, data, person)
                assert np.abs(own).max() <= 1.0
                assert own @ own <= weight(release, data) + 1e-9
                assert len(own) == len(cells(release, data))


def test_a_family_adds_the_mean_of_its_members() -> None:
    data, release = panel(label=None), AlleleFrequencies(noise_multiplier=1.0)
    one, other = everyone(data)[:2]
    kin = [
        Person(
            unit="family f",
            part=p.part,
            label=p.label,
            copies=p.copies,
            features=p.features,
            beside=p.beside,
        )
        for p in (one, other)
    ]

    np.testing.assert_allclose(
        exact_sums(release, data, kin),
        (exact_sums(release, data, [one]) + exact_sums(release, data, [other])) / 2.0,
    )


@pytest.mark.parametrize(("release", "label"), RELEASES, ids=lambda v: getattr(v, "kind", ""))
def test_what_a_site_sends_is_taken_by_the_coordinator_and_nothing_else_is(
    release: VariantRelease, label: Any
) -> None:
    data = panel(label=label)
    exact = exact_sums(release, data, everyone(data))
    values = noised(release, data, exact, noise=NoNoise(), integers=None)  # type: ignore[arg-type]
    sent = withheld(release, data, values)

    assert check_values(release, data, sent) == sent
    for wrong in (sent[:-1], [None, *sent[1:]], [float("nan"), *sent[1:]]):
        with pytest.raises(ProtocolError):
            check_values(release, data, wrong)


def whole_study(**changes: Any) -> StudySpec:
    data = panel(label=HEIGHT).model_dump(mode="json")
    releases = [r.model_dump(mode="json") for r, label in RELEASES if label is not CASE]
    values: dict[str, Any] = {"data": data, "genomic": True, "releases": releases} | changes
    return statistics_study(**values)


def test_every_release_is_charged_with_the_noise_that_it_has() -> None:
    study = whole_study()
    reservation = Reservation.of(study)
    alone = [
        Reservation.of(whole_study(releases=[r.model_dump(mode="json")], rounds=1))
        for r in statistics_releases(study)
    ]

    together = epsilon_admission([reservation.event], delta=1e-4)
    assert together > epsilon_admission([alone[0].event], delta=1e-4) > 1.0
    assert reservation.releases == 3
    assert OUTPUTS["statistics"] == "statistics"


def test_in_a_secret_sum_the_noise_and_the_size_are_the_release_s() -> None:
    study = whole_study(
        secure_sum=True,
        quorum=4,
        dp={"kind": "releases-only", "epsilon": 9.0, "delta": 1e-4, "placement": "distributed"},
    )
    for number, release in enumerate(statistics_releases(study), start=1):
        plan = sum_plan(study, "statistics", number, shapes={})
        share_of_noise = study.thresholds.site_noise_factor
        assert plan.size == len(cells(release, study.data))
        assert plan.noise_std == pytest.approx(
            noise_spread(release, study.data) * share_of_noise, rel=1e-6
        )


def test_the_report_names_the_best_loci_and_every_figure() -> None:
    study = whole_study()
    data = study.data
    assert isinstance(data, Genotypes)
    totals = [
        Totals(values=tuple(values), shown=(4,) * len(values), answered=4)
        for values in (over_sites(r, data) for r in statistics_releases(study))  # type: ignore[arg-type]
    ]

    result = statistics_json(study, totals, refusals={}, exact=True)
    text = statistics_text(result)

    assert [r["kind"] for r in result["releases"]] == [
        "allele-frequencies", "variant-scores", "genotype-covariance",
    ]  # fmt: skip
    assert "eigenvalues: " in text
    assert text.index("rs6: beta") < text.index("rs9: beta")


def test_rare_alleles_are_left_out() -> None:
    data = panel(label=None)
    values = over_sites(AlleleFrequencies(noise_multiplier=1.0), data)
    values[10] = 4.0  # eight copies of the first locus' alt

    few = variant_figures(AlleleFrequencies(noise_multiplier=1.0), data, values, deviation=0.0)[
        "loci"
    ]
    share_ = variant_figures(
        AlleleFrequencies(noise_multiplier=1.0, min_frequency=0.03, min_cell_size=1),
        data,
        values,
        deviation=0.0,
    )["loci"]
    shown = variant_figures(
        AlleleFrequencies(noise_multiplier=1.0, min_frequency=0.0, min_cell_size=8),
        data,
        values,
        deviation=0.0,
    )["loci"]

    assert few[0]["frequency"] is None
    assert share_[0]["frequency"] is None
    assert shown[0]["frequency"] == pytest.approx(4.0 / 150.0)


def nobody_s(data: Genotypes, generator: np.random.Generator, count: int) -> list[Person]:
    """Made-up people whose label has nothing to do with their genotypes, but with their age."""
    found = []
    frequency = np.array([one.frequency for one in data.loci])
    for number in range(count):
        copies = generator.binomial(2, frequency).astype(np.float32)
        age, sex = generator.uniform(-1.0, 1.0), float(generator.integers(2))
        label = 0.3 * age + 0.1 * generator.normal()
        if data.label is not None and data.label.column == "case":
            label = float(label + 0.3 * generator.normal() > 0)
        found.append(
            Person(
                unit=f"patient {number}",
                part="train",
                label=float(np.clip(label, -1.0, 1.0)),
                copies=copies,
                features=copies,
                beside=(age, sex),
            )
        )
    return found


@pytest.mark.parametrize(
    ("release", "label", "deviation"),
    [
        (VariantScores(model="linear", noise_multiplier=1.0), HEIGHT, 8.0),
        (VariantScores(model="logistic", null=(0.0, 0.0, 0.0), noise_multiplier=1.0), CASE, 8.0),
    ],
    ids=["linear", "logistic"],
)
def test_noise_alone_is_no_finding(release: VariantScores, label: Any, deviation: float) -> None:
    """Of loci without an effect a twentieth has p < 0.05, with noise as without: 600 draws of the
    noise at ten loci, each locus by its own mean (the draws share the people).
    """
    data, generator = panel(label=label), np.random.default_rng(5)
    shares, naive, told = [], [], 0
    for _ in range(6):
        exact = exact_sums(release, data, nobody_s(data, generator, 600))
        for _ in range(100):
            values = exact + deviation * generator.normal(size=exact.size)
            for aware, found in ((deviation, shares), (0.0, naive)):
                loci = variant_figures(release, data, values.tolist(), deviation=aware)["loci"]
                ps = [one["p"] for one in loci if one["p"] is not None]
                told += len(ps) if aware else 0
                found.append(np.mean(np.array(ps) < 0.05) if ps else 0.0)

    assert told > 3000
    assert np.mean(shares) < 0.075
    assert np.mean(naive) > 0.15


@pytest.mark.parametrize("label", [HEIGHT, CASE], ids=["linear", "logistic"])
def test_the_error_of_a_test_is_the_spread_over_draws_of_the_noise(label: Any) -> None:
    """Against a naive oracle: the same sums under many draws of the noise."""
    linear = label is HEIGHT
    release = VariantScores(
        model="linear" if linear else "logistic",
        null=() if linear else (0.0, 0.0, 0.0),
        noise_multiplier=1.0,
    )
    data, generator = panel(label=label), np.random.default_rng(11)
    exact = exact_sums(release, data, nobody_s(data, generator, 2000))
    deviation = 3.0
    betas = []
    for _ in range(400):
        values = (exact + deviation * generator.normal(size=exact.size)).tolist()
        loci = variant_figures(release, data, values, deviation=deviation)["loci"]
        betas.append([one["beta"] for one in loci])
    before = variant_figures(release, data, exact.tolist(), deviation=0.0)["loci"]
    after = variant_figures(release, data, exact.tolist(), deviation=deviation)["loci"]
    expected = [
        np.sqrt(one["standard_error"] ** 2 - other["standard_error"] ** 2)
        for one, other in zip(after, before, strict=True)
    ]

    np.testing.assert_allclose(np.std(np.array(betas), axis=0), expected, rtol=0.2)


def test_frequencies_and_components_say_what_the_noise_does_to_them() -> None:
    data, generator = panel(label=None), np.random.default_rng(3)
    frequencies = AlleleFrequencies(noise_multiplier=1.0)
    exact = np.array(over_sites(frequencies, data))
    drawn = [
        [one["frequency"] for one in variant_figures(
            frequencies, data, (exact + generator.normal(size=exact.size)).tolist(), deviation=1.0
        )["loci"]]
        for _ in range(500)
    ]  # fmt: skip
    told = variant_figures(frequencies, data, exact.tolist(), deviation=1.0)["loci"]
    np.testing.assert_allclose(
        np.std(np.array(drawn), axis=0), [one["standard_error"] for one in told], rtol=0.2
    )

    components = GenotypeCovariance(norm=10.0, components=1, noise_multiplier=1.0)
    size = len(data.loci)
    nothing = [
        variant_figures(
            components,
            data,
            (2.0 * generator.normal(size=1 + size + size * (size + 1) // 2)).tolist(),
            deviation=2.0,
        )
        for _ in range(50)
    ]
    ratio = np.mean([one["eigenvalues"][0] / one["largest_of_noise"] for one in nothing])
    assert 0.7 < ratio < 1.1


def test_releases_that_do_not_fit_the_data_are_refused() -> None:
    linear = VariantScores(model="linear", noise_multiplier=1.0)
    logistic = VariantScores(model="logistic", null=(0.0,), noise_multiplier=1.0)

    with pytest.raises(ConfigError, match="expected one for a linear test"):
        cells(linear, panel(label=CASE))
    with pytest.raises(ConfigError, match="expected 3 coefficients"):
        cells(logistic, panel(label=CASE))
    with pytest.raises(ConfigError, match="expected genotypes for this release"):
        cells(linear, statistics_study().data)
    with pytest.raises(ValidationError, match="coefficients of a logistic null model"):
        VariantScores(model="linear", null=(0.0,), noise_multiplier=1.0)
