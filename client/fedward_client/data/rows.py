"""A site's labelled rows (sequences and the like) in one table, as the study encodes them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from fedward_client.data.tabular import nobody, readable_lines
from fedward_client.data_entries import (
    DrugTargetFile,
    LabelledEntry,
    Owned,
    ProfileFiles,
    SequenceFiles,
)
from fedward_common.errors import DataError, ProtocolError
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.profile_encoding import LayerFile, LayerReader, layer_readers
from fedward_common.study.profiles import ProfileData
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.row_readers import readers_of
from fedward_common.study.sequence_encoding import Fasta, read_fasta
from fedward_common.study.spec import DpSgd, StudySpec

_log = structlog.get_logger(__name__)


class LabelledSource:
    """A `DataSource` over one table of labelled rows, read afresh at each call, never changed.

    `excluded` gives the ids of patients who object: none of their rows is looked at.
    """

    def __init__(
        self, entries: Sequence[Owned], *, excluded: Callable[[], frozenset[str]] = nobody
    ) -> None:
        self._entries = tuple(entries)
        self._excluded = excluded

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`; a patient whose rows do not fit counts as absent (rules 7).

        Raises:
            DataError: this site has no such [[data]] or more than one, another patient key than the
                study's, or it cannot be read.
            ProtocolError: the study is not about labelled rows.
        """
        records, absent = self.encoded(study, part=part, strict=False)
        if absent:
            # Stays in the worker's own log; which patients is for `fedward-client rehearse`.
            _log.warning("data.patients-absent", count=absent)
        return records

    def checked_records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """As `records`, for the site's own eyes: what does not fit is an error. Raises: as such."""
        return self.encoded(study, part=part, strict=True)[0]

    def encoded(
        self, study: StudySpec, *, part: TablePart, strict: bool
    ) -> tuple[PatientRecords, int]:
        """The records of `part` and how many patients are absent. Raises: as `records`."""
        schema = labelled_schema(study)
        entry = self._entry(schema)
        readers = readers_of(schema, fasta=_fasta(entry), layers=_files(entry))
        return encode_rows(
            schema,
            self.rows(study),
            readers.features,
            part=part,
            part_of=readers.part_of,
            strict=strict,
            one_record_per_patient=isinstance(study.dp, DpSgd)
            and study.dp.max_records_per_patient == 1
            and not schema.no_patient_key,
        )

    def rows(self, study: StudySpec) -> list[dict[str, str]]:
        """Every readable row of the table, without patients who object. Raises: as `records`."""
        schema = labelled_schema(study)
        entry = self._entry(schema)
        header, *lines = readable_lines(entry.path, delimiter=entry.delimiter)
        absent = [name for name in schema.columns if name not in header]
        if absent:
            raise DataError(
                f"{schema.what}: expected the columns {', '.join(map(repr, absent))}, found none "
                "of that name"
            )
        if schema.no_patient_key and schema.patient_key in header:
            raise DataError(
                f"{schema.what}: expected no column for the patient, as the study says, found one"
            )
        excluded = self._excluded()
        rows = [dict(zip(header, line, strict=True)) for line in lines]
        return [row for row in rows if row.get(schema.patient_key, "") not in excluded]

    def fasta(self, study: StudySpec) -> Fasta | None:
        """The records of the FASTA file, where there is one. Raises: as `records`."""
        path = _fasta(self._entry(labelled_schema(study)))
        return None if path is None else read_fasta(path)

    def layers(self, study: StudySpec) -> list[LayerReader]:
        """The matrices of profiles, by layer; none of other data. Raises: as `records`."""
        schema = labelled_schema(study)
        if not isinstance(schema, ProfileData):
            return []
        return layer_readers(schema, _files(self._entry(schema)))

    def _entry(self, schema: LabelledRows) -> LabelledEntry:
        """The one [[data]] of the schema's kind, whose patient key is the study's."""
        fitting = [
            one
            for one in self._entries
            if isinstance(one, LabelledEntry) and one.kind == schema.what
        ]
        if len(fitting) != 1:
            raise DataError(
                f"{schema.what}: expected one [[data]] of kind {schema.what} in site.toml, found "
                f"{len(fitting)}"
            )
        entry = fitting[0]
        if entry.no_patient_key != schema.no_patient_key or (
            not schema.no_patient_key and entry.patient_key != schema.patient_key
        ):
            raise DataError(
                f"{schema.what}: expected a study that takes patient_key of [[data]] for who is "
                "one patient, and no_patient_key as there, found another"
            )
        return entry


def _fasta(entry: LabelledEntry) -> Path | None:
    return entry.fasta if isinstance(entry, SequenceFiles | DrugTargetFile) else None


def _files(entry: LabelledEntry) -> list[LayerFile]:
    matrices = entry.matrices if isinstance(entry, ProfileFiles) else ()
    return [matrix.file for matrix in matrices]


def labelled_schema(study: StudySpec) -> LabelledRows:
    """The schema of labelled rows. Raises ProtocolError where its data are something else."""
    if not isinstance(study.data, LabelledRows):
        raise ProtocolError(f"data: expected labelled rows, found kind {study.data.kind!r}")
    return study.data
