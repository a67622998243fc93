"""What a signed study fixes about its secret sums: grid, noise, order, thresholds."""

import math
from typing import Any

import numpy as np
import pytest
import tomli_w
from pydantic import ValidationError

from fedward_common.errors import ConfigError
from fedward_common.privacy.collusion import collusion_facts
from fedward_common.privacy.histogram import binned_counts, binned_units
from fedward_common.privacy.mechanism import alone_study
from fedward_common.privacy.statistics import exact_sums
from fedward_common.secagg.refusals import SecAggRefused
from fedward_common.secagg.sums import flat, last_sum, sum_number, sum_plan, unflat
from fedward_common.study.files import SiteKeys, parse_study
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import ColumnStatistics
from fedward_common.trust.signing import SigningKey
from tests.support.guard_site import KEYS, a_study
from tests.support.secure_federation import secure_study

SHAPES = {"linear.weight": (1, 2), "linear.bias": (1,)}
MANY = {f"s{n}": SigningKey.generate() for n in range(16)}


def test_a_study_without_secure_sums_has_the_digest_that_it_always_had() -> None:
    written = a_study().model_dump(mode="json")

    assert not {"secure_sum", "secagg"} & written.keys()
    assert written["dp"]["placement"] == "local"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"local_steps": 2, "rounds": 10}, "local_steps"),
        ({"quorum": 10}, "quorum"),
        ({"secure_sum": False}, "secure_sum"),
        ({"aggregation": {"name": "fedprox", "mu": 0.1}}, "aggregation"),
    ],
)
def test_a_study_that_cannot_keep_rules_1_is_no_study(change: dict[str, Any], text: str) -> None:
    good = secure_study(MANY, rounds=20).model_dump(mode="json")

    with pytest.raises(ValidationError, match=text):
        StudySpec.model_validate(good | change)


def test_two_hospitals_have_no_distributed_noise() -> None:
    good = secure_study(KEYS).model_dump(mode="json")

    with pytest.raises(ValidationError, match="at least 3 sites"):
        StudySpec.model_validate(good | {"sites": good["sites"][:2], "quorum": 2})


@pytest.mark.parametrize(("sites", "share"), [(3, 1 / 2), (4, 1 / 2), (16, 1 / 10)])
def test_each_sites_noise_is_sigma_c_over_the_root_of_n_minus_d_minus_c(
    sites: int, share: float
) -> None:
    """rules 1: n=3: d=0, c=1; n=4: d=1, c=1; n=16: d=5, c=1."""
    study = secure_study(dict(list(MANY.items())[:sites]), clip_norm=0.5)

    plan = sum_plan(study, "train", 1, shapes=SHAPES)

    assert plan.noise_std == pytest.approx(3.0 * 0.5 * math.sqrt(share))
    alone = alone_study(study)
    assert alone is not None
    assert alone.dp.model_dump()["noise_multiplier"] == pytest.approx(3.0 * math.sqrt(share))


def test_the_ring_holds_every_site_and_the_noise_and_a_large_site_gets_a_coarser_grid() -> None:
    small = sum_plan(secure_study(MANY), "train", 1, shapes=SHAPES)
    sites = secure_study(MANY).model_dump(mode="json")["sites"]
    large = secure_study(
        MANY,
        sampling_probability=1.0,
        noise_multiplier=6.0,
        delta=1e-6,
        change={"sites": [site | {"patients": 20_000} for site in sites]},
    )
    coarse = sum_plan(large, "train", 1, shapes=SHAPES)

    assert small.grid.scale == 2.0**20
    assert coarse.grid.saturation >= 20_000 * coarse.grid.scale
    for plan in (small, coarse):
        plan.grid.check(sites=16, noise_std=plan.noise_std)
        assert plan.noise_std * plan.grid.scale >= 4096


def test_what_does_not_fit_32_bits_says_what_would() -> None:
    sites = secure_study(MANY).model_dump(mode="json")["sites"]
    huge = {"sites": [site | {"patients": 50_000_000} for site in sites]}
    narrow = secure_study(MANY, sampling_probability=1.0, delta=1e-9, change=huge)

    with pytest.raises(SecAggRefused, match="ring_bits = 64"):
        sum_plan(narrow, "train", 1, shapes=SHAPES)
    wide = StudySpec.model_validate(narrow.model_dump(mode="json") | {"secagg": {"ring_bits": 64}})
    assert sum_plan(wide, "train", 1, shapes=SHAPES).grid.bits == 64


def test_sums_have_numbers_of_their_own() -> None:
    study = secure_study(MANY, rounds=5)

    assert [sum_number(study, "train", n) for n in (1, 5)] == [1, 5]
    assert sum_number(study, "evaluate", 5) == 6 == last_sum(study)


def test_a_vector_and_its_tensors_are_each_others_inverse_without_frozen_ones() -> None:
    study = secure_study(
        MANY, change={"training": {"learning_rate": 0.1, "frozen": ["linear.bias"]}}
    )
    tensors = {"linear.weight": np.array([[1.0, 2.0]]), "linear.bias": np.array([9.0])}

    vector = flat(study, tensors)

    np.testing.assert_array_equal(vector, [1.0, 2.0])
    found = unflat(study, vector, shapes=SHAPES)
    assert found.keys() == {"linear.weight"}
    np.testing.assert_array_equal(found["linear.weight"], tensors["linear.weight"])


def test_one_patient_moves_the_whole_counts_by_at_most_the_scale() -> None:
    """Three records of one patient: a third each, rounded down, in whole units."""
    generator = np.random.default_rng(5)
    patient = np.sort(generator.integers(0, 20, 50))
    labels, scores = generator.integers(0, 2, 50).astype(float), generator.random(50)
    scale = 2.0**20

    def units(keep: np.ndarray) -> np.ndarray:
        return binned_units(scores[keep], labels[keep], patient[keep], bins=4, scale=scale)

    everybody = np.ones(50, bool)
    counts = binned_counts(scores, labels, patient, bins=4)
    np.testing.assert_allclose(units(everybody) / scale, counts, atol=60 / scale)
    for gone in range(20):
        moved = units(everybody) - units(patient != gone)
        assert np.linalg.norm(moved) <= scale


def test_sums_on_a_grid_are_exact_and_no_patients_share_grows() -> None:
    release = ColumnStatistics(columns=("age",), statistics=("count", "mean"), noise_multiplier=1.0)
    rows = [{"patient": str(n), "age": str(n)} for n in range(30)]
    data = a_study().data

    on_grid = exact_sums(release, data, rows, scale=1024.0)

    assert (on_grid * 1024 == np.rint(on_grid * 1024)).all()
    np.testing.assert_allclose(on_grid, exact_sums(release, data, rows), atol=30 / 1024)


def test_dropouts_and_collusion_have_figures_that_only_grow() -> None:
    facts = collusion_facts(secure_study(MANY))

    assert facts is not None
    assert (facts["threshold"], facts["dropouts_borne"], facts["colluding_sites_borne"]) == (
        11,
        5,
        1,
    )
    figures = [one["epsilon"] for one in facts["by_collusion"]]
    assert figures == sorted(figures)
    assert figures[0] == facts["epsilon_declared"]
    assert figures[-1] == facts["epsilon_if_all_others_collude"]
    assert facts["epsilon_if_nobody_drops"] < facts["epsilon_declared"]
    assert facts["noise_over_sigma_if_nobody_drops"] == pytest.approx(math.sqrt(1.6))
    assert collusion_facts(secure_study(KEYS, placement="local")) is None


def without_nothing(value: Any) -> Any:
    """`value` without what TOML cannot say."""
    if isinstance(value, dict):
        return {key: without_nothing(one) for key, one in value.items() if one is not None}
    return [without_nothing(one) for one in value] if isinstance(value, list) else value


def test_a_study_file_says_noise_distributed_and_gets_secure_sums() -> None:
    document = without_nothing(secure_study(KEYS).model_dump(mode="json"))
    keys = {
        site["id"]: SiteKeys(
            key_sha256=site.pop("key_sha256"), node_key_sha256=site.pop("node_key_sha256")
        )
        for site in document["sites"]
    }
    lead = document.pop("lead_key_sha256")
    for removed in ("secure_sum", "format", "uncovered_evaluation"):
        document.pop(removed, None)
    for removed in ("placement", "noise_multiplier"):
        document["dp"].pop(removed)
    document["dp"]["noise"] = "distributed"

    def parsed() -> StudySpec:
        return parse_study(
            tomli_w.dumps(document), source="study.toml", keys=keys, lead_key_sha256=lead
        )

    study = parsed()

    assert study.secure_sum
    assert study.dp.model_dump()["placement"] == "distributed"
    document["dp"]["placement"] = "local"
    with pytest.raises(ConfigError, match="found both"):
        parsed()
