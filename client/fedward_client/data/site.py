"""A site's [[data]] as the source of any study: tables, clinical events or images."""

from collections.abc import Callable, Sequence
from zoneinfo import ZoneInfo

from fedward_client.data.clinical import ClinicalSource, PeopleSource
from fedward_client.data.event_tables import EventTables
from fedward_client.data.fhir import FhirFiles
from fedward_client.data.images import ImageSource
from fedward_client.data.tabular import CsvSource, nobody
from fedward_client.settings import EventFiles, FhirFolder, OmopUrl, SiteSettings
from fedward_common.errors import DataError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.clinical_events import People
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.imaging import ImageData
from fedward_common.study.spec import StudySpec


class SiteSource:
    """The `DataSource`, rows and checked records of a site, whatever its [[data]] are.

    `excluded` gives the ids of patients who object.
    """

    def __init__(
        self, settings: SiteSettings, *, excluded: Callable[[], frozenset[str]] = nobody
    ) -> None:
        self.tables = CsvSource(settings.tables, excluded=excluded)
        self.clinical = ClinicalSource(
            [people_source(entry) for entry in settings.clinical], excluded=excluded
        )
        self.images = ImageSource(settings.images, excluded=excluded)

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`; a patient whose rows do not fit counts as absent (rules 7).

        Raises:
            DataError, ProtocolError, ConfigError: as the source for this kind of data.
        """
        if isinstance(study.data, ClinicalData):
            return self.clinical.records(study, part=part)
        if isinstance(study.data, ImageData):
            return self.images.records(study, part=part)
        return self.tables.records(study, part=part)

    def rows(self, study: StudySpec) -> list[dict[str, str]]:
        """Every readable row of the one table with the study's columns. Raises: as `records`."""
        return self.tables.rows(study)

    def checked_records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`, where anything that does not fit is an error. Raises: as such."""
        if isinstance(study.data, ClinicalData):
            return self.clinical.checked_records(study, part=part)
        if isinstance(study.data, ImageData):
            return self.images.checked_records(study, part=part)
        return self.tables.checked_records(study, part=part)


def people_source(entry: EventFiles | FhirFolder | OmopUrl) -> PeopleSource:
    """The source that a [[data]] of clinical events names; nothing is read yet."""
    zone = ZoneInfo(entry.time_zone)
    match entry:
        case EventFiles():
            return EventTables(
                patients=entry.patients, events=entry.events, delimiter=entry.delimiter, zone=zone
            )
        case FhirFolder():
            return FhirFiles(entry.path, zone=zone)
        case _:
            return _Omop(entry, zone)


class _Omop:
    """An OMOP database that is opened, and its URL read, when a study asks for it."""

    def __init__(self, entry: OmopUrl, zone: ZoneInfo) -> None:
        self._entry, self._zone = entry, zone

    def people(self, concepts: Sequence[str]) -> People:
        """As `PeopleSource`."""
        from fedward_client.data.omop import OmopDatabase  # noqa: PLC0415 - SQLAlchemy, if needed

        entry, url = self._entry, self._entry.url
        if entry.url_file is not None:
            try:
                url = entry.url_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(
                    f"OMOP: expected url_file of [[data]] to be readable, found "
                    f"{type(error).__name__}"
                ) from None
        return OmopDatabase(
            url or "", schema=entry.schema_name, patient_id=entry.patient_id, zone=self._zone
        ).people(concepts)
