"""Made-up notes for the audit, and the site's own way from notes to records.

Texts go through the product's own scrubbing and tokens. A study of word pieces names a vocabulary
that lies at the site; here a made-up one of as many pieces stands for it, and no file is opened.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Final

from fedward_client.audit.source_rows import (
    UNREADABLE,
    label_cells,
    split_cells,
    training_names,
)
from fedward_common.notes.encoding import encode_notes
from fedward_common.notes.tokens import UNKNOWN, Vocabulary
from fedward_common.study.encoding import PatientRecords, Row
from fedward_common.study.notes import NotesData, RelationLabel, TagLabel, WordPieces

NAME: Final = "Doe"
ORDINARY: Final = "chest pain since 2001-02-03 , fever of 39 degrees"
PERSONAL: Final = f"{NAME} can be reached at +1 555 0100 200 or {NAME.lower()}@example.org"
LETTERS: Final = "\N{CJK UNIFIED IDEOGRAPH-80BA}\N{CJK UNIFIED IDEOGRAPH-708E} \N{PILL} \x00\x7f"
FOREIGN: Final = f"\N{LATIN SMALL LETTER U WITH DIAERESIS}belkeit {LETTERS}"


def load_notes(schema: NotesData, rows: Sequence[Row]) -> PatientRecords:
    """The records to train on, by the encoding that every site uses on its own notes."""
    return encode_notes(schema, rows, part="train", vocabulary=_vocabulary(schema))


def note_rows(schema: NotesData) -> list[list[Row]]:
    """The rows of made-up patients: ordinary, without words, too long, foreign, contradicting."""
    long = " ".join(["pneumonia"] * (schema.tokeniser.max_tokens + 3))
    same_word = " ".join(["x"] * schema.tokeniser.max_tokens)
    one_word = "x" * (8 * schema.tokeniser.max_tokens)
    kinds: list[list[tuple[str, bool | None]]] = [
        [(ORDINARY, False)],
        [(ORDINARY, True)],
        [(long, True)],
        [(same_word, False)],
        [(one_word, True)],
        [("", False)],
        [(PERSONAL, True)],
        [(FOREIGN, False)],
        [(ORDINARY, None)],
    ]
    if not schema.no_patient_key:
        kinds += [
            [(ORDINARY, False), (ORDINARY, True)],
            [(long, True)] * 3,
            [(ORDINARY, True), (ORDINARY, None)],
        ]
    names = training_names(schema.split)
    return [
        [_row(schema, name, text=text, high=high) for text, high in notes]
        for name, notes in zip(names, kinds, strict=False)
    ]


def _row(schema: NotesData, name: str, *, text: str, high: bool | None) -> Row:
    return {
        schema.patient_key: name,
        schema.text: text,
        **dict.fromkeys(schema.identifiers, NAME),
        **_label(schema, text, high=high),
        **split_cells(schema.split),
    }


def _label(schema: NotesData, text: str, *, high: bool | None) -> dict[str, str]:
    """The label's cells; with None one that fits nothing."""
    label = schema.label
    if high is None:
        return {label.column: UNREADABLE}
    if isinstance(label, RelationLabel):
        end = max(1, len(text) // 2)
        cell = label.relations[-1] if high else label.none
        return {label.column: cell, label.first: "0-1", label.second: f"{end - 1}-{end}"}
    if isinstance(label, TagLabel):
        tag = label.tags[1] if high else label.tags[0]
        return {label.column: " ".join([tag] * len(text.split()))}
    return label_cells(label, high=high)


def _vocabulary(schema: NotesData) -> Vocabulary | None:
    tokeniser = schema.tokeniser
    return _made_up(tokeniser.pieces) if isinstance(tokeniser, WordPieces) else None


@lru_cache(maxsize=1)
def _made_up(pieces: int) -> Vocabulary:
    """So many pieces: the unknown one, letters at the beginning and inside of a word, the rest."""
    letters = [chr(code) for code in range(33, 127)]
    first = [UNKNOWN, *letters, *(f"##{letter}" for letter in letters)]
    rest = (f"piece{number}" for number in range(pieces))
    return {
        piece: line for line, piece in zip(range(1, pieces + 1), chain(first, rest), strict=False)
    }
