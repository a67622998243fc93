"""Sums are weighted by public constants and renormalised; optimisers follow their paper."""

from pathlib import Path

import numpy as np
import pytest

from fedward_common.arrays import BLOCK, tensors_from_bytes, tensors_to_bytes
from fedward_common.channel.blob_files import store
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.spec import FedAdam
from fedward_server.aggregation import AdamStep, PlainSum, Replace

A, B, C = SiteId("a"), SiteId("b"), SiteId("c")


def tensors(*values: float) -> dict[str, np.ndarray]:
    return {"w": np.array(values, dtype=np.float32)}


def test_the_mean_is_weighted_by_the_public_constants() -> None:
    total = PlainSum({A: 0.75, B: 0.25})
    total.add(A, tensors(1.0, 0.0))
    total.add(B, tensors(3.0, 4.0))

    np.testing.assert_allclose(total.mean()["w"], [1.5, 1.0])


def test_a_site_that_dropped_out_does_not_shrink_the_mean() -> None:
    total = PlainSum({A: 0.5, B: 0.25, C: 0.25})
    total.add(B, tensors(2.0))
    total.add(C, tensors(4.0))

    np.testing.assert_allclose(total.mean()["w"], [3.0])


def test_a_second_update_of_a_site_is_refused() -> None:
    total = PlainSum({A: 1.0})
    total.add(A, tensors(1.0))

    with pytest.raises(ProtocolError, match="another of a"):
        total.add(A, tensors(1.0))


def test_an_unknown_site_is_refused() -> None:
    with pytest.raises(ProtocolError):
        PlainSum({A: 1.0}).add(B, tensors(1.0))


def test_tensors_of_other_names_are_refused() -> None:
    total = PlainSum({A: 0.5, B: 0.5})
    total.add(A, tensors(1.0))

    with pytest.raises(ProtocolError, match="expected tensors"):
        total.add(B, {"v": np.zeros(1, dtype=np.float32)})


def test_an_empty_sum_has_no_mean() -> None:
    with pytest.raises(RuntimeError):
        PlainSum({A: 1.0}).mean()


def test_the_sum_adds_in_float64_so_that_many_small_terms_are_not_lost() -> None:
    sites = [SiteId(f"s{i}") for i in range(100)]
    total = PlainSum(dict.fromkeys(sites, 0.01))
    for site in sites:
        total.add(site, tensors(16777217.0 if site == sites[0] else 1.0))

    np.testing.assert_allclose(total.mean()["w"], [(16777216 + 99) / 100], rtol=1e-7)


def test_replies_that_are_mapped_from_files_have_the_same_mean_to_the_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    shares = {A: 0.6, B: 0.3, C: 0.1}
    inside, outside = PlainSum(shares), PlainSum(shares)
    for site in (B, C, A):
        reply = {
            "w": random.normal(size=(2 * BLOCK + 7,)).astype(np.float32),
            "v": random.normal(size=(3, 5)).astype(np.float32),
        }
        inside.add(site, reply)
        outside.add(site, tensors_from_bytes(store(tmp_path, tensors_to_bytes(reply)).view()))

    assert outside._total == {}
    for name, value in inside.mean().items():
        np.testing.assert_array_equal(outside.mean()[name], value)


def test_fedavg_takes_the_mean_as_it_is() -> None:
    np.testing.assert_array_equal(Replace().step(tensors(9.0), tensors(2.0))["w"], [2.0])


def test_fedadam_follows_reddi_2021_algorithm_2() -> None:
    spec = FedAdam(learning_rate=0.1, beta1=0.9, beta2=0.99, tau=0.01)
    optimiser, weight, first, second = AdamStep(spec), 1.0, 0.0, 0.01**2
    for mean in (1.5, 1.2, 0.7):
        delta = mean - weight
        first = 0.9 * first + 0.1 * delta
        second = 0.99 * second + 0.01 * delta**2
        expected = weight + 0.1 * first / (second**0.5 + 0.01)

        found = optimiser.step(tensors(weight), tensors(mean))["w"]

        np.testing.assert_allclose(found, [expected], rtol=1e-6)
        weight = float(found[0])
