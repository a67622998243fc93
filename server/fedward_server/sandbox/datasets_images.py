"""Image sets of the sandbox, dealt to hospitals as one images.npz each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.study.npz import read_npz

IMAGES: Final = "images.npz"
IMAGES_TABLE: Final = "images.csv"
"""The table beside single files: DICOM or NIfTI."""
PNEUMONIA_FILE: Final = "pneumoniamnist.npz"
PNEUMONIA_SITES: Final = tuple(map(SiteId, ("north", "east", "south", "west")))
ALPHA: Final = 0.5
DEAL_SEED: Final = 20261126
"""Fixed before any held-out image was read: which image comes to which hospital, nothing else."""


def deal_pneumonia(source: Path, folder: Path) -> dict[SiteId, Path]:
    """One images.npz for each of four hospitals under `folder`, from PneumoniaMNIST.

    The share of each class that comes to each hospital is drawn from Dirichlet(0.5): the usual
    strong skew of labels. The official training images train, the official test images are held
    out; the validation images are left for whoever chooses hyper-parameters. The set does not say
    whose an image is.

    Raises:
        DataError: `source` does not hold the file.
    """
    parts = read_pneumonia(source)
    generator = np.random.default_rng(DEAL_SEED)
    shares = {label: generator.dirichlet([ALPHA] * len(PNEUMONIA_SITES)) for label in (0, 1)}
    dealt: dict[SiteId, dict[str, list[npt.NDArray[np.generic]]]] = {
        site: {"images": [], "label": [], "split": []} for site in PNEUMONIA_SITES
    }
    for split in ("train", "test"):
        images, labels = parts[split]
        for label, share in shares.items():
            rows = generator.permutation(np.flatnonzero(labels == label))
            ends = np.round(np.cumsum(share) * len(rows)).astype(int)[:-1]
            for site, own in zip(PNEUMONIA_SITES, np.split(rows, ends), strict=True):
                dealt[site]["images"].append(images[own])
                dealt[site]["label"].append(labels[own])
                dealt[site]["split"].append(np.full(len(own), split))
    return {site: _write(folder, site, arrays) for site, arrays in dealt.items()}


def read_pneumonia(
    source: Path,
) -> Mapping[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Images [n, 28, 28] and labels [n] of the official parts train, val and test.

    Raises:
        DataError: `source` does not hold the file.
    """
    arrays = read_npz(source / PNEUMONIA_FILE)
    try:
        return {
            part: (arrays[f"{part}_images"], arrays[f"{part}_labels"].ravel().astype(np.int64))
            for part in ("train", "val", "test")
        }
    except KeyError as error:
        raise DataError(
            "PneumoniaMNIST: expected images and labels of train, val and test, found others"
        ) from error


def _write(folder: Path, site: SiteId, arrays: Mapping[str, list[npt.NDArray[np.generic]]]) -> Path:
    path = folder / site / IMAGES
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: np.concatenate(parts) for name, parts in arrays.items()}
    np.savez_compressed(path, images=whole["images"], label=whole["label"], split=whole["split"])
    return path
