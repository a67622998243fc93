"""The model card: complete sections, every epsilon with its delta, no markup from the study."""

import json
import re

from fedward_server.report.card import markdown_text, model_card
from tests.support.results import hostile_result, sample_result, without_scores


def test_card_has_the_sections_a_reader_looks_for() -> None:
    card = model_card(sample_result())

    assert re.findall(r"^## (.*)$", card, flags=re.MULTILINE) == [
        "Intended use",
        "Data",
        "Training",
        "Privacy",
        "Figures",
        "Limits",
        "Environment",
    ]


def test_every_epsilon_line_has_its_delta() -> None:
    lines = [
        line for line in model_card(sample_result()).splitlines() if re.search(r"ε\W+\d", line)
    ]

    assert len(lines) >= 4
    assert all(re.search(r"δ = \de-\d", line) for line in lines)


def test_card_says_unit_relation_and_two_hospitals() -> None:
    card = model_card(sample_result())

    assert "per patient of one site" in card
    assert "add or remove one patient" in card
    assert "only up to two contributions" in card
    assert "complian" not in card.lower()


def test_missing_auc_is_a_dash() -> None:
    card = model_card(without_scores())

    row = next(line for line in card.splitlines() if line.startswith("| federated (this run)"))
    assert row.split("|")[2].strip() == "—"
    assert "1.000" not in card


def test_every_table_row_has_as_many_cells_as_its_heading() -> None:
    hostile = hostile_result("a | b", site="n|orth")

    for table in re.findall(r"(?:^\|.*\n)+", model_card(hostile), flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_hostile_title_makes_no_markup_and_no_front_matter() -> None:
    title = "x\n---\n# Approved\n[click](http://evil.test) <script>alert(1)</script> www.evil.test"

    card = model_card(hostile_result(title))

    first = card.splitlines()[1]
    assert json.loads(first.removeprefix("model_name: ")) == title
    body = card.split("\n---\n", 1)[1]
    assert "\n# Approved" not in body
    assert not re.search(r"(?<!\\)[\[<]", body)
    assert "http://" not in body
    assert "www.evil" not in body


def test_markdown_text_keeps_ordinary_text() -> None:
    assert markdown_text("Heart disease (4 sites), 12.5 %") == "Heart disease (4 sites), 12.5 %"
