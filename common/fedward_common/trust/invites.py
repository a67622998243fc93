"""The one line that a coordinator's operator hands to a hospital that is to enrol."""

import base64
import hashlib
import json
import re
import secrets
from typing import Annotated, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, ValidationError

from fedward_common.canonical import canonical_json
from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.ids import DIGEST, LABEL, Digest, SiteId
from fedward_common.study.registry import Strict
from fedward_common.trust.authority import TRUST_DOMAIN
from fedward_common.trust.signing import SigningKey

INVITE_PREFIX: Final = "fedward-invite-1."
MAX_INVITE_CHARACTERS: Final = 2048
ADDRESS: Final = r"^[^\s:/]{1,253}:\d{1,5}$"

Federation = Annotated[str, Field(pattern=f"^{TRUST_DOMAIN}$")]
Site = Annotated[SiteId, Field(pattern=LABEL)]
Sha256 = Annotated[Digest, Field(pattern=DIGEST)]


def token_sha256(token: str) -> Digest:
    """How the coordinator's registry knows a token: the token itself is never stored.

    Raises:
        ProtocolError: not 64 lower-case hexadecimal digits.
    """
    if not re.fullmatch(DIGEST, token):
        raise ProtocolError("token: expected 64 hexadecimal digits, found something else")
    return Digest(hashlib.sha256(b"fedward/invite/v1|" + bytes.fromhex(token)).hexdigest())


class Invite(Strict):
    """The one line with which a hospital enrols. Whoever has it may ask in the site's name, once.

    `str` and `repr` never show the token.
    """

    address: str = Field(pattern=ADDRESS, description="host:port of the enrolment listener")
    server_name: Annotated[str, Field(pattern=f"^{TRUST_DOMAIN}$")] | None = None
    federation: Federation
    site: Site
    token: str = Field(pattern=DIGEST, repr=False)
    root_sha256: Sha256 = Field(description="of the root's SubjectPublicKeyInfo")

    @classmethod
    def new(
        cls,
        *,
        address: str,
        server_name: str | None,
        federation: str,
        site: SiteId,
        root_sha256: Digest,
    ) -> Self:
        """An invite with a fresh token of 32 random bytes."""
        return cls(
            address=address,
            server_name=server_name,
            federation=federation,
            site=site,
            token=secrets.token_hex(32),
            root_sha256=root_sha256,
        )

    @property
    def text(self) -> str:
        """The invite as one printable line. A secret until it is used."""
        data = base64.urlsafe_b64encode(canonical_json(self.model_dump(mode="json")))
        return INVITE_PREFIX + data.decode("ascii").rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The invite in `text`; white space around it is ignored.

        Raises:
            ConfigError: not an invite; the message never contains any part of it.
        """
        line = text.strip()
        wrong = ConfigError(
            f"invite: expected one line that begins with {INVITE_PREFIX}, found something else. "
            "Copy it again, whole"
        )
        encoded = line.removeprefix(INVITE_PREFIX)
        if len(line) > MAX_INVITE_CHARACTERS or encoded == line:
            raise wrong
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
            invite = cls.model_validate(json.loads(data))
        except (ValueError, ValidationError, RecursionError):
            raise wrong from None  # the cause would show the token
        if invite.text != line:
            raise wrong
        return invite

    @property
    def token_sha256(self) -> Digest:
        """How the coordinator's registry knows this invite."""
        return token_sha256(self.token)

    @property
    def proof_public_key(self) -> str:
        """The Ed25519 key (hexadecimal) that proves possession of the token without showing it."""
        return proof_key(self.token).public_hex


def proof_key(token: str) -> SigningKey:
    """The key derived from a token, with which its holder proves that a carried file is its own.

    The coordinator keeps the public half, which is of no use to whoever reads the registry.
    """
    seed = hashlib.sha256(b"fedward/invite/proof/v1|" + bytes.fromhex(token)).digest()
    return SigningKey(Ed25519PrivateKey.from_private_bytes(seed))
