"""A site's [[data]] as the source of any study, whatever kind of data it is about."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from zoneinfo import ZoneInfo

import structlog

from fedward_client.data.clinical import ClinicalSource, PeopleSource
from fedward_client.data.event_tables import EventTables
from fedward_client.data.fhir import FhirFiles
from fedward_client.data.fhir_server import FhirEndpoint, FhirServer
from fedward_client.data.genotypes import GenotypeSource
from fedward_client.data.images import ImageSource
from fedward_client.data.multimodal import MultimodalSource, WholeFound, multimodal_schema
from fedward_client.data.notes import NotesSource
from fedward_client.data.rows import LabelledSource
from fedward_client.data.tabular import CheckedSource, CsvSource, DataSource, nobody
from fedward_client.data_entries import (
    ClinicalEntry,
    EventFiles,
    FhirFolder,
    FhirServerUrl,
    GenotypeFiles,
    OmopUrl,
)
from fedward_client.settings import SiteSettings
from fedward_common.errors import DataError
from fedward_common.privacy.statistics import StatisticsRow
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.clinical_events import People
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import Pictures
from fedward_common.study.kin import Kin, by_family, per_person
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.spec import StudySpec

SAMPLE_EVERY: Final = 50
"""Of the lines of FHIR files, how many a sample passes over."""

_log = structlog.get_logger(__name__)


class SiteSource:
    """The `DataSource`, rows and checked records of a site, whatever its [[data]] are.

    `excluded` gives the ids of patients who object.
    """

    def __init__(
        self, settings: SiteSettings, *, excluded: Callable[[], frozenset[str]] = nobody
    ) -> None:
        self._settings, self._excluded = settings, excluded
        self.tables = CsvSource(settings.tables, excluded=excluded)
        self.clinical = ClinicalSource(
            [people_source(entry) for entry in settings.clinical], excluded=excluded
        )
        self.images = ImageSource(settings.images, excluded=excluded)
        self.notes = NotesSource(settings.notes, excluded=excluded)
        self.labelled = LabelledSource(settings.owned, excluded=excluded)
        self.genotypes = GenotypeSource(settings.genotypes, excluded=excluded)
        self.whole = MultimodalSource(settings.absent_modalities)

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`; a patient whose rows do not fit counts as absent (rules 7).

        Raises:
            DataError, ProtocolError, ConfigError: as the source for this kind of data.
        """
        if isinstance(study.data, MultimodalData):
            return self._whole(study, study.data, part=part, strict=False)
        return self._source(study).records(study, part=part)

    def rows(self, study: StudySpec) -> Sequence[StatisticsRow]:
        """Every readable row of the one table with the study's columns, or every person with
        genotypes. Raises: as `records`.
        """
        if isinstance(study.data, Genotypes):
            return self.genotypes.people(study)
        return self.tables.rows(study)

    def checked_records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`, where anything that does not fit is an error. Raises: as such."""
        if isinstance(study.data, MultimodalData):
            return self._whole(study, study.data, part=part, strict=True)
        return self._source(study).checked_records(study, part=part)

    def tally(self, study: StudySpec, *, part: TablePart) -> WholeFound:
        """What is here of a study of several modalities. Raises: as `records`."""
        schema = multimodal_schema(study)
        kin = self._kin(schema)
        if kin is None:
            read = partial(self._of_one, part=part, strict=False, without_kin=None)
            return self.whole.tally(study, read)
        study = study.model_copy(update={"data": per_person(schema)})
        read = partial(self._of_one, part="train", strict=False, without_kin=schema.kin_from)
        return self.whole.tally(
            study, read, chosen=lambda patient: kin.part(schema, patient) == part, torn=kin.torn
        )

    def of_modality(self, name: str, *, without_kin: bool = False) -> "SiteSource":
        """The source of one modality: the [[data]] that are named for it, or those for any.

        With `without_kin` genotypes are read per person, by a caller who asked for their families.
        """
        data = self._settings.data
        own = [one for one in data if one.modality == name] or [
            one for one in data if one.modality is None
        ]
        if without_kin:
            own = [
                one.model_copy(update={"family_key": None})
                if isinstance(one, GenotypeFiles)
                else one
                for one in own
            ]
        settings = self._settings.model_copy(update={"data": tuple(own)})
        return SiteSource(settings, excluded=self._excluded)

    def _whole(
        self, study: StudySpec, schema: MultimodalData, *, part: TablePart, strict: bool
    ) -> PatientRecords:
        """The records of whole patients, or of whole families where the study has some."""
        kin = self._kin(schema)
        if kin is None:
            read = partial(self._of_one, part=part, strict=strict, without_kin=None)
            return self.whole.joined(study, read)
        study = study.model_copy(update={"data": per_person(schema)})
        read = partial(self._of_one, part="train", strict=strict, without_kin=schema.kin_from)
        everybody = self.whole.joined(study, read)
        torn = len(kin.torn.intersection(everybody.ids))
        if torn:
            # Stays in the worker's own log, as what single sources count.
            _log.warning("data.patients-of-several-families", count=torn)
        return by_family(schema, everybody, kin, part=part, strict=strict)

    def _of_one(
        self, name: str, study: StudySpec, *, part: TablePart, strict: bool, without_kin: str | None
    ) -> PatientRecords:
        """The records of one modality; of the one named `without_kin`, per person."""
        source = self.of_modality(name, without_kin=name == without_kin)
        read = source.checked_records if strict else source.records
        return read(study, part=part)

    def _kin(self, schema: MultimodalData) -> Kin | None:
        """Who is kin at this site; None where the study has no families.

        Raises:
            DataError: the table cannot be read, or a site that knows kin says that it is not here.
        """
        name = schema.kin_from
        if name is None:
            return None
        if name not in self._settings.absent_modalities:
            part = schema.parts[name]
            if not isinstance(part, Genotypes):
                raise TypeError("kin_from: expected a modality of genotypes")
            return self.of_modality(name).genotypes.kin(part)
        if any(one.family_key is not None for one in self._settings.genotypes):
            # Whoever is known to be kin would count as one by one.
            raise DataError(
                f"data: expected modality {name!r}, whose table says who is kin, here; "
                "absent_modalities in site.toml says that it is not, and a [[data]] has family_key"
            )
        return Kin()

    def _source(self, study: StudySpec) -> "_OneKind":
        """The source for a study's one kind of data."""
        if isinstance(study.data, ClinicalData):
            return self.clinical
        if isinstance(study.data, Pictures):
            return self.images
        if isinstance(study.data, NotesData):
            return self.notes
        if isinstance(study.data, LabelledRows):
            return self.labelled
        if isinstance(study.data, Genotypes):
            return self.genotypes
        return self.tables


class _OneKind(DataSource, CheckedSource, Protocol):
    """A source that reads both ways."""


def people_source(entry: ClinicalEntry) -> PeopleSource:
    """The source that a [[data]] of clinical events names; nothing is read yet."""
    zone = ZoneInfo(entry.time_zone)
    match entry:
        case EventFiles():
            return EventTables(
                patients=entry.patients, events=entry.events, delimiter=entry.delimiter, zone=zone
            )
        case FhirFolder():
            return FhirFiles(entry.path, zone=zone)
        case FhirServerUrl():
            return _FhirServer(entry, zone)
        case _:
            return _Omop(entry, zone)


def fhir_resources(
    settings: SiteSettings, concepts: Sequence[str], *, whole: bool
) -> Iterator[object]:
    """Resources of the site's FHIR source, to look at their form; nothing where it has none.

    With `whole` all of them, otherwise every `SAMPLE_EVERY`-th line of its files. Of a server, what
    a study on `concepts` would be given, and without `whole` nothing.

    Raises:
        DataError: as the source.
    """
    for entry in settings.clinical:
        source = people_source(entry)
        if isinstance(source, FhirFiles):
            yield from source.every(1 if whole else SAMPLE_EVERY)
        elif isinstance(source, _FhirServer) and whole:
            yield from source.resources(concepts)


class _FhirServer:
    """A FHIR server that is asked, and its token read, when a study asks for it."""

    def __init__(self, entry: FhirServerUrl, zone: ZoneInfo) -> None:
        self._entry, self._zone = entry, zone

    def people(self, concepts: Sequence[str]) -> People:
        """As `PeopleSource`."""
        return self._server().people(concepts)

    def resources(self, concepts: Sequence[str]) -> Iterator[object]:
        """As `FhirServer.resources`."""
        return self._server().resources(concepts)

    def _server(self) -> FhirServer:
        entry = self._entry
        token = None if entry.token_file is None else _secret(entry.token_file, key="token_file")
        endpoint = FhirEndpoint(
            url=entry.url,
            token=token,
            unix_socket=entry.unix_socket,
            ca=entry.ca,
            page_size=entry.page_size,
        )
        return FhirServer(endpoint, zone=self._zone)


class _Omop:
    """An OMOP database that is opened, and its URL read, when a study asks for it."""

    def __init__(self, entry: OmopUrl, zone: ZoneInfo) -> None:
        self._entry, self._zone = entry, zone

    def people(self, concepts: Sequence[str]) -> People:
        """As `PeopleSource`."""
        from fedward_client.data.omop import OmopDatabase  # noqa: PLC0415 - SQLAlchemy, if needed

        entry, url = self._entry, self._entry.url
        if entry.url_file is not None:
            url = _secret(entry.url_file, key="url_file")
        return OmopDatabase(
            url or "", schema=entry.schema_name, patient_id=entry.patient_id, zone=self._zone
        ).people(concepts)


def _secret(path: Path, *, key: str) -> str:
    """The one line in a file. Raises DataError, without anything out of it."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data: expected {key} of [[data]] to be readable, found {type(error).__name__}"
        ) from None
