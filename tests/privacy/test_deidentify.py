"""De-identification: nothing of the patient comes out, whatever place it stood in."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID
from typer.testing import CliRunner

from fedward_client.cli import app
from fedward_client.data.dicom.pixels import load_picture
from fedward_client.data.dicom.quiet import without_words
from fedward_client.deidentify.objects import Clean, SetAside, deidentify
from fedward_client.deidentify.options import Options
from fedward_client.deidentify.pseudonyms import Pseudonyms
from fedward_client.deidentify.residual import identifiers, residue
from fedward_common.errors import ConfigError
from tests.support.dicom_objects import DICOM_TEST, ct_slice, reread, write, written

SITE = Pseudonyms(b"a site's key of 32 bytes or more")
EVERYTHING = Options(
    modified_dates=True,
    patient_characteristics=True,
    device_identity=False,
    clean_descriptors=True,
)
NO_SHARED = pytest.mark.skipif(
    not DICOM_TEST.is_dir(), reason="the DICOM test files are not at ../shared/data"
)


def clean_bytes(dataset: Dataset, options: Options | None = None, **more: Any) -> bytes:
    outcome = deidentify(dataset, pseudonyms=SITE, options=options, **more)
    assert isinstance(outcome, Clean), outcome
    return outcome.data


# -- the 45 injected items of design page trust 4.1 --------------------

SECRET = "QZXWVPHI"
INJECTED_KEYWORDS = """
PatientName PatientID OtherPatientIDs OtherPatientNames PatientBirthName
PatientMotherBirthName PatientAddress PatientTelephoneNumbers EthnicGroup Occupation
AdditionalPatientHistory PatientComments InstitutionName InstitutionAddress
InstitutionalDepartmentName ReferringPhysicianName PerformingPhysicianName
OperatorsName NameOfPhysiciansReadingStudy StudyDescription SeriesDescription
ProtocolName ImageComments AccessionNumber StudyID StationName DeviceSerialNumber
RequestedProcedureDescription PerformedProcedureStepDescription AdmissionID
MedicalAlerts Allergies CurrentPatientLocation
"""
ESSENTIAL_KEYWORDS = """
SOPClassUID SOPInstanceUID PatientID PatientName Modality SpecificCharacterSet Rows
Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel
NumberOfFrames IssuerOfPatientID BurnedInAnnotation ImageType
"""
IDENTIFYING_KEYWORDS = """
PatientID PatientName AccessionNumber StudyInstanceUID SeriesInstanceUID
SOPInstanceUID ReferringPhysicianName InstitutionName PatientBirthDate StudyDate
"""


def _injected() -> tuple[Dataset, list[str]]:
    """CT_small with 45 items, each with a text of its own: trust 4.1's list of places."""
    dataset = dcmread(get_testdata_file("CT_small.dcm") or "")
    items: list[str] = []

    def text(number: int) -> str:
        items.append(f"{SECRET}{number:02d}")
        return items[-1]

    keywords = INJECTED_KEYWORDS.split()
    for number, keyword in enumerate(keywords):
        value = text(number)
        dataset[keyword] = DataElement(Tag(keyword), _vr(keyword), value)
    # Nested, two levels deep.
    request, code = Dataset(), Dataset()
    request.RequestingPhysician = text(33)
    request.ScheduledProcedureStepDescription = text(34)
    code.CodeMeaning = text(35)
    request.RequestedProcedureCodeSequence = [code]
    dataset.RequestAttributesSequence = [request]
    # Private, in a known and in an unknown block, and a private sequence.
    dataset.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x90, "LO", text(36))
    block = dataset.private_block(0x0099, "HOSPITAL", create=True)
    block.add_new(0x01, "UN", text(37).encode())
    hidden = Dataset()
    hidden.PatientComments = text(38)
    block.add_new(0x02, "SQ", [hidden])
    # Retired, curves, overlays, what has no name, an issuer's and a trial's names.
    dataset.add_new(Tag(0x0008, 0x4000), "LT", text(39))  # Identifying Comments
    dataset.add_new(Tag(0x0032, 0x4000), "LT", text(40))  # Study Comments
    dataset.add_new(Tag(0x5000, 0x0022), "LO", text(41))  # Curve Description
    dataset.add_new(Tag(0x6000, 0x0022), "LO", text(42))  # Overlay Description
    dataset.add_new(Tag(0x0018, 0x0FF0), "LO", text(43))  # no such element
    dataset.ClinicalTrialSubjectID = text(44)
    assert len(items) == 45
    return dataset, items


def _vr(keyword: str) -> str:
    return next(entry[0] for entry in DicomDictionary.values() if entry[4] == keyword)


@pytest.mark.parametrize("options", [Options(), EVERYTHING], ids=["basic", "with options"])
def test_of_45_injected_items_none_survives(options: Options) -> None:
    dataset, items = _injected()

    data = clean_bytes(dataset, options)

    assert [item for item in items if item.encode() in data] == []
    assert SECRET.encode() not in data


# -- identifiers anywhere --------------------

TEXT_VRS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_BY_VR: dict[str, list[int]] = {}
for _tag, _entry in DicomDictionary.items():
    if _tag >> 16 > 0x0002 and _tag >> 16 != 0x7FE0:
        _BY_VR.setdefault(_entry[0].split(" or ")[0], []).append(_tag)
PLAIN_VRS = sorted(set(_BY_VR) - {"SQ", "NONE"})
ESSENTIAL = {Tag(k) for k in ESSENTIAL_KEYWORDS.split()}


@st.composite
def places(draw: st.DrawFn) -> tuple[str, int, str, int]:
    """A VR, an element of it (retired and private ones too), how to store it, how deep."""
    vr = draw(st.sampled_from(PLAIN_VRS))
    kind = draw(st.sampled_from(["standard", "standard", "private", "unknown"]))
    if kind == "private":
        tag = 0x00991000 | draw(st.integers(1, 0xFF))
    elif kind == "unknown":
        tag = 0x00180FF0 | draw(st.integers(0, 0xF))
    else:
        tag = draw(st.sampled_from(_BY_VR[vr]))
    return vr, tag, kind, draw(st.integers(0, 3))


def _value(vr: str, digits: str, name: str, *, several: bool) -> Any:
    """The identifier in the form that the VR allows."""
    if vr in ("US", "SS", "AT"):
        return int(digits) % 30000
    if vr in ("UL", "SL", "UV", "SV"):
        return int(digits)
    if vr in ("FL", "FD"):
        return float(digits)
    if vr in ("DS", "IS"):
        return [digits, digits] if several else digits
    if vr in ("OB", "OW", "OD", "OF", "OL", "OV", "UN"):
        data = (name + digits).encode("gb18030")
        return data + b"\0" * (-len(data) % 8)
    if vr == "UI":
        return f"1.2.826.{digits}"
    if vr in ("DA", "DT"):
        return "19" + digits[:2].replace("0", "1") + "0101"
    if vr == "TM":
        return digits[:6].translate(str.maketrans("6789", "1234"))
    if vr == "AS":
        return digits[:3] + "Y"
    text = f"{name} {digits}" if vr not in ("AE", "CS", "UR") else digits
    return [text, text] if several and vr not in ("LT", "ST", "UT", "UR") else text


@given(
    spots=st.lists(places(), min_size=1, max_size=6),
    digits=st.from_regex(r"[1-9][0-9]{7}", fullmatch=True),
    name=st.sampled_from(["王小东", "欧阳娜娜", "Qvortrup", "Xylander", "Zbigniewicz"]),
    several=st.booleans(),
    options=st.sampled_from([Options(), EVERYTHING]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_identifiers_in_any_vr_nested_private_retired_or_multi_valued_never_survive(
    spots: list[tuple[str, int, str, int]],
    digits: str,
    name: str,
    several: bool,
    options: Options,
) -> None:
    dataset = ct_slice(patient=digits)
    dataset.SpecificCharacterSet = "GB18030"
    dataset.PatientName = f"{name}^Eqz={name}"
    with without_words():
        for vr, tag, kind, depth in spots:
            place = dataset
            for _ in range(depth):
                place.RequestAttributesSequence = [Dataset()]
                place = place.RequestAttributesSequence[0]
            if Tag(tag) in ESSENTIAL:
                continue
            if kind == "private":
                place.private_block(0x0099, "HOSPITAL", create=True)
            place.add(DataElement(Tag(tag), vr, _value(vr, digits, name, several=several)))
        original = reread(written(dataset))
        outcome = deidentify(original, pseudonyms=SITE, options=options)

    if isinstance(outcome, SetAside):
        assert outcome.reason == "residual-identifier"  # found, so it does not come out
        return
    result = reread(outcome.data)
    for encoding in ("utf-8", "gb18030", "utf-16-le"):
        assert name.encode(encoding) not in outcome.data
    assert digits not in _texts_of(result)
    assert float(digits) not in _numbers_of(result)


@given(
    tag=st.sampled_from([t for vr in TEXT_VRS for t in _BY_VR[vr] if Tag(t) not in ESSENTIAL]),
    options=st.sampled_from([Options(), EVERYTHING]),
)
@settings(max_examples=60, deadline=None)
def test_no_text_of_somebody_else_survives_by_the_rules_alone(tag: int, options: Options) -> None:
    """What no scan could know: a relative's name, in any text element of the standard."""
    dataset = ct_slice()
    with without_words():
        vr = DicomDictionary[tag][0].split(" or ")[0]
        dataset.add(DataElement(Tag(tag), vr, "QVORTRUP"))

        data = clean_bytes(dataset, options)

    assert b"QVORTRUP" not in data.upper()


def _texts_of(dataset: Dataset) -> str:
    return " ".join(
        str(element.value) for element in dataset.iterall() if element.VR not in ("SQ", "UI", "OW")
    )


def _numbers_of(dataset: Dataset) -> set[float]:
    found = set()
    for element in dataset.iterall():
        if element.VR in ("US", "UL", "UV", "SL", "SV", "FL", "FD", "DS", "IS"):
            values = element.value if element.VM > 1 else [element.value]
            found |= {float(value) for value in values if value not in (None, "")}
    return found


# -- the scan by itself --------------------


def test_the_scan_finds_each_injected_identifier_without_any_rule() -> None:
    """The rules are off: the original is searched for its own patient, one place at a time."""
    bare = ct_slice(patient="MRN-4711123")
    bare.PatientName = "Qvortrup^Ludmilla"
    bare.PatientBirthDate = "19500317"
    wanted = identifiers(bare, further=["020-555-7788"])
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID"):
        delattr(bare, keyword)
    del bare.SeriesInstanceUID, bare.SOPInstanceUID, bare.file_meta
    assert residue(bare, wanted, made=frozenset()) is None

    for vr, value in (
        ("LO", "seen by Dr QVORTRUP today"),
        ("ST", "pat. qvor-trup"),
        ("UT", "mrn 4711123, mrn-4711123"),
        ("LT", "born 17.03.1950"),
        ("UC", "1950-03-17"),
        ("SH", "0205557788"),
        ("UN", b"\0\1Qvortrup\0"),
        ("OB", "Ludmilla".encode("utf-16-le")),
        ("DA", "19500317"),
        ("UI", "1.2.3.1.1"),
        ("IS", "19500317"),
        ("UL", 19500317),
        ("FD", 19500317.0),
    ):
        nested = Dataset()
        nested.add(DataElement(Tag(0x0040, 0x0001), vr, value))
        outer = Dataset()
        outer.ReferencedImageSequence = [nested]
        assert residue(outer, wanted, made=frozenset()) is not None, (vr, value)


def test_the_scan_reads_chinese_names_in_their_own_encoding() -> None:
    dataset = ct_slice()
    dataset.SpecificCharacterSet = "GB18030"
    dataset.PatientName = "Wang^XiaoDong=王^小东"
    wanted = identifiers(dataset)
    found = Dataset()
    found.add_new(Tag(0x0009, 0x1001), "UN", "病人 小东 复诊".encode("gb18030"))
    text = Dataset()
    text.ImageComments = "患者小东复诊"

    assert residue(text, wanted, made=frozenset()) == "ImageComments"
    # Two characters are four bytes: too short for a search of raw bytes, which is said so.
    assert residue(found, wanted, made=frozenset()) is None


def test_an_object_in_which_the_scan_finds_something_does_not_come_out() -> None:
    dataset = ct_slice(patient="88123456")
    dataset.SeriesNumber = 88123456  # a technical number that the rules keep

    outcome = deidentify(dataset, pseudonyms=SITE)

    assert outcome == SetAside(reason="residual-identifier", element="SeriesNumber")


def test_identifiers_of_a_worklist_are_searched_too() -> None:
    dataset = ct_slice()
    dataset.SeriesDescription = "HEAD"

    assert isinstance(deidentify(dataset, pseudonyms=SITE, options=EVERYTHING), Clean)
    assert isinstance(
        deidentify(dataset, pseudonyms=SITE, options=EVERYTHING, further=["Head"]), SetAside
    )


# -- what stays --------------------


def test_the_image_itself_stays_bit_for_bit_with_its_geometry() -> None:
    dataset = ct_slice(z=4.0, value=777)

    result = reread(clean_bytes(dataset))

    assert result.PixelData == dataset.PixelData
    for keyword in ("Rows", "PixelSpacing", "ImagePositionPatient", "RescaleIntercept", "Modality"):
        assert result[keyword].value == dataset[keyword].value


def test_pseudonyms_join_what_belongs_together_and_need_the_key() -> None:
    first = reread(clean_bytes(ct_slice(sop="1.2.3.5")))
    second = reread(clean_bytes(ct_slice(sop="1.2.3.6")))
    other = deidentify(ct_slice(), pseudonyms=Pseudonyms(b"y" * 32))

    assert isinstance(other, Clean)
    assert first.PatientID == second.PatientID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != "1.2.3.1.1"
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.PatientID != reread(other.data).PatientID
    assert UID(first.SOPInstanceUID).is_valid
    with pytest.raises(ConfigError):
        Pseudonyms(b"short")


def test_dates_of_one_patient_move_together_and_birth_dates_never_stay() -> None:
    dataset = ct_slice()
    dataset.StudyDate, dataset.SeriesDate = "20260110", "20260131"
    dataset.PatientBirthDate = "19500317"

    moved = reread(clean_bytes(dataset, EVERYTHING))
    removed = reread(clean_bytes(dataset))

    assert (int(moved.SeriesDate) - int(moved.StudyDate)) != 0
    assert moved.StudyDate != "20260110"
    assert not moved.PatientBirthDate
    assert not removed.StudyDate
    assert moved.LongitudinalTemporalInformationModified == "MODIFIED"
    assert removed.LongitudinalTemporalInformationModified == "REMOVED"


def test_characteristics_are_coarse_and_very_old_patients_are_ninety() -> None:
    dataset = ct_slice()
    dataset.PatientSex, dataset.PatientAge, dataset.PatientWeight = "F", "097Y", "63.4"

    kept = reread(clean_bytes(dataset, EVERYTHING))

    assert (kept.PatientSex, kept.PatientAge, float(kept.PatientWeight)) == ("F", "090Y", 65.0)
    assert not reread(clean_bytes(dataset)).get("PatientAge")


def test_descriptions_keep_known_words_only() -> None:
    dataset = ct_slice()
    dataset.SeriesDescription = "CHEST AP, Qvortrup, 12.05.67, supine"

    assert reread(clean_bytes(dataset, EVERYTHING)).SeriesDescription == "CHEST AP SUPINE"
    assert not reread(clean_bytes(dataset)).get("SeriesDescription")


def test_the_result_says_how_it_was_de_identified() -> None:
    result = reread(clean_bytes(ct_slice(), EVERYTHING))

    assert result.PatientIdentityRemoved == "YES"
    codes = [item.CodeValue for item in result.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113105", "113107", "113108"]
    assert result.DeidentificationMethod


def test_text_in_unused_bits_of_the_pixels_goes() -> None:
    dataset = ct_slice(value=0x0FFF)
    dataset.PixelData = b"\xff\xff" * 256  # four bits above the stored twelve

    assert reread(clean_bytes(dataset)).PixelData == b"\xff\x0f" * 256


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned-in-risk"),
        ({"Modality": "US"}, "burned-in-risk"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, None),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "burned-in-risk"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "burned-in-risk"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "encapsulated-document"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "structured-report"),
        ({"PatientID": ""}, "no-patient-id"),
    ],
)
def test_what_may_show_the_patient_is_set_aside(
    changes: dict[str, Any], reason: str | None
) -> None:
    dataset = ct_slice()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)

    outcome = deidentify(dataset, pseudonyms=SITE)

    assert (outcome.reason if isinstance(outcome, SetAside) else None) == reason


# -- real files and the command --------------------


@NO_SHARED
def test_every_real_file_comes_out_clean_or_is_set_aside(tmp_path: Path) -> None:
    """The command on files that the author of the rules did not make."""
    run = CliRunner().invoke(
        app,
        [
            "deidentify",
            str(DICOM_TEST),
            str(tmp_path / "out"),
            "--key-file",
            str(tmp_path / "key"),
            "--report",
            str(tmp_path / "report.json"),
            "--clean-descriptors",
            "--modified-dates",
            "--json",
        ],
    )

    assert run.exit_code == 0, run.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["objects"] == 58
    assert report["written"] + sum(report["set_aside"].values()) == 58
    # 123456 is both the id of dcmqi's phantom and its series number.
    assert report["residual_elements"] == {"SeriesNumber": 8}
    results = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(results) == report["written"] >= 12
    for path in results:
        result = dcmread(path)
        assert load_picture(path).pixels.size
        assert result.PatientIdentityRemoved == "YES"
        assert not [e for e in result.iterall() if e.tag.is_private]
        assert not [e for e in result if 0x6000 <= e.tag.group <= 0x60FF]


@NO_SHARED
def test_no_identifier_of_any_real_file_is_left_in_its_result() -> None:
    """Checked without our scanner: each original's own texts, as bytes, in what came out."""
    checked = 0
    for path in sorted(DICOM_TEST.rglob("*.dcm")):
        with without_words():
            original = dcmread(path, force=True)
            outcome = deidentify(original, pseudonyms=SITE, options=EVERYTHING)
        if not isinstance(outcome, Clean):
            continue
        checked += 1
        pixels = reread(outcome.data).PixelData
        header = outcome.data.replace(pixels, b"")
        for keyword in IDENTIFYING_KEYWORDS.split():
            text = str(original.get(keyword) or "")
            if len(text) >= 6:
                assert text.encode() not in header, (path.name, keyword)
    assert checked >= 6


def test_the_command_refuses_to_mix_results_with_other_files(tmp_path: Path) -> None:
    write(ct_slice(), tmp_path / "in" / "a.dcm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("x")

    run = CliRunner().invoke(
        app,
        [
            "deidentify",
            str(tmp_path / "in"),
            str(tmp_path / "out"),
            "--key-file",
            str(tmp_path / "key"),
        ],
    )

    assert isinstance(run.exception, ConfigError)


def test_names_of_files_are_pseudonyms(tmp_path: Path) -> None:
    outcome = deidentify(ct_slice(patient="Qvortrup-1"), pseudonyms=SITE)

    assert isinstance(outcome, Clean)
    assert "Qvortrup" not in str(outcome.path)
    assert io.BytesIO(outcome.data).read(128) == bytes(128)
