"""Early stopping: a pure rule over noised figures, and each validation a release that is paid."""

from typing import Any

import pytest
from dp_accounting import GaussianDpEvent
from pydantic import ValidationError

from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.disclosure import disclosure
from fedward_common.privacy.ledger import Reservation
from fedward_common.privacy.mechanism import leaf_counts, study_event
from fedward_common.secagg.sums import kind_of_sum, last_sum, sum_number
from fedward_common.study.evaluation import EarlyStopping, validation_rounds
from fedward_common.study.spec import StudySpec
from tests.support.studies import make_spec

STOPPING = {"every": 2, "validations": 3, "patience": 1}


def releases(**stopping: Any) -> list[dict[str, Any]]:
    return [
        {
            "kind": "binned-scores",
            "bins": 4,
            "noise_multiplier": 3.0,
            "early_stopping": STOPPING | stopping,
        }
    ]


def study(**changes: Any) -> StudySpec:
    return make_spec(**{"rounds": 8, "releases": releases(), **changes})


@pytest.mark.parametrize(
    ("aucs", "patience", "least_gain", "stops"),
    [
        ([], 1, 0.0, False),
        ([0.7], 1, 0.0, False),
        ([0.7, 0.7], 1, 0.0, True),
        ([0.7, 0.71], 1, 0.0, False),
        ([0.7, 0.71], 1, 0.02, True),
        ([0.7, 0.69, 0.72], 2, 0.0, False),
        ([0.7, 0.69, 0.68], 2, 0.0, True),
        ([0.7, None, None], 1, 0.0, False),
        ([None, 0.7, None, 0.6], 1, 0.0, True),
        # Little by little is a gain over the best, too, once it is large enough.
        ([0.70, 0.715, 0.725], 2, 0.02, False),
    ],
)
def test_training_stops_when_nothing_was_gained_for_long_enough(
    aucs: list[float | None], patience: int, least_gain: float, stops: bool
) -> None:
    rule = EarlyStopping(every=1, validations=9, patience=patience, least_gain=least_gain)

    assert rule.stops(aucs) == stops


def test_every_validation_is_in_the_study_s_price_whether_it_comes_to_it_or_not() -> None:
    without = make_spec(rounds=8)
    once = leaf_counts([GaussianDpEvent(3.0)])

    assert leaf_counts([study_event(study())]) - leaf_counts(
        [study_event(without)]
    ) == dict.fromkeys(once, 3)
    assert Reservation.of(study()).releases == 4
    assert epsilon_admission([study_event(study())], delta=1e-4) > epsilon_admission(
        [study_event(without)], delta=1e-4
    )
    assert validation_rounds(study()) == (2, 4, 6)
    assert validation_rounds(without) == ()


def test_each_evaluation_is_a_sum_of_its_own_and_the_final_one_the_last() -> None:
    numbers = {
        sum_number(study(), kind, number): kind
        for kind, rounds in (("train", range(1, 9)), ("evaluate", (2, 4, 6, 8)))
        for number in rounds
    }

    assert sorted(numbers) == list(range(1, 13))
    assert [n for n in sorted(numbers) if numbers[n] == "evaluate"] == [3, 6, 9, 12]
    assert all(kind_of_sum(study(), number) == kind for number, kind in numbers.items())
    assert last_sum(study()) == 12
    assert last_sum(make_spec(rounds=8)) == sum_number(make_spec(rounds=8), "evaluate", 8) == 9


@pytest.mark.parametrize("stopping", [{"validations": 4}, {"every": 3}, {"every": 8}])
def test_the_last_validation_comes_before_the_last_round(stopping: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected the last validation before round 8"):
        study(releases=releases(**stopping))


def test_a_study_that_validates_goes_by_messages() -> None:
    single = {"local_steps": 1}

    assert make_spec(rounds=8, **single).streams
    assert not study(**single).streams
    with pytest.raises(ValidationError, match="with early_stopping"):
        study(stream="always", **single)
    assert "early_stopping" not in make_spec().model_dump(mode="json")["releases"][0]


def test_the_disclosure_says_how_often_and_on_whom() -> None:
    (release,) = disclosure(study()).claim.releases

    assert release.value["when"].startswith("at most 4 times on the same held-out patients")
