"""What crosses the network, as values with one byte form each.

A message is an `Envelope`: a canonical JSON header and named blobs. How Flower carries an envelope
is the business of the two Flower adapters.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import Field, ValidationError

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import REFUSAL_CODES, ProtocolError
from fedward_common.ids import DIGEST, LABEL, Digest
from fedward_common.study.registry import Extensible, Strict

PROTOCOL = "fedward-wire/1"
MAX_HEADER_BYTES = 1 << 20

T = TypeVar("T", bound=Strict)

Octets = bytes | memoryview
"""Bytes in memory, or those of a file that is mapped into it (`channel/blobs.py`)."""

Kind = Literal["train", "evaluate", "statistics", "advertise", "share", "sign", "unmask", "phase"]
"""What an instruction asks for. A statistics instruction's round counts the study's releases; that
of the four steps of secure aggregation counts its secret sums. A phase instruction opens a phase:
it costs nothing, and its answer, when the phase is over, is empty."""
ReplyKind = Literal[
    "train", "evaluate", "statistics", "advertise", "share", "sign", "unmask", "phase", "refusal"
]
KNOWN_ROWS: Final = "known-rows"
"""The name of the blob with `KnownRows`."""
CONTROL_KINDS: Final[frozenset[Kind]] = frozenset({"advertise", "share", "sign", "unmask"})
"""Steps of secure aggregation without patient data: nothing is charged for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """A header (canonical JSON) and blobs by name."""

    header: bytes
    blobs: Mapping[str, Octets] = field(default_factory=dict)


class Instruction(Strict):
    """What the coordinator asks of a site in one round: the idempotency key of rules 5."""

    protocol: Literal["fedward-wire/1"] = "fedward-wire/1"
    kind: Kind
    study: str = Field(pattern=DIGEST)
    round: int = Field(ge=1, lt=2**31)
    attempt: int = Field(ge=0, lt=2**31)
    model_sha256: str = Field(pattern=DIGEST)
    cohort: tuple[str, ...] = Field(min_length=1, strict=False)
    roster_sha256: str = Field(pattern=DIGEST)

    @property
    def key(self) -> Digest:
        """The idempotency key: same key, same stored bytes; same slot with another key: refused."""
        return Digest(sha256_hex(self.canonical))

    @property
    def slot(self) -> str:
        """(study, kind, round): what a site answers once and only once."""
        return f"{self.study}/{self.kind}/{self.round}"

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes of the instruction."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, header: bytes) -> Self:
        """The instruction in `header`. Raises ProtocolError when it is not exactly one."""
        return _parse(cls, header)


class Reply(Extensible):
    """What a site answers, signed by its key: a payload named by its digest, or a refusal code.

    A training reply carries no loss, count, gradient norm or timing (rules 7). The head of the
    site's ledger goes with it, so that the coordinator can tell when an older ledger was put back:
    a row number and a hash that the guard computes, and nothing that a worker could choose.
    """

    added: ClassVar[frozenset[str]] = frozenset({"ledger_seq", "ledger_sha256"})

    protocol: Literal["fedward-wire/1"] = "fedward-wire/1"
    kind: ReplyKind
    site: str = Field(pattern=LABEL)
    key: str = Field(pattern=DIGEST)
    payload_sha256: str = Field(pattern=DIGEST)
    code: str = ""
    public_key: str = Field(
        pattern=DIGEST, description="Ed25519 public key, 32 bytes in hexadecimal"
    )
    signature: str = Field(default="", pattern=r"^([0-9a-f]{128})?$")
    ledger_seq: int | None = Field(default=None, ge=1, lt=2**53)
    ledger_sha256: str | None = Field(default=None, pattern=DIGEST)

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers: the reply without its signature."""
        unsigned = self.model_dump(mode="json", exclude={"signature"})
        return b"fedward/reply/v1|" + canonical_json(unsigned)

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes of the reply."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, header: bytes) -> Self:
        """The reply in `header`. Raises ProtocolError when it is not exactly one."""
        reply = _parse(cls, header)
        known = reply.code in REFUSAL_CODES if reply.kind == "refusal" else not reply.code
        if not known:
            raise ProtocolError("reply: expected a refusal with a known code, or no code")
        if (reply.ledger_seq is None) != (reply.ledger_sha256 is None):
            raise ProtocolError("reply: expected a whole ledger head or none")
        return reply


class KnownRows(Strict):
    """The newest ledger row that the coordinator knows of each site, by the row's hash alone.

    It travels beside an instruction as the blob `KNOWN_ROWS`, the same for the whole cohort. A hash
    tells the other sites nothing: it is over the rows before it, back to one with a random moment.
    """

    rows: dict[Annotated[str, Field(pattern=LABEL)], Annotated[str, Field(pattern=DIGEST)]]

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The rows in `data`; none in no bytes. Raises ProtocolError when it is not exactly one."""
        return _parse(cls, data) if data else cls(rows={})


def _parse(model: type[T], header: bytes) -> T:
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"header: expected at most {MAX_HEADER_BYTES} bytes, found {len(header)}"
        )
    try:
        value: Any = json.loads(header)
        return model.model_validate(value)
    except (ValueError, ValidationError, RecursionError) as error:
        raise ProtocolError(
            f"header: expected a {model.__name__} of {PROTOCOL}, found something else"
        ) from error
