"""A text with two marked entities in numbers: marks around both, and the tokens about them.

The whole text is scrubbed before marks are set: they hide nothing from the recognisers.

Source: Baldini Soares et al. 2019 (entity markers, and a relation from the states at them).
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from fedward_common.errors import DataError
from fedward_common.notes.scrub import Span, find_spans, replaced
from fedward_common.notes.tokens import Vocabulary, word_tokens, words_of
from fedward_common.study.notes import MARKS, Tokeniser

Place = tuple[int, int]
"""The first character of an entity, and the one after its last."""

_PLACE: Final = re.compile(r"(\d{1,7})-(\d{1,7})", re.ASCII)


def place_of(cell: str, *, column: str, text: str) -> Place:
    """The place that a cell such as `12-19` says. Raises DataError where the text has none such."""
    found = _PLACE.fullmatch(cell)
    first, end = (int(number) for number in found.groups()) if found else (0, 0)
    if not 0 <= first < end <= len(text):
        raise DataError(
            f"column {column!r}: expected a place in the text, such as 12-19, found something else"
        )
    return first, end


def marked_words(
    text: str, pair: tuple[Place, Place], *, own: Sequence[str] = (), counts: Counter[str]
) -> list[str]:
    """The words of the scrubbed text with MARKS around both entities, which may overlap.

    What identifies somebody stays in one placeholder: a mark inside of it goes to its edge.
    `words_of` gives no word that is written as a mark.
    """
    spans = find_spans(text, own=own)
    counts.update(span.kind for span in spans)
    marks: list[tuple[int, bool, str]] = []
    for number, (first, end) in enumerate(pair):
        marks.append((_edge(first, spans, opens=True), True, MARKS[2 * number]))
        marks.append((_edge(end, spans, opens=False), False, MARKS[2 * number + 1]))
    words: list[str] = []
    before = 0
    for place, _, mark in sorted(marks):  # at one place, what ends comes before what begins
        words += [*words_of(replaced(text, spans, begin=before, end=place)), mark]
        before = place
    return words + words_of(replaced(text, spans, begin=before, end=len(text)))


def pair_ids(
    tokeniser: Tokeniser, words: Sequence[str], *, vocabulary: Vocabulary | None
) -> tuple[list[int], bool]:
    """The ids of the tokens about the marks, as `token_ids`, and whether any were cut off.

    What is cut off lies as far before as behind the pair; of entities further apart than
    `max_tokens` the later one.

    Raises:
        ConfigError: word pieces without their vocabulary.
    """
    tokens: list[tuple[int, ...]] = []
    marked: list[int] = []
    for word in words:
        if word in MARKS:
            marked.append(len(tokens))
            tokens.append((tokeniser.size + MARKS.index(word),) * tokeniser.ids)
        else:
            tokens += word_tokens(tokeniser, word, vocabulary=vocabulary)
    most = tokeniser.max_tokens
    spare = max(0, most - (marked[-1] + 1 - marked[0]))
    behind = min(len(tokens) - 1 - marked[-1], spare - min(marked[0], spare // 2))
    begin = marked[0] - min(marked[0], spare - behind)
    found = [number for token in tokens[begin : begin + most] for number in token]
    return found + [0] * (most * tokeniser.ids - len(found)), len(tokens) > most


def _edge(place: int, spans: Sequence[Span], *, opens: bool) -> int:
    around = next((span for span in spans if span.start < place < span.end), None)
    if around is None:
        return place
    return around.start if opens else around.end
