"""Statements that people sign: approvals, grants, revocations (rules 16).

A statement is canonical JSON under an Ed25519 signature of a named person's key. Whether that
person may say it is the business of whoever keeps the list of keys; here a statement is only what
it says, by whose key, and proven.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Protocol, Self

from pydantic import Field, ValidationError, field_validator

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ProtocolError
from fedward_common.ids import DIGEST, Digest
from fedward_common.study.registry import Strict
from fedward_common.trust.signing import key_sha256, verify

MAX_STATEMENT_BYTES: Final = 1 << 16
KIND: Final = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
PERSON: Final = r"^[^\x00-\x1f\x7f\u0080-\u009f\u2028\u2029]{1,120}$"
NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
Fact = str | int | bool | None


class Signer(Protocol):
    """A private key that signs and never leaves."""

    @property
    def public_hex(self) -> str:
        """The public key: 32 raw bytes in hexadecimal."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`."""
        ...


class Statement(Strict):
    """What one person said at one time: `kind`, the facts, who, by which key, since when.

    `facts` are flat and hold no secrets: digests, ids, names, limits.
    """

    format: str = Field(default="fedward-statement/1", pattern=r"^fedward-statement/1$")
    kind: str = Field(pattern=KIND, max_length=64)
    facts: Mapping[str, Annotated[Fact, Field(union_mode="left_to_right")]]
    person: str = Field(pattern=PERSON, description="the name as the list of keys has it")
    public_key: str = Field(pattern=DIGEST, description="Ed25519, 32 raw bytes in hexadecimal")
    said_at: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    signature: str = Field(default="", pattern=r"^([0-9a-f]{128})?$")

    @field_validator("facts")
    @classmethod
    def _small(cls, facts: Mapping[str, Fact]) -> Mapping[str, Fact]:
        if len(facts) > 64 or not all(NAME.fullmatch(name) for name in facts):
            raise ValueError("expected at most 64 facts with names of small letters")
        return dict(facts)

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers: the kind first, so that no statement passes for another."""
        unsigned = self.model_dump(mode="json", exclude={"signature"})
        return f"fedward/statement/v1|{self.kind}|".encode() + canonical_json(unsigned)

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes, signature included."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def sha256(self) -> Digest:
        """The digest of `canonical`."""
        return Digest(sha256_hex(self.canonical))

    @property
    def key_sha256(self) -> Digest:
        """The digest of the signer's public key: how lists of people name a key."""
        return key_sha256(self.public_key)

    @property
    def time(self) -> datetime:
        """When it was said, by the signer's own clock (aware, UTC)."""
        return datetime.strptime(self.said_at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)

    @classmethod
    def sign(
        cls, kind: str, facts: Mapping[str, Fact], *, person: str, key: Signer, now: datetime
    ) -> Self:
        """The statement, signed.

        Raises:
            ValidationError: a kind, fact or name of a form that statements do not have.
        """
        unsigned = cls(
            kind=kind,
            facts=facts,
            person=person,
            public_key=key.public_hex,
            said_at=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        return unsigned.model_copy(update={"signature": key.sign(unsigned.signed_bytes).hex()})

    @classmethod
    def parse(cls, data: bytes, *, kind: str) -> Self:
        """The statement of this kind in `data`, its signature verified by the key it names.

        When it returns: 1. the bytes are one statement in canonical form; 2. of this `kind`;
        3. the key in it signed exactly that. Left to the caller: whether that key may say it.

        Raises:
            ProtocolError: not a statement of this kind.
            SignatureRefused: another key signed it, or something was changed.
        """
        wrong = ProtocolError(f"statement: expected a signed {kind!r}, found something else")
        if len(data) > MAX_STATEMENT_BYTES:
            raise wrong
        try:
            value: Any = json.loads(data)
            statement = cls.model_validate(value)
        except (ValueError, ValidationError, RecursionError) as error:
            raise wrong from error
        if statement.canonical != data or statement.kind != kind or not statement.signature:
            raise wrong
        verify(statement.public_key, bytes.fromhex(statement.signature), statement.signed_bytes)
        return statement
