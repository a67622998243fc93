"""F1 over relations: none is no relation, and what rests on few patients is not shown."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fedward_server.relation_figures import relation_estimates, relation_f1


def test_f1_is_that_of_scikit_learn_without_the_class_of_none() -> None:
    draws = np.random.default_rng(0)
    true, said = draws.integers(0, 4, 200), draws.integers(0, 4, 200)
    counts = np.zeros((4, 4))
    np.add.at(counts, (true, said), 1.0)

    found = relation_f1(counts)

    for average in ("micro", "macro"):
        expected = f1_score(true, said, labels=[1, 2, 3], average=average)
        assert found[f"relation_f1_{average}"] == pytest.approx(expected)


def test_nothing_is_shown_of_a_relation_of_fewer_than_ten_patients() -> None:
    rare = np.array([[90.0, 2.0, 0.0], [5.0, 40.0, 0.0], [1.0, 1.0, 3.0]])
    common = np.array([[90.0, 2.0, 0.0], [5.0, 40.0, 0.0], [5.0, 1.0, 30.0]])

    assert set(relation_estimates(rare, noise=0.5)) == {"relation_f1_micro"}
    found = relation_estimates(common, noise=0.5)
    assert set(found) == {"relation_f1_micro", "relation_f1_macro"}
    assert all(one.low <= one.value <= one.high for one in found.values())
    assert relation_estimates(common, noise=50.0) == {}
