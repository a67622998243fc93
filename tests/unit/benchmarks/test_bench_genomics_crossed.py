"""A cancer's figure is that of the plan that was best in the other cancer, not the best here."""

from benchmarks.genomics_crossed import Figures, crossed, measured
from tests.support.survival_cohort import patients


def test_each_cancer_takes_the_plan_of_the_other() -> None:
    figures: dict[str, Figures] = {
        "luad": {"RNA": {(0.1, 25): [0.7, 0.9], (0.2, 50): [0.5, 0.5]}},
        "blca": {"RNA": {(0.1, 25): [0.55, 0.57], (0.2, 50): [0.6, 0.6]}},
    }

    found = crossed(figures)

    assert found["luad"]["RNA"]["c_index"] == 0.5
    assert (found["luad"]["RNA"]["weight"], found["luad"]["RNA"]["steps"]) == (0.2, 50)
    assert found["blca"]["RNA"]["c_index"] == 0.56
    assert found["blca"]["RNA"]["runs"] == 2


def test_every_plan_is_measured_after_every_number_of_steps_in_every_deal() -> None:
    found = measured(patients(), deals=2, arms=["RNA"], marks=(5, 25))

    assert {plan: len(values) for plan, values in found["RNA"].items()} == {
        (0.06, 5): 2,
        (0.06, 25): 2,
        (0.2, 5): 2,
        (0.2, 25): 2,
    }
    assert all(0.0 <= value <= 1.0 for values in found["RNA"].values() for value in values)
