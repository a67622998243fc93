"""The `SecureSum` port (rules 29): what every way of summing gives, the plain one first.

A later implementation, masked or not, adds itself to `IMPLEMENTATIONS` and changes nothing else.
"""

from collections.abc import Callable

import numpy as np
import pytest

from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_server.aggregation import SecureSum, plain_sum
from tests.support.studies import make_spec

IMPLEMENTATIONS: dict[str, Callable[[StudySpec], SecureSum]] = {"plain": plain_sum}
STUDY = make_spec()
SITES = [SiteId(site.id) for site in STUDY.sites]


@pytest.fixture(params=list(IMPLEMENTATIONS))
def total(request: pytest.FixtureRequest) -> SecureSum:
    return IMPLEMENTATIONS[request.param](STUDY)


def tensors(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 2), value, dtype=np.float32), "b": np.full(1, -value, np.float32)}


def test_the_mean_is_weighted_by_the_studys_public_constants(total: SecureSum) -> None:
    for number, site in enumerate(SITES):
        total.add(site, tensors(float(number)))

    expected = sum(STUDY.weight(site) * number for number, site in enumerate(SITES))
    np.testing.assert_allclose(total.mean()["w"], np.full((2, 2), expected), rtol=1e-5)
    np.testing.assert_allclose(total.mean()["b"], [-expected], rtol=1e-5)


def test_the_mean_is_float32_of_the_same_shapes(total: SecureSum) -> None:
    total.add(SITES[0], tensors(1.0))

    assert {n: (t.dtype, t.shape) for n, t in total.mean().items()} == {
        "w": (np.float32, (2, 2)),
        "b": (np.float32, (1,)),
    }


def test_sites_that_did_not_answer_do_not_pull_the_mean(total: SecureSum) -> None:
    for site in SITES[1:]:
        total.add(site, tensors(3.0))

    np.testing.assert_allclose(total.mean()["w"], np.full((2, 2), 3.0), rtol=1e-6)


def test_the_order_of_sites_does_not_matter() -> None:
    for make in IMPLEMENTATIONS.values():
        forwards, backwards = make(STUDY), make(STUDY)
        for number, site in enumerate(SITES):
            forwards.add(site, tensors(number / 7))
        for number, site in reversed(list(enumerate(SITES))):
            backwards.add(site, tensors(number / 7))

        np.testing.assert_allclose(forwards.mean()["w"], backwards.mean()["w"], rtol=1e-6)


def test_a_site_counts_once(total: SecureSum) -> None:
    total.add(SITES[0], tensors(1.0))

    with pytest.raises(ProtocolError):
        total.add(SITES[0], tensors(1.0))


def test_a_site_outside_the_study_does_not_count(total: SecureSum) -> None:
    with pytest.raises(ProtocolError):
        total.add(SiteId("nowhere"), tensors(1.0))


def test_no_site_has_no_mean(total: SecureSum) -> None:
    with pytest.raises(RuntimeError):
        total.mean()
