"""The comparators and the exact figures of the sandbox's parent."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import StudySpec
from fedward_server.sandbox.baselines import (
    PENALTIES,
    choose_penalty,
    each_site_alone,
    fit,
    pool,
    pooled_no_privacy,
)
from fedward_server.sandbox.figures import exact_figures, model_figures, roc_points, scores
from tests.support.studies import make_spec

NORTH, EAST = SiteId("north"), SiteId("east")
TRUTH = np.array([2.0, -1.5, 0.5])


def study() -> StudySpec:
    return make_spec(sites=("north", "east"))


def made_up(seed: int, patients: int = 120, *, records: int = 1) -> PatientRecords:
    generator = np.random.default_rng(seed)
    features = generator.uniform(-1, 1, size=(patients, 3))
    labels = generator.random(patients) < 1 / (1 + np.exp(-2 * features @ TRUTH))
    return PatientRecords(
        features=np.repeat(features, records, axis=0).astype(np.float32),
        labels=np.repeat(labels, records).astype(np.float32),
        patient=np.repeat(np.arange(patients), records),
    )


def test_the_fit_is_scikit_learn_s_minimum() -> None:
    """The same loss; only the intercept is not penalised there, so the penalty here is tiny."""
    records, penalty = made_up(1), 1e-4

    tensors = fit(study(), records, penalty=penalty)

    oracle = LogisticRegression(C=1 / (penalty * len(records.labels)), tol=1e-10, max_iter=5000)
    oracle.fit(records.features, records.labels)
    np.testing.assert_allclose(tensors["linear.weight"], oracle.coef_, atol=5e-3)
    np.testing.assert_allclose(tensors["linear.bias"], oracle.intercept_, atol=5e-3)


def test_a_patient_counts_once_however_many_records_there_are() -> None:
    single, many = made_up(2), made_up(2, records=3)

    one, three = (fit(study(), records, penalty=0.01) for records in (single, many))

    np.testing.assert_allclose(one["linear.weight"], three["linear.weight"], atol=1e-5)


def test_the_penalty_is_chosen_on_training_patients_from_a_fixed_list() -> None:
    assert choose_penalty(study(), made_up(3)) in PENALTIES
    assert choose_penalty(study(), made_up(3, patients=6)) == max(PENALTIES)


def test_a_site_with_one_class_only_has_a_model() -> None:
    records = made_up(4, patients=30)
    only = PatientRecords(
        features=records.features, labels=np.ones(30, dtype=np.float32), patient=records.patient
    )

    tensors = fit(study(), only)

    assert all(np.isfinite(array).all() for array in tensors.values())
    assert (scores(study(), tensors, only) > 0.5).all()


def test_pooled_training_sees_everyone_and_alone_only_its_own() -> None:
    training = {NORTH: made_up(5), EAST: made_up(6, patients=40)}

    pooled, alone = pooled_no_privacy(study(), training), each_site_alone(study(), training)

    np.testing.assert_array_equal(
        pooled["linear.weight"], fit(study(), pool(list(training.values())))["linear.weight"]
    )
    np.testing.assert_array_equal(
        alone[EAST]["linear.weight"], fit(study(), training[EAST])["linear.weight"]
    )


def test_pooling_keeps_patients_of_different_sites_apart() -> None:
    both = pool([made_up(7, patients=3, records=2), made_up(8, patients=2)])

    assert both.patient.tolist() == [0, 0, 1, 1, 2, 2, 3, 4]


def test_a_deeper_model_is_trained_the_same_way() -> None:
    deep = make_spec(sites=("north", "east"), model={"name": "mlp", "hidden": [4]})

    tensors = fit(deep, made_up(9), penalty=0.01)

    found = exact_figures(scores(deep, tensors, made_up(9)), made_up(9))
    assert found.auc is not None
    assert found.auc > 0.7


def records(labels: list[int], patient: list[int] | None = None) -> PatientRecords:
    return PatientRecords(
        features=np.zeros((len(labels), 3), dtype=np.float32),
        labels=np.array(labels, dtype=np.float32),
        patient=np.array(range(len(labels)) if patient is None else patient),
    )


def test_exact_figures_are_the_textbook_ones() -> None:
    held_out = records([0] * 10 + [1] * 30)
    predicted = np.array([0.1] * 8 + [0.9] * 2 + [0.8] * 24 + [0.2] * 6)

    found = exact_figures(predicted, held_out)

    assert found.held_out == 40
    assert found.accuracy == pytest.approx(32 / 40)
    assert found.majority == pytest.approx(0.75)
    assert found.accuracy_error == pytest.approx(np.sqrt(0.8 * 0.2 / 40))
    assert found.auc == pytest.approx(0.8)  # by hand: 240 of the 300 pairs are in order


def test_no_auc_where_a_class_has_fewer_than_ten_patients() -> None:
    """Zurich's case: sixteen patients, one negative. Not 1.0, not a number at all."""
    predicted = np.array([0.1] + [0.9] * 15)

    assert exact_figures(predicted, records([0] + [1] * 15)).auc is None
    assert exact_figures(np.linspace(0, 1, 19), records([0] * 9 + [1] * 10)).auc is None
    assert exact_figures(np.linspace(0, 1, 20), records([0] * 10 + [1] * 10)).auc == 1.0


def test_figures_are_pooled_per_site_and_averaged_over_sites() -> None:
    held_out = {NORTH: made_up(10, patients=60), EAST: made_up(11, patients=20)}
    tensors = fit(study(), made_up(12, patients=500), penalty=1e-3)

    found = model_figures(study(), tensors, held_out)

    assert found.pooled.held_out == 80
    each = [site.accuracy for site in found.per_site.values()]
    assert found.site_mean_accuracy == pytest.approx(np.mean(each))
    assert found.pooled.accuracy == pytest.approx((60 * each[0] + 20 * each[1]) / 80)
    assert found.site_mean_accuracy_error > found.pooled.accuracy_error


def test_a_site_without_held_out_patients_has_no_figures() -> None:
    empty = PatientRecords(
        features=np.zeros((0, 3), dtype=np.float32),
        labels=np.zeros(0, dtype=np.float32),
        patient=np.zeros(0, dtype=np.int64),
    )
    tensors = fit(study(), made_up(13), penalty=0.01)

    found = model_figures(study(), tensors, {NORTH: made_up(14), EAST: empty})

    assert list(found.per_site) == [NORTH]


def test_the_curve_goes_from_corner_to_corner_or_is_empty() -> None:
    tensors = fit(study(), made_up(15), penalty=0.01)

    points = roc_points(study(), tensors, {NORTH: made_up(16)})

    assert points[0] == (0.0, 0.0)
    assert points[-1] == (1.0, 1.0)
    assert roc_points(study(), tensors, {NORTH: records([0] + [1] * 15)}) == ()
