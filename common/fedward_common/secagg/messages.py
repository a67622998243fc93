"""What the parties of a secure sum send: values with one byte form each, and what is signed.

Every signed or authenticated string begins with protocol version, study digest, round, roster hash
and phase, so that nothing said in one place counts in another.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import Field, ValidationError

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.ids import DIGEST, LABEL, Digest, SiteId
from fedward_common.secagg.refusals import Reason, SecAggRefused
from fedward_common.study.registry import Strict

VERSION: Final = "fedward/secagg/v1"
MAX_BYTES: Final = 1 << 20
Key = Annotated[str, Field(pattern=DIGEST)]
Site = Annotated[str, Field(pattern=LABEL)]
T = TypeVar("T", bound="Message")


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One site of the sum and the Ed25519 key (hexadecimal) by which the study knows it."""

    site: SiteId
    public_key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One round of one study over one ordered roster: what every string is bound to."""

    study: Digest
    round: int
    members: tuple[Member, ...]

    @property
    def roster_sha256(self) -> Digest:
        """SHA-256 over the ordered sites and keys."""
        return _roster_sha256(self.members)

    def context(self, phase: str) -> bytes:
        """The prefix of everything that is signed, authenticated or derived in this phase."""
        return f"{VERSION}|{self.study}|{self.round}|{self.roster_sha256}|{phase}|".encode()

    def number(self, site: str) -> int:
        """The site's place in the roster, from 1. Raises SecAggRefused for another's."""
        for number, member in enumerate(self.members, start=1):
            if member.site == site:
                return number
        raise SecAggRefused(Reason.UNKNOWN_SITE, "expected a site of the roster, found another")

    def key_of(self, site: str) -> str:
        """The site's Ed25519 key. Raises SecAggRefused for a site that is not in the roster."""
        return self.members[self.number(site) - 1].public_key


@lru_cache(maxsize=64)
def _roster_sha256(members: tuple[Member, ...]) -> Digest:
    """Wanted for every string that is signed or derived, and the same in a whole study."""
    return Digest(sha256_hex(canonical_json([[m.site, m.public_key] for m in members])))


class Message(Strict):
    """A control message: canonical JSON, at most 1 MiB."""

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The message in `data`. Raises SecAggRefused when it is not exactly one."""
        wrong = SecAggRefused(Reason.MALFORMED, f"expected a {cls.__name__}, found something else")
        if len(data) > MAX_BYTES:
            raise wrong
        try:
            value: Any = json.loads(data)
            message = cls.model_validate(value)
        except (ValueError, ValidationError, RecursionError) as error:
            raise wrong from error
        if message.canonical != data:
            raise wrong
        return message


class Advert(Message):
    """A site's two fresh X25519 keys, a commitment to its own mask, and its signature over them."""

    site: Site
    round: int = Field(ge=1, lt=2**31)
    mask_key: Key
    share_key: Key
    own_mask_sha256: Key
    signature: str = Field(default="", pattern=r"^([0-9a-f]{128})?$")

    def signed_bytes(self, session: Session) -> bytes:
        """What the signature covers."""
        unsigned = self.model_dump(mode="json", exclude={"signature"})
        return session.context("advertise") + canonical_json(unsigned)


class Envelopes(Message):
    """One site's encrypted shares, by the site that may open each."""

    site: Site
    boxes: Mapping[Site, Annotated[str, Field(pattern=r"^[0-9a-f]{2,512}$")]]


class SurvivorSignature(Message):
    """A site's word that it saw this survivor list, and no other, in this round."""

    site: Site
    survivors: tuple[Site, ...] = Field(min_length=1, max_length=4096, strict=False)
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


class Unmasking(Message):
    """A site's shares: of the own mask of each survivor, of the mask key of each lost site."""

    site: Site
    own_masks: Mapping[Site, Annotated[str, Field(pattern=r"^[0-9a-f]{66}$")]]
    mask_keys: Mapping[Site, Annotated[str, Field(pattern=r"^[0-9a-f]{66}$")]]


class Keys(Message):
    """Every site's Ed25519 key, to be checked by its digest in the signed study."""

    keys: Mapping[Site, Key]


class Adverts(Message):
    """The adverts of all sites of a sum."""

    adverts: tuple[Advert, ...] = Field(max_length=4096, strict=False)


class Boxes(Message):
    """The encrypted shares that one site may open, by their sender."""

    boxes: Mapping[Site, Annotated[str, Field(pattern=r"^[0-9a-f]{2,512}$")]]


class Survivors(Message):
    """The sites whose vectors are in the sum."""

    survivors: tuple[Site, ...] = Field(max_length=4096, strict=False)


class Signed(Message):
    """A survivor's signature, and its keys for the next sum if there is one."""

    signature: SurvivorSignature
    advert: Advert | None = None


class Opening(Message):
    """The signatures of the survivor list, and the adverts of the next sum if there is one."""

    signatures: tuple[SurvivorSignature, ...] = Field(max_length=4096, strict=False)
    adverts: tuple[Advert, ...] = Field(default=(), max_length=4096, strict=False)


class Opened(Message):
    """A survivor's shares, and its envelopes for the next sum if there is one."""

    unmasking: Unmasking
    envelopes: Envelopes | None = None


def survivors_bytes(session: Session, survivors: Sequence[str], *, bound: str = "") -> bytes:
    """What a site signs about a survivor list, and about what its vector answers (`bound`)."""
    answered = f"{bound}|" if bound else ""
    return session.context("survivors") + answered.encode() + canonical_json(list(survivors))
