"""The opened sum is the plain sum of the survivors' vectors, whoever is lost and when."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.secagg.fixedpoint import FixedPoint
from fedward_common.secagg.messages import Advert, Envelopes, SurvivorSignature, Unmasking
from fedward_common.secagg.refusals import SecAggRefused
from fedward_common.secagg.shares import PRIME, combine, split
from fedward_common.secagg.thresholds import Thresholds
from tests.support.secagg_round import Round, stream, total


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_opened_sum_is_the_sum_of_the_survivors(data: st.DataObject) -> None:
    sites = data.draw(st.integers(3, 9), label="sites")
    dtype: Any = data.draw(st.sampled_from([np.uint32, np.uint64]), label="ring")
    one = Round(sites=sites, dtype=dtype, size=data.draw(st.integers(1, 50)), seed=sites)
    names = data.draw(st.permutations(sorted(one.parties)), label="who is lost first")
    lost = data.draw(st.integers(0, one.thresholds.dropouts), label="lost in all")
    cuts = sorted(data.draw(st.tuples(*[st.integers(0, lost)] * 2), label="when"))
    before_advert, before_share, before_mask = (
        names[: cuts[0]],
        names[cuts[0] : cuts[1]],
        names[cuts[1] : lost],
    )
    vectors = one.vectors()

    one.advertised(without=before_advert)
    one.shared(without=before_share)
    one.masked(vectors, without=before_mask)
    quiet = len(one.coordinator.close()) - one.thresholds.threshold
    opened = one.opened(silent=sorted(one.coordinator.close())[:quiet])

    np.testing.assert_array_equal(opened, total(vectors, set(one.parties) - set(names[:lost])))


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.data())
def test_any_t_shares_rebuild_a_secret_and_one_less_do_not(
    secret: bytes, holders: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, holders))
    shares = split(secret, holders=holders, threshold=threshold, random_bytes=stream(holders))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]

    assert combine({h: shares[h] for h in chosen}, threshold=threshold) == secret
    with pytest.raises(SecAggRefused, match="shares"):
        combine({h: shares[h] for h in chosen[1:]}, threshold=threshold)


def test_fewer_shares_fit_every_secret_equally() -> None:
    """With T - 1 shares, for any other secret there is a polynomial: here found by hand."""
    shares = split(b"\x07" * 32, holders=3, threshold=2, random_bytes=stream(1))
    value = int.from_bytes(shares[1])
    other = int.from_bytes(b"\x99" * 32)
    slope = (value - other) % PRIME

    forged = {1: shares[1], 2: ((other + 2 * slope) % PRIME).to_bytes(33)}

    assert combine(forged, threshold=2) == b"\x99" * 32


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 60), st.integers(0, 3))
def test_thresholds_leave_no_room_for_two_survivor_lists(sites: int, malicious: int) -> None:
    try:
        found = Thresholds.of(sites, malicious_sites=malicious)
    except SecAggRefused:
        assert sites < 6
        return

    assert 2 * found.threshold - sites > sites // 3 - 1
    assert found.dropouts == sites - found.threshold
    assert found.noisy_sites == sites - found.dropouts - max(1, malicious)
    assert found.fewest_survivors == max(3, sites - found.dropouts)


@pytest.mark.parametrize(
    ("sites", "d", "c"),
    [(3, 0, 1), (4, 1, 1), (16, 5, 1)],
)
def test_the_thresholds_of_the_rules(sites: int, d: int, c: int) -> None:
    found = Thresholds.of(sites)

    assert (found.dropouts, found.discounted) == (d, c)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(-3, 3, allow_nan=False), min_size=1, max_size=8),
    st.sampled_from([32, 64]),
    st.integers(3, 20),
)
def test_a_sum_over_sites_decodes_within_its_error_bound(
    values: list[float], bits: int, sites: int
) -> None:
    grid = FixedPoint.fitting(clip_norm=1.0, sites=sites, noise_std=0.5, bits=bits)  # type: ignore[arg-type]
    vector = np.array(values)

    residues = grid.to_ring(grid.saturate(grid.quantise(vector)))
    decoded = grid.from_ring(np.add.reduce([residues] * sites))

    expected = sites * np.clip(vector, -grid.saturation / grid.scale, grid.saturation / grid.scale)
    assert np.abs(decoded - expected).max() <= sites / grid.scale


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_quantising_never_lengthens_a_vector(values: list[float]) -> None:
    """Rules 8: the clipping bound holds on the integer vector."""
    grid = FixedPoint(scale=2.0**20, saturation=2**30)
    vector = np.array(values)

    assert np.linalg.norm(grid.quantise(vector)) <= np.linalg.norm(vector) * grid.scale


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([Advert, Envelopes, SurvivorSignature, Unmasking]))
def test_any_bytes_are_refused_cleanly(data: bytes, kind: type[Advert]) -> None:
    with pytest.raises(SecAggRefused):
        kind.parse(data)
