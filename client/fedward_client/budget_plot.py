"""`fedward-client budget show --plot FILE.svg`: epsilon over time, drawn without any library."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
from dp_accounting import DpEvent

from fedward_client.budget import site_ledger, site_limits
from fedward_client.settings import SiteSettings
from fedward_common.errors import ConfigError
from fedward_common.privacy.accounting import curve_epsilon, renyi_curve
from fedward_common.trust.private_files import write_atomically

WIDTH: Final = 760
HEIGHT: Final = 360
LEFT: Final = 64
RIGHT: Final = 16
TOP: Final = 44
BOTTOM: Final = 44
TICKS: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """Epsilon after each entry of the ledger: (time, epsilon), of what is reserved and of what was
    charged, at the policy's delta as one plan (admission figure).
    """

    reserved: tuple[tuple[datetime, float], ...]
    charged: tuple[tuple[datetime, float], ...]
    limit: float
    delta: float
    site: str


def budget_history(settings: SiteSettings) -> History:
    """The history of a site's budget.

    Raises:
        LedgerError: the ledger is damaged, rolled back or missing beside its mark.
    """
    view, limits = site_ledger(settings), site_limits(settings)
    reserved = [(a.reserved_at, a.reservation.event) for a in view.accounts]
    charged = [(c.time, c.event) for a in view.accounts for c in a.charges]
    return History(
        reserved=_running(reserved, delta=limits.delta),
        charged=_running(charged, delta=limits.delta),
        limit=limits.max_epsilon_total,
        delta=limits.delta,
        site=settings.site,
    )


def write_budget_plot(settings: SiteSettings, path: Path) -> None:
    """Draws the history to `path`, an SVG file.

    Raises:
        ConfigError: another kind of file.
        LedgerError: as `budget_history`.
    """
    if path.suffix.lower() != ".svg":
        raise ConfigError(f"--plot {path.name}: expected a name that ends in .svg, found another")
    write_atomically(path, budget_svg(budget_history(settings)).encode())


def budget_svg(history: History) -> str:
    """The history as one SVG: what is reserved, what was charged, the limit."""
    times = [time for line in (history.reserved, history.charged) for time, _ in line]
    title = escape(
        f"Privacy budget of {history.site}: epsilon (admission, as one plan) at delta "
        f"{history.delta:g}"
    )
    if not times:
        body = _text(WIDTH / 2, HEIGHT / 2, "no study was admitted yet", anchor="middle")
        return _document(title, body)
    first, last = min(times), max(times)
    most = max(history.limit, *(epsilon for _, epsilon in history.reserved))
    scale = _Scale(first=first, seconds=max((last - first).total_seconds(), 1.0), most=most)
    y = scale.y(history.limit)
    parts = [
        _axes(scale),
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#a33" '
        'stroke-dasharray="6 4"/>',
        _text(WIDTH - RIGHT, y - 5, f"limit {history.limit:g}", anchor="end", colour="#a33"),
        _steps(history.reserved, scale, colour="#0b6e99"),
        _steps(history.charged, scale, colour="#b4540a"),
        _text(LEFT + 8, TOP + 14, "reserved", colour="#0b6e99"),
        _text(LEFT + 80, TOP + 14, "charged", colour="#b4540a"),
    ]
    return _document(title, "\n".join(parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    first: datetime
    seconds: float
    most: float

    def x(self, time: datetime) -> float:
        share = (time - self.first).total_seconds() / self.seconds
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, epsilon: float) -> float:
        share = min(epsilon / (1.1 * self.most), 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _running(
    entries: Sequence[tuple[str, DpEvent]], *, delta: float
) -> tuple[tuple[datetime, float], ...]:
    total, line = renyi_curve([]), []
    for time, event in sorted(entries, key=lambda entry: entry[0]):
        total = np.add(total, renyi_curve([event]))
        line.append((datetime.fromisoformat(time), curve_epsilon(total, delta=delta)))
    return tuple(line)


def _steps(line: Sequence[tuple[datetime, float]], scale: _Scale, *, colour: str) -> str:
    if not line:
        return ""
    points, level = [(scale.x(line[0][0]), scale.y(0.0))], 0.0
    for time, epsilon in line:
        points += [(scale.x(time), scale.y(level)), (scale.x(time), scale.y(epsilon))]
        level = epsilon
    points.append((float(WIDTH - RIGHT), scale.y(level)))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _axes(scale: _Scale) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [
        f'<polyline points="{LEFT},{TOP} {LEFT},{bottom} {WIDTH - RIGHT},{bottom}" fill="none" '
        'stroke="#555"/>'
    ]
    for tick in range(TICKS + 1):
        level = scale.most * tick / TICKS
        parts.append(_text(LEFT - 6, scale.y(level) + 4, f"{level:.3g}", anchor="end"))
    begin = scale.first
    end = datetime.fromtimestamp(begin.timestamp() + scale.seconds, tz=begin.tzinfo)
    parts.append(_text(LEFT, HEIGHT - 16, begin.isoformat(timespec="minutes")))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 16, end.isoformat(timespec="minutes"), anchor="end"))
    return "\n".join(parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#333") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" '
        f'font-size="12">{escape(text)}</text>'
    )


def _document(title: str, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" role="img">\n<title>{title}</title>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n'
        f'<text x="{LEFT}" y="24" font-size="14" fill="#111">{title}</text>\n{body}\n</svg>\n'
    )
