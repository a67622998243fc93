"""From the letters of a sequence to numbers, and FASTA files."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedward_common.errors import DataError
from fedward_common.study.row_encoding import Floats, Row, cell
from fedward_common.study.sequence import AMBIGUOUS, KMers, Letters

Fasta = Mapping[str, str | None]
"""Name of a record -> its letters; None for a name that stands there more than once."""


def sequence_features(schema: Letters, fasta: Fasta | None = None) -> Callable[[Row], Floats]:
    """A function from a row to the numbers of its sequence, which is in the row or in `fasta`."""

    def features(row: Row) -> Floats:
        text = sequence_text(schema, row, fasta)
        if text is None:
            raise DataError(
                f"column {schema.sequence!r}: expected the name of exactly one record of the FASTA "
                "file, found none or several"
            )
        return encode_sequence(schema, text)

    return features


def sequence_text(schema: Letters, row: Row, fasta: Fasta | None) -> str | None:
    """The letters of a row; None where the FASTA file has none or several of that name."""
    text = cell(row, schema.sequence)
    return text if fasta is None else fasta.get(text)


def encode_sequence(schema: Letters, text: str) -> Floats:
    """The inputs of one sequence, float32 [inputs].

    Raises:
        DataError: another length or a letter that is not of the alphabet, by the study's rules;
            names the alphabet and never a letter of the sequence.
    """
    letters = text.upper()
    if schema.other_lengths == "refuse" and len(letters) != schema.length:
        raise DataError(
            f"column {schema.sequence!r}: expected {schema.length} letters in every sequence, "
            "found another number"
        )
    letters = letters[: schema.length]
    _check_letters(schema, letters)
    if isinstance(schema.encoding, KMers):
        return _words(schema, letters, schema.encoding)
    table = _shares(schema)
    places = np.zeros((schema.length, len(schema.letters)), dtype=np.float32)
    if letters:
        places[: len(letters)] = table[np.frombuffer(letters.encode("ascii"), dtype=np.uint8)]
    return places.ravel()


def read_fasta(path: Path) -> dict[str, str | None]:
    """The records of a FASTA file by the first word of their headers.

    A name that stands there twice has no letters: whose they are cannot be known. Bytes that are
    no text stay in the record where they are, which they make unreadable, and touch no other.

    Raises:
        DataError: no such file, or letters before the first header; no word of a header or letter
            is in it.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise DataError(
            "sequences: expected the FASTA file that [[data]] in site.toml names, found no such "
            "file"
        ) from error
    except OSError as error:
        raise DataError(
            f"sequences: expected a readable FASTA file, found {type(error).__name__}"
        ) from None
    parts: dict[str, list[str]] = {}
    twice: set[str] = set()
    here: list[str] | None = None
    for line in lines:
        # Reversible, so that two names that are no text do not become one.
        text = line.decode("utf-8", "surrogateescape").strip()
        if text.startswith(">"):
            name = (text[1:].split() or [""])[0]
            if name in parts:
                twice.add(name)
            here = parts.setdefault(name, [])
        elif text and here is None:
            raise DataError("sequences: expected a FASTA file that begins with '>', found letters")
        elif text and here is not None and not text.startswith(";"):
            here.append("".join(text.split()))
    return {name: None if name in twice else "".join(found) for name, found in parts.items()}


def _check_letters(schema: Letters, letters: str) -> None:
    known = set(schema.letters)
    if schema.ambiguous != "refuse":
        known |= AMBIGUOUS[schema.alphabet].keys()
    if not set(letters) <= known:
        codes = "" if schema.ambiguous == "refuse" else " or IUPAC codes for several of them"
        raise DataError(
            f"column {schema.sequence!r}: expected letters of {schema.alphabet} "
            f"({schema.letters}){codes}, found another"
        )


@lru_cache(maxsize=8)
def _shares(schema: Letters) -> npt.NDArray[np.float32]:
    """For each byte its part in each letter, [128, letters]: equal parts of an ambiguous code."""
    table = np.zeros((128, len(schema.letters)), dtype=np.float32)
    for number, letter in enumerate(schema.letters):
        table[ord(letter), number] = 1.0
    if schema.ambiguous == "share":
        for code, of in AMBIGUOUS[schema.alphabet].items():
            for letter in of:
                table[ord(code), schema.letters.index(letter)] = 1.0 / len(of)
    return table


def _words(schema: Letters, letters: str, encoding: KMers) -> Floats:
    numbers = {letter: number for number, letter in enumerate(schema.letters)}
    found = np.zeros(schema.tokens, dtype=np.float32)
    for place in range(schema.tokens):
        word = letters[place * encoding.stride : place * encoding.stride + encoding.k]
        if len(word) < encoding.k:
            break
        codes = [numbers.get(letter) for letter in word]
        known = [code for code in codes if code is not None]
        value = 0
        for code in known:
            value = value * len(schema.letters) + code
        found[place] = 2 + value if len(known) == encoding.k else 1
    return found
