"""Answers as DICOM objects: structured report, segmentation, secondary capture (highdicom).

They belong into the patient's own study and carry the patient's attributes of the source images:
they stay with the hospital, as those do. Each names the model and that it is not for clinical use.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from fedward_client.data.dicom.quiet import without_words
from fedward_client.predict.package import NOT_CLINICAL, Origin
from fedward_common.errors import DataError

MAKER: Final = "Fedward"
SERIES: Final = {"SR": 9001, "SEG": 9002, "SC": 9003}
SCHEME: Final = "99FEDWARD"
PROCEDURES: Final = {
    "CR": ("168537006", "Plain radiography"),
    "DX": ("168537006", "Plain radiography"),
    "CT": ("77477000", "Computed tomography"),
    "MG": ("71651007", "Mammography"),
    "MR": ("113091000", "Magnetic resonance imaging"),
    "PT": ("82918005", "Positron emission tomography"),
    "US": ("16310003", "Diagnostic ultrasonography"),
}
IMAGING: Final = ("363679005", "Imaging")
"""What was done, by the modality of the images, in SNOMED CT; `IMAGING` for every other modality.
Source: DICOM PS3.16, TID 1500 row 4 (CID 100 is extensible)."""
_LO: Final = 64
_NEEDED: Final = (ValueError, AttributeError, TypeError, KeyError, IndexError)


def report(sources: Sequence[Dataset], scores: Mapping[str, float], origin: Origin) -> Dataset:
    """A comprehensive SR (TID 1500) with one measurement for each score.

    Raises:
        DataError: the source lacks what a report has to say of its patient and study.
    """
    with without_words(), _complete():
        group = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier="answer"),
            algorithm_id=hd.sr.AlgorithmIdentification(
                name=f"Fedward study {origin.study_id}",
                version=origin.model_sha256,
                parameters=[f"{name}: {value}" for name, value in origin.facts.items()],
            ),
            measurements=[
                hd.sr.Measurement(
                    name=hd.sr.CodedConcept(f"score-{number}", SCHEME, f"Score of {name}"[:_LO]),
                    value=round(score, 6),
                    unit=codes.UCUM.NoUnits,
                )
                for number, (name, score) in enumerate(scores.items())
            ],
            qualitative_evaluations=[
                hd.sr.QualitativeEvaluation(
                    name=hd.sr.CodedConcept("intended-use", SCHEME, "Intended use"),
                    value=hd.sr.CodedConcept("not-clinical", SCHEME, NOT_CLINICAL.capitalize()),
                )
            ],
            source_images=[
                hd.sr.SourceImageForMeasurementGroup.from_source_image(one) for one in sources
            ],
        )
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(
                observer_device_context=hd.sr.ObserverContext(
                    observer_type=codes.DCM.Device,
                    observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                        uid=generate_uid(), name=MAKER
                    ),
                )
            ),
            procedure_reported=procedure_of(sources),
            imaging_measurements=[group],
        )
        made: Dataset = hd.sr.ComprehensiveSR(
            evidence=list(sources),
            content=content[0],
            series_instance_uid=generate_uid(),
            series_number=SERIES["SR"],
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MAKER,
        )
        return _named(made, origin)


def procedure_of(sources: Sequence[Dataset]) -> hd.sr.CodedConcept:
    """The code of the procedure that made `sources`; `IMAGING` where they are of several kinds."""
    modalities = {str(source.get("Modality", "")) for source in sources}
    code, meaning = PROCEDURES.get(modalities.pop(), IMAGING) if len(modalities) == 1 else IMAGING
    return hd.sr.CodedConcept(code, "SCT", meaning)


def segmentation(
    sources: Sequence[Dataset],
    mask: npt.NDArray[np.int64],
    structures: Sequence[str],
    origin: Origin,
) -> Dataset:
    """A binary SEG of `mask` [slices, rows, columns], each slice where its source image is.

    Raises:
        DataError: the sources lack their place in space, or what a SEG has to say of a patient.
    """
    with without_words(), _complete():
        algorithm = hd.AlgorithmIdentificationSequence(
            name=f"Fedward study {origin.study_id}"[:_LO],
            family=codes.DCM.ArtificialIntelligence,
            version=origin.model_sha256,
            parameters=origin.facts,
        )
        described = [
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=structure,
                segmented_property_category=codes.SCT.AnatomicalStructure,
                segmented_property_type=hd.sr.CodedConcept(
                    f"structure-{number}", SCHEME, structure
                ),
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
            )
            for number, structure in enumerate(structures, start=1)
        ]
        made: Dataset = hd.seg.Segmentation(
            source_images=list(sources),
            pixel_array=mask.astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=described,
            series_instance_uid=generate_uid(),
            series_number=SERIES["SEG"],
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=f"study {origin.study_id}"[:_LO],
            software_versions=origin.model_sha256[:_LO],
            device_serial_number=origin.model_sha256[:_LO],
            content_description=NOT_CLINICAL,
            omit_empty_frames=bool(mask.any()),
        )
        return _named(made, origin)


def capture(
    source: Dataset, picture: npt.NDArray[np.uint8], origin: Origin, *, number: int = 1
) -> Dataset:
    """A secondary capture of `picture` [rows, columns, 3]; its words are burnt in by the caller.

    Raises:
        DataError: the source lacks what a capture has to say of its patient and study.
    """
    with without_words(), _complete():
        made: Dataset = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=source,
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            series_instance_uid=generate_uid(),
            series_number=SERIES["SC"],
            sop_instance_uid=generate_uid(),
            instance_number=number,
            manufacturer=MAKER,
            patient_orientation=("L", "P"),
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        made.BurnedInAnnotation = "YES"
        return _named(made, origin)


class _complete:  # noqa: N801 - reads as a statement
    """Turns what highdicom says of a source into an error without a value of the patient."""

    def __enter__(self) -> None:
        """Nothing to do before."""

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Raises DataError for what the libraries raise about incomplete sources."""
        if kind is not None and issubclass(kind, _NEEDED):
            raise DataError(
                "predict: expected source images with patient, study, frame of reference and "
                f"pixel attributes, found some without ({kind.__name__})"
            ) from None


def _named(made: Dataset, origin: Origin) -> Dataset:
    made.SeriesDescription = f"Fedward {origin.study_id}: {NOT_CLINICAL}"[:_LO]
    if "ImageComments" in made or made.Modality in ("OT", "SEG"):
        made.ImageComments = origin.words
    return made
