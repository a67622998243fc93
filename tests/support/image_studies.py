"""Studies of images for tests, and sets of them."""

from pathlib import Path
from typing import Any

import numpy as np

from fedward_common.study.spec import StudySpec
from tests.support.studies import make_document, make_dp

SIDE = 12


def image_document(*, data: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The JSON object of a valid study of 12 x 12 images, per patient."""
    rounds, local_steps = changes.get("rounds", 3), changes.get("local_steps", 5)
    document = make_document(
        task={"kind": "image-classification"},
        model={"name": "cnn", "shape": [1, SIDE, SIDE], "hidden": [4, 8]},
        data={
            "kind": "image",
            "height": SIDE,
            "width": SIDE,
            "patient_key": "patient_id",
            "label": {"column": "label", "low": 0, "high": 1, "positive_from": 1},
            "split": {"kind": "column", "column": "split"},
        }
        | (data or {}),
        dp=make_dp(steps=rounds * local_steps) | {"max_records_per_patient": 4},
    )
    return document | changes


def image_study(**changes: Any) -> StudySpec:
    """The study of `image_document`."""
    return StudySpec.model_validate(image_document(**changes))


def npz(
    path: Path,
    *,
    patients: list[str],
    labels: list[int],
    splits: list[str],
    side: int = SIDE,
    seed: int = 0,
    **more: Any,
) -> Path:
    """A made-up set: bright images are positive."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (len(labels), side, side), dtype=np.uint8)
    images += np.array(labels, dtype=np.uint8)[:, None, None] * 120
    np.savez(
        path,
        images=images,
        label=np.array(labels),
        split=np.array(splits),
        **({"patient_id": np.array(patients)} if patients else {}),
        **more,
    )
    return path
