"""The keys of a site, made where they stay, and the request that proves that they are here."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedward_client.adapters.key_files import (
    certificate_request,
    read_node_key,
    read_signing_key,
    read_tls_key,
    sealed,
    write_node_key,
    write_signing_key,
)
from fedward_client.adapters.tls_pair import TlsPair
from fedward_client.enrol.places import Places
from fedward_common.canonical import canonical_json
from fedward_common.errors import ConfigError, FedwardError
from fedward_common.ids import Digest
from fedward_common.trust.certificates import NodeKey, new_request
from fedward_common.trust.chains import request_key_sha256
from fedward_common.trust.enrolment import EnrolmentRequest, Invite, KeyProofs, ecdsa_signer
from fedward_common.trust.private_files import write_atomically, write_private
from fedward_common.trust.signing import SigningKey

INVITED_FORMAT: Final = "fedward-invited/1"


def site_request(
    invite: Invite, places: Places, *, passphrase: bytes | None
) -> tuple[EnrolmentRequest, TlsPair]:
    """The request of this site: the one that was made before, or a new one for the keys that lie
    here, each of which is made first where it is missing.

    The keys are on disk before the request is, and the request before it is sent: whenever this is
    cut short, the next call goes on with the same keys.

    Raises:
        ConfigError: the keys here belong to another site or federation, or cannot be opened.
    """
    _require_same(invite, places)
    pair = TlsPair(certificate=places.tls_certificate, key=places.tls_key, passphrase=passphrase)
    pair.settle()
    keys = _keys(places, pair, passphrase=passphrase)
    request = _request_of(places.request)
    if request is None or not _proves(request, keys, invite):
        request = EnrolmentRequest.build(federation=invite.federation, site=invite.site, keys=keys)
        request.verify()
        write_private(places.request, request.canonical)
    write_private(places.invited, _invited(invite))
    return request, pair


def sign_with_next_key(pair: TlsPair) -> Callable[[bytes], bytes]:
    """Signs with the TLS key of the request."""
    return ecdsa_signer(read_tls_key(pair.next_key, passphrase=pair.passphrase))


def _keys(places: Places, pair: TlsPair, *, passphrase: bytes | None) -> KeyProofs:
    if not pair.next_key.exists():
        fresh = new_request("site")
        write_private(pair.next_key, sealed(fresh.key_pem, passphrase))
    tls_key = read_tls_key(pair.next_key, passphrase=passphrase)
    if not places.node_key.exists():
        write_node_key(places.node_key, NodeKey.generate(), passphrase=passphrase)
    node = read_node_key(places.node_key, passphrase=passphrase)
    write_atomically(places.public_node_key, node.header.encode("ascii") + b"\n")
    for path in (places.signing_key, places.secagg_key):
        if not path.exists():
            write_signing_key(path, SigningKey.generate(), passphrase=passphrase)
    return KeyProofs(
        tls_csr_pem=certificate_request(tls_key, common_name="site"),
        tls_sign=ecdsa_signer(tls_key),
        node_public_key=node.header,
        node_sign=ecdsa_signer(node.to_openssh()),
        signing=read_signing_key(places.signing_key, passphrase=passphrase),
        secagg=read_signing_key(places.secagg_key, passphrase=passphrase),
    )


def _require_same(invite: Invite, places: Places) -> None:
    found: tuple[object, object] | None = None
    if places.present is not None:
        found = (places.present.federation, places.present.site)
    elif (before := _request_of(places.request)) is not None:
        found = (before.federation, before.site)
    if found is not None and found != (invite.federation, invite.site):
        raise ConfigError(
            f"invite: expected one for {found[1]} in {found[0]}, whose keys are in {places.state}, "
            f"found one for {invite.site} in {invite.federation}. Name another --config and --state"
        )


def _proves(request: EnrolmentRequest, keys: KeyProofs, invite: Invite) -> bool:
    """Whether the request that lies here is one of exactly these keys under this invite."""
    same_keys = (
        request_key_sha256(request.tls_csr_pem.encode()) == request_key_sha256(keys.tls_csr_pem),
        request.node_public_key == keys.node_public_key,
        request.signing_public_key == keys.signing.public_hex,
        request.secagg_public_key == keys.secagg.public_hex,
    )
    return all(same_keys) and (request.federation, request.site) == (invite.federation, invite.site)


def _request_of(path: Path) -> EnrolmentRequest | None:
    """The request in `path`, or None where there is none that holds."""
    try:
        request = EnrolmentRequest.parse(path.read_bytes())
        request.verify()
    except (OSError, FedwardError):
        return None
    return request


def stored_request(places: Places) -> EnrolmentRequest:
    """The request that was made here.

    Raises:
        ConfigError: there is none.
    """
    request = _request_of(places.request)
    if request is None:
        raise ConfigError(
            f"{places.request}: expected the request that this site made, found none. Run "
            "`fedward-client enrol` with the invite first"
        )
    return request


@dataclass(frozen=True, kw_only=True, slots=True)
class Invited:
    """What is kept of an invite: which one it was, and the root that it pins."""

    token_sha256: str
    root_sha256: Digest


def stored_invite(places: Places) -> Invited:
    """What the invite of the stored request said.

    Raises:
        ConfigError: there is none.
    """
    try:
        value = json.loads(places.invited.read_bytes())
        if value["format"] != INVITED_FORMAT:
            raise ValueError("another format")
        return Invited(
            token_sha256=str(value["token_sha256"]), root_sha256=Digest(str(value["root_sha256"]))
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{places.invited}: expected what the invite said, found none. Run `fedward-client "
            "enrol` with the invite first"
        ) from error


def _invited(invite: Invite) -> bytes:
    kept = invite.model_dump(mode="json", exclude={"token"})
    return canonical_json({"format": INVITED_FORMAT, "token_sha256": invite.token_sha256, **kept})
