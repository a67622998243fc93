"""A study of statistics as a value: what it releases, what one patient can move, its short file."""

from typing import Any

import pytest
from pydantic import ValidationError

from fedward_common.errors import ConfigError
from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.ledger import Reservation
from fedward_common.privacy.mechanism import study_event
from fedward_common.study.files import parse_study
from fedward_common.study.statistics import ColumnStatistics, ReleasesOnly, cells, weight
from tests.support.statistics import a_release, statistics_study
from tests.support.studies import LEAD, site_keys

FILE = """
id = "who"
title = "Who are our patients?"
quorum = 2
deadline_seconds = 60

[task]
kind = "federated-statistics"

[dp]
kind = "releases-only"
epsilon = 1.0
delta = 1e-4

[[releases]]
kind = "column-statistics"
columns = ["age"]
statistics = ["count", "mean"]

[[releases]]
kind = "column-statistics"
columns = ["age"]
statistics = ["histogram"]
mechanism = "discrete-laplace"

[[sites]]
id = "north"
patients = 300

[[sites]]
id = "south"
patients = 300

[data]
kind = "table"
patient_key = "patient_id"

[[data.columns]]
name = "age"
type = "number"
unit = "years"
low = 20.0
high = 100.0
"""


def parse(text: str) -> Any:
    return parse_study(
        text, source="study.toml", keys=site_keys(("north", "south")), lead_key_sha256=LEAD
    )


def release(**changes: Any) -> ColumnStatistics:
    return ColumnStatistics.model_validate(a_release(**changes))


def test_a_release_has_one_number_for_each_part_of_each_column_in_the_study_s_order() -> None:
    study = statistics_study()

    found = [(c.column, c.part, c.index) for c in cells(release(), study.data)]

    assert found == [
        ("age", "count", 0),
        ("age", "missing", 0),
        ("age", "mean", 0),
        ("age", "variance", 0),
        *(("age", "histogram", i) for i in range(4)),
        ("pain", "count", 0),
        ("pain", "missing", 0),
        *(("pain", "histogram", i) for i in range(3)),
    ]


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [
        (["missing"], 2),
        (["count"], 2),
        (["count", "missing"], 2),
        (["histogram", "missing"], 2),
        (["count", "mean"], 3),
        (["count", "missing", "mean", "variance", "histogram"], 6),
    ],
)
def test_the_weight_is_the_most_numbers_that_one_patient_counts_in(
    statistics: list[str], expected: int
) -> None:
    assert weight(release(statistics=statistics), statistics_study().data) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"statistics": ["mean"]},
        {"statistics": ["count", "variance"]},
        {"statistics": ["count", "count"]},
        {"statistics": []},
        {"columns": ["age", "age"]},
        {"mechanism": "discrete-laplace"},
        {"noise_multiplier": 0.0},
        {"min_cell_size": 0},
        {"quantiles": [1.0]},
    ],
)
def test_a_release_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        release(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 2}, "one round of one step"),
        ({"local_steps": 3}, "one round of one step"),
        ({"model": {"name": "mlp"}}, "no model"),
        ({"releases": [a_release(columns=["weight"])]}, "found weight"),
        (
            {"releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}]},
            "column-statistics",
        ),
        ({"dp": {"kind": "releases-only", "epsilon": 9.0, "delta": 1e-3}}, "at most 0.00025"),
        ({"task": {"kind": "tabular-classification"}}, "federated-statistics"),
    ],
)
def test_a_study_that_is_no_whole_study_of_statistics_is_not_reserved(
    changes: dict[str, Any], message: str
) -> None:
    study = statistics_study(**changes)

    with pytest.raises(ConfigError, match=message):
        Reservation.of(study)


def test_a_study_of_statistics_reserves_its_releases_and_no_round() -> None:
    reservation = Reservation.of(statistics_study(releases=[a_release(), a_release()]))

    assert (reservation.rounds, reservation.releases) == (0, 2)
    assert reservation.unit == "patient"


def test_a_short_file_is_enough_and_its_noise_spends_the_epsilon() -> None:
    study = parse(FILE)

    noise = {release.noise_multiplier for release in study.releases}
    assert len(noise) == 1
    assert (study.rounds, study.local_steps, study.model.name) == (2, 1, "none")
    assert isinstance(study.dp, ReleasesOnly)
    cost = epsilon_admission([study_event(study)], delta=1e-4)
    assert 0.999 < cost <= 1.0


def test_epsilon_follows_from_the_noise_where_every_release_gives_it() -> None:
    text = FILE.replace("epsilon = 1.0\n", "").replace(
        'kind = "column-statistics"', 'kind = "column-statistics"\nnoise_multiplier = 4.0'
    )

    study = parse(text)

    cost = epsilon_admission([study_event(study)], delta=1e-4)
    assert cost <= study.dp.epsilon <= cost + 2e-4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("quorum = 2", "quorum = 2\nrounds = 3", "rounds: expected no such key"),
        ("epsilon = 1.0", "", "expected dp.epsilon"),
        (
            'mechanism = "discrete-laplace"',
            'mechanism = "discrete-laplace"\nnoise_multiplier = 3.0',
            "noise_multiplier in each release",
        ),
        ('columns = ["age"]\nstatistics = ["h', 'columns = ["sex"]\nstatistics = ["h', "found sex"),
        ("delta = 1e-4", "delta = 1e-3", "at most 0.000167"),
    ],
)
def test_a_mistake_in_the_file_is_named(old: str, new: str, message: str) -> None:
    assert old in FILE
    with pytest.raises(ConfigError, match=message):
        parse(FILE.replace(old, new))


def test_a_file_whose_noise_costs_more_than_its_epsilon_is_refused() -> None:
    text = FILE.replace(
        'kind = "column-statistics"', 'kind = "column-statistics"\nnoise_multiplier = 0.5'
    )

    with pytest.raises(ConfigError, match="at least what the releases cost"):
        parse(text)
