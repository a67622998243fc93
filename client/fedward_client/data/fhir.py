"""Clinical events from FHIR R4: bulk export (ndjson) and bundles, read as a stream.

Lines that cannot hold anything of interest are not even parsed: their bytes lack every code that
the study names. What is parsed goes through one small table of paths per resource type.

Source: HL7 FHIR R4 (4.0.1), Bulk Data Access IG 2.0 (one resource per line).
"""

import gzip
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import DataError
from fedward_common.study.clinical_events import (
    Event,
    Person,
    birth_seconds,
    clinical_time,
    sex_of,
    wanted,
    zone_utc,
)

FILE: Final = "FHIR"
URIS: Final = {
    "http://loinc.org": "LOINC",
    "http://snomed.info/sct": "SNOMED",
    "http://hl7.org/fhir/sid/icd-10": "ICD10",
    "http://hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "http://www.whocc.no/atc": "ATC",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RxNorm",
    "http://hl7.org/fhir/sid/cvx": "CVX",
}
ENDINGS: Final = (".ndjson", ".json", ".ndjson.gz", ".json.gz")

Codes = Mapping[str, Mapping[str, str]]
Resource = dict[str, Any]
_VOID: Final = frozenset({"entered-in-error", "cancelled", "not-done", "refuted"})
"""What did not happen, in `status` or `verificationStatus`."""
_PATHS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "Observation": ("code", ("effectiveDateTime", "effectiveInstant", "effectivePeriod")),
    "Condition": ("code", ("onsetDateTime", "onsetPeriod", "recordedDate")),
    "Procedure": ("code", ("performedDateTime", "performedPeriod")),
    "MedicationRequest": ("medicationCodeableConcept", ("authoredOn",)),
    "MedicationStatement": (
        "medicationCodeableConcept",
        ("effectiveDateTime", "effectivePeriod", "dateAsserted"),
    ),
    "MedicationAdministration": (
        "medicationCodeableConcept",
        ("effectiveDateTime", "effectivePeriod"),
    ),
    "Immunization": ("vaccineCode", ("occurrenceDateTime",)),
    "Encounter": ("type", ("period",)),
    "AllergyIntolerance": ("code", ("onsetDateTime", "recordedDate")),
}
"""Resource type -> where its code is, and where its time is, in order of preference."""


class FhirFiles:
    """People from the FHIR files of a folder (or from one file)."""

    def __init__(self, path: Path, *, zone: tzinfo | None = None) -> None:
        self._path, self._zone = path, zone or zone_utc()

    def people(self, concepts: Sequence[str]) -> dict[str, Person]:
        """Every Patient with their events of `concepts`; see `PeopleSource`.

        A line that is no JSON belongs to nobody and is left out. A resource of a known patient that
        is not as FHIR says marks the patient as broken; one without a time is not there. Memory
        grows with the events of interest, not with the files.

        Raises:
            DataError: no FHIR file, or one that cannot be opened.
        """
        reader = FhirReader(concepts, zone=self._zone)
        for path in _files(self._path):
            for resource in _resources(path, interesting(concepts)):
                reader.take(resource)
        return reader.known

    def every(self, number: int) -> Iterator[Resource]:
        """The resource (or bundle) of every so-manieth line, whatever it is about; for checks.

        Raises:
            DataError: as `people`.
        """
        count = 0
        for path in _files(self._path):
            for line in _lines(path):
                count += 1
                if (count - 1) % number == 0:
                    yield from _parsed(line)


class FhirReader:
    """Collects people from resources, in whatever order they come."""

    def __init__(self, concepts: Sequence[str], *, zone: tzinfo) -> None:
        self._people: dict[str, Person] = {}
        self._registered: set[str] = set()
        self._codes: Codes = wanted(concepts)
        self._zone = zone

    @property
    def known(self) -> dict[str, Person]:
        """Everybody who has a Patient resource, with their events."""
        return {
            patient: person
            for patient, person in self._people.items()
            if patient in self._registered
        }

    def take(self, resource: Resource, aliases: Mapping[str, str] | None = None) -> None:
        """One resource, or every resource of a bundle."""
        kind = resource.get("resourceType")
        if kind == "Bundle":
            inner = [entry for entry in _list(resource.get("entry")) if isinstance(entry, dict)]
            names = dict(_aliases(inner))
            for entry in inner:
                if isinstance(entry.get("resource"), dict):
                    self.take(entry["resource"], names)
        elif kind == "Patient":
            self._patient(resource)
        elif kind in _PATHS:
            self._event(resource, aliases or {})

    def _patient(self, resource: Resource) -> None:
        patient = resource.get("id")
        if not isinstance(patient, str) or not patient:
            return
        person = self._people.setdefault(patient, Person())
        # The same Patient twice in an export is the same person; the later entry stands.
        self._registered.add(patient)
        person.birth = birth_seconds(_text(resource.get("birthDate")))
        person.sex = sex_of(_text(resource.get("gender")))
        death = resource.get("deceasedDateTime")
        person.death = None if death is None else clinical_time(_text(death), self._zone)
        if death is not None and person.death is None:
            person.broken = True

    def _event(self, resource: Resource, aliases: Mapping[str, str]) -> None:
        code_path, time_paths = _PATHS[resource["resourceType"]]
        subject = resource.get("subject") or resource.get("patient")
        reference = subject.get("reference") if isinstance(subject, dict) else None
        if not isinstance(reference, str):
            return
        patient = aliases.get(reference) or re.split(r"[/:]", reference)[-1]
        try:
            found = list(self._coded(resource, code_path))
            if not found or _void(resource):
                return
            written = next((resource[path] for path in time_paths if resource.get(path)), None)
            if isinstance(written, dict):
                written = written.get("start") or written.get("end")
            if written is None:
                return
            time = clinical_time(written, self._zone)
            events = (
                []
                if time is None
                else [Event(time, concepts, *_quantity(part)) for concepts, part in found]
            )
        except (AttributeError, TypeError, KeyError, ValueError):
            events = []
        person = self._people.setdefault(patient, Person())
        person.events += events
        person.broken = person.broken or not events

    def _coded(self, resource: Resource, path: str) -> Iterator[tuple[tuple[str, ...], Resource]]:
        """The asked-for concepts of the resource and its components, with who holds the value."""
        concepts = self._concepts(resource.get(path))
        if concepts:
            yield concepts, resource
        for component in resource.get("component", ()):
            inner = self._concepts(component.get("code"))
            if inner:
                yield inner, component

    def _concepts(self, concept: object) -> tuple[str, ...]:
        several = concept if isinstance(concept, list) else [concept]
        found: set[str] = set()
        for one in several:
            for coding in one.get("coding", ()) if isinstance(one, dict) else ():
                system = URIS.get(coding.get("system"))
                known = self._codes.get(system or "Local", {}).get(coding.get("code"))
                if known is not None:
                    found.add(known)
        return tuple(sorted(found))


def interesting(concepts: Sequence[str]) -> Callable[[bytes], object]:
    """A quick test of a line's bytes: false only where nothing of interest can be in it.

    A line with an escape could write a code in other bytes, so it is always read.
    """
    codes = sorted({concept.partition(":")[2] for concept in concepts})
    words = "|".join(re.escape(code) for code in codes)
    return re.compile(rf'"(?:{words})"|"Patient"|\\u'.encode()).search


def _resources(path: Path, test: Callable[[bytes], object]) -> Iterator[Resource]:
    for line in _lines(path):
        if test(line):
            yield from _parsed(line)


def _parsed(line: bytes) -> Iterator[Resource]:
    """The object in a line; nothing where it is none."""
    import orjson  # noqa: PLC0415 - only who has FHIR needs it

    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return
    if isinstance(value, dict):
        yield value


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of an ndjson file; the whole of a .json file as one."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            if ".ndjson" in path.name:
                yield from file
            else:
                yield file.read()
    except (OSError, EOFError) as error:
        raise DataError(
            f"{FILE}: expected a file that can be read, found {type(error).__name__}"
        ) from None


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    chosen = [one for one in found if one.name.endswith(ENDINGS)]
    if not chosen:
        raise DataError(
            f"{FILE}: expected files ending in {', '.join(ENDINGS)} where [[data]] of site.toml "
            "points, found none"
        )
    return chosen


def _aliases(entries: Sequence[Resource]) -> Iterator[tuple[str, str]]:
    """How references of a bundle name its patients: fullUrl -> id."""
    for entry in entries:
        resource, url = entry.get("resource"), entry.get("fullUrl")
        if isinstance(resource, dict) and resource.get("resourceType") == "Patient":
            patient = resource.get("id")
            if isinstance(url, str) and isinstance(patient, str):
                yield url, patient


def _quantity(part: Resource) -> tuple[float | None, str | None]:
    quantity = part.get("valueQuantity")
    if quantity is None:
        whole = part.get("valueInteger")
        return (None if whole is None else float(whole)), None
    value = quantity.get("value")
    unit = quantity.get("code") or quantity.get("unit")
    if unit is not None and not isinstance(unit, str):
        raise TypeError("unit")
    return (None if value is None else float(value)), unit


def _void(resource: Resource) -> bool:
    if resource.get("status") in _VOID or resource.get("doNotPerform") is True:
        return True
    verification = resource.get("verificationStatus")
    codings = verification.get("coding", ()) if verification else ()
    return any(coding.get("code") in _VOID for coding in codings)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
