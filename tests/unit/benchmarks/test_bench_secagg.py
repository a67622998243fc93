"""What the benchmark of the secure sum reports, on a small vector."""

import pytest

from benchmarks.secagg import measured, table


@pytest.mark.parametrize("sites", [3, 10])
def test_the_benchmark_checks_the_sum_and_counts_bytes_and_memory(sites: int) -> None:
    row = measured(sites, size=400_000, repeats=2, flower=True)

    assert row["whole_round"]["opened_sum_is_exact"]
    assert row["whole_round"]["vector_bytes_per_parameter"] == 4.0
    assert row["peak_vectors"]["site"] <= 3.0
    # Three vectors wait, a fourth arrives, and their sum: at any number of sites.
    assert row["peak_vectors"]["coordinator"] <= 5.5
    assert set(row["flower_to_ours"]) >= {"site masks", "coordinator adds and unmasks"}
    assert f"| {sites} | site masks |" in table([row])
