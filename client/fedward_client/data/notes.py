"""A site's notes in one table, scrubbed and tokenised as the study says."""

from collections.abc import Callable, Sequence

import structlog

from fedward_client.data.tabular import nobody, readable_lines
from fedward_client.data_entries import NotesFile
from fedward_common.errors import DataError, ProtocolError
from fedward_common.notes.encoding import NotesTally, encode_notes
from fedward_common.notes.tokens import read_vocabulary
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.notes import NotesData
from fedward_common.study.spec import StudySpec

_log = structlog.get_logger(__name__)


class NotesSource:
    """A `DataSource` over one table of notes, read afresh at each call and never changed.

    `excluded` gives the ids of patients who object: none of their notes is looked at.
    """

    def __init__(
        self, tables: Sequence[NotesFile], *, excluded: Callable[[], frozenset[str]] = nobody
    ) -> None:
        self._tables = tuple(tables)
        self._excluded = excluded

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`; a patient whose rows do not fit counts as absent (rules 7).

        Raises:
            DataError: this site has no table of notes or more than one, another patient key or
                vocabulary than the study's, or it cannot be read.
            ProtocolError: the study is not about notes.
        """
        tally = NotesTally()
        records = self._encoded(notes_schema(study), part=part, strict=False, tally=tally)
        if tally.absent:
            # Stays in the worker's own log; which patients is for `fedward-client rehearse`.
            _log.warning("data.patients-absent", count=tally.absent)
        return records

    def checked_records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """As `records`, for the site's own eyes: what does not fit is an error. Raises: as such."""
        return self._encoded(notes_schema(study), part=part, strict=True, tally=NotesTally())

    def tally(self, study: StudySpec) -> tuple[PatientRecords, PatientRecords, NotesTally]:
        """Training and held-out records, and what was found on the way. Raises: as `records`."""
        schema, tally = notes_schema(study), NotesTally()
        training = self._encoded(schema, part="train", strict=False, tally=NotesTally())
        held_out = self._encoded(schema, part="test", strict=False, tally=tally)
        return training, held_out, tally

    def _encoded(
        self, schema: NotesData, *, part: TablePart, strict: bool, tally: NotesTally
    ) -> PatientRecords:
        if len(self._tables) != 1:
            raise DataError(
                f"notes: expected one [[data]] of kind notes in site.toml, found "
                f"{len(self._tables)}"
            )
        found = self._tables[0]
        if found.no_patient_key != schema.no_patient_key or (
            not schema.no_patient_key and found.patient_key != schema.patient_key
        ):
            raise DataError(
                "notes: expected a study that takes patient_key of [[data]] for who is one "
                "patient, and no_patient_key as there, found another"
            )
        return encode_notes(
            schema,
            self._rows(found, schema),
            part=part,
            vocabulary=read_vocabulary(schema.tokeniser, found.vocabulary),
            strict=strict,
            tally=tally,
        )

    def _rows(self, found: NotesFile, schema: NotesData) -> list[dict[str, str]]:
        lines = readable_lines(found.path, delimiter=found.delimiter)
        header = next(iter(lines), [])
        absent = [name for name in schema.columns if name not in header]
        if absent:
            raise DataError(
                f"notes: expected the columns {', '.join(map(repr, absent))}, found none of that "
                "name"
            )
        if schema.no_patient_key and schema.patient_key in header:
            raise DataError("notes: expected no column for the patient, as the study says")
        excluded = self._excluded()
        rows = [dict(zip(header, line, strict=True)) for line in lines[1:]]
        return [row for row in rows if row.get(schema.patient_key, "") not in excluded]


def notes_schema(study: StudySpec) -> NotesData:
    """The schema of a study of notes. Raises ProtocolError where its data are something else."""
    if not isinstance(study.data, NotesData):
        raise ProtocolError(f"data: expected kind 'notes', found {study.data.kind!r}")
    return study.data
