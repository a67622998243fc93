"""Notes as tensors: public tokenisers, tags word by word, a patient alone in what does not fit."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedward_common.errors import ConfigError, DataError
from fedward_common.models.text import PairAnswers, entity_begins
from fedward_common.models.text_objectives import NO_TAG, TaggingObjective, entities, f1_of
from fedward_common.notes.encoding import NotesTally, encode_notes
from fedward_common.notes.pairs import marked_words, pair_ids
from fedward_common.notes.tokens import hashed, read_vocabulary, token_ids, words_of
from fedward_common.study.evaluation import BinnedScores
from fedward_common.study.notes import (
    ByteTokens,
    EntityScores,
    NotesData,
    TagLabel,
    WordPieces,
)

TAGS = TagLabel(column="tags", types=("Disease", "Drug"))
WORDS = {"kind": "hashed-words", "max_tokens": 6, "buckets": 512}


def data(**changes: Any) -> NotesData:
    values = {
        "kind": "notes",
        "tokeniser": WORDS,
        "identifiers": ["name"],
        "label": {"column": "ill", "low": 0, "high": 1, "positive_from": 1},
        "split": {"kind": "column", "column": "split"},
    }
    return NotesData.model_validate(values | changes)


def row(patient: str, text: str, **more: str) -> dict[str, str]:
    return {
        "patient_id": patient,
        "text": text,
        "name": "Keller",
        "ill": "1",
        "split": "train",
    } | more


def test_bytes_are_numbered_from_one_and_what_is_longer_is_cut() -> None:
    assert token_ids(ByteTokens(max_tokens=4), ["ab"], vocabulary=None) == [98, 99, 0, 0]
    assert token_ids(ByteTokens(max_tokens=4), ["abcdef"], vocabulary=None) == [98, 99, 100, 101]


def test_a_word_has_four_public_numbers_that_nobody_s_notes_change() -> None:
    numbers = hashed("BRCA1", buckets=512)

    assert numbers == hashed("BRCA1", buckets=512)
    assert all(1 <= number <= 512 for number in numbers)
    assert hashed("brca1", buckets=512)[:3] == numbers[:3]  # the case is in the form
    assert hashed("brca1", buckets=512)[3] != numbers[3]
    assert hashed("TP53", buckets=512)[3] == numbers[3]


def test_word_pieces_are_the_longest_from_the_left_and_their_file_is_the_study_s(
    tmp_path: Path,
) -> None:
    content = b"[UNK]\nfever\ncou\n##gh\n##s\n"
    (tmp_path / "v.txt").write_bytes(content)
    tokeniser = WordPieces(
        max_tokens=6, vocabulary_sha256=hashlib.sha256(content).hexdigest(), pieces=5
    )
    vocabulary = read_vocabulary(tokeniser, tmp_path / "v.txt")

    assert token_ids(tokeniser, ["Fever", "coughs", "x"], vocabulary=vocabulary) == [
        2,
        3,
        4,
        5,
        1,
        0,
    ]
    (tmp_path / "v.txt").write_bytes(content + b"more\n")
    with pytest.raises(DataError, match="digest"):
        read_vocabulary(tokeniser, tmp_path / "v.txt")
    with pytest.raises(ConfigError, match="vocabulary"):
        token_ids(tokeniser, ["fever"], vocabulary=None)


def test_words_are_those_of_english_and_chinese_and_placeholders() -> None:
    assert words_of("On [DATE], fever 38.5.") == [
        "On", "[DATE]", ",", "fever", "38", ".", "5", ".",
    ]  # fmt: skip
    assert words_of("胸痛 x2") == ["胸", "痛", "x2"]


def test_a_note_is_scrubbed_before_it_is_tokenised() -> None:
    with_name = encode_notes(data(), [row("a", "Mrs Keller coughs")], part="train", vocabulary=None)
    without = encode_notes(data(), [row("a", "Mrs [OWN] coughs")], part="train", vocabulary=None)
    tally = NotesTally()
    encode_notes(
        data(), [row("a", "Keller 2024-01-02")], part="train", vocabulary=None, tally=tally
    )

    np.testing.assert_array_equal(with_name.features, without.features)
    assert tally.scrubbed == {"OWN": 1, "DATE": 1}


def test_a_patient_whose_rows_do_not_fit_is_absent_and_nobody_else_changes() -> None:
    good = [row("a", "coughs"), row("a", "fever"), row("b", "well", ill="0")]
    bad = [row("c", "x", ill="9"), row("d", "x"), row("d", "y", ill="0"), row("e", "x", split="?")]

    alone = encode_notes(data(), good, part="train", vocabulary=None)
    tally = NotesTally()
    together = encode_notes(data(), [*bad, *good], part="train", vocabulary=None, tally=tally)

    assert alone.patient.tolist() == [0, 0, 1]
    assert alone.features.tobytes() == together.features.tobytes()
    assert alone.labels.tobytes() == together.labels.tobytes()
    assert tally.absent == 3
    with pytest.raises(DataError) as refused:
        encode_notes(data(), bad, part="train", vocabulary=None, strict=True)
    assert "9" not in str(refused.value)


def test_tags_follow_their_words_and_end_with_the_text() -> None:
    schema = data(label=TAGS.model_dump(), identifiers=[], no_patient_key=True)
    rows = [{"text": "has lung cancer today", "tags": "O B-Disease I-Disease O", "split": "train"}]

    records = encode_notes(schema, rows, part="train", vocabulary=None)

    assert records.labels.tolist() == [[0.0, 1.0, 2.0, 0.0, NO_TAG, NO_TAG]]
    assert records.features.shape == (1, 24)
    assert (records.features.reshape(6, 4)[4:] == 0).all()
    wrong = [rows[0] | {"tags": "O B-Disease"}]
    assert encode_notes(schema, wrong, part="train", vocabulary=None).patients == 0


def test_the_tag_of_a_word_stands_at_its_first_piece() -> None:
    pieces = ["[UNK]", "lung", "can", "##cer", "is", "in"]
    tokeniser = {
        "kind": "word-pieces",
        "max_tokens": 6,
        "vocabulary_sha256": "0" * 64,
        "pieces": len(pieces),
    }
    schema = data(tokeniser=tokeniser, label=TAGS.model_dump(mode="json"))
    row = {"patient_id": "p1", "text": "lung cancer is in", "split": "train"}
    row["tags"] = "B-Disease I-Disease O O"

    found = encode_notes(
        schema,
        [row],
        part="train",
        vocabulary={piece: number for number, piece in enumerate(pieces, start=1)},
    )

    assert found.features.tolist() == [[2, 3, 4, 5, 6, 0]]
    assert found.labels.tolist() == [[1, 2, NO_TAG, 0, 0, NO_TAG]]
    # A wrong answer at a later piece of a word changes nothing.
    logits = torch.nn.functional.one_hot(torch.tensor([1, 2, 0, 0, 0, 1]), 5).float()
    objective = TaggingObjective(TAGS)
    assert objective.compared(logits, found.labels[0]).tolist() == [1, 0, 0]


def test_entities_are_counted_as_conlleval_counts_them() -> None:
    tags = ["B-Disease", "I-Disease", "B-Disease", "O", "I-Drug", "I-Disease"]

    assert entities(tags) == {
        (0, 2, "Disease"),
        (2, 3, "Disease"),
        (4, 5, "Drug"),
        (5, 6, "Disease"),
    }
    assert f1_of(2, 1, 1) == pytest.approx(2 / 3)
    assert f1_of(0, 0, 0) == 0.0


def test_a_text_marks_what_is_right_wrong_and_missed() -> None:
    objective = TaggingObjective(TAGS)
    labels = np.array([1, 2, 0, 3, NO_TAG], dtype=np.float32)
    said = torch.zeros(1, 5, 5)
    for word, tag in enumerate((1, 2, 1, 0, 1)):  # the last is beyond the text
        said[0, word, tag] = 5.0

    places = objective.places(said, labels, EntityScores(bins=4, noise_multiplier=1.0))

    assert places.tolist() == [1, 4 + 1, 8 + 1]
    with pytest.raises(ConfigError, match="entity-scores"):
        objective.places(said, labels, BinnedScores(bins=4, noise_multiplier=1.0))


def test_the_loss_of_a_text_is_the_mean_over_its_own_words() -> None:
    objective = TaggingObjective(TAGS)
    outputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[0.0, 1.0, NO_TAG, NO_TAG], [2.0, 0.0, 3.0, 4.0]])

    losses = objective.losses(outputs, labels)

    expected = torch.nn.functional.cross_entropy(outputs[0, :2], torch.tensor([0, 1]))
    assert losses[0] == pytest.approx(float(expected))


def test_a_row_number_is_not_hashed_for_want_of_a_patient() -> None:
    """A patient who is removed would move others between the parts (rules 6)."""
    split = {"kind": "hash", "salt": "s", "held_out": 0.2}
    data(split=split)

    with pytest.raises(ValueError, match="no patient has an id to be hashed"):
        data(split=split, no_patient_key=True)


def test_marks_stand_around_both_entities_of_the_scrubbed_text() -> None:
    text = "Keller, seen 2001-02-03, had fever after aspirin"
    drug = (text.index("aspirin"), len(text))
    problem = (text.index("fever"), text.index("fever") + 5)
    counts: Counter[str] = Counter()

    words = marked_words(text, (drug, problem), own=["Keller"], counts=counts)

    assert " ".join(words) == (
        "[OWN] , seen [DATE] , had [E2] fever [/E2] after [E1] aspirin [/E1]"
    )
    assert counts == {"OWN": 1, "DATE": 1}


def test_no_mark_splits_what_identifies_somebody() -> None:
    """A place inside of a date or a name moves to its edge; the recognisers see the whole text."""
    text = "on 2001-02-03 with Keller"
    words = marked_words(text, ((5, 8), (10, 22)), own=["Keller"], counts=Counter())

    assert words == ["on", "[E1]", "[E2]", "[DATE]", "[/E1]", "with", "[OWN]", "[/E2]"]
    assert words_of("a [E1] b") == ["a", "[", "E1", "]", "b"]  # nobody writes a mark by hand


def test_marks_have_ids_of_their_own_and_the_tokens_about_them_are_kept() -> None:
    tokeniser = ByteTokens(max_tokens=8)
    words = ["far"] * 9 + ["[E1]", "a", "[/E1]", "[E2]", "b", "[/E2]"] + ["far"] * 9

    ids, cut = pair_ids(tokeniser, words, vocabulary=None)
    apart, _ = pair_ids(
        tokeniser, ["[E1]", "a", "[/E1]", *["far"] * 9, "[E2]", "b", "[/E2]"], vocabulary=None
    )

    assert cut
    assert ids == [257, 33, 98, 258, 259, 33, 99, 260]
    assert apart[:4] == [257, 33, 98, 258]
    assert not {259, 260} & set(apart)


def test_the_state_of_a_pair_is_that_of_the_two_beginnings() -> None:
    features = torch.tensor([[5.0, 7.0, 1.0, 9.0], [7.0, 0.0, 0.0, 0.0]])

    begins = entity_begins(features, ids=1, size=11)

    assert begins[0].tolist() == [[False, True, False, False], [False, False, False, True]]
    assert not begins[1, 1].any()
    states = torch.arange(16.0).reshape(2, 4, 2)
    answers = PairAnswers(2, 4)
    with torch.no_grad():
        answers.linear.weight.copy_(torch.eye(4))
        answers.linear.bias.zero_()
        assert answers(states, begins.float()).tolist() == [[2, 3, 6, 7], [8, 9, 0, 0]]
