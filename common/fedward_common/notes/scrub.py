"""What identifies people is taken out of a note before anything else sees it.

First the patient's own identifiers from the structured record, then what looks like one, in English
and Chinese notes. No recogniser finds everything: `recall` says how much of made-up notes they
find, and the data report prints it.

Sources: HIPAA Safe Harbor, 45 CFR 164.514(b)(2), for the kinds; GB 11643-1999 for the Chinese ID
card and its check digit (ISO 7064 MOD 11-2).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

OWN: Final = "OWN"
SHORTEST_OWN: Final = 3
"""Letters of a part of a name that is looked for by itself; Chinese names may have two."""

_MONTHS: Final = (
    "Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|"
    "Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?"
)
_CARD_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CARD_DIGITS: Final = "10X98765432"

PATTERNS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("EMAIL", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")),
    ("URL", re.compile(r"(?:https?://|www\.)[^\s,;)]+", re.IGNORECASE)),
    ("CARD", re.compile(r"(?<!\d)\d{17}[\dXx](?![\dA-Za-z])")),
    (
        "DATE",
        re.compile(
            r"(?<!\d)(?:\d{4}\s*年\s*\d{1,2}\s*月(?:\s*\d{1,2}\s*[日号])?"
            r"|\d{1,2}\s*月\s*\d{1,2}\s*[日号]"
            r"|\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}"
            rf"|\d{{1,2}}(?:st|nd|rd|th)?\s+(?:{_MONTHS})\.?,?(?:\s+\d{{4}})?"
            rf"|(?:{_MONTHS})\.?\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?)(?!\d)",
            re.IGNORECASE,
        ),
    ),
    ("PHONE", re.compile(r"(?<!\d)(?:\+?86[- ]?)?1[3-9]\d{9}(?!\d)")),
    ("PHONE", re.compile(r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}(?!\d)")),
    ("PHONE", re.compile(r"(?<!\d)0\d{2,3}-\d{7,8}(?!\d)")),
    (
        "PHONE",
        re.compile(
            r"(?<![\d.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])"
            r"\d{3,4}[ .-]\d{2,4}(?!\d)"
        ),
    ),
    ("ID", re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)")),
    (
        "ID",
        re.compile(
            r"(?:\b(?:MRN|ID|No|Nr|record|account)\b|病历号|住院号|门诊号|编号)"
            r"\s*(?:no\b)?\s*[.:#\uff1a]*\s*[A-Za-z]{0,3}\d{4,}",
            re.IGNORECASE,
        ),
    ),
    ("ID", re.compile(r"(?<![\w.])\d{7,}(?![\w.])")),
    ("IP", re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")),
)


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a text that identifies somebody: `text[start:end]`, of this kind."""

    start: int
    end: int
    kind: str


def is_chinese_card(text: str) -> bool:
    """Whether 18 characters are a Chinese ID card number whose check digit is right."""
    if not re.fullmatch(r"\d{17}[\dX]", text, re.ASCII):
        return False
    total = sum(int(d) * w for d, w in zip(text[:17], _CARD_WEIGHTS, strict=True))
    return _CARD_DIGITS[total % 11] == text[17]


def card_check_digit(first: str) -> str:
    """The check digit of the first 17 digits of a Chinese ID card number."""
    total = sum(int(d) * w for d, w in zip(first, _CARD_WEIGHTS, strict=True))
    return _CARD_DIGITS[total % 11]


def find_spans(text: str, *, own: Sequence[str] = ()) -> list[Span]:
    """What identifies somebody in `text`, in order, without overlaps.

    `own`: the patient's identifiers, each looked for as a whole and, of names of several words, by
    every word of at least three letters, whatever its case.
    """
    found = [
        Span(match.start(), match.end(), OWN)
        for pattern in _own_patterns(own)
        for match in pattern.finditer(text)
    ]
    for kind, pattern in PATTERNS:
        for match in pattern.finditer(text):
            # 18 digits that fail the check are an id of another kind, and go all the same.
            shown = "ID" if kind == "CARD" and not is_chinese_card(match.group().upper()) else kind
            found.append(Span(match.start(), match.end(), shown))
    return _apart(found)


def scrub(text: str, *, own: Sequence[str] = (), counts: Counter[str] | None = None) -> str:
    """`text` with a placeholder such as [DATE] for everything that `find_spans` finds."""
    spans = find_spans(text, own=own)
    if counts is not None:
        counts.update(span.kind for span in spans)
    return replaced(text, spans, begin=0, end=len(text))


def replaced(text: str, spans: Iterable[Span], *, begin: int, end: int) -> str:
    """`text[begin:end]` with a placeholder for each of the spans in it; none crosses its ends."""
    parts, place = [], begin
    for span in spans:
        if begin <= span.start and span.end <= end:
            parts += [text[place : span.start], f"[{span.kind}]"]
            place = span.end
    return "".join([*parts, text[place:end]])


def scrub_words(
    words: Sequence[str], *, own: Sequence[str] = (), counts: Counter[str] | None = None
) -> list[str]:
    """`words`, with the placeholder for each that a span touches: as many words as before."""
    starts, place = [], 0
    for word in words:
        starts.append(place)
        place += len(word) + 1
    spans = find_spans(" ".join(words), own=own)
    if counts is not None:
        counts.update(span.kind for span in spans)
    scrubbed = list(words)
    for span in spans:
        for number, word in enumerate(words):
            if starts[number] < span.end and starts[number] + len(word) > span.start:
                scrubbed[number] = f"[{span.kind}]"
    return scrubbed


def _own_patterns(own: Iterable[str]) -> list[re.Pattern[str]]:
    wanted: set[str] = set()
    for identifier in own:
        whole = identifier.strip()
        if len(whole) >= SHORTEST_OWN or (len(whole) == 2 and not whole.isascii()):
            wanted.add(whole)
        wanted.update(part for part in re.split(r"[\s,;]+", whole) if len(part) >= SHORTEST_OWN)
    patterns = []
    for text in sorted(wanted, key=lambda one: (-len(one), one)):
        edge = r"(?<!\w){}(?!\w)" if text.isascii() else "{}"
        patterns.append(re.compile(edge.format(re.escape(text)), re.IGNORECASE))
    return patterns


def _apart(spans: Iterable[Span]) -> list[Span]:
    """The spans in order; of those that overlap, one over all of them, of the first's kind."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = Span(last.start, max(last.end, span.end), last.kind)
        else:
            merged.append(span)
    return merged
