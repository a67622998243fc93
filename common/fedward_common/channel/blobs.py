"""Blobs: what names a tensor that is too large for a message, and which of its chunks are there.

A message carries a manifest in place of the bytes. A blob is known by the digest of its manifest,
which holds the digest of every chunk: whoever has the id can prove each chunk as it comes, and
nothing that is proven has to be read again. Values only, no I/O.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

from pydantic import Field, ValidationError, model_validator

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ProtocolError
from fedward_common.ids import DIGEST, Digest
from fedward_common.study.registry import Strict
from fedward_common.wire import Envelope, Octets

SERVICE: Final = "fedward.channel.v1.FedwardBlobs"
FETCH_METHOD: Final = f"/{SERVICE}/Fetch"
SEND_METHOD: Final = f"/{SERVICE}/Send"
ROUTE: Final = "blob"
"""How logs and journals name what passes as a blob."""
BLOB: Final = "blob"
REST: Final = "blob-rest"
"""Kinds of objects in logs and journals: a whole blob, and what a cut left of one."""

INLINE_BYTES: Final = 4 << 20
"""What is larger than this travels as a blob; the adapters put what is smaller into one record."""
CHUNK_BYTES: Final = 1 << 20
"""A slow line proves and keeps a chunk every few seconds; a hundred sites at once stay small."""
MAX_BLOB_BYTES: Final = 4 << 30
SUFFIX: Final = ".manifest"

_FORMAT: Final = "fedward-blob/1"
_CHUNKS: Final = MAX_BLOB_BYTES // CHUNK_BYTES


class Manifest(Strict):
    """The size of a blob and the SHA-256 of each of its chunks; all but the last are CHUNK_BYTES.

    `study` says to which study's exchange it belongs; it is no part of the id, so that the same
    bytes have the same id everywhere.
    """

    study: str = Field(pattern=DIGEST)
    size: int = Field(ge=1, le=MAX_BLOB_BYTES)
    chunks: tuple[str, ...] = Field(min_length=1, max_length=_CHUNKS, strict=False)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if len(self.chunks) != -(-self.size // CHUNK_BYTES):
            raise ValueError("expected a digest for each chunk")
        if any(len(one) != 64 or not set(one) <= set("0123456789abcdef") for one in self.chunks):
            raise ValueError("expected digests of chunks")
        return self

    @property
    def id(self) -> Digest:
        """The digest that names the blob: of its size and its chunks."""
        facts = {"format": _FORMAT, "size": self.size, "chunks": list(self.chunks)}
        return Digest(sha256_hex(canonical_json(facts)))

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes that travel in a message."""
        return canonical_json(self.model_dump(mode="json"))

    def length(self, number: int) -> int:
        """The bytes of a chunk."""
        return min(CHUNK_BYTES, self.size - number * CHUNK_BYTES)

    def check(self, number: int, content: bytes) -> None:
        """Returns when `content` is the chunk of that number.

        Raises:
            ProtocolError: there is none of that number, or its bytes are others.
        """
        if number >= len(self.chunks) or len(content) != self.length(number):
            raise ProtocolError("blob: expected a whole chunk of it, found something else")
        if sha256_hex(content) != self.chunks[number]:
            raise ProtocolError("blob: expected the bytes of the chunk's digest, found others")

    @classmethod
    def parse(cls, data: Octets) -> Self:
        """The manifest in `data`, which has to be in its canonical form. Raises ProtocolError."""
        try:
            value: Any = json.loads(bytes(data))
            manifest = cls.model_validate(value)
        except (ValueError, ValidationError, RecursionError) as error:
            raise ProtocolError("blob: expected a manifest, found something else") from error
        if manifest.canonical != data:
            raise ProtocolError("blob: expected a manifest in its canonical form, found another")
        return manifest


def manifest_of(study: str, data: Octets) -> Manifest:
    """The manifest of `data`, at least one byte."""
    view = memoryview(data)
    chunks = tuple(
        hashlib.sha256(view[start : start + CHUNK_BYTES]).hexdigest()
        for start in range(0, len(view), CHUNK_BYTES)
    )
    return Manifest(study=study, size=len(view), chunks=chunks)


class Have:
    """Which chunks of a blob are there."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._bits = bytearray(-(-count // 8))
        self._left = count

    @classmethod
    def parse(cls, bits: bytes, count: int) -> Self:
        """What the other side has. Raises ProtocolError when it is not about `count` chunks."""
        have = cls(count)
        if len(bits) != len(have._bits):
            raise ProtocolError("blob: expected a bit for each chunk, found another number")
        for number in range(count):
            if bits[number // 8] >> number % 8 & 1:
                have.add(number)
        if bytes(have._bits) != bits:
            raise ProtocolError("blob: expected no bits beyond the last chunk, found some")
        return have

    def __contains__(self, number: int) -> bool:
        """Whether a chunk is there."""
        return bool(self._bits[number // 8] >> number % 8 & 1)

    def add(self, number: int) -> None:
        """A chunk is there."""
        if number not in self:
            self._bits[number // 8] |= 1 << number % 8
            self._left -= 1

    @property
    def bits(self) -> bytes:
        """As it travels."""
        return bytes(self._bits)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return not self._left

    @property
    def none(self) -> bool:
        """Whether nothing is there."""
        return self._left == self._count

    def missing(self) -> Iterator[int]:
        """The numbers of the chunks that are not there."""
        return (number for number in range(self._count) if number not in self)

    def missing_bytes(self, manifest: Manifest) -> int:
        """How many bytes are not there."""
        return sum(manifest.length(number) for number in self.missing())


def in_transit(envelope: Envelope, study: str, *, inline: int = INLINE_BYTES) -> Envelope:
    """The envelope as a message carries it: a manifest in place of each blob over `inline` bytes.

    Equal envelopes give equal ones.
    """
    blobs: dict[str, Octets] = {}
    for name, data in envelope.blobs.items():
        if len(data) > inline:
            blobs[name + SUFFIX] = manifest_of(study, data).canonical
        else:
            blobs[name] = data
    return Envelope(header=envelope.header, blobs=blobs)


def manifests_in(blobs: Mapping[str, Octets]) -> dict[str, Manifest]:
    """The manifests among the blobs of a message, by the names of what they stand for.

    Raises:
        ProtocolError: one is no manifest, or stands for a blob that is there too.
    """
    found: dict[str, Manifest] = {}
    for name, data in blobs.items():
        if name.endswith(SUFFIX):
            stands_for = name.removesuffix(SUFFIX)
            if stands_for in blobs or not stands_for:
                raise ProtocolError("blob: expected either a blob or its manifest, found both")
            found[stands_for] = Manifest.parse(data)
    return found


def with_blobs(envelope: Envelope, contents: Mapping[str, Octets]) -> Envelope:
    """The envelope with the blobs that its manifests stand for, each by its name."""
    rest = {name: data for name, data in envelope.blobs.items() if not name.endswith(SUFFIX)}
    return Envelope(header=envelope.header, blobs={**rest, **contents})
