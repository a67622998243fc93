"""What the far end of a TLS connection shows before anything is trusted, and who signed that.

Used by `doctor` and by enrolment to say who is in between, and by the gateway to write down where
things went; no decision rests on it but the one that compares a shown root with a pin.
"""

import hashlib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from fedward_client.proxy import Proxy, connect
from fedward_common.doctor import IdentityFiles, tls13_client
from fedward_common.errors import ChannelError

LOOK_SECONDS: Final = 5.0
NAME_MISMATCH: Final = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
NOT_YET_VALID: Final = 9
HAS_EXPIRED: Final = 10
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
UNKNOWN_ISSUER: Final = "an unknown issuer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a listener is: `server_name` is the name that must be in its certificate."""

    host: str
    port: int
    server_name: str

    @classmethod
    def of(cls, address: str, server_name: str | None) -> "Target":
        """The target of host:port."""
        host, _, port = address.rpartition(":")
        return cls(host=host, port=int(port), server_name=server_name or host.strip("[]"))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """The certificates that the far end sent, its own first (PEM), and who issued its own."""

    chain: tuple[bytes, ...] = ()
    issuer: str = UNKNOWN_ISSUER


def look(target: Target, proxy: Proxy | None) -> Shown:
    """What `target` shows to a client that trusts nothing and sends nothing; empty if nobody does.

    Any TLS version: what intercepts may be older than what it intercepts.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with tls_channel(target, proxy, context) as channel:
            return _shown(channel)
    except (OSError, ValueError, ChannelError):
        return Shown()


def proven_sha256(target: Target, proxy: Proxy | None, files: IdentityFiles) -> str:
    """SHA-256 of the certificate with which `target` proves that it is the coordinator; "" if none.

    A connection of its own: grpc does not show a client the certificate of its peer.
    """
    context = tls13_client()
    context.check_hostname, context.verify_mode = True, ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(files.root)
        context.load_cert_chain(files.certificate, files.key, password=files.password)
        with tls_channel(target, proxy, context) as channel:
            return hashlib.sha256(channel.getpeercert(binary_form=True) or b"").hexdigest()
    except (OSError, ValueError, ChannelError):
        return ""


@contextmanager
def tls_channel(
    target: Target, proxy: Proxy | None, context: ssl.SSLContext
) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to `target`, through the proxy where there is one.

    Raises:
        OSError, ValueError: no connection (ssl.SSLError: no TLS that `context` takes).
        ProxyRefused: the proxy said no.
    """
    with (
        connect(target.host, target.port, proxy=proxy, timeout_seconds=LOOK_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=target.server_name) as channel,
    ):
        yield channel


def _shown(channel: ssl.SSLSocket) -> Shown:
    # Public from Python 3.13 on, as bytes only; the object below has it since 3.10, in the clear.
    found: list[Any] = getattr(channel, "_sslobj").get_unverified_chain() or []  # noqa: B009
    chain = tuple(one.public_bytes().encode("ascii") for one in found)
    issuer = found[0].get_info().get("issuer", ()) if found else ()
    names = dict(pair for one in issuer for pair in one)
    parts = [names[key] for key in ("organizationName", "commonName") if key in names]
    text = "".join(c for c in ", ".join(parts)[:128] if c.isprintable())
    return Shown(chain=chain, issuer=repr(text) if text else UNKNOWN_ISSUER)
