"""The root that an invite pins, taken from the listener itself and proven before it is trusted."""

import socket
import ssl

from fedward_client.peer import (
    HAS_EXPIRED,
    NAME_MISMATCH,
    NOT_YET_VALID,
    Target,
    look,
    tls_channel,
)
from fedward_client.proxy import Proxy
from fedward_common.doctor import ssl_reason, tls13_client
from fedward_common.errors import ChannelError, SignatureRefused
from fedward_common.ids import Digest
from fedward_common.trust.chains import spki_sha256


def pinned_root(target: Target, *, root_sha256: Digest, proxy: Proxy | None) -> bytes:
    """The root (PEM) whose key the invite pins, after a handshake that trusts it alone.

    1. A first look at what the listener shows, trusting nothing and sending nothing. Nobody can
       show a certificate with the pinned key but a copy of the root itself.
    2. A second connection, TLS 1.3, that trusts that root only: chain, dates and name must hold.
       What follows (the token first of all) goes over connections that trust the same root only.

    Raises:
        SignatureRefused: another root: the issuer of what was shown is named.
        ChannelError: nobody there, or a certificate that has ended, has not begun or is for another
            name.
    """
    shown = look(target, proxy)
    root = next((pem for pem in shown.chain if _key(pem) == root_sha256), None)
    if shown.chain and root is None:
        raise SignatureRefused(
            f"listener {target}: expected the root that the invite pins, found a certificate "
            f"issued by {shown.issuer}. If that is your network's TLS inspection, ask for a "
            "no-decrypt rule for this address; otherwise the address is wrong, or somebody is in "
            "between. Nothing was sent"
        )
    context = tls13_client()
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    if root is not None:
        context.load_verify_locations(cadata=root.decode("ascii"))
    _prove(target, proxy, context)
    if root is None:
        raise ChannelError(f"listener {target}: expected a certificate, found none. Try again")
    return root


def _prove(target: Target, proxy: Proxy | None, context: ssl.SSLContext) -> None:
    try:
        with tls_channel(target, proxy, context):
            return
    except ssl.SSLCertVerificationError as error:
        raise ChannelError(f"listener {target}: {_reason(error, target)}") from error
    except ssl.SSLError as error:
        raise ChannelError(
            f"listener {target}: expected TLS 1.3, found {ssl_reason(error)}. Something in between "
            "may be older than this: ask the network team"
        ) from error
    except (socket.gaierror, ValueError) as error:
        raise ChannelError(
            f"listener {target}: expected a name that this network knows, found none. Check DNS, "
            "or name the proxy with --proxy"
        ) from error
    except OSError as error:
        raise ChannelError(
            f"listener {target}: expected it to answer, found {error.strerror or error}. It is "
            "open only while an invite is; ask the operator, and the network team for the way there"
        ) from error


def _reason(error: ssl.SSLCertVerificationError, target: Target) -> str:
    if error.verify_code == HAS_EXPIRED:
        return (
            "expected a certificate that is valid now, found one that has ended. Check this "
            "machine's clock; if it is right, the operator must renew the certificate"
        )
    if error.verify_code == NOT_YET_VALID:
        return (
            "expected a certificate that is valid now, found one that is not valid yet. Check this "
            "machine's clock; if it is right, ask the operator"
        )
    if error.verify_code in NAME_MISMATCH:
        return (
            f"expected a certificate for {target.server_name}, found one for another name. Ask "
            "the operator for an invite with the right address"
        )
    return f"expected a certificate under the pinned root, found another ({error.verify_message})"


def _key(pem: bytes) -> Digest | None:
    try:
        return spki_sha256(pem)
    except SignatureRefused:
        return None
