"""The result of a study of statistics: JSON (fedward-statistics/1), a text table, constants.

Every figure stands with the standard error that its noise gives it, and with the number of sites
that kept their part back. What does not exist is null or a dash, never a stand-in.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import ConfigError
from fedward_common.privacy.statistics import noise_deviation, noise_spread
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import (
    StatisticsRelease,
    columns_of,
    declared,
    statistics_releases,
    weight,
)
from fedward_common.study.tabular import CategoryColumn, NumberColumn
from fedward_common.study.variant_statistics import VariantRelease, genotypes_of
from fedward_server.report.figures import DASH, delta_text, epsilon_number, unit_text
from fedward_server.statistics import ColumnFigures, Figure, Totals, column_figures
from fedward_server.variant_figures import variant_figures

FORMAT: Final = "fedward-statistics/1"
WIDE: Final = 3.0
"""Constants for a next study reach this many standard deviations to both sides of the mean."""
MOST_LOCI: Final = 20
WITHHELD: Final = "withheld"


def statistics_json(
    study: StudySpec,
    totals: Sequence[Totals | None],
    *,
    refusals: Mapping[str, str],
    epsilon: Mapping[str, float] | None = None,
    exact: bool = False,
) -> dict[str, Any]:
    """The result as a JSON value; with `exact` of totals without noise (the sandbox's parent).

    `epsilon` is what each site charged by its own ledger (admission figure), where it is known;
    without it the study's declared epsilon stands alone.
    """
    dp = declared(study)
    return {
        "format": FORMAT,
        "study": {"id": study.id, "title": study.title, "digest": study.digest},
        "privacy": {
            "epsilon": dp.epsilon,
            "epsilon_is": dp.epsilon_is,
            "delta": dp.delta,
            "unit": dp.unit,
            "charged": dict(epsilon or {}),
        },
        "sites": [site.id for site in study.sites],
        "refusals": dict(refusals),
        "releases": [
            _release(study, release, total, exact=exact)
            for release, total in zip(statistics_releases(study), totals, strict=True)
        ],
    }


def _release(
    study: StudySpec, release: StatisticsRelease, totals: Totals | None, *, exact: bool
) -> dict[str, Any]:
    heavy = weight(release, study.data)
    return {
        "mechanism": release.mechanism,
        "noise_multiplier": release.noise_multiplier,
        "sensitivity": math.sqrt(heavy) if release.mechanism == "gaussian" else heavy,
        "sensitivity_is": "L2" if release.mechanism == "gaussian" else "L1",
        "noise_spread_per_site": noise_spread(release, study.data),
        "noise_deviation_per_site": noise_deviation(release, study.data),
        "min_cell_size": release.min_cell_size,
        "sites_answered": 0 if totals is None else totals.answered,
        **_about_genotypes(study, release, totals, exact=exact),
        "columns": []
        if totals is None or isinstance(release, VariantRelease)
        else [
            _column(found, columns_of(study.data)[found.column])
            for found in column_figures(release, study.data, totals, exact=exact)
        ],
    }


def _about_genotypes(
    study: StudySpec, release: StatisticsRelease, totals: Totals | None, *, exact: bool
) -> dict[str, Any]:
    """What a release about genotypes says; nothing of one about columns."""
    if not isinstance(release, VariantRelease):
        return {}
    found = None
    if totals is not None:
        deviation = noise_deviation(release, study.data) * totals.noise_share
        found = variant_figures(
            release,
            genotypes_of(study.data),
            totals.values,
            deviation=0.0 if exact else deviation * math.sqrt(totals.answered),
        )
    return {"kind": release.kind, "variants": found}


def _column(found: ColumnFigures, column: NumberColumn | CategoryColumn) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": found.column, "schema": column.model_dump(mode="json")}
    facts |= {part: _figure(figure) for part, figure in found.figures.items()}
    if found.histogram:
        facts["histogram"] = [
            {"cell": label, **_figure(figure)}
            for label, figure in zip(_labels(column, found), found.histogram, strict=True)
        ]
    if found.quantiles:
        facts["quantiles"] = [
            {"share": q.share, "value": q.value, "low": q.low, "high": q.high}
            for q in found.quantiles
        ]
    return facts


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "value": figure.value,
        "standard_error": figure.standard_error,
        "withheld_by": figure.withheld_by,
    }


def _labels(column: NumberColumn | CategoryColumn, found: ColumnFigures) -> list[str]:
    if isinstance(column, CategoryColumn):
        return list(column.values)
    bins = len(found.histogram)
    step = (column.high - column.low) / bins
    return [f"{column.low + i * step:g} to {column.low + (i + 1) * step:g}" for i in range(bins)]


def statistics_text(result: Mapping[str, Any]) -> str:
    """The result as a table for people; every value with its standard error from the noise.

    Raises:
        ConfigError: `result` is not of format fedward-statistics/1.
    """
    require_format(result)
    privacy = result["privacy"]
    lines = [
        str(result["study"]["title"]),
        f"study {result['study']['id']}  digest {result['study']['digest'][:12]}",
        f"at most ε = {epsilon_number(privacy['epsilon'])} at δ = {delta_text(privacy['delta'])} "
        f"{unit_text(privacy['unit'])} ({privacy['epsilon_is']}) for all releases together",
        "± is one standard error from the noise alone; it says nothing of chance among patients.",
        "A figure that sites withheld in part covers the other sites only.",
    ]
    for number, release in enumerate(result["releases"], start=1):
        lines += ["", *_release_lines(number, release, sites=len(result["sites"]))]
    return "\n".join(lines)


def read_statistics(path: Path) -> dict[str, Any]:
    """The result in a statistics.json.

    Raises:
        ConfigError: no such file, or not a result of format fedward-statistics/1.
    """
    try:
        result: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected the statistics.json of a finished study, found none that can be read"
        ) from error
    if not isinstance(result, dict):
        raise ConfigError(f"{path}: expected a JSON object, found something else")
    require_format(result)
    return result


def require_format(result: Mapping[str, Any]) -> None:
    """Returns when `result` is of format fedward-statistics/1. Raises ConfigError if not."""
    if result.get("format") != FORMAT:
        raise ConfigError(
            f"statistics: expected a result of format {FORMAT}, found {result.get('format')!r}"
        )


def _release_lines(number: int, release: Mapping[str, Any], *, sites: int) -> list[str]:
    head = (
        f"release {number}: {release['mechanism']} noise, standard deviation "
        f"{release['noise_deviation_per_site']:.3g} per number and site "
        f"({release['sensitivity_is']} sensitivity {release['sensitivity']:.3g} per patient), "
        f"{release['sites_answered']} of {sites} sites; numbers of patients below "
        f"{release['min_cell_size']} stay at the site"
    )
    if release.get("variants"):
        return [head, *_variant_lines(release)]
    if not release["columns"]:
        return [head, "  no figures: fewer sites answered than the study's quorum"]
    rows = [["column", "patients", "missing", "mean", "SD", "quartiles or codes", WITHHELD]]
    rows += [_row(column) for column in release["columns"]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        head,
        *(
            "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
            for row in rows
        ),
    ]


def _variant_lines(release: Mapping[str, Any]) -> list[str]:
    """The loci with the smallest p values, the first frequencies, or the eigenvalues."""
    found = release["variants"]
    if "eigenvalues" in found:
        shown = ", ".join(f"{value:.4g}" for value in found["eigenvalues"])
        return [
            f"  eigenvalues: {shown}; loadings of every locus are in statistics.json",
            f"  noise alone has eigenvalues up to {found['largest_of_noise']:.4g}",
        ]
    loci = [one for one in found["loci"] if None not in one.values()]
    lines = [f"  {len(loci)} of {len(found['loci'])} loci; all are in statistics.json"]
    if release["kind"] == "allele-frequencies":
        return lines + [
            f"  {one['id']}: {one['frequency']:.4f} ± {one['standard_error']:.2g}"
            for one in loci[:MOST_LOCI]
        ]
    best = sorted(loci, key=lambda one: float(one["p"]))[:MOST_LOCI]
    return lines + [
        f"  {one['id']}: beta {one['beta']:.4g} ± {one['standard_error']:.3g}, p {one['p']:.3g} "
        "(chance and noise)"
        for one in best
    ]


def _row(column: Mapping[str, Any]) -> list[str]:
    spread = _spread(column.get("variance"))
    return [
        str(column["name"]),
        _cell(column.get("count"), digits=0),
        _cell(column.get("missing"), digits=0),
        _cell(column.get("mean")),
        _cell(spread),
        _distribution(column),
        _kept_back(column),
    ]


def _cell(figure: Mapping[str, Any] | None, *, digits: int | None = None) -> str:
    if figure is None:
        return ""
    if figure["value"] is None:
        return DASH
    error = figure["standard_error"]
    if digits is None:
        digits = _digits(error)
    noise = "" if error is None else f" ± {error:.{digits}f}"
    return f"{figure['value']:.{digits}f}{noise}"


def _digits(error: float | None) -> int:
    """Decimals that show the error with about two digits."""
    if error is None or error <= 0:
        return 2
    return int(min(max(1 - math.floor(math.log10(error)), 0), 6))


def _spread(variance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The standard deviation from a variance, with its error to first order."""
    if variance is None:
        return None
    value, error = variance["value"], variance["standard_error"]
    root = None if value is None else math.sqrt(value)
    return {
        "value": root,
        "standard_error": None if not root or error is None else error / (2 * root),
        "withheld_by": variance["withheld_by"],
    }


def _distribution(column: Mapping[str, Any]) -> str:
    if column["schema"]["type"] == "number":
        quantiles = column.get("quantiles", ())
        return ", ".join(
            f"{q['share']:g}: {q['value']:.4g} ({q['low']:.4g} to {q['high']:.4g})"
            for q in quantiles
        )
    shown = [
        f"{cell['cell']}: {DASH if cell['value'] is None else format(cell['value'], '.0f')}"
        for cell in column.get("histogram", ())
    ]
    return ", ".join(shown)


def _kept_back(column: Mapping[str, Any]) -> str:
    parts = [part for part in ("count", "missing") if column.get(part, {}).get("withheld_by")]
    cells = sum(bool(cell["withheld_by"]) for cell in column.get("histogram", ()))
    words = [f"{part} by {column[part]['withheld_by']}" for part in parts]
    if cells:
        words.append(f"{cells} of {len(column['histogram'])} cells in part")
    return "; ".join(words)


def constants_toml(result: Mapping[str, Any]) -> str:
    """The `[[data.columns]]` lines for a next study, with `low`, `high` and `fill` from `result`.

    A number column reaches from mean - 3 SD to mean + 3 SD, within its former limits, and is filled
    with its mean; a category is filled with its most frequent code. A column about which the result
    says too little keeps the limits it had. The constants come from charged releases, so using them
    costs nothing more (rules 6).

    Raises:
        ConfigError: `result` is not of format fedward-statistics/1.
    """
    require_format(result)
    merged: dict[str, dict[str, Any]] = {}
    for release in result["releases"]:
        for column in release["columns"]:
            merged.setdefault(column["name"], {}).update(column)
    privacy = result["privacy"]
    head = (
        f"# From study {result['study']['id']}, digest {result['study']['digest']}:\n"
        f"# noised figures, charged there (epsilon {privacy['epsilon']:g} at delta "
        f"{privacy['delta']:g}, {privacy['epsilon_is']})."
    )
    return "\n\n".join([head, *(_column_toml(column) for column in merged.values())]) + "\n"


def _column_toml(column: Mapping[str, Any]) -> str:
    facts = {k: v for k, v in column["schema"].items() if v is not None and v != []}
    if facts["type"] == "number":
        mean, variance = (column.get(part, {}).get("value") for part in ("mean", "variance"))
        if mean is not None and variance:
            reach = WIDE * math.sqrt(variance)
            low, high = max(facts["low"], mean - reach), min(facts["high"], mean + reach)
            if low < high:
                # Outwards, so that no rounding puts the filling value beyond a limit.
                facts |= {"low": _rounded(low, math.floor), "high": _rounded(high, math.ceil)}
        if mean is not None:
            fill = _rounded(mean, round)
            facts["fill"] = min(max(fill, facts["low"]), facts["high"])
    else:
        cells = [c for c in column.get("histogram", ()) if c["value"] is not None]
        if cells:
            facts["fill"] = max(cells, key=lambda cell: float(cell["value"]))["cell"]
    return "\n".join(["[[data.columns]]", *(f"{k} = {json.dumps(v)}" for k, v in facts.items())])


def _rounded(value: float, direction: Any) -> float:
    """`value` on three digits."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return float(f"{direction(value / step) * step:.6g}")
