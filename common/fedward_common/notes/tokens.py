"""From the text of a note to the ids of its tokens, by the study's public tokeniser."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError, DataError
from fedward_common.study.notes import ByteTokens, HashedWords, Tokeniser, WordPieces

SALT: Final = b"fedward/hashed-words/v1"
UNKNOWN: Final = "[UNK]"
LONGEST_WORD: Final = 64
_WORDS: Final = re.compile(r"\[[A-Z]+\]|[㐀-鿿]|\w+|[^\w\s]")

Vocabulary = dict[str, int]
"""Piece -> its line in the file, counted from 1: 0 stands for nothing."""


def words_of(text: str) -> list[str]:
    """Words, single Chinese characters, punctuation marks and placeholders such as [DATE]."""
    return _WORDS.findall(text)


def token_ids(
    tokeniser: Tokeniser, words: Sequence[str], *, vocabulary: Vocabulary | None
) -> list[int]:
    """The ids of all tokens behind each other, `max_tokens` x `ids` numbers, 0 after the end.

    Raises:
        ConfigError: word pieces without their vocabulary.
    """
    match tokeniser:
        case ByteTokens():
            found = [byte + 1 for byte in " ".join(words).encode()[: tokeniser.max_tokens]]
        case HashedWords():
            found = [
                number
                for word in words[: tokeniser.max_tokens]
                for number in hashed(word, buckets=tokeniser.buckets)
            ]
        case WordPieces():
            pieces: list[int] = []
            for word in words:
                pieces += word_pieces(tokeniser, word, vocabulary=vocabulary)
                if len(pieces) >= tokeniser.max_tokens:
                    break
            found = pieces[: tokeniser.max_tokens]
    return found + [0] * (tokeniser.max_tokens * tokeniser.ids - len(found))


def word_tokens(
    tokeniser: Tokeniser, word: str, *, vocabulary: Vocabulary | None
) -> list[tuple[int, ...]]:
    """The ids of each token of a word that others stand before and after.

    Raises:
        ConfigError: as `token_ids`.
    """
    match tokeniser:
        case ByteTokens():
            return [(byte + 1,) for byte in f" {word}".encode()]
        case HashedWords():
            return [hashed(word, buckets=tokeniser.buckets)]
        case WordPieces():
            pieces = word_pieces(tokeniser, word, vocabulary=vocabulary)
            return [(piece,) for piece in pieces]


def word_pieces(tokeniser: WordPieces, word: str, *, vocabulary: Vocabulary | None) -> list[int]:
    """The pieces of a word. Raises ConfigError without a vocabulary."""
    if vocabulary is None:
        raise ConfigError("tokeniser: expected the vocabulary of its digest, found none")
    return _pieces(word.lower() if tokeniser.lower_case else word, vocabulary)


def hashed(word: str, *, buckets: int) -> tuple[int, int, int, int]:
    """Four numbers from 1 to `buckets`: of the word, its beginning, its end and its form."""
    low = word.lower()
    return (
        _bucket("w", low, buckets),
        _bucket("p", low[:3], buckets),
        _bucket("s", low[-3:], buckets),
        _bucket("f", _form(word), buckets),
    )


def read_vocabulary(tokeniser: Tokeniser, path: Path | None) -> Vocabulary | None:
    """The vocabulary that a tokeniser names by its digest; None for one that needs none.

    Raises:
        DataError: no such file, or another one than the study's.
    """
    if not isinstance(tokeniser, WordPieces):
        return None
    try:
        content = b"" if path is None else path.read_bytes()
    except OSError as error:
        raise DataError(
            f"vocabulary: expected a file that can be read, found {type(error).__name__}"
        ) from None
    if sha256_hex(content) != tokeniser.vocabulary_sha256:
        raise DataError(
            "vocabulary: expected the file of the digest in the study, found another; set "
            "vocabulary in [[data]] of site.toml to the study's"
        )
    lines = content.decode("utf-8", errors="replace").splitlines()
    if len(lines) != tokeniser.pieces:
        raise DataError(
            f"vocabulary: expected {tokeniser.pieces} lines, as the study says, found {len(lines)}"
        )
    return {line: number for number, line in enumerate(lines, start=1)}


def _pieces(word: str, vocabulary: Vocabulary) -> list[int]:
    """The longest pieces from the left; the unknown piece where one is missing."""
    unknown = [vocabulary[UNKNOWN]] if UNKNOWN in vocabulary else []
    if len(word) > LONGEST_WORD:
        return unknown
    found, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if mark + word[start:end] in vocabulary), None)
        if end is None:
            return unknown
        found.append(vocabulary[mark + word[start:end]])
        start = end
    return found


def _bucket(kind: str, text: str, buckets: int) -> int:
    digest = hashlib.blake2b(f"{kind}|{text}".encode(), digest_size=8, key=SALT).digest()
    return int.from_bytes(digest, "big") % buckets + 1


def _form(word: str) -> str:
    """Letters, digits and signs, each run of one kind once: `BRCA1` is `A0`, `p53` is `a0`."""
    kinds = [
        "A" if c.isupper() else "a" if c.isalpha() else "0" if c.isdigit() else "." for c in word
    ]
    return "".join(c for n, c in enumerate(kinds) if not n or kinds[n - 1] != c)
