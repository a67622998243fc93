"""The variants about clinical notes: three tasks, and how notes become numbers.

A tokeniser is a public constant of the study. None of the three kinds learns anything from a site's
notes (rules 6): bytes and hashed words need no vocabulary, word pieces name theirs by its digest.
"""

from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fedward_common.ids import DIGEST
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.imaging import MAX_LABELS, Weight
from fedward_common.study.registry import DataSpec, Strict, TaskSpec, register
from fedward_common.study.tabular import ColumnSplit, LabelRule, Name, Split, require_hashable

MAX_TOKENS: Final = 4096
Tokens = Annotated[int, Field(ge=4, le=MAX_TOKENS, description="what is longer is cut off")]
MARKS: Final = ("[E1]", "[/E1]", "[E2]", "[/E2]")
"""Where the entities of a pair begin and end: ids of their own after the tokeniser's."""
EntityType = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$")]


@register
class TextClassification(TaskSpec):
    """A binary answer about a patient from notes: cross-entropy on one logit."""

    kind: Literal["text-classification"] = "text-classification"


@register
class TextNer(TaskSpec):
    """Where entities are in a text: cross-entropy on the tag of each word, the mean over a text."""

    kind: Literal["text-ner"] = "text-ner"


@register
class TextRelations(TaskSpec):
    """How two marked entities of a text are related, if at all: cross-entropy over the relations.

    Each class has its weight of `class_weights`, public constants (rules 6), the first that of
    none. None: 1 each.
    """

    kind: Literal["text-relations"] = "text-relations"
    class_weights: tuple[Weight, ...] = Field(default=(), max_length=MAX_LABELS, strict=False)


class ByteTokens(Strict):
    """The bytes of the text in UTF-8: 256 tokens in any language."""

    kind: Literal["bytes"] = "bytes"
    max_tokens: Tokens

    @property
    def ids(self) -> int:
        """Ids of one token."""
        return 1

    @property
    def size(self) -> int:
        """Different values of an id; 0 is nothing."""
        return 257


class HashedWords(Strict):
    """Words by four public hashes each: the word, its first and last three letters, its form.

    Two words may share a number; more `buckets` make that rarer. A Chinese character is a word.
    """

    kind: Literal["hashed-words"] = "hashed-words"
    max_tokens: Tokens
    buckets: int = Field(ge=64, le=65535)

    @property
    def ids(self) -> int:
        """Ids of one token."""
        return 4

    @property
    def size(self) -> int:
        """Different values of an id; 0 is nothing."""
        return self.buckets + 1


class WordPieces(Strict):
    """The longest pieces of a vocabulary file (one piece a line, `##` inside a word), as BERT's.

    The file is at every site (`vocabulary` of [[data]]); another one than that of the digest is
    refused. A word without pieces is `[UNK]`.
    """

    kind: Literal["word-pieces"] = "word-pieces"
    max_tokens: Tokens
    vocabulary_sha256: str = Field(pattern=DIGEST)
    pieces: int = Field(ge=2, le=65535, description="lines of the file")
    lower_case: bool = True

    @property
    def ids(self) -> int:
        """Ids of one token."""
        return 1

    @property
    def size(self) -> int:
        """Different values of an id; 0 is nothing."""
        return self.pieces + 1


Tokeniser = Annotated[ByteTokens | HashedWords | WordPieces, Field(discriminator="kind")]


class TagLabel(Strict):
    """Tags of the words, separated by blanks as the words are: O, B-type and I-type (IOB2)."""

    column: Name
    types: tuple[EntityType, ...] = Field(min_length=1, max_length=16, strict=False)

    @model_validator(mode="after")
    def _each_once(self) -> "TagLabel":
        if len(set(self.types)) != len(self.types):
            raise ValueError("types: expected each once")
        return self

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags in the order of a model's outputs."""
        return ("O", *(f"{mark}-{kind}" for kind in self.types for mark in "BI"))


class RelationLabel(Strict):
    """How the entities in the columns `first` and `second` of a row are related.

    Both cells are a place in the text as it is in the table, without blanks before it: the first
    character and the one after the last, counted from 0, such as `12-19`. A text with several pairs
    has a row for each. `none` in `column` says that they are not related; class 0. What is neither
    is refused.
    """

    column: Name
    first: Name
    second: Name
    relations: tuple[EntityType, ...] = Field(min_length=1, max_length=MAX_LABELS - 1, strict=False)
    none: EntityType = "none"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.column, self.first, self.second)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of a model's outputs."""
        return (self.none, *self.relations)

    @model_validator(mode="after")
    def _each_once(self) -> "RelationLabel":
        if len(set(self.names)) != len(self.names):
            raise ValueError("relations: expected each once, and none of them called as `none`")
        return self


def _label_kind(value: object) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    if "relations" in keys or isinstance(value, RelationLabel):
        return "relation"
    return "tags" if "types" in keys or isinstance(value, TagLabel) else "rule"


NoteLabel = Annotated[
    Annotated[LabelRule, Tag("rule")]
    | Annotated[TagLabel, Tag("tags")]
    | Annotated[RelationLabel, Tag("relation")],
    Discriminator(_label_kind),
]


@register
class NotesData(DataSpec):
    """Notes in a table: who is one patient, the text, the label.

    Every note is scrubbed before it is tokenised: the patient's own `identifiers` (columns of the
    same table, such as name and number) and what looks like a phone number, an address of the net,
    a date or an id become one placeholder each. `no_patient_key`: the set does not say whose a text
    is; then every text counts as a patient of its own and the unit is `record` (rules 10).
    """

    kind: Literal["notes"] = "notes"
    patient_key: Name = "patient_id"
    no_patient_key: bool = False
    text: Name = "text"
    identifiers: tuple[Name, ...] = Field(default=(), max_length=16, strict=False)
    tokeniser: Tokeniser
    label: NoteLabel
    split: Split

    @property
    def input_size(self) -> int:
        """The number of inputs of a model: the ids of all tokens."""
        return self.tokeniser.max_tokens * self.tokeniser.ids

    @property
    def token_size(self) -> int:
        """Different values of an id: the tokeniser's, then those of the marks of a pair."""
        marks = len(MARKS) if isinstance(self.label, RelationLabel) else 0
        return self.tokeniser.size + marks

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, where there are some with names."""
        return self.label.names if isinstance(self.label, RelationLabel) else ()

    @property
    def outputs(self) -> int:
        """How many numbers a model puts out for a text, or of tags for a word."""
        return len(self.label.tags) if isinstance(self.label, TagLabel) else len(self.names) or 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns that are read."""
        split = (self.split.column,) if isinstance(self.split, ColumnSplit) else ()
        key = () if self.no_patient_key else (self.patient_key,)
        pair = self.label.columns if isinstance(self.label, RelationLabel) else ()
        return (*key, self.text, *self.identifiers, *(pair or (self.label.column,)), *split)

    @model_validator(mode="after")
    def _consistent(self) -> "NotesData":
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("expected every column name once")
        require_hashable(self.split, no_patient_key=self.no_patient_key)
        if isinstance(self.label, TagLabel) and isinstance(self.tokeniser, ByteTokens):
            raise ValueError(
                "tokeniser: expected hashed-words or word-pieces with tags, which are of words"
            )
        return self


@register
class EntityScores(EvaluationRelease):
    """Evaluation of `text-ner`, once: held-out texts by how many entities were found rightly (row
    0), found wrongly (row 1) and missed (row 2); the last bin holds that many and more.
    """

    kind: Literal["entity-scores"] = "entity-scores"

    @property
    def rows(self) -> int:
        """Right, wrong, missed."""
        return 3

    @property
    def marks(self) -> int:
        """One in each row."""
        return 3

    @property
    def counted(self) -> str:
        """What is counted, in words for a hospital."""
        return f"held-out texts by entities found, wrongly found and missed, up to {self.bins - 1}"
