"""Whether names may be written into the pixels: by rules on what the object is, never by guess.

There is no cleaning of pixels: an object at risk is set aside (PS3.15 E.3.1 is not claimed).
"""

from typing import Final

from pydicom.dataset import Dataset

_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_USUALLY_ANNOTATED: Final = frozenset(
    {"US", "IVUS", "XA", "RF", "ES", "GM", "XC", "OT", "SC", "PX"}
)
_SCREENS: Final = frozenset({"SCREEN SAVE", "SCREENSHOT", "SCREEN SHOT", "SCANNED", "REPORT"})


def burned_in_risk(dataset: Dataset) -> bool:
    """Whether this object may show the patient's identity in its pixels.

    Secondary captures always may. Where scanners write into the picture (ultrasound, angiography,
    fluoroscopy, endoscopy, photographs) the object must say that it has no annotation.
    """
    said = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    sop_class = str(dataset.get("SOPClassUID") or "")
    if said == "YES" or sop_class.startswith(_SECONDARY_CAPTURE):
        return True
    types = dataset.get("ImageType") or []
    words = {str(t).upper() for t in ([types] if isinstance(types, str) else types)}
    if words & _SCREENS:
        return True
    modality = str(dataset.get("Modality") or "").upper()
    return said != "NO" and (modality in _USUALLY_ANNOTATED or not modality)


def overlay_in_pixels(dataset: Dataset) -> bool:
    """Whether graphics lie in unused bits of the pixels (PS3.5 8.1.2, retired)."""
    return any(
        0x6000 <= element.tag.group <= 0x60FF
        and element.tag.element == 0x0102
        and element.value not in (None, "", 0)
        for element in dataset
    )
