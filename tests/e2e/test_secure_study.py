"""Distributed noise from study.toml through real processes: gateway, guard, ledger, journal."""

import json
from pathlib import Path

import pytest

from tests.support.live import program

pytestmark = [pytest.mark.federation, pytest.mark.slow]
STUDY = Path(__file__).parents[2] / "deploy" / "studies" / "breast-cancer-distributed.toml"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secure") / "out"
    done = program("fedward-server", "sandbox", STUDY, "--out", folder, "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_round_is_opened_and_both_epsilons_are_charged(out: Path) -> None:
    result = json.loads((out / "result.json").read_text())

    assert result["rounds"] == {"committed": 20, "abandoned": 0}
    assert result["study"]["placement"] == "distributed"
    assert result["auc"]["federated"] > 0.9
    for site, epsilon in result["epsilon"].items():
        assert epsilon <= 1.5
        assert result["epsilon_if_all_others_collude"][site] > epsilon


def test_each_guard_noted_every_sum_that_it_opened(out: Path) -> None:
    for site in (out / "sites").iterdir():
        journal = (site / "state" / "audit" / "site.jsonl").read_text().splitlines()
        opened = [e for e in map(json.loads, journal) if e["action"] == "secagg.unmasked"]
        assert [event["fields"]["round"] for event in opened] == list(range(1, 22))
