"""A made-up result of a run for tests of what people see; its figures describe no real study."""

import math
from typing import Any

SITES = ("north", "south", "east", "west")


def sample_result(**changes: Any) -> dict[str, Any]:
    """A complete fedward-result/1 of four sites; `changes` replace top-level keys."""
    per_site = {
        site: {
            "held_out": 100 - 20 * index,
            "auc": None if site == "west" else 0.9 - 0.01 * index,
            "accuracy": 0.84 - 0.01 * index,
            "alone_auc": None if site == "west" else 0.85,
            "alone_accuracy": 0.8,
            "epsilon_admission": 3.98 + 0.00561 * index,
            "epsilon_pld": 3.5 + 0.01 * index,
            "bytes_sent": 1_200_000 + index,
            "rounds_charged": 60,
        }
        for index, site in enumerate(SITES)
    }
    result = {
        "format": "fedward-result/1",
        "study": {
            "id": "four-sites",
            "title": "A disease at four sites",
            "digest": "4f2a91c07bd35e66" * 4,
            "task": {"kind": "tabular-classification"},
            "model": {"name": "logistic", "hidden": [], "initial_seed": 0},
            "rounds": 60,
            "local_steps": 2,
            "unit": "patient",
            "noise_multiplier": 1.8734,
            "clip_norm": 1.0,
            "sampling_probability": 0.2,
            "steps": 120,
            "placement": "local",
            "aggregation": {"name": "fedavg", "average_last": 20},
            "sites": [{"id": site, "patients": 200} for site in SITES],
        },
        "auc": {
            "federated": 0.8812,
            "federated_private": 0.8734,
            "federated_private_interval": [0.842, 0.901],
            "alone_mean": 0.802,
            "pooled_no_privacy": 0.8911,
        },
        "accuracy": {
            "federated": 0.8021,
            "federated_private": 0.7958,
            "federated_private_interval": [0.755, 0.836],
            "alone_mean": 0.741,
            "pooled_no_privacy": 0.811,
            "majority": 0.5636,
            "standard_error": 0.0241,
            "federated_site_mean": 0.7973,
            "alone_site_mean": 0.7612,
            "pooled_no_privacy_site_mean": 0.8034,
        },
        "per_site": per_site,
        "epsilon": {site: row["epsilon_admission"] for site, row in per_site.items()},
        "epsilon_is": "admission",
        "epsilon_pld": {site: row["epsilon_pld"] for site, row in per_site.items()},
        "delta": 1e-4,
        "unit": "patient",
        "bytes_sent": {site: row["bytes_sent"] for site, row in per_site.items()},
        "seconds": 74.23,
        "timings": {"start": 11.2, "training": 51.9, "evaluation": 2.1},
        "rounds": {"committed": 59, "abandoned": 1},
        "curve": [
            {
                "round": number,
                "auc": 0.88 - 0.25 * math.exp(-number / 8),
                "accuracy": 0.8 - 0.2 * math.exp(-number / 9),
            }
            for number in range(1, 61)
        ],
        "roc": {
            "exact": [[0.0, 0.0], [0.0, 0.6], [0.1, 0.9], [1.0, 1.0]],
            "private": [[0.0, 0.0], [0.05, 0.7], [0.3, 0.95], [1.0, 1.0]],
        },
        "environment": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "flwr": "1.41.0",
            "opacus": "1.6.0",
            "dp_accounting": "0.6.0",
            "fedward": "0.1.0",
            "machine": "Linux x86_64, 2 cores",
        },
        "seed": None,
        "labels": {},
    }
    return {**result, **changes}


def hostile_result(title: str, site: str = "north") -> dict[str, Any]:
    """A result whose study title and first site id are `title` and `site`."""
    result = sample_result()
    result["study"] = {**result["study"], "title": title}
    result["study"]["sites"] = [{"id": site, "patients": 5}, *result["study"]["sites"][1:]]
    result["per_site"][site] = result["per_site"].pop("north")
    result["labels"] = {"federated": f"exact: {title}"}
    return result


def without_scores() -> dict[str, Any]:
    """A result in which every AUC is null and the noised bins never arrived."""
    result = sample_result(curve=[], roc={"exact": [], "private": []})
    result["auc"] = dict.fromkeys(result["auc"])
    result["accuracy"] |= {"federated_private": None, "federated_private_interval": None}
    for row in result["per_site"].values():
        row |= {"auc": None, "alone_auc": None}
    return result
