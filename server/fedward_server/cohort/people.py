"""Made-up patients: numbers drawn by a fixed rule, no real person behind any of them.

Each patient has three hidden numbers: one shows in the image, one in the laboratory values, one in
the genotypes. The outcome depends on their sum, so that each modality says a part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
SIZE: Final = 16
LOCI: Final = 16
EFFECT: Final = 1.6
"""Log odds of the outcome for a standard deviation of one hidden number."""
MISSING: Final = 0.1
"""Share of the patients of a hospital without an image, and without genotypes."""
START: Final = datetime(2024, 1, 8, 8, 0, tzinfo=UTC)
_SIZES: Final = "expected 1 to 99 sites and 1 to 9999 patients each"


@dataclass(frozen=True, kw_only=True, slots=True)
class Locus:
    """One place of the made-up panel: alleles, frequency of `alt` and whether it adds to risk."""

    id: str
    chrom: str
    pos: int
    ref: str
    alt: str
    frequency: float


PANEL: Final = tuple(
    Locus(
        id=f"made-up-{number + 1}",
        chrom=str(1 + number % 8),
        pos=1_000_000 + 50_000 * number,
        ref="ACGT"[number % 4],
        alt="GTAC"[number % 4],
        frequency=(3 + number % 5) / 10,
    )
    for number in range(LOCI)
)
"""No A/T and no C/G locus: the strand of each can be told."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Patient:
    """One made-up patient. `image` and `copies` (of `alt`, by locus) are None where missing."""

    id: str
    birth: date
    female: bool
    admitted: datetime
    crp: float
    creatinine: float
    ill: bool
    image: Pixels | None
    copies: tuple[int, ...] | None


def draw_patients(seed: int, *, site: int, name: str, count: int, images: bool) -> list[Patient]:
    """The patients of one hospital; equal arguments give equal patients.

    Raises:
        ValueError: a count that no id has room for.
    """
    if not 1 <= count <= 9999:
        raise ValueError(_SIZES)
    draws = np.random.default_rng([seed, site])
    return [_patient(draws, f"{name}-{number + 1:04d}", images=images) for number in range(count)]


def _patient(draws: np.random.Generator, patient: str, *, images: bool) -> Patient:
    shown, measured, inherited = draws.normal(size=3)
    odds = EFFECT * (shown + measured + inherited)
    image = _image(draws, shown)
    copies = _copies(draws, inherited)
    ill = draws.random() < 1.0 / (1.0 + np.exp(-odds))
    has_image, has_genotypes = draws.random(2) >= MISSING
    return Patient(
        id=patient,
        birth=date(1930, 1, 1) + timedelta(days=int(draws.integers(0, 25_000))),
        female=bool(draws.random() < 0.5),
        admitted=START + timedelta(hours=int(draws.integers(0, 8_000))),
        crp=round(float(np.clip(np.exp(3.5 + 0.7 * measured), 0.1, 290.0)), 1),
        creatinine=round(float(np.clip(1.4 + 0.4 * measured + draws.normal(0, 0.3), 0.2, 7.9)), 2),
        ill=bool(ill),
        image=image if images and has_image else None,
        copies=copies if has_genotypes else None,
    )


def _image(draws: np.random.Generator, shown: float) -> Pixels:
    """A noisy dark field with a soft spot somewhere, as bright as the hidden number says."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    top, left = draws.uniform(5, SIZE - 5, size=2)
    spot = np.exp(-((rows - top) ** 2 + (columns - left) ** 2) / 12.0)
    grey = 60 + draws.normal(0, 8, size=(SIZE, SIZE)) + (80 + 40 * shown) * spot
    found: Pixels = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return found


def _copies(draws: np.random.Generator, inherited: float) -> tuple[int, ...]:
    """Copies of `alt` at each locus: more of them where the hidden number is high."""
    found = []
    for locus in PANEL:
        odds = np.log(locus.frequency / (1 - locus.frequency)) + 0.9 * inherited
        found.append(int(draws.binomial(2, 1.0 / (1.0 + np.exp(-odds)))))
    return tuple(found)


def site_names(count: int) -> Sequence[str]:
    """The names of the hospitals. Raises ValueError for a count that has none."""
    if not 1 <= count <= 99:
        raise ValueError(_SIZES)
    return [f"made-up-{number + 1:02d}" for number in range(count)]
