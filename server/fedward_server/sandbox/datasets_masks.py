"""Hippocampus of the Medical Segmentation Decathlon, dealt to four hospitals."""

import hashlib
from pathlib import Path
from typing import Final

import numpy as np

from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.study.npz import read_npz
from fedward_server.sandbox.datasets_images import IMAGES

HIPPOCAMPUS_FILE: Final = "hippocampus.npz"
HIPPOCAMPUS_SITES: Final = tuple(map(SiteId, ("north", "east", "south", "west")))
SIZE: Final = (48, 64, 48)
BRIGHT_FROM: Final = 2000.0
"""Raw maxima are bimodal: two ways of exporting, as between scanners."""
DEAL_SALT: Final = "fedward/deal/hippocampus/v1"
HELD_OUT: Final = 0.25


def deal_hippocampus(source: Path, folder: Path) -> dict[SiteId, Path]:
    """One images.npz for each of four hospitals under `folder`: volumes and masks of 48 x 64 x 48.

    North and east get the cases whose raw intensities end below 2000, south and west the others; a
    hash of the case picks one of the two, and another one who is held out. A case is a patient.

    Raises:
        DataError: `source` does not hold the file.
    """
    arrays = read_npz(source / HIPPOCAMPUS_FILE)
    try:
        images, masks, cases = arrays["images"], arrays["labels"], arrays["case"].astype(str)
        bright = arrays["intensity_max"] >= BRIGHT_FROM
    except KeyError as error:
        raise DataError(
            "hippocampus: expected images, labels, case and intensity_max, found others"
        ) from error
    pads = [(0, 0), *((0, want - have) for want, have in zip(SIZE, images.shape[1:], strict=True))]
    if min(after for _, after in pads) < 0:
        raise DataError(f"hippocampus: expected volumes of at most {SIZE} voxels, found larger")
    images, masks = np.pad(images, pads), np.pad(masks, pads)
    split = np.where([_hash("split", case) < HELD_OUT for case in cases], "test", "train")
    second = np.array([_hash("site", case) < 0.5 for case in cases])
    paths = {}
    for number, site in enumerate(HIPPOCAMPUS_SITES):
        own = (bright == bool(number // 2)) & (second == bool(number % 2))
        path = folder / site / IMAGES
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path, images=images[own], masks=masks[own], patient_id=cases[own], split=split[own]
        )
        paths[site] = path
    return paths


def _hash(what: str, case: str) -> float:
    """A number in [0, 1) for a case, the same on every machine."""
    digest = hashlib.sha256(f"{DEAL_SALT}|{what}|{case}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
