"""disclosure.json of a finished run: the study's facts, and what its result adds to them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedward_common.privacy.disclosure import Disclosure, KnownFacts, disclosure
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_atomically

NAME: Final = "disclosure.json"
SANDBOX: Final = (
    (
        "every figure marked exact, curves and baselines",
        "sandbox only: its parent process scores models on its own copy of all tables",
    ),
)


def run_disclosure(study: StudySpec, result: Mapping[str, Any]) -> Disclosure:
    """The disclosure of a sandbox run of `study`; `result` is its result.json or statistics.json.

    What the result does not hold stays missing.
    """
    charged = result.get("epsilon")
    if charged is None:
        charged = result.get("privacy", {}).get("charged") or None
    environment = result.get("environment")
    return disclosure(
        study,
        KnownFacts(
            charged=charged,
            utility=_utility(result),
            software=None if environment is None else {k: str(v) for k, v in environment.items()},
            further_uncovered=SANDBOX,
        ),
    )


def write_disclosure(study: StudySpec, result: Mapping[str, Any], folder: Path) -> None:
    """Writes disclosure.json to `folder`, completely or not at all."""
    document = run_disclosure(study, result).as_json()
    write_atomically(folder / NAME, json.dumps(document, indent=1).encode() + b"\n")


def _utility(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the coordinator itself may know: the figures from noised bins, not the exact ones."""
    found = {
        f"{metric}_{key}": result[metric][key]
        for metric in ("auc", "accuracy")
        for key in ("federated_private", "federated_private_interval")
        if result.get(metric, {}).get(key) is not None
    }
    return found or None
