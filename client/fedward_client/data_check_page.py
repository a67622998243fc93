"""The data report for people: lines of text, and one self-contained page with pictures."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.25rem .8rem .25rem 0;text-align:left;
border-bottom:1px solid #d5dde2}td.n,th.n{text-align:right}svg{display:block}
.note{background:#fff4d6;padding:.6rem .8rem;border-radius:4px}
"""
_WIDTH: Final = 200
_HEIGHT: Final = 44


def report_text(report: Mapping[str, Any]) -> str:
    """The report in lines; `<10` stands where a number of patients is withheld."""
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"study {report['study']} at {report['site']}"
    yield (
        f"patients {_count(report, 'patients')}, in the study {_count(report, 'cohort')}: "
        f"{_count(report, 'training')} to train on, {_count(report, 'held_out')} held out"
    )
    for reason, count in report["not_in_study"].items():
        if count != 0:
            yield f"  not in the study: {reason}: {_shown(report, count)}"
    width = max(len(feature["name"]) for feature in report["features"])
    yield (
        f"{'feature':<{width}}  {'patients':>8}  {'missing':>8}  {'out of range':>12}  "
        f"{'unmapped':>8}"
    )
    for feature in report["features"]:
        yield (
            f"{feature['name']:<{width}}  {_shown(report, feature['patients']):>8}  "
            f"{_shown(report, feature['missing']):>8}  {feature['values_out_of_range']:>12}  "
            f"{feature['values_unmapped']:>8}"
        )
    yield from _form(report)
    yield "Out of range and unmapped count values. This report stays at this site."


def _form(report: Mapping[str, Any]) -> Iterator[str]:
    """What a check against the FHIR schema found, in lines; nothing where there was none."""
    scrubbing = report.get("scrubbing")
    if scrubbing is not None:
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in scrubbing["recall"].items())
        yield f"found by the recognisers on {scrubbing['notes']} made-up notes: {shares}"
    form = report.get("fhir_schema")
    if form is None:
        return
    looked = "every" if form["every"] == 1 else f"one of {form['every']}"
    yield (
        f"{form['schema']} schema, {looked} resource(s): {_shown(report, form['resources'])} "
        f"looked at, {_shown(report, form['unfit'])} of another form"
    )
    for problem in form["problems"]:
        yield (
            f"  {problem['type']} {problem['path'] or '(itself)'}: expected {problem['expected']}: "
            f"{_shown(report, problem['resources'])}"
        )


def report_page(report: Mapping[str, Any]) -> str:
    """One page without scripts or addresses; nothing of it is fetched from anywhere."""
    rows = "".join(_row(report, feature) for feature in report["features"])
    absent = "".join(
        f"<tr><td>{escape(reason)}</td><td class=n>{_shown(report, count)}</td></tr>"
        for reason, count in report["not_in_study"].items()
        if count != 0
    )
    form = "".join(f"<p>{escape(line)}</p>" for line in _form(report))
    title = escape(f"Data report: {report['study']} at {report['site']}")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>
<h1>{title}</h1>
<p class="note">This page stays at this site. Numbers of patients below {report["min_cell_size"]}
and bars of so few values are withheld.</p>
<p>{_count(report, "patients")} patients, {_count(report, "cohort")} in the study:
{_count(report, "training")} to train on, {_count(report, "held_out")} held out.</p>
<h2>Not in the study</h2><table><tr><th>why<th class=n>patients</tr>{absent}</table>
<h2>Features</h2>
<table><tr><th>feature<th>unit<th class=n>patients<th class=n>missing<th class=n>values out of range
<th class=n>values unmapped<th>values over the range<th>missing share</tr>{rows}</table>
{form}</html>
"""


def _row(report: Mapping[str, Any], feature: Mapping[str, Any]) -> str:
    numbers = (
        _shown(report, feature["patients"]),
        _shown(report, feature["missing"]),
        feature["values_out_of_range"],
        feature["values_unmapped"],
    )
    cells = "".join(f"<td class=n>{number}</td>" for number in numbers)
    return (
        f"<tr><td>{escape(feature['name'])}</td><td>{escape(feature['unit'])}</td>{cells}"
        f"<td>{_bars(feature['histogram'], escape(feature['name']))}</td>"
        f"<td>{_share(report['cohort'], feature['missing'])}</td></tr>"
    )


def _bars(counts: Sequence[int | None], name: str) -> str:
    """A histogram as an SVG; a bar that is withheld is not drawn."""
    most = max((count or 0 for count in counts), default=0)
    if not most:
        return "no value to show"
    width = _WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{place * width:.1f}" y="{_HEIGHT - _HEIGHT * (count or 0) / most:.1f}" '
        f'width="{width - 1:.1f}" height="{_HEIGHT * (count or 0) / most:.1f}" fill="#2f6f8f"/>'
        for place, count in enumerate(counts)
    )
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="distribution of {name}">{bars}</svg>'
    )


def _share(cohort: int | None, missing: int | None) -> str:
    """How much of the cohort lacks the feature, as a bar; empty where a number is withheld."""
    if not cohort or missing is None:
        return ""
    share = min(1.0, missing / cohort)
    return (
        f'<svg width="80" height="12" role="img" aria-label="{share:.0%} missing">'
        f'<rect width="80" height="12" fill="#e4eaee"/>'
        f'<rect width="{80 * share:.1f}" height="12" fill="#b4552d"/></svg>'
    )


def _count(report: Mapping[str, Any], key: str) -> str:
    return _shown(report, report[key])


def _shown(report: Mapping[str, Any], count: int | None) -> str:
    return f"<{report['min_cell_size']}".replace("<", "below ") if count is None else str(count)
