"""The HTML page: self-contained, honest about every epsilon, safe with hostile text."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError
from fedward_server.report.card import model_card
from fedward_server.report.figures import (
    bytes_text,
    delta_text,
    epsilon_number,
    score_text,
    unit_text,
)
from fedward_server.report.page import render_report, write_report
from tests.support.results import hostile_result, sample_result, without_scores

VOID = {"meta", "link", "br", "path", "use"}


class Page(HTMLParser):
    """What a browser would see: attributes, ids, text blocks, and whether elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.blocks: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.blocks = [" ".join(block.split()) for block in self.blocks]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"li", "td", "th", "dd", "caption", "p", "figcaption"}:
            self.blocks.append("")
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}:
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "aria-labelledby":
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.blocks and "style" not in self.open:
            self.blocks[-1] += data


def test_page_asks_the_network_for_nothing() -> None:
    html = render_report(sample_result())

    page = Page(html)

    assert "script" not in page.tags
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_page_is_well_formed_with_unique_ids_that_every_label_finds() -> None:
    page = Page(render_report(sample_result()))

    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert page.tags.count("table") == page.tags.count("caption")
    assert page.tags.count("h1") == 1


def test_every_epsilon_stands_with_its_delta() -> None:
    page = Page(render_report(sample_result()))

    with_epsilon = [block for block in page.blocks if re.search(r"ε\W+\d", block)]

    assert len(with_epsilon) >= 5
    assert all(re.search(r"δ\s*=?\s*\d", block) for block in with_epsilon)
    headings = [block for block in page.blocks if re.match(r"ε (admission|PLD)", block)]
    assert headings == ["ε admission at δ 1e-4", "ε PLD at δ 1e-4"]


def test_page_says_the_relation_of_the_study_s_own_unit() -> None:
    result = sample_result()

    pages = {
        unit: re.sub(r"<[^>]+>", "", render_report({**result, "unit": unit}))
        for unit in ("family", "record")
    }

    assert "add or remove one family: with all records of any one family added" in pages["family"]
    assert "add or remove one record: with any one record added" in pages["record"]
    texts = [*pages.values(), model_card({**result, "unit": "family"})]
    assert not any("add or remove one patient" in text for text in texts)


def test_page_says_unit_relation_two_hospitals_and_what_is_not_covered() -> None:
    html = re.sub(r"<[^>]+>", "", render_report(sample_result()))

    assert "per patient of one site" in html
    assert "add or remove one patient" in html
    # The two dearest sites cost 3.99683 and 3.99122: basic composition adds epsilons and deltas.
    assert "only up to two contributions" in html
    assert "ε = 7.989 at δ = 2e-4" in html
    assert "What is not covered" in html
    assert "exist only because this is a sandbox" in html


def test_page_never_claims_conformity() -> None:
    assert "complian" not in render_report(sample_result()).lower()


def test_hostile_text_of_a_study_stays_text() -> None:
    hostile = "</title><script>alert(1)</script><img src=http://evil.test/x onerror=alert(1)>\"'"

    html = render_report(hostile_result(hostile, site="<b>north</b>"))

    page = Page(html)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "b" not in page.tags
    assert "&lt;script&gt;alert(1)" in html


def test_missing_auc_is_a_dash_and_never_a_perfect_score() -> None:
    page = Page(render_report(without_scores()))

    scores = page.blocks[page.blocks.index("west") : page.blocks.index("west") + 3]
    assert scores == ["west", "40", "—"]
    assert "1.000" not in "".join(page.blocks)
    assert "no noised bins arrived" in page.blocks
    assert "svg" not in page.tags


def test_exact_and_private_figures_are_told_apart() -> None:
    page = Page(render_report(sample_result()))

    assert "federated (this run) exact" in page.blocks
    assert "federated, from noised bins (what the coordinator knows) private" in page.blocks


def test_a_site_without_figures_is_a_row_of_dashes() -> None:
    result = sample_result()
    del result["per_site"]["east"]

    page = Page(render_report(result))

    where = page.blocks.index("east")
    assert page.blocks[where + 1 : where + 6] == ["—"] * 5


@pytest.mark.parametrize("points", [1, 2, 26])
def test_short_curves_and_gaps_are_drawn(points: int) -> None:
    curve = [
        {"round": n, "auc": None if n == 2 else 0.7, "accuracy": 0.6} for n in range(1, points + 1)
    ]

    page = Page(render_report(sample_result(curve=curve)))

    assert page.tags.count("svg") == 3


def test_the_same_result_gives_the_same_page() -> None:
    assert render_report(sample_result()) == render_report(sample_result())


def test_report_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    with pytest.raises(ConfigError, match="fedward-result/1"):
        write_report({"format": "fedward-result/1"}, path)
    kept = path.read_text()
    write_report(sample_result(), path)

    assert kept == "old"
    assert path.read_text().endswith("</html>\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_result_of_another_format_is_refused_by_key() -> None:
    with pytest.raises(ConfigError, match="found at format"):
        render_report(sample_result(format="fedward-result/2"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "—"), (float("nan"), "—"), (0.98765, "0.988"), (0.9996, ">0.999"), (1.0, "1.000")],
)
def test_scores_are_never_rounded_to_perfect(value: float | None, text: str) -> None:
    assert score_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2.000"),
        (2.0001, "2.001"),
        (0.1 + 0.2, "0.300"),
        (None, "—"),
        (float("inf"), "∞"),
        (15.96, "15.960"),
    ],
)
def test_epsilon_is_rounded_up(value: float | None, text: str) -> None:
    assert epsilon_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1e-4, "1e-4"), (2e-4, "2e-4"), (1 / 4860, "2.06e-4"), (1e-5, "1e-5")]
)
def test_delta_is_rounded_up(value: float, text: str) -> None:
    assert delta_text(value) == text


def test_a_record_level_epsilon_says_what_it_is_not() -> None:
    assert unit_text("record") == "per record; NOT per patient"


def test_bytes_have_three_digits_at_most() -> None:
    sizes = [bytes_text(n) for n in (0, 999, 1_234, 999_999, 12_345_678)]

    assert sizes == ["0 B", "999 B", "1.23 kB", "1.00 MB", "12.3 MB"]


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_has_the_contrast_of_wcag_aa(scheme: int) -> None:
    """WCAG 2.2, 1.4.3: text stands at 4.5 to 1 or more; 1.4.11: lines of charts at 3 to 1."""
    css = files("fedward_server").joinpath("report/templates/report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[scheme]
    colour = dict(re.findall(r"(--[\w-]+): (#\w+)", block))

    for ink in ("--ink", "--muted", "--accent"):
        assert _contrast(colour[ink], colour["--page"]) >= 4.5
        assert _contrast(colour[ink], colour["--panel"]) >= 4.5
    for kind in ("exact", "private"):
        assert _contrast(colour[f"--{kind}-ink"], colour[f"--{kind}-fill"]) >= 4.5
    for series in ("--series-1", "--series-2"):
        assert _contrast(colour[series], colour["--page"]) >= 3


def _contrast(first: str, second: str) -> float:
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    text = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
