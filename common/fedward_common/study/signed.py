"""A study under the signature of its lead: the bytes a site approves and everyone verifies."""

import json
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field

# Registers the known kinds, so that a signed study parses wherever this module is used.
import fedward_common.study.imaging
import fedward_common.study.statistics
import fedward_common.study.tasks  # noqa: F401
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ProtocolError, SignatureRefused
from fedward_common.ids import DIGEST, Digest
from fedward_common.study.registry import Strict
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey, key_sha256, verify

DOMAIN = b"fedward/study/v1|"
MAX_STUDY_BYTES = 1 << 20


class _Document(Strict):
    study: dict[str, Any]
    lead_public_key: str = Field(pattern=DIGEST)
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedStudy:
    """A study, its lead's public key and the lead's signature. Proves nothing until `verify`."""

    study: bytes
    lead_public_key: str
    signature: str

    @classmethod
    def sign(cls, spec: StudySpec, key: SigningKey) -> Self:
        """`spec` signed by its lead.

        Raises:
            SignatureRefused: the study names another lead key than `key`.
        """
        if key_sha256(key.public_hex) != spec.lead_key_sha256:
            raise SignatureRefused(
                f"study {spec.id}: expected the signing key of the lead that the study names "
                f"({spec.lead_key_sha256[:16]}...), found {key_sha256(key.public_hex)[:16]}..."
            )
        return cls(
            study=spec.canonical,
            lead_public_key=key.public_hex,
            signature=key.sign(DOMAIN + spec.canonical).hex(),
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The signed study in `data`; only the form is checked here.

        Raises:
            ProtocolError: not the canonical JSON of exactly study, lead_public_key, signature.
        """
        if len(data) > MAX_STUDY_BYTES:
            raise ProtocolError(
                f"signed study: expected at most {MAX_STUDY_BYTES} bytes, found {len(data)}"
            )
        try:
            document = _Document.model_validate(json.loads(data))
            parsed = cls(
                study=canonical_json(document.study),
                lead_public_key=document.lead_public_key,
                signature=document.signature,
            )
            same = parsed.canonical == data
        except (ValueError, RecursionError) as error:
            raise ProtocolError(
                "signed study: expected JSON with study, lead_public_key and signature, "
                "found something else"
            ) from error
        # One study has one byte form: repeated keys, spaces and other spellings end here.
        if not same:
            raise ProtocolError(
                "signed study: expected canonical JSON (RFC 8785), found another form"
            )
        return parsed

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes of {"study", "lead_public_key", "signature"}."""
        return canonical_json(
            {
                "study": json.loads(self.study),
                "lead_public_key": self.lead_public_key,
                "signature": self.signature,
            }
        )

    @property
    def digest(self) -> Digest:
        """SHA-256 of the study's canonical bytes: what approvals name. Not the signature's."""
        return Digest(sha256_hex(self.study))

    def verify(self) -> StudySpec:
        """The study, after proving that its lead signed exactly these bytes.

        1. The study object is a valid StudySpec v1: known kinds only, every rule of the
           specification holds.
        2. Its canonical bytes are the bytes received, so `digest` is the study's identity and no
           default was filled in on the way.
        3. The public key beside it is the one whose SHA-256 the study itself names as its lead.
        4. The signature is that key's, over the domain prefix and those bytes.

        Left to the caller: that the digest is one this site approved, that the lead is one it
        trusts, and that the study names this site with this site's own keys (rules 12).

        Raises:
            ProtocolError: step 1 or 2 failed.
            SignatureRefused: step 3 or 4 failed.
        """
        # 1.
        try:
            spec = StudySpec.model_validate(json.loads(self.study))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(
                "signed study: expected a StudySpec of fedward-study/1, found something else"
            ) from error
        # 2.
        if spec.canonical != self.study:
            raise ProtocolError(
                f"signed study {spec.id}: expected every field written out, found some missing"
            )
        # 3.
        if key_sha256(self.lead_public_key) != spec.lead_key_sha256:
            raise SignatureRefused(
                f"signed study {spec.id}: expected the lead's key {spec.lead_key_sha256[:16]}..., "
                f"found {key_sha256(self.lead_public_key)[:16]}..."
            )
        # 4.
        verify(self.lead_public_key, bytes.fromhex(self.signature), DOMAIN + self.study)
        return spec
