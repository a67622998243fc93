"""A study of statistics on a sandbox federation: run, report, and true figures beside it."""

import csv
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedward_common.errors import ConfigError, DataError
from fedward_common.ids import SiteId
from fedward_common.privacy.statistics import StatisticsRow, exact_sums
from fedward_common.study.encoding import check_columns
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import Table, statistics_releases
from fedward_common.study.tabular import TabularData
from fedward_common.trust.private_files import write_atomically
from fedward_server.report.disclosure_file import write_disclosure
from fedward_server.report.statistics import constants_toml, statistics_json, statistics_text
from fedward_server.report.statistics_figure import statistics_svg
from fedward_server.runs import follow, require_finished, start_run
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.genotypes import read_people
from fedward_server.sandbox.progress import View
from fedward_server.statistics import Totals

Tables = Mapping[SiteId, Sequence[StatisticsRow]]

RESULT: Final = "statistics.json"
TEXT: Final = "statistics.txt"
CONSTANTS: Final = "constants.toml"
FIGURE: Final = "statistics.svg"


def read_tables(study: StudySpec, files: Mapping[SiteId, Path]) -> Tables:
    """The sandbox parent's own copy of every site's rows.

    Raises:
        DataError: a table is missing, cannot be read or lacks a column of the study.
    """
    if isinstance(study.data, Genotypes):
        return {site: read_people(study.data, site, path) for site, path in files.items()}
    if not isinstance(study.data, Table | TabularData):
        raise ConfigError(f"sandbox: expected a table, found {study.data.kind!r}")
    tables = {}
    for site, path in files.items():
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
            check_columns(study.data, list(rows[0]) if rows else [])
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{site}: expected a CSV table in {path.name}, found none") from error
        except DataError as error:
            raise DataError(f"{site}: {error}") from error
        tables[site] = rows
    return tables


def run_statistics(
    federation: Federation,
    study: StudySpec,
    signed: bytes,
    *,
    tables: Tables,
    out: Path,
    view: View | None = None,
) -> dict[str, Any]:
    """The result of a study of statistics on a federation that is started here.

    Written to `out`: statistics.json, statistics.txt, constants.toml, disclosure.json and
    statistics.svg (the last with the true figures from the parent's copy).

    Raises:
        StartError: a process did not come up or ended.
        StudyFailed: no release reached the quorum.
    """

    def show(action: str, **fields: Any) -> None:
        if view is not None:
            view.feed(action, fields)

    federation.start(on_state=lambda site, state: show(f"site.{state}", site=site))
    name, _ = start_run(federation.settings, signed)
    for event in follow(federation.settings, name, alive=federation.keep_up):
        show(event["action"], **event["fields"])
    facts = require_finished(federation.settings, name)
    result = finished(study, facts, charged=_charged(federation, study))
    publish(study, result, exact_result(study, tables), out=out)
    return result


def finished(
    study: StudySpec, facts: Mapping[str, Any], *, charged: Mapping[str, float]
) -> dict[str, Any]:
    """The result that the outcome of a finished run describes."""
    totals = [value and Totals.from_json(value) for value in facts["statistics"]]
    return statistics_json(study, totals, refusals=facts["refusals"], epsilon=charged)


def exact_result(study: StudySpec, tables: Tables) -> dict[str, Any]:
    """The same result without any noise, from the parent's copy. Sandbox only."""
    totals = []
    for release in statistics_releases(study):
        sums = np.sum([exact_sums(release, study.data, t) for t in tables.values()], axis=0)
        values = tuple(sums.tolist())
        sites = len(tables)
        totals.append(Totals(values=values, shown=(sites,) * len(values), answered=sites))
    return statistics_json(study, totals, refusals={}, exact=True)


def publish(
    study: StudySpec, result: Mapping[str, Any], exact: Mapping[str, Any], *, out: Path
) -> None:
    """Writes disclosure, table, constants and figure and, last, statistics.json."""
    write_disclosure(study, result, out)
    write_atomically(out / TEXT, statistics_text(result).encode() + b"\n")
    write_atomically(out / CONSTANTS, constants_toml(result).encode())
    write_atomically(out / FIGURE, statistics_svg(result, exact).encode())
    write_atomically(out / RESULT, json.dumps(result, indent=1).encode() + b"\n")


def _charged(federation: Federation, study: StudySpec) -> dict[str, float]:
    """What each site's ledger says about this study, as admission figure."""

    def of(site: SiteId) -> tuple[SiteId, float]:
        budget = federation.ask_site(site, "budget", "show")
        own = [e["epsilon_admission"] for e in budget["studies"] if e["digest"] == study.digest]
        return site, own[0] if own else 0.0

    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(pool.map(of, federation.sites))
