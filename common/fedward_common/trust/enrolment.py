"""What a coordinator and a site say to each other until the site is a member.

`Invite`: one line that the coordinator's operator hands to a hospital. `EnrolmentRequest`: the
site's public keys, each with the proof that the site holds the private half. `CarriedRequest`: the
same as a file for sites without a network. `Grant`: the certificate and who granted it. Keys never
leave the site; the token of the invite goes to the listener that the invite pins and nowhere else.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
)
from pydantic import Field, ValidationError

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ConfigError, ProtocolError, SignatureRefused
from fedward_common.ids import DIGEST, Digest, SiteId
from fedward_common.study.registry import Strict
from fedward_common.trust.authority import TRUST_DOMAIN, requested_key
from fedward_common.trust.certificates import PeerCertificate
from fedward_common.trust.chains import spki_sha256, verify_site_chain
from fedward_common.trust.invites import (
    ADDRESS,
    INVITE_PREFIX,
    Federation,
    Invite,
    Sha256,
    Site,
    proof_key,
    token_sha256,
)
from fedward_common.trust.signing import verify as verify_signature
from fedward_common.trust.statements import Signer, Statement
from fedward_common.trust.words import words

__all__ = [
    "FETCH_SECONDS",
    "INVITE_PREFIX",
    "MAX_REQUEST_BYTES",
    "SITE_GRANT",
    "CarriedRequest",
    "EnrolmentRequest",
    "Grant",
    "Invite",
    "KeyProofs",
    "ecdsa_signer",
    "fetch_bytes",
    "spki_sha256",
    "token_sha256",
    "verify_site_chain",
]

MAX_REQUEST_BYTES: Final = 1 << 16
"""Of a request, a carried request and a grant: 64 KiB (rules 18)."""
FETCH_SECONDS: Final = 300
"""How far the time in a Fetch may be from the coordinator's clock."""

HEX: Final = r"^([0-9a-f]{2}){1,256}$"
ED25519_SIGNATURE: Final = r"^[0-9a-f]{128}$"
SITE_GRANT: Final = "site-grant"

Sign = Callable[[bytes], bytes]


class _Document(Strict):
    """A document with one byte form: canonical JSON, at most 64 KiB."""

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def sha256(self) -> Digest:
        """The digest of `canonical`."""
        return Digest(sha256_hex(self.canonical))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The document in `data`; only its form is checked here.

        Raises:
            ProtocolError: not such a document, or not in canonical form.
        """
        name = cls.__name__.strip("_")
        wrong = ProtocolError(f"{name}: expected canonical JSON of its form, found something else")
        if len(data) > MAX_REQUEST_BYTES:
            raise ProtocolError(
                f"{name}: expected at most {MAX_REQUEST_BYTES} bytes, found {len(data)}"
            )
        try:
            document = cls.model_validate(json.loads(data))
            same = document.canonical == data
        except (ValueError, ValidationError, RecursionError) as error:
            raise wrong from error
        if not same:
            raise wrong
        return document


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyProofs:
    """The four keys of a site, as what `EnrolmentRequest.build` asks of them.

    `tls_sign` and `node_sign` give ECDSA-SHA256 signatures (DER), as `ecdsa_signer` does.
    """

    tls_csr_pem: bytes
    tls_sign: Sign
    node_public_key: str
    node_sign: Sign
    signing: Signer
    secagg: Signer


class EnrolmentRequest(_Document):
    """The public keys with which a site asks to become a member. Proves nothing until `verify`."""

    format: Literal["fedward-enrolment/1"] = "fedward-enrolment/1"
    federation: Federation
    site: Site
    tls_csr_pem: str = Field(max_length=4096)
    node_public_key: str = Field(max_length=1024, description="Flower's flwr-public-key header")
    signing_public_key: str = Field(pattern=DIGEST)
    secagg_public_key: str = Field(pattern=DIGEST)
    tls_proof: str = Field(pattern=HEX)
    node_proof: str = Field(pattern=HEX)
    signing_proof: str = Field(pattern=ED25519_SIGNATURE)
    secagg_proof: str = Field(pattern=ED25519_SIGNATURE)

    @classmethod
    def build(cls, *, federation: str, site: SiteId, keys: KeyProofs) -> Self:
        """The request of `site`, with a proof by each of its keys.

        Raises:
            ValidationError: a key or a name of a form that requests do not have.
        """
        bare: dict[str, Any] = {
            "format": "fedward-enrolment/1",
            "federation": federation,
            "site": site,
            "tls_csr_pem": keys.tls_csr_pem.decode("ascii"),
            "node_public_key": keys.node_public_key,
            "signing_public_key": keys.signing.public_hex,
            "secagg_public_key": keys.secagg.public_hex,
        }
        proofs = {
            "tls_proof": keys.tls_sign(_proven("tls", bare)).hex(),
            "node_proof": keys.node_sign(_proven("node", bare)).hex(),
            "signing_proof": keys.signing.sign(_proven("signing", bare)).hex(),
            "secagg_proof": keys.secagg.sign(_proven("secagg", bare)).hex(),
        }
        return cls.model_validate(bare | proofs)

    @property
    def fingerprint_words(self) -> str:
        """What both sides read to each other over the telephone: covers every byte of the request.

        It binds the keys to the people: a request that someone else sent with a stolen invite has
        other words.
        """
        return words(self.sha256)

    def verify(self) -> None:
        """Returns only when the asker holds the private half of all four keys.

        1. The certificate request is signed by its own key, EC P-256.
        2. That key signed this very request (all names and keys in it): `tls_proof`.
        3. The node key is EC P-384, written as Flower writes it, and signed: `node_proof`.
        4. The signing key (Ed25519) signed: `signing_proof`.
        5. The key for secure aggregation (Ed25519) signed: `secagg_proof`.
        6. The signing key and the key for secure aggregation are two keys.

        Left to the caller: that the invite is open and for this site and federation, that no other
        site has any of the keys, and that the hospital's people read the same `fingerprint_words`.

        Raises:
            SignatureRefused: names the key whose proof does not hold.
        """
        bare = self.model_dump(mode="json", exclude=_PROOFS)
        # 1. and 2.
        tls = requested_key(self.tls_csr_pem.encode())
        _check_ecdsa(tls, self.tls_proof, _proven("tls", bare), name="TLS")
        # 3.
        node = _node_key(self.node_public_key)
        _check_ecdsa(node, self.node_proof, _proven("node", bare), name="node")
        # 4. and 5.
        for kind, key, proof in (
            ("signing", self.signing_public_key, self.signing_proof),
            ("secagg", self.secagg_public_key, self.secagg_proof),
        ):
            try:
                verify_signature(key, bytes.fromhex(proof), _proven(kind, bare))
            except SignatureRefused as error:
                raise _unproven(kind) from error
        # 6.
        if self.signing_public_key == self.secagg_public_key:
            raise SignatureRefused(
                "enrolment request: expected two different Ed25519 keys, found one twice"
            )

    def check_fetch(self, *, time: int, signature: bytes, now: datetime) -> None:
        """Returns only when the site that sent this request asks for its answer, now.

        Raises:
            ProtocolError: `time` is not within 300 s of `now`: check both clocks.
            SignatureRefused: another key than the TLS key of this request signed.
        """
        if abs(time - now.timestamp()) > FETCH_SECONDS:
            raise ProtocolError(
                f"fetch: expected a time within {FETCH_SECONDS} s of this clock, found another. "
                "Check both clocks"
            )
        key = requested_key(self.tls_csr_pem.encode())
        _check_ecdsa(key, signature.hex(), fetch_bytes(self.sha256, time), name="TLS")


_PROOFS: Final = {"tls_proof", "node_proof", "signing_proof", "secagg_proof"}


def fetch_bytes(request_sha256: Digest, time: int) -> bytes:
    """What the TLS key signs when a site asks for the answer to its request."""
    return f"fedward/enrolment/fetch/v1|{request_sha256}|{time}".encode()


class CarriedRequest(_Document):
    """A request as a file, for a site that does not reach the listener.

    Instead of the token it holds a signature that only the holder of the token can make, so that
    whoever finds the file can neither use the invite nor change the request.
    """

    format: Literal["fedward-carried-request/1"] = "fedward-carried-request/1"
    token_sha256: Sha256
    token_proof: str = Field(pattern=ED25519_SIGNATURE)
    request: EnrolmentRequest

    @classmethod
    def make(cls, invite: Invite, request: EnrolmentRequest) -> Self:
        """The file that brings `request` to the coordinator under `invite`."""
        proof = proof_key(invite.token).sign(_carried(request))
        return cls(token_sha256=invite.token_sha256, token_proof=proof.hex(), request=request)

    def verify(self, proof_public_key: str) -> None:
        """Returns only when the holder of the invite made this file for this request.

        `proof_public_key` is what the registry keeps of the invite (`Invite.proof_public_key`).
        Left to the caller: everything that `EnrolmentRequest.verify` proves and leaves.

        Raises:
            SignatureRefused: someone else did, or something was changed.
        """
        verify_signature(proof_public_key, bytes.fromhex(self.token_proof), _carried(self.request))


class Grant(_Document):
    """The answer to a granted request: the certificate, the root, where to connect, who granted.

    The operators' statements are kept by the site as evidence; it does not know the operators' keys
    and trusts the root that its invite pinned.
    """

    format: Literal["fedward-grant/1"] = "fedward-grant/1"
    request_sha256: Sha256
    site: Site
    federation: Federation
    chain_pem: str = Field(max_length=16384)
    root_pem: str = Field(max_length=4096)
    edge_address: str = Field(pattern=ADDRESS, description="host:port of the edge")
    server_name: Annotated[str, Field(pattern=f"^{TRUST_DOMAIN}$")] | None = None
    statements: tuple[Statement, ...] = Field(min_length=1, max_length=16, strict=False)

    def verify(
        self, request: EnrolmentRequest, *, root_sha256: Digest, now: datetime
    ) -> PeerCertificate:
        """What the granted certificate says, after proving that it answers the site's own request.

        1. It names this request, site and federation.
        2. The root is the one that the invite pinned.
        3. The chain leads to that root, is valid now, names this site, and its key is the key of
           this request (`verify_site_chain`).
        4. Each statement is a signed `site-grant` of this very request and site.

        Raises:
            SignatureRefused, ProtocolError: a step failed.
        """
        # 1.
        found = (self.request_sha256, self.site, self.federation)
        if found != (request.sha256, request.site, request.federation):
            raise SignatureRefused(
                f"grant: expected the answer to this request of {request.site}, found another's"
            )
        # 2.
        if spki_sha256(self.root_pem.encode()) != root_sha256:
            raise SignatureRefused("grant: expected the root that the invite pins, found another")
        # 3.
        peer = verify_site_chain(
            self.chain_pem.encode(),
            root_pem=self.root_pem.encode(),
            request_pem=request.tls_csr_pem.encode(),
            federation=self.federation,
            site=self.site,
            now=now,
        )
        # 4.
        for statement in self.statements:
            Statement.parse(statement.canonical, kind=SITE_GRANT)
            if statement.facts != {"request_sha256": self.request_sha256, "site": self.site}:
                raise SignatureRefused("grant: expected statements for this request, found another")
        return peer


def ecdsa_signer(key: bytes, *, passphrase: bytes | None = None) -> Sign:
    """Signs with the EC private key in `key` (PKCS 8 PEM or OpenSSH): ECDSA-SHA256, DER.

    Raises:
        ConfigError: not such a key, or another passphrase; never shows any part of it.
    """
    load = load_ssh_private_key if b"OPENSSH" in key[:64] else load_pem_private_key
    try:
        found = load(key, password=passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "key: expected an EC private key and its passphrase, found others"
        ) from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ConfigError("key: expected an EC private key, found a key of another kind")
    return lambda data: found.sign(data, ec.ECDSA(hashes.SHA256()))


def _carried(request: EnrolmentRequest) -> bytes:
    return b"fedward/enrolment/carried/v1|" + request.canonical


def _proven(kind: str, bare: Mapping[str, Any]) -> bytes:
    return f"fedward/enrolment/v1|{kind}|".encode() + canonical_json(dict(bare))


def _unproven(name: str) -> SignatureRefused:
    return SignatureRefused(
        f"enrolment request: expected a proof by its {name} key, found another. "
        "The request was changed, or the asker does not hold that key"
    )


def _check_ecdsa(key: ec.EllipticCurvePublicKey, signature: str, data: bytes, *, name: str) -> None:
    try:
        key.verify(bytes.fromhex(signature), data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise _unproven(name) from error


def _node_key(header: str) -> ec.EllipticCurvePublicKey:
    """The P-384 key in a `flwr-public-key` header, which must be in the one form Flower sends."""
    try:
        key = load_pem_public_key(base64.b64decode(header, validate=True))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unproven("node") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise SignatureRefused("enrolment request: expected a P-384 node key, found another kind")
    same = base64.b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    if same.decode("ascii") != header:
        raise SignatureRefused("enrolment request: expected the node key in Flower's own form")
    return key
