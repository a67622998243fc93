"""Studies and tables for tests: small, made up, and the same in every test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedward_common.study.files import SiteKeys, parse_study
from fedward_common.study.spec import StudySpec

SITES = ("north", "east", "south", "west")
LEAD = "f" * 64
STUDY_FILES = Path(__file__).parents[2] / "deploy" / "studies"


def key_digest(number: int) -> str:
    """A made-up SHA-256 of a key."""
    return f"{number:064x}"


def site_keys(sites: Sequence[str] = SITES) -> dict[str, SiteKeys]:
    """Made-up key digests, all different."""
    return {
        site: SiteKeys(key_sha256=key_digest(number), node_key_sha256=key_digest(number + 1000))
        for number, site in enumerate(sites, start=1)
    }


def make_data(**changes: Any) -> dict[str, Any]:
    """A table with one number, one category, a label 0..4 and a split column: 3 inputs."""
    data = {
        "kind": "tabular",
        "patient_key": "patient_id",
        "columns": [
            {"name": "age", "type": "number", "unit": "years", "low": 20.0, "high": 100.0},
            {"name": "pain", "type": "category", "values": ["1", "2", "3"]},
        ],
        "label": {"column": "stage", "low": 0, "high": 4, "positive_from": 1},
        "split": {"kind": "column", "column": "split"},
    }
    return data | changes


def make_document(
    *, sites: Sequence[str] = SITES, keys: Mapping[str, SiteKeys] | None = None, **changes: Any
) -> dict[str, Any]:
    """The JSON object of a valid study; `changes` replace top-level keys."""
    keys = site_keys(sites) if keys is None else keys
    rounds = changes.get("rounds", 3)
    local_steps = changes.get("local_steps", 5)
    document = {
        "id": "made-up",
        "title": "A made-up study",
        "task": {"kind": "tabular-classification"},
        "model": {"name": "logistic-regression"},
        "data": make_data(),
        "dp": make_dp(steps=rounds * local_steps),
        "training": {"learning_rate": 0.5},
        "aggregation": {"name": "fedavg"},
        "releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}],
        "rounds": rounds,
        "local_steps": local_steps,
        "quorum": max(1, len(sites) - 1),
        "deadline_seconds": 30.0,
        "sites": [
            {
                "id": site,
                "patients": 50,
                "key_sha256": keys[site].key_sha256,
                "node_key_sha256": keys[site].node_key_sha256,
            }
            for site in sites
        ],
        "lead_key_sha256": LEAD,
    }
    return document | changes


def make_dp(**changes: Any) -> dict[str, Any]:
    """A DP plan whose noise fits its epsilon for 15 steps and one release of noise 3."""
    plan = {
        "kind": "dp-sgd",
        "epsilon": 4.0,
        "delta": 1e-4,
        "noise_multiplier": 3.0,
        "clip_norm": 0.5,
        "sampling_probability": 0.5,
        "steps": 15,
        "max_records_per_patient": 1,
    }
    return plan | changes


def make_spec(
    *, sites: Sequence[str] = SITES, keys: Mapping[str, SiteKeys] | None = None, **changes: Any
) -> StudySpec:
    """A valid study; `changes` replace top-level keys, such as `dp=make_dp(epsilon=1.0)`."""
    return StudySpec.model_validate(make_document(sites=sites, keys=keys, **changes))


def make_rows(patients: int = 12, *, prefix: str = "p", records: int = 1) -> list[dict[str, str]]:
    """Rows that fit `make_data`: every third patient held out, every second one positive."""
    return [
        {
            "patient_id": f"{prefix}{number}",
            "age": str(30 + (7 * number + record) % 50),
            "pain": str(1 + (number + record) % 3),
            "stage": str(2 * (number % 2)),
            "split": "test" if number % 3 == 2 else "train",
        }
        for number in range(patients)
        for record in range(records)
    ]


def write_table(path: Path, rows: Sequence[Mapping[str, str]], *, delimiter: str = ",") -> Path:
    """`rows` as a CSV file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load_example(name: str, *, noise_multiplier: float | None = None) -> StudySpec:
    """The example study `name` of deploy/studies with made-up keys.

    With `noise_multiplier` the accountants are not asked: seconds saved where epsilon is no matter.
    """
    path = STUDY_FILES / f"{name}.toml"
    sites = {"breast-cancer": ("university", "city", "screening", "district")}.get(
        name, ("cleveland", "budapest", "zurich-basel", "long-beach")
    )
    return parse_study(
        path.read_text(encoding="utf-8"),
        source=path.name,
        keys=site_keys(sites),
        lead_key_sha256=LEAD,
        resolve=None if noise_multiplier is None else lambda _study, _unknown: noise_multiplier,
    )
