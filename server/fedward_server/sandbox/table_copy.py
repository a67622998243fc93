"""The sandbox parent's own copy of a site's table, encoded as the site encodes it."""

import csv
from pathlib import Path

from fedward_common.errors import ConfigError, DataError
from fedward_common.ids import SiteId
from fedward_common.privacy.harmonise import harmonised, site_constants
from fedward_common.study.encoding import (
    PatientRecords,
    TablePart,
    check_columns,
    encode_table,
    labelled,
)
from fedward_common.study.harmonisation import harmonisation_of
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.tabular import TabularData


def read_rows(site: SiteId, path: Path) -> list[dict[str, str]]:
    """The rows of a site's table. Raises DataError: it cannot be read; names the site."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [{k: v.strip() for k, v in row.items()} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, AttributeError) as error:
        raise DataError(
            f"{site}: expected a CSV table with a header and full rows in {path.name}, "
            "found none that can be read"
        ) from error
    return rows


def encoded_rows(
    study: StudySpec, site: SiteId, rows: list[dict[str, str]], *, part: TablePart
) -> PatientRecords:
    """The records with a label as they are learned from; a harmonised site's by its exact location
    and scale, which a site itself never uses.

    Raises:
        DataError: the rows do not fit the schema; names the site.
    """
    records, release = labelled(_encode(study, site, rows, part=part)), harmonisation_of(study)
    if release is None or not isinstance(study.data, TabularData):
        return records
    constants = site_constants(release, study.data, rows, noise=None)
    return harmonised(records, release, study.data, constants)


def _encode(
    study: StudySpec, site: SiteId, rows: list[dict[str, str]], *, part: TablePart
) -> PatientRecords:
    single = isinstance(study.dp, DpSgd) and study.dp.max_records_per_patient == 1
    schema = study.data
    if not isinstance(schema, TabularData):
        raise ConfigError(f"sandbox: expected tabular data, found {schema.kind!r}")
    try:
        check_columns(schema, list(rows[0]) if rows else [])
        return encode_table(schema, rows, part=part, one_record_per_patient=single)
    except DataError as error:
        raise DataError(f"{site}: {error}") from error
