"""From a site's notes to tensors: each text scrubbed and tokenised by itself (rules 6)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedward_common.errors import DataError
from fedward_common.models.text_objectives import NO_TAG
from fedward_common.notes.pairs import marked_words, pair_ids, place_of
from fedward_common.notes.scrub import scrub, scrub_words
from fedward_common.notes.tokens import Vocabulary, token_ids, word_pieces, words_of
from fedward_common.study.encoding import PatientRecords, TablePart, decimal_number, hash_part
from fedward_common.study.notes import NotesData, RelationLabel, TagLabel, WordPieces
from fedward_common.study.tabular import HashSplit, LabelRule

Row = Mapping[str, str]


@dataclass(slots=True)
class NotesTally:
    """What was found, for the site's own eyes.

    `absent` patients, texts cut off at the tokeniser's end, and how often what was taken out.
    """

    texts: int = 0
    absent: int = 0
    cut: int = 0
    words: list[int] = field(default_factory=list)
    scrubbed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, eq=False)
class _Note:
    part: TablePart
    features: list[int]
    label: list[float]


def encode_notes(
    schema: NotesData,
    rows: Iterable[Row],
    *,
    part: TablePart | None,
    vocabulary: Vocabulary | None,
    strict: bool = False,
    tally: NotesTally | None = None,
) -> PatientRecords:
    """The records of the patients in `part` (None: of all), one per text, grouped by patient.

    features float32 [texts, tokens * ids]; labels [texts], 0 or 1 or the number of a relation, or
    [texts, tokens] with the number of each word's tag. A patient whose rows do not fit counts as
    absent (rules 7).

    Raises:
        DataError: with `strict`, anything that does not fit, or nobody to train on; never a word of
            a note. ConfigError: word pieces without their vocabulary.
    """
    tally = NotesTally() if tally is None else tally
    groups: dict[str, list[_Note]] = {}
    absent: set[str] = set()
    for number, row in enumerate(rows):
        patient = f"#{number}" if schema.no_patient_key else _cell(row, schema.patient_key)
        try:
            note = _note(schema, row, patient=patient, vocabulary=vocabulary, tally=tally)
            groups.setdefault(patient, []).append(note)
        except DataError:
            if strict:
                raise
            absent.add(patient)
    for patient, notes in groups.items():
        if not _agree(schema, notes):
            if strict:
                raise DataError("notes: expected one label and one side of the split per patient")
            absent.add(patient)
    tally.absent += len(absent)
    chosen = {
        patient: notes
        for patient, notes in groups.items()
        if patient not in absent and part in (None, notes[0].part)
    }
    if strict and part == "train" and not chosen:
        raise DataError("notes: expected at least one patient to train on, found none")
    return _records(schema, chosen)


def _note(
    schema: NotesData,
    row: Row,
    *,
    patient: str,
    vocabulary: Vocabulary | None,
    tally: NotesTally,
) -> _Note:
    if not patient:
        raise DataError(f"column {schema.patient_key!r}: expected a patient id in every row")
    own = [_cell(row, name) for name in schema.identifiers]
    text, label = _cell(row, schema.text), schema.label
    if isinstance(label, TagLabel):
        before = text.split()
        words = scrub_words(before, own=own, counts=tally.scrubbed)
        target = _tags(label, _cell(row, label.column), count=len(before))
        if isinstance(schema.tokeniser, WordPieces):
            target = _tags_of_pieces(schema.tokeniser, words, target, vocabulary=vocabulary)
        target = (target + [NO_TAG] * schema.tokeniser.max_tokens)[: schema.tokeniser.max_tokens]
        features, cut = _tokens(schema, words, vocabulary=vocabulary)
    elif isinstance(label, RelationLabel):
        target = [_relation(label, _cell(row, label.column))]
        first, second = (
            place_of(_cell(row, column), column=column, text=text)
            for column in (label.first, label.second)
        )
        words = marked_words(text, (first, second), own=own, counts=tally.scrubbed)
        features, cut = pair_ids(schema.tokeniser, words, vocabulary=vocabulary)
    else:
        words = words_of(scrub(text, own=own, counts=tally.scrubbed))
        target = [_answer(label, _cell(row, label.column))]
        features, cut = _tokens(schema, words, vocabulary=vocabulary)
    tally.texts += 1
    tally.words.append(len(words))
    tally.cut += cut
    part = _part(schema, row, patient=patient)
    return _Note(part=part, features=features, label=target)


def _tokens(
    schema: NotesData, words: Sequence[str], *, vocabulary: Vocabulary | None
) -> tuple[list[int], bool]:
    """The ids of a text's tokens, and whether it was cut off."""
    ids = token_ids(schema.tokeniser, words, vocabulary=vocabulary)
    return ids, len(words) > schema.tokeniser.max_tokens


def _relation(label: RelationLabel, text: str) -> float:
    if text not in label.names:
        raise DataError(
            f"column {label.column!r}: expected {label.none!r} or a relation of the study, found "
            "something else"
        )
    return float(label.names.index(text))


def _answer(rule: LabelRule, text: str) -> float:
    value = decimal_number(text)
    if value is None or value != int(value) or not rule.low <= value <= rule.high:
        raise DataError(
            f"column {rule.column!r}: expected a whole number from {rule.low} to {rule.high} as "
            "label, found something else"
        )
    return 1.0 if value >= rule.positive_from else 0.0


def _tags_of_pieces(
    tokeniser: WordPieces,
    words: Sequence[str],
    tags: Sequence[float],
    *,
    vocabulary: Vocabulary | None,
) -> list[float]:
    """The tag of each word at its first piece, none at the others (Devlin et al. 2019, 5.3)."""
    found: list[float] = []
    for word, tag in zip(words, tags, strict=True):
        pieces = word_pieces(tokeniser, word, vocabulary=vocabulary)
        found += [tag, *[NO_TAG] * (len(pieces) - 1)] if pieces else []
    return found


def _tags(label: TagLabel, text: str, *, count: int) -> list[float]:
    tags, known = text.split(), {tag: float(n) for n, tag in enumerate(label.tags)}
    if len(tags) != count or any(tag not in known for tag in tags):
        raise DataError(
            f"column {label.column!r}: expected one tag of the study for each word, found others"
        )
    return [known[tag] for tag in tags]


def _part(schema: NotesData, row: Row, *, patient: str) -> TablePart:
    if isinstance(schema.split, HashSplit):
        return hash_part(schema.split, patient)
    text = _cell(row, schema.split.column)
    if text not in ("train", "test"):
        raise DataError(f"column {schema.split.column!r}: expected 'train' or 'test'")
    return "train" if text == "train" else "test"


def _agree(schema: NotesData, notes: list[_Note]) -> bool:
    """Whether a patient's notes are on one side and, where the patient has a class, in one."""
    same = (
        isinstance(schema.label, TagLabel | RelationLabel)
        or len({note.label[0] for note in notes}) == 1
    )
    return same and len({note.part for note in notes}) == 1


def _records(schema: NotesData, groups: Mapping[str, list[_Note]]) -> PatientRecords:
    notes = [note for group in groups.values() for note in group]
    sizes = [len(group) for group in groups.values()]
    tagged = isinstance(schema.label, TagLabel)
    width = schema.tokeniser.max_tokens if tagged else 1
    labels = np.array([note.label for note in notes], dtype=np.float32).reshape(-1, width)
    return PatientRecords(
        features=np.array([note.features for note in notes], dtype=np.float32).reshape(
            -1, schema.input_size
        ),
        labels=labels if tagged else labels[:, 0],
        patient=np.repeat(np.arange(len(groups), dtype=np.int64), sizes),
        ids=tuple(groups),
    )


def _cell(row: Row, column: str) -> str:
    return (row.get(column) or "").strip()
