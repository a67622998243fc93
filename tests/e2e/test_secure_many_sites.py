"""Five hundred steps of sixteen hospitals, each with all its processes, in secret sums."""

from pathlib import Path

import pytest

from tests.support.secure_processes import (
    changed,
    deal_evenly,
    prepared_study,
    run_to_end,
    sites_toml,
)

ROUNDS = 500
HOSPITALS = 16


def text(*, hospitals: int) -> str:
    """The study of the four hospitals with sixteen of them, and many more steps."""
    whole = changed(
        {
            "rounds = 20": f"rounds = {ROUNDS}",
            # n = 16: eleven survivors at least.
            "quorum = 3": "quorum = 11",
            "deadline_seconds = 60": "deadline_seconds = 300",
            "epsilon = 1.5": "epsilon = 2.0",
            "learning_rate = 2.0": "learning_rate = 0.3",
            "average_last = 4": "average_last = 100",
        }
    )
    before, _, rest = whole.partition("[[sites]]")
    _, data, after = rest.partition("[data]\n")
    patients = {f"hospital-{number + 1}": 25 for number in range(hospitals)}
    return before + sites_toml(patients) + data + after


@pytest.mark.slow
@pytest.mark.federation
def test_five_hundred_steps_of_sixteen_hospitals_end_without_an_error(tmp_path: Path) -> None:
    """About a hundred processes; needs 16 GiB of memory."""
    folders = deal_evenly(tmp_path, hospitals=HOSPITALS)
    prepared = prepared_study(tmp_path, text(hospitals=HOSPITALS), sites=folders)

    ran = run_to_end(prepared)

    assert ran.outcome["status"] == "finished"
    assert (ran.outcome["committed_rounds"], ran.outcome["abandoned_rounds"]) == (ROUNDS, 0)
    assert ran.outcome["refusals"] == {}
    assert len(ran.outcome["pooled"]["sites"]) == HOSPITALS
    assert [one["rounds_charged"] for one in ran.charged.values()] == [ROUNDS] * HOSPITALS
    assert all(one["epsilon_admission"] <= 2.0 for one in ran.charged.values())
