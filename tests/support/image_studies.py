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
    colour: bool = False,
    **more: Any,
) -> Path:
    """A made-up set: bright images are positive; of colour ones their green."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (len(labels), side, side), dtype=np.uint8)
    images += np.array(labels, dtype=np.uint8)[:, None, None] * 120
    if colour:
        other = generator.integers(0, 240, (2, *images.shape), dtype=np.uint8)
        images = np.stack([other[0], images, other[1]], axis=-1)
    np.savez(
        path,
        images=images,
        label=np.array(labels),
        split=np.array(splits),
        **({"patient_id": np.array(patients)} if patients else {}),
        **more,
    )
    return path


def _steps(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: changes[name] for name in ("rounds", "local_steps") if name in changes}


def classes_study(*, several: bool = False, **changes: Any) -> StudySpec:
    """A study of three classes (`none`, `one`, `both`), or of two labels of which any may hold."""
    label: dict[str, Any] = {"column": "found", "classes": ["none", "one", "both"]}
    if several:
        label = {"labels": ["left", "right"]}
    outputs = 2 if several else 3
    release = {
        "kind": "class-scores",
        "classes": outputs,
        "exclusive": not several,
        "bins": 6,
        "noise_multiplier": 2.0,
    }
    document = image_document(
        data={"label": label},
        model={"name": "cnn", "shape": [1, SIDE, SIDE], "hidden": [4, 8], "outputs": outputs},
        releases=[release],
        **_steps(changes),
    )
    return StudySpec.model_validate(document | changes)


def masks_study(**changes: Any) -> StudySpec:
    """A study of volumes of 16 x 16 x 16 in which a bright cube is to be found."""
    document = image_document(
        task={"kind": "image-segmentation"},
        model={"name": "unet", "shape": [1, 8, 8, 8], "hidden": [4, 8], "outputs": 2},
        releases=[
            {
                "kind": "overlap-scores",
                "structures": 1,
                "bins": 10,
                "longest_mm": 20.0,
                "noise_multiplier": 2.0,
            }
        ],
        **_steps(changes),
    )
    document["data"] = {
        "kind": "image-masks",
        "depth": 16,
        "height": 16,
        "width": 16,
        "structures": ["core"],
        "patch": [8, 8, 8],
        "stride": [8, 8, 8],
        "spacing_mm": [1.0, 1.0, 1.0],
        "split": {"kind": "column", "column": "split"},
    }
    return StudySpec.model_validate(document | changes)


def masks_npz(path: Path, *, patients: list[str], splits: list[str], seed: int = 0) -> Path:
    """A made-up set of volumes: one bright cube in each."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 100, (len(patients), 16, 16, 16), dtype=np.uint8)
    masks = np.zeros_like(images)
    for number in range(len(patients)):
        corner = generator.integers(2, 8, 3)
        at = tuple(slice(start, start + 6) for start in corner)
        images[number][at] += 140
        masks[number][at] = 1
    np.savez(
        path,
        images=images,
        masks=masks,
        patient_id=np.array(patients),
        split=np.array(splits),
    )
    return path
