"""A study's clinical data at this site: people from one source, encoded by the study's schema."""

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from fedward_client.data.tabular import nobody
from fedward_common.errors import DataError, ProtocolError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.clinical_encoding import Encoder, Tally
from fedward_common.study.clinical_events import People
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.spec import StudySpec

_log = structlog.get_logger(__name__)


class PeopleSource(Protocol):
    """Something that knows people and the events of some concepts (port)."""

    def people(self, concepts: Sequence[str]) -> People:
        """Every person of the source with their events of `concepts`.

        Never fails on one patient's rows: what cannot be read is not there, or marks its patient
        as broken.

        Raises:
            DataError: the source itself cannot be read; never with anything out of it.
        """
        ...


class ClinicalSource:
    """A `DataSource` over one source of people, read afresh at each call and never changed.

    `excluded` gives the ids of patients who object: nothing of them is in what comes out of here.
    """

    def __init__(
        self,
        sources: Sequence[PeopleSource],
        *,
        excluded: Callable[[], frozenset[str]] = nobody,
    ) -> None:
        self._sources = tuple(sources)
        self._excluded = excluded

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`; a patient whose rows do not fit counts as absent (rules 6, 7).

        Raises:
            DataError: this site has no clinical source or more than one, or it cannot be read.
            ProtocolError: the study's data are not clinical.
            ConfigError: a unit of the study that nobody can convert to.
        """
        schema, tally = clinical_schema(study), Tally()
        records = Encoder(schema).encode(self.people(schema), part=part, tally=tally)
        if tally.broken:
            # Stays in the worker's own log; which patients is for `fedward-client data check`.
            _log.warning("data.patients-absent", count=tally.broken)
        return records

    def checked_records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """As `records`, for the site's own eyes: a patient whose rows do not fit is an error.

        Raises:
            DataError: as `records`; rows that do not fit; nobody to train on.
        """
        schema, tally = clinical_schema(study), Tally()
        records = Encoder(schema).encode(self.people(schema), part=part, tally=tally)
        if tally.broken:
            raise DataError(
                "clinical data: expected rows that can be read, found patients with others; "
                "`fedward-client data check` counts them"
            )
        unconverted = [name for name, count in tally.unconverted.items() if count]
        if unconverted:
            raise DataError(
                f"clinical data: expected units that can be converted, found others in feature "
                f"{', '.join(map(repr, unconverted))}; such values count as not there"
            )
        if part == "train" and not records.patients:
            raise DataError(
                "clinical data: expected at least one patient of the cohort to train on, found none"
            )
        return records

    def people(self, schema: ClinicalData) -> People:
        """The people of the one clinical source without those who object.

        Raises:
            DataError: as `records`.
        """
        if len(self._sources) != 1:
            raise DataError(
                "clinical data: expected one [[data]] of kind events, fhir or omop in site.toml, "
                f"found {len(self._sources)}"
            )
        people, excluded = self._sources[0].people(schema.concepts), self._excluded()
        return {patient: person for patient, person in people.items() if patient not in excluded}


def clinical_schema(study: StudySpec) -> ClinicalData:
    """The clinical schema of a study. Raises ProtocolError where its data are something else."""
    if not isinstance(study.data, ClinicalData):
        raise ProtocolError(f"data: expected kind 'clinical', found {study.data.kind!r}")
    return study.data
