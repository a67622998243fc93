"""One DICOM image as numbers: decoded, through modality and VOI transformation, in [0, 1].

Training sees what comes out of here and nothing else of the object: pixels, and the few header
elements of `ALLOWED`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array

from fedward_client.data.dicom.header import open_object
from fedward_client.data.dicom.quiet import without_words
from fedward_client.data.dicom.reasons import BadObject, Reason

FloatArray = npt.NDArray[np.float32]
Header = dict[str, str | float | tuple[float, ...]]

ALLOWED: Final[dict[str, type]] = {
    "Modality": str,
    "ViewPosition": str,
    "ImageLaterality": str,
    "PhotometricInterpretation": str,
    "SliceThickness": float,
    "PixelSpacing": tuple,
    "ImagerPixelSpacing": tuple,
    "ImagePositionPatient": tuple,
    "ImageOrientationPatient": tuple,
}
"""Every element of a header that may reach a model; text only as a code of CODE_CHARACTERS."""

CODE_CHARACTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ ")
MAX_CODE: Final = 16

MAX_PIXELS: Final = 1 << 30
"""Numbers in one object; what a header asks for beyond that is refused before anything is
allocated."""

_DECODING: Final = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    OSError,
    MemoryError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A public window in the units after the modality transformation, such as Hounsfield units."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """`pixels` float32 [frames, rows, columns, channels] in [0, 1], dark to bright; the header."""

    pixels: FloatArray
    header: Header


def load_picture(path: Path, *, window: Window | None = None) -> Picture:
    """The image in `path`.

    MONOCHROME1 is turned round, so that brighter always means a higher number; palette and YBR
    become RGB. With `window` every image is scaled by the same public limits; without, by its own
    VOI transformation, and where it has none by the range of its stored bits.

    Raises:
        BadObject: the pixels cannot be decoded here.
    """
    with open_object(path) as file, without_words():
        try:
            dataset = dcmread(file, force=True)
            return picture_of(dataset, window=window)
        except _DECODING as error:
            # The text of a decoder's error may quote the header.
            raise BadObject(Reason.UNREADABLE) from error


def picture_of(dataset: Dataset, *, window: Window | None = None) -> Picture:
    """The image that `dataset` holds. Raises what pydicom and its decoders raise."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if int(dataset.Rows) * int(dataset.Columns) * frames * samples > MAX_PIXELS:
        raise BadObject(Reason.WRONG_LENGTH)
    stored = pixel_array(dataset)
    if frames == 1 and stored.ndim == (3 if samples > 1 else 2):
        stored = stored[None]
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)
        pixels = colours.astype(np.float32) / np.float32(np.iinfo(colours.dtype).max)
    elif samples > 1:
        pixels = stored.astype(np.float32)
        pixels /= np.float32(2 ** int(dataset.BitsStored) - 1)
    else:
        pixels = np.empty((*stored.shape, 1), dtype=np.float32)
        for frame, numbers in enumerate(stored):
            pixels[frame, :, :, 0] = _grey(dataset, numbers, frame=frame, window=window)
        if photometric == "MONOCHROME1":
            np.subtract(np.float32(1.0), pixels, out=pixels)
    return Picture(pixels=pixels, header=allowed_header(dataset))


def allowed_header(dataset: Dataset) -> Header:
    """The elements of `ALLOWED` that are there in the right form; anything else is left out."""
    header: Header = {}
    for keyword, form in ALLOWED.items():
        value = dataset.get(keyword)
        if value is None or value == "":
            continue
        if form is str:
            if isinstance(value, str) and len(value) <= MAX_CODE and set(value) <= CODE_CHARACTERS:
                header[keyword] = value
            continue
        try:
            numbers = tuple(float(n) for n in (value if form is tuple else [value]))
        except (TypeError, ValueError):
            continue
        if np.isfinite(numbers).all() and len(numbers) <= 6:
            header[keyword] = numbers if form is tuple else numbers[0]
    return header


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Frame:
    """Stored numbers with their modality transformation, and the range it can reach."""

    numbers: npt.NDArray[np.generic]
    slope: float = 1.0
    intercept: float = 0.0
    low: float
    high: float

    def values(self) -> npt.NDArray[np.float64]:
        """The numbers after the modality transformation."""
        return self.numbers.astype(np.float64) * self.slope + self.intercept

    def scaled(self, *, low: float, high: float) -> FloatArray:
        """The values with `low` at 0 and `high` at 1, clipped: both steps as one."""
        if high <= low:
            return (self.values() > low).astype(np.float32)
        factor, offset = self.slope / (high - low), (self.intercept - low) / (high - low)
        if self.numbers.dtype.itemsize > 2:
            wide = self.numbers.astype(np.float64) * factor + offset
            return np.clip(wide, 0.0, 1.0).astype(np.float32)
        # float32 holds 16 stored bits exactly.
        out: FloatArray = self.numbers.astype(np.float32)
        np.multiply(out, np.float32(factor), out=out)
        np.add(out, np.float32(offset), out=out)
        return np.clip(out, 0.0, 1.0, out=out)


def _grey(
    dataset: Dataset, stored: npt.NDArray[np.generic], *, frame: int, window: Window | None
) -> FloatArray:
    """One monochrome frame in [0, 1] before the photometric interpretation."""
    known = _modality(dataset, stored, frame=frame)
    if window is not None:
        return known.scaled(low=window.low, high=window.high)
    voi = _group(dataset, "FrameVOILUTSequence", frame=frame)
    if voi.get("VOILUTSequence"):
        table = apply_voi(np.round(known.values()).astype(np.int64), voi)
        bits = int(voi.VOILUTSequence[0].LUTDescriptor[2])
        shades: FloatArray = np.clip(table.astype(np.float32) / np.float32(2**bits - 1), 0.0, 1.0)
        return shades
    if voi.get("WindowCenter") is not None and voi.get("WindowWidth") is not None:
        return _window(known, voi)
    return known.scaled(low=known.low, high=known.high)


def _modality(dataset: Dataset, stored: npt.NDArray[np.generic], *, frame: int) -> _Frame:
    rule = _group(dataset, "PixelValueTransformationSequence", frame=frame)
    if rule.get("ModalityLUTSequence"):
        top = float(2 ** int(rule.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
        return _Frame(numbers=apply_modality_lut(stored, dataset), low=0.0, high=top)
    bits, signed = int(dataset.BitsStored), bool(dataset.get("PixelRepresentation"))
    limits = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    slope, intercept = rule.get("RescaleSlope"), rule.get("RescaleIntercept")
    slope = 1.0 if slope in (None, "") else float(slope)
    intercept = 0.0 if intercept in (None, "") else float(intercept)
    low, high = sorted(end * slope + intercept for end in limits)
    return _Frame(numbers=stored, slope=slope, intercept=intercept, low=low, high=high)


def _group(dataset: Dataset, sequence: str, *, frame: int) -> Dataset:
    """Where this frame's rule stands: its own functional group, the shared one, or the top."""
    for groups, at in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        items = dataset.get(groups)
        if items and at < len(items) and items[at].get(sequence):
            return cast(Dataset, items[at][sequence].value[0])
    return dataset


def _window(known: _Frame, voi: Dataset) -> FloatArray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with 0 and 1 as the output limits; the first window."""
    center, width = _first(voi, "WindowCenter"), _first(voi, "WindowWidth")
    function = str(voi.get("VOILUTFunction") or "LINEAR")
    if function == "SIGMOID" and width > 0:
        return (1.0 / (1.0 + np.exp(-4.0 * (known.values() - center) / width))).astype(np.float32)
    if function == "LINEAR_EXACT":
        return known.scaled(low=center - width / 2, high=center + width / 2)
    low = center - 0.5 - (width - 1) / 2
    return known.scaled(low=low, high=low + (width - 1))


def _first(dataset: Dataset, keyword: str) -> float:
    element = dataset[keyword]
    return float(element.value[0] if element.VM > 1 else element.value)
