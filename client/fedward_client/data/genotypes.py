"""A site's genotypes: a file of variants, joined to the table that says whose a sample is."""

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from fedward_client.data.plink import read_plink
from fedward_client.data.plink2 import read_plink2
from fedward_client.data.tabular import nobody, readable_lines
from fedward_client.data.vcf import read_vcf
from fedward_client.data_entries import GenotypeFiles
from fedward_common.errors import DataError, ProtocolError
from fedward_common.genotypes.alignment import Calls
from fedward_common.genotypes.encoding import (
    GenotypeTally,
    Person,
    encode_genotypes,
    present_people,
)
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.kin import Kin, kin_of
from fedward_common.study.spec import StudySpec

_READERS: Final = {".bed": read_plink, ".pgen": read_plink2}
"""By a file's ending; any other is a VCF or BCF."""

_log = structlog.get_logger(__name__)


class GenotypeSource:
    """A `DataSource` over one file of variants and one table, read afresh at each call.

    `excluded` gives the ids of patients who object: their samples are dropped from the table.
    """

    def __init__(
        self, files: Sequence[GenotypeFiles], *, excluded: Callable[[], frozenset[str]] = nobody
    ) -> None:
        self._files = tuple(files)
        self._excluded = excluded

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`; a patient whose row or genotypes do not fit counts as absent, and
        a locus that cannot be resolved as missing for everybody (rules 7).

        Raises:
            DataError: this site has no genotypes or more than one entry, another build, patient or
                family key than the study's, or they cannot be read.
            ProtocolError: the study is not about genotypes.
        """
        schema, tally = genotype_schema(study), GenotypeTally()
        calls, rows = self.read(schema)
        records = encode_genotypes(schema, calls, rows, part=part, tally=tally)
        if calls.refused:
            _log.warning("data.loci-refused", count=len(calls.refused))
        if tally.absent:
            # Stays in the worker's own log; which patients is for `fedward-client rehearse`.
            _log.warning("data.patients-absent", count=tally.absent.total())
        return records

    def people(self, study: StudySpec) -> list[Person]:
        """Everybody who fits, for statistics. Raises: as `records`."""
        schema, tally = genotype_schema(study), GenotypeTally()
        calls, rows = self.read(schema)
        return present_people(schema, calls, rows, strict=False, tally=tally)

    def checked_records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """As `records`, for the site's own eyes: what does not fit is an error. Raises: as such."""
        schema = genotype_schema(study)
        return encode_genotypes(schema, *self.read(schema), part=part, strict=True)

    def tally(self, study: StudySpec) -> tuple[PatientRecords, PatientRecords, GenotypeTally]:
        """Training and held-out records, and what was found on the way. Raises: as `records`."""
        schema, tally = genotype_schema(study), GenotypeTally()
        calls, rows = self.read(schema)
        training = encode_genotypes(schema, calls, rows, part="train")
        held_out = encode_genotypes(schema, calls, rows, part="test", tally=tally)
        return training, held_out, tally

    def read(self, schema: Genotypes) -> tuple[Calls, list[dict[str, str]]]:
        """Calls of the file and rows of the table, without who objects. Raises DataError."""
        found = self._entry(schema)
        if found.build != schema.build:
            raise DataError(
                f"genotypes: expected a study of {found.build}, as [[data]] says of the file, "
                f"found one of {schema.build}"
            )
        read = _READERS.get(found.path.suffix, read_vcf)
        return read(found.path, schema), self._rows(found, schema)

    def kin(self, schema: Genotypes) -> Kin:
        """Who is kin by the table of people, without who objects. Raises DataError, as `read`."""
        return kin_of(schema, self._rows(self._entry(schema), schema))

    def _entry(self, schema: Genotypes) -> GenotypeFiles:
        """The one [[data]], which says of persons and families what the study says."""
        if len(self._files) != 1:
            raise DataError(
                "genotypes: expected one [[data]] of kind genotypes in site.toml, found "
                f"{len(self._files)}"
            )
        found = self._files[0]
        if (found.patient_key, found.family_key) != (schema.patient_key, schema.family_key):
            raise DataError(
                "genotypes: expected a study that takes patient_key and family_key of [[data]] for "
                "who is one patient and who is kin, found another"
            )
        return found

    def _rows(self, found: GenotypeFiles, schema: Genotypes) -> list[dict[str, str]]:
        lines = readable_lines(found.people, delimiter=found.delimiter)
        header = next(iter(lines), [])
        absent = [name for name in schema.table_columns if name not in header]
        if absent:
            raise DataError(
                f"genotypes: expected the columns {', '.join(map(repr, absent))} in the table of "
                "people, found none of that name"
            )
        excluded = self._excluded()
        rows = [dict(zip(header, line, strict=True)) for line in lines[1:]]
        return [row for row in rows if row[schema.patient_key].strip() not in excluded]


def genotype_schema(study: StudySpec) -> Genotypes:
    """The schema of a study of genotypes. Raises ProtocolError where its data are others."""
    if not isinstance(study.data, Genotypes):
        raise ProtocolError(f"data: expected kind 'genotypes', found {study.data.kind!r}")
    return study.data
