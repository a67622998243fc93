"""The variants about biological sequences: one task, and how letters become numbers.

Alphabets are those of IUPAC (NC-IUB 1985; IUPAC-IUB 1984). Nothing is learned from a site's
sequences: length, alphabet and tokens are public constants of the study (rules 6).
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fedward_common.study.imaging import MAX_LABELS, ClassLabel, Weight
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.registry import Strict, TaskSpec, register
from fedward_common.study.tabular import LabelRule, Name

Alphabet = Literal["dna", "rna", "protein"]

LETTERS: Final[dict[Alphabet, str]] = {
    "dna": "ACGT",
    "rna": "ACGU",
    "protein": "ACDEFGHIKLMNPQRSTVWY",
}
_DNA: Final = {
    "R": "AG",
    "Y": "CT",
    "S": "CG",
    "W": "AT",
    "K": "GT",
    "M": "AC",
    "B": "CGT",
    "D": "AGT",
    "H": "ACT",
    "V": "ACG",
    "N": "ACGT",
}
AMBIGUOUS: Final[dict[Alphabet, dict[str, str]]] = {
    "dna": _DNA,
    "rna": {code: letters.replace("T", "U") for code, letters in _DNA.items()},
    "protein": {"B": "DN", "Z": "EQ", "J": "IL", "X": LETTERS["protein"]},
}
"""A code of IUPAC -> the letters it stands for."""
MOST_KMERS: Final = 65_000
MOST_INPUTS: Final = 1 << 20


@register
class SequenceClassification(TaskSpec):
    """One of two or of several classes from a sequence, each with its weight (none: 1 each)."""

    kind: Literal["sequence-classification"] = "sequence-classification"
    class_weights: tuple[Weight, ...] = Field(default=(), max_length=MAX_LABELS, strict=False)


class OneHot(Strict):
    """A number for each letter at each place: 1 for the letter that stands there."""

    kind: Literal["one-hot"] = "one-hot"


class KMers(Strict):
    """Words of `k` letters, every `stride` places: 0 is nothing, 1 a word with an unknown letter,
    and the words in the order of the alphabet follow.
    """

    kind: Literal["k-mers"] = "k-mers"
    k: int = Field(ge=1, le=8)
    stride: int = Field(default=1, ge=1, le=8)


class Letters(Strict):
    """Sequences of one alphabet and length, in a column of a table or in a FASTA file beside it.

    With a FASTA file (`fasta` of a site's [[data]]) the column holds the names of its records.
    `other_lengths`: `refuse`, or `fit`: what is longer is cut off, what is shorter is filled up
    with nothing. `ambiguous` codes (N, R, X, ...): `share` their letters in equal parts, count as
    `unknown`, or are refused. Small letters (masked repeats) are letters.
    """

    sequence: Name = "sequence"
    alphabet: Alphabet
    length: int = Field(ge=1, le=65_536)
    encoding: Annotated[OneHot | KMers, Field(discriminator="kind")]
    other_lengths: Literal["refuse", "fit"] = "refuse"
    ambiguous: Literal["share", "unknown", "refuse"] = "share"

    @property
    def letters(self) -> str:
        """The alphabet, in the order of the inputs."""
        return LETTERS[self.alphabet]

    @property
    def tokens(self) -> int:
        """How many words a sequence has; 0 of single letters."""
        if isinstance(self.encoding, OneHot):
            return 0
        return (self.length - self.encoding.k) // self.encoding.stride + 1

    @property
    def token_size(self) -> int:
        """Different numbers of a word: nothing, unknown, and every word; 0 of single letters."""
        if isinstance(self.encoding, OneHot):
            return 0
        return 2 + int(len(self.letters) ** self.encoding.k)

    @property
    def input_size(self) -> int:
        """Places times letters, or the words."""
        return self.tokens or self.length * len(self.letters)

    @model_validator(mode="after")
    def _codable(self) -> Self:
        if isinstance(self.encoding, KMers):
            if self.encoding.k > self.length:
                raise ValueError("encoding.k: expected at most the length")
            if self.token_size > MOST_KMERS:
                raise ValueError(f"encoding.k: expected at most {MOST_KMERS} different words")
            if self.ambiguous == "share":
                raise ValueError(
                    "ambiguous: expected unknown or refuse with k-mers, which have no shares"
                )
        if self.input_size > MOST_INPUTS:
            raise ValueError(f"length: expected at most {MOST_INPUTS} inputs")
        return self


@register
class SequenceData(Letters, LabelledRows):
    """Sequences with a label."""

    kind: Literal["sequence"] = "sequence"

    @property
    def is_genomic(self) -> bool:
        """They are."""
        return True

    @property
    def what(self) -> Literal["sequences"]:
        """Sequences."""
        return "sequences"

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The sequence, or its name in the FASTA file."""
        return (self.sequence,)

    @property
    def own_labels(self) -> tuple[type[object], ...]:
        """A binary answer or one of several classes."""
        return (LabelRule, ClassLabel)
