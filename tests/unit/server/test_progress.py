"""What a terminal shows while a run lasts and when it has ended."""

import io
import re
import threading

import pytest
from rich.console import Console

from fedward_server.sandbox.board import Board, SiteLine, clean, event_line
from fedward_server.sandbox.progress import Header, LiveView, PlainView, open_view, print_result
from tests.support.results import SITES, hostile_result, sample_result, without_scores

HEADER = Header(
    study="four-sites",
    digest="4f2a91c07bd35e66",
    sites=SITES,
    rounds=3,
    delta=1e-4,
    epsilon=4.0,
)


def board() -> Board:
    return Board(sites={site: SiteLine() for site in SITES}, rounds=3)


def screen(width: int = 80, *, terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def opened(number: int, kind: str = "train") -> tuple[str, dict[str, object]]:
    return "round.opened", {"kind": kind, "round": number, "rounds": 3, "sites": list(SITES)}


def test_a_site_goes_from_starting_to_replied() -> None:
    run, states = board(), []

    for action, fields in (
        ("site.online", {"site": "north"}),
        opened(1),
        ("site.replied", {"kind": "train", "round": 1, "site": "north"}),
        opened(3, "evaluate"),
    ):
        states.append(run.sites["north"].state)
        run.apply(action, fields)

    assert [*states, run.sites["north"].state] == [
        "starting",
        "online",
        "training",
        "replied",
        "evaluating",
    ]


def test_refusal_loss_and_abandoned_round_are_kept_apart() -> None:
    run = board()

    run.apply(*opened(1))
    run.apply("site.refused", {"round": 1, "site": "north", "code": "budget"})
    run.apply("site.lost", {"kind": "train", "round": 1, "site": "south", "reason": "deadline"})
    run.apply("round.abandoned", {"round": 1, "good": 2, "quorum": 3})
    run.apply(*opened(2))
    run.apply("round.committed", {"round": 2, "sites": ["east", "west"]})

    assert (run.sites["north"].state, run.sites["south"].state) == ("training", "training")
    assert (run.committed, run.abandoned) == (1, 1)


def test_a_site_that_is_not_asked_again_stays_refused() -> None:
    run = board()
    run.apply("site.refused", {"round": 1, "site": "north", "code": "policy"})

    run.apply("round.opened", {"kind": "train", "round": 2, "rounds": 3, "sites": list(SITES[1:])})

    assert (run.sites["north"].state, run.sites["north"].detail) == ("refused", "policy")


def test_any_event_of_a_site_may_carry_epsilon_and_bytes() -> None:
    run = board()

    run.apply("site.charged", {"site": "north", "epsilon": 0.5, "bytes_sent": 1000})
    run.apply("site.replied", {"site": "north"})

    assert (run.sites["north"].epsilon, run.sites["north"].bytes_sent) == (0.5, 1000)


def test_unknown_sites_and_actions_change_nothing() -> None:
    run = board()

    run.apply("site.replied", {"site": "elsewhere"})
    run.apply("something.new", {"site": 7, "round": None})

    assert run == board()


@pytest.mark.parametrize("width", [80, 120])
def test_live_view_has_a_line_per_site_and_a_bar_within_the_width(width: int) -> None:
    console = screen(width)
    view = LiveView(header=HEADER, console=console, now=lambda: 75.0)
    view.board.apply(*opened(1))
    view.board.apply("site.lost", {"site": "south", "reason": "no reply " * 40})
    view.board.apply("round.committed", {"round": 1})
    view.board.apply("site.charged", {"site": "north", "epsilon": 1.25, "bytes_sent": 140_000})

    console.print(view.render())

    lines = text_of(console).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("study four-sites  digest 4f2a91c07bd3")
    assert "at most ε = 4.000 at δ = 1e-4 per patient of one site" in lines[1]
    assert [line.split()[0] for line in lines[4:8]] == list(SITES)
    assert re.search(r"training +1\.250 +140 kB", lines[4])
    assert "lost (no reply" in lines[5]
    assert re.search(r"1/3 rounds +1:15$", lines[9])


def test_live_view_prints_a_loss_above_the_picture_and_survives_threads() -> None:
    console = screen()

    with open_view(HEADER, console=console) as view:
        threads = [
            threading.Thread(target=view.feed, args=("site.lost", {"site": site, "round": 1}))
            for site in SITES
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert isinstance(view, LiveView)
    assert all(f"round 1: {site} lost" in text_of(console) for site in SITES)


def test_without_a_terminal_every_event_is_one_plain_line() -> None:
    console = screen(40, terminal=False)
    reason = "a long reason " * 8

    with open_view(HEADER, console=console, now=iter([0.0, 1.5, 2.5]).__next__) as view:
        view.feed(*opened(1))
        view.feed("site.lost", {"kind": "train", "round": 1, "site": "south", "reason": reason})

    assert isinstance(view, PlainView)
    assert text_of(console).splitlines()[2:] == [
        "[    1.5 s] round 1 of 3 opened: north, south, east, west",
        f"[    2.5 s] round 1: south lost: {reason}",
    ]
    assert "\x1b" not in text_of(console)


@pytest.mark.parametrize(
    ("action", "fields", "line"),
    [
        (*opened(3, "evaluate"), "evaluation opened: north, south, east, west"),
        ("round.committed", {"round": 2, "sites": ["north"]}, "round 2 committed: north"),
        (
            "round.abandoned",
            {"round": 2, "good": 1, "quorum": 3, "refused": "north", "lost": ""},
            "round 2 ABANDONED: 1 good replies, expected at least 3; refused: north; lost: none",
        ),
        ("site.refused", {"round": 2, "site": "north", "code": "budget"}, "north refused (budget)"),
        ("site.online", {"site": "north"}, "north online"),
        ("phase", {"name": "each site alone"}, "each site alone"),
        ("log.opened", {}, "log.opened"),
    ],
)
def test_events_in_words(action: str, fields: dict[str, object], line: str) -> None:
    assert event_line(action, fields, header=HEADER).endswith(line)


def test_an_epsilon_in_a_line_has_delta_and_unit() -> None:
    line = event_line("site.charged", {"site": "north", "epsilon": 0.5}, header=HEADER)

    assert "ε = 0.500 at δ = 1e-4 per patient of one site" in line


def test_terminal_sequences_and_markup_from_elsewhere_stay_text() -> None:
    console = screen(terminal=False)
    reason = "\x1b]0;owned\x07\x1b[2J[bold]x[/bold]\r\nnext"

    with open_view(HEADER, console=console) as view:
        view.feed("site.lost", {"round": 1, "site": "north", "reason": reason})

    assert "[bold]x[/bold]" in text_of(console)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text_of(console))
    assert len(text_of(console).splitlines()) == 3
    assert len(clean("x" * 10_000)) <= 240


@pytest.mark.parametrize("width", [80, 120])
def test_final_tables_fit_and_say_what_each_figure_is(width: int) -> None:
    console = screen(width)

    print_result(sample_result(), console)

    text = text_of(console)
    assert max(map(len, text.splitlines())) <= width
    assert re.search(r"federated \(this run\) +0\.881 +0\.802 +0\.797 +exact", text)
    assert re.search(r"federated, from noised bins +0\.873 +0\.796 +— +private", text)
    for name in ("each site alone, same privacy", "pooled without privacy", "majority class"):
        assert name in text
    assert re.search(r"north +100 +0\.900 +0\.840 +0\.850 +0\.800 +3\.980 +3\.500 +1\.20 MB", text)


def test_final_tables_print_every_epsilon_with_delta_and_unit() -> None:
    console = screen(120)

    print_result(sample_result(), console)

    text = text_of(console)
    assert len(re.findall(r"ε (?:adm\.|PLD)", text)) == len(re.findall(r"δ 1e-4", text)) == 2
    assert "ε is per patient of one site at δ = 1e-4, add or remove one patient" in text
    assert "only up to two contributions" in text


def test_missing_auc_is_a_dash_in_the_final_tables() -> None:
    console = screen()

    print_result(without_scores(), console)

    assert re.search(r"west +40 +— +0\.810 +— ", text_of(console))
    assert "1.000" not in text_of(console)


def test_hostile_title_cannot_steer_the_terminal() -> None:
    console = screen(terminal=False)

    print_result(hostile_result("\x1b[2J[red]title"), console)

    assert "\x1b" not in text_of(console)
    assert "[red]title" in text_of(console)
