"""What identifies people in notes is found: their own identifiers, patterns, Chinese ID cards."""

from collections import Counter

import pytest

from fedward_common.notes.recall import measured_recall
from fedward_common.notes.scrub import card_check_digit, is_chinese_card, scrub, scrub_words


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("seen on 2024-03-05 by us", "seen on [DATE] by us"),
        ("seen 5/3/2024, again 3 March 2024.", "seen [DATE], again [DATE]."),
        ("write to a.b+c@example.org now", "write to [EMAIL] now"),
        ("see https://example.org/p?id=7", "see [URL]"),
        ("call +41 44 555 01 23 today", "call [PHONE] today"),
        ("call (617) 555-0134", "call [PHONE]"),
        ("SSN 123-45-6789", "SSN [ID]"),
        ("MRN: 12345", "[ID]"),
        ("from 10.0.12.7", "from [IP]"),
        ("2024年3月5日入院", "[DATE]入院"),
        ("电话13912345678。", "电话[PHONE]。"),
        ("住院号：AB12345 已查", "[ID] 已查"),  # noqa: RUF001
    ],
)
def test_what_looks_like_an_identifier_becomes_its_kind(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "blood pressure 140/90 mmHg, pulse 72, temperature 38.5",
        "potassium 4.1 mmol/L, creatinine 102, 3 x 500 mg",
        "血压140/90mmHg，白细胞5.6",  # noqa: RUF001
    ],
)
def test_findings_stay_as_they_are(text: str) -> None:
    assert scrub(text) == text


def test_a_chinese_card_is_told_by_its_check_digit() -> None:
    """The example of GB 11643-1999: 11010519491231002X."""
    assert is_chinese_card("11010519491231002X")
    assert card_check_digit("11010519491231002") == "X"
    assert not is_chinese_card("110105194912310021")
    assert scrub("身份证11010519491231002X") == "身份证[CARD]"
    assert scrub("no card 110105194912310021") == "no card [ID]"


def test_the_patient_s_own_identifiers_go_in_any_case_and_word_by_word() -> None:
    counts: Counter[str] = Counter()
    own = ["Anna Maria Keller", "欧阳雪", "77120"]

    text = scrub("KELLER, Anna (77120) and kellers dog; 欧阳雪诉胸痛", own=own, counts=counts)

    assert text == "[OWN], [OWN] ([OWN]) and kellers dog; [OWN]诉胸痛"
    assert counts["OWN"] == 4


def test_as_many_words_come_out_as_went_in() -> None:
    words = ["Seen", "on", "3", "March", "2024", "for", "asthma"]

    assert scrub_words(words) == ["Seen", "on", "[DATE]", "[DATE]", "[DATE]", "for", "asthma"]


def test_the_recall_on_made_up_notes_is_above_its_floor() -> None:
    """The figure that the data report prints; every kind of identifier, both languages."""
    found = measured_recall()

    assert set(found) >= {"name", "number", "date", "phone", "mail", "zh_name", "card", "mobile"}
    assert all(one.there >= 20 for one in found.values())
    assert all(one.share >= 0.95 for one in found.values()), found
