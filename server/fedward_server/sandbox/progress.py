"""What people see of a run in a terminal: a line per site and a bar over rounds while it lasts.

Where output is not a terminal, every event is one plain line instead. All text that came from
another process is shown as text: no markup, no control characters.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedward_server.report.figures import DASH, bytes_text, delta_text, epsilon_number
from fedward_server.sandbox.board import Board, Header, SiteLine, clean, event_line
from fedward_server.sandbox.result_tables import print_result

__all__ = ["Header", "LiveView", "PlainView", "View", "open_view", "print_result"]

Seconds = Callable[[], float]

_LOUD: Final = frozenset({"round.abandoned", "site.lost", "site.refused"})
"""Events that also stay in the scroll-back of a live view."""

_STYLES: Final = {
    "starting": "dim",
    "online": "cyan",
    "training": "blue",
    "evaluating": "blue",
    "replied": "green",
    "refused": "bold red",
    "lost": "bold yellow",
}


class View(Protocol):
    """Who shows a run while it lasts: a context manager. Any thread may call `feed`."""

    def feed(self, action: str, fields: Mapping[str, Any]) -> None:
        """Shows one event."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_view(header: Header, *, console: Console, now: Seconds = time.monotonic) -> View:
    """The live view on a terminal, plain lines everywhere else (a pipe, a file, TERM=dumb)."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(header=header, console=console, now=now)
    return PlainView(header=header, console=console, now=now)


@dataclass(kw_only=True)
class PlainView:
    """One line per event, with the seconds since the start."""

    header: Header
    console: Console
    now: Seconds
    started: float = 0.0

    def __enter__(self) -> Self:
        self.started = self.now()
        for line in self.header.lines:
            _print_line(self.console, line)
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def feed(self, action: str, fields: Mapping[str, Any]) -> None:
        """Prints the event."""
        seconds = self.now() - self.started
        line = event_line(action, fields, header=self.header)
        _print_line(self.console, f"[{seconds:7.1f} s] {line}")


@dataclass(kw_only=True)
class LiveView:
    """A screen part that is drawn again and again: header, a line per site, a bar over rounds."""

    header: Header
    console: Console
    now: Seconds
    board: Board = field(init=False)
    started: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _live: Live = field(init=False)

    def __post_init__(self) -> None:
        self.board = Board(
            sites={name: SiteLine() for name in self.header.sites}, rounds=self.header.rounds
        )
        self._live = Live(
            get_renderable=self.render,
            console=self.console,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self.started = self.now()
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def feed(self, action: str, fields: Mapping[str, Any]) -> None:
        """Takes the event into the picture; a loss, refusal or abandoned round is also printed."""
        with self._lock:
            self.board.apply(action, fields)
        if action in _LOUD:
            line = event_line(action, fields, header=self.header)
            self.console.print(Text(line, style="red" if action == "round.abandoned" else "yellow"))

    def render(self) -> RenderableType:
        """The picture of this moment."""
        with self._lock:
            first, second = self.header.lines
            return Group(
                Text(first, style="bold"),
                Text(second, style="dim"),
                Text(""),
                _site_table(self.board, self.header),
                Text(""),
                _round_bar(self.board, seconds=self.now() - self.started),
            )


def _print_line(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _site_table(board: Board, header: Header) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("site", no_wrap=True, overflow="ellipsis", max_width=32)
    table.add_column("state", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(f"ε so far at δ {delta_text(header.delta)}", justify="right", no_wrap=True)
    table.add_column("sent", justify="right", no_wrap=True, min_width=8)
    for name, site in board.sites.items():
        state = f"{site.state} ({site.detail})" if site.detail else site.state
        table.add_row(
            Text(clean(name)),
            Text(state, style=_STYLES.get(site.state, "")),
            Text(DASH if site.epsilon is None else epsilon_number(site.epsilon)),
            Text(bytes_text(site.bytes_sent)),
        )
    return table


def _round_bar(board: Board, *, seconds: float) -> Table:
    done = board.committed + board.abandoned
    minutes, rest = divmod(int(seconds), 60)
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, justify="right")
    count = Text(f"{done}/{board.rounds} rounds")
    if board.abandoned:
        count.append(f", {board.abandoned} abandoned", style="bold red")
    grid.add_row(
        Text(board.phase, style="bold"),
        ProgressBar(total=max(board.rounds, 1), completed=done, complete_style="blue"),
        count,
        Text(f"{minutes}:{rest:02d}", style="dim"),
    )
    return grid
