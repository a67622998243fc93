"""The sandbox parent's own copy of a site's clinical events, from its two tables.

A site may read the same patients from FHIR or OMOP: equal patients give equal tensors.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedward_common.errors import ConfigError, DataError
from fedward_common.ids import SiteId
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.clinical_events import People, zone_utc
from fedward_common.study.event_rows import EVENTS, PATIENTS, people_of

EVENTS_TABLE: Final = "events.csv"
PATIENTS_TABLE: Final = "patients.csv"


def patients_beside(events: Path) -> Path:
    """The table of patients that belongs to a table of events."""
    return events.with_name(PATIENTS_TABLE)


def read_people(schema: ClinicalData, site: SiteId, events: Path) -> People:
    """The people of a site's two tables, without anybody whose rows cannot be read.

    Raises:
        ConfigError: the site has a table of rows and no events.
        DataError: a table cannot be read or lacks a column; names the site.
    """
    if events.name != EVENTS_TABLE:
        raise ConfigError(
            f"{site}: expected {PATIENTS_TABLE} and {EVENTS_TABLE} for a study of clinical events, "
            f"found {events.name}"
        )
    return people_of(
        _rows(site, patients_beside(events), PATIENTS),
        _rows(site, events, EVENTS),
        concepts=schema.concepts,
        zone=zone_utc(),
    )


def _rows(site: SiteId, path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [{name: row[name].strip() for name in columns} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, AttributeError, KeyError) as error:
        raise DataError(
            f"{site}: expected a CSV table with the columns {', '.join(columns)} in {path.name}, "
            "found none that can be read"
        ) from error
    return rows
