"""Checks of certificates: dates, the way to the pinned root, who answers on a port."""

import re
import socket
import ssl
import tempfile
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from fedward_common.doctor.findings import Finding, fail, ok, warn
from fedward_common.errors import ConfigError
from fedward_common.trust.certificates import expires_at, make_loopback_identity

EXPIRY_MARGIN: Final = timedelta(days=21)
PROBE_SECONDS: Final = 5.0
NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityFiles:
    """Where a certificate chain, its private key and the pinned root lie."""

    certificate: Path
    key: Path
    root: Path
    passphrase: bytes | None = field(default=None, repr=False)

    def password(self) -> bytes:
        """Answers OpenSSL for an encrypted key: a program must not stop and ask at a terminal."""
        return self.passphrase or b""


def certificate_expiry(name: str, files: IdentityFiles, *, now: datetime) -> Finding:
    """Until when chain and root are good, all of them."""
    renew = "Have the federation's authority issue a new certificate and put it in its place"
    try:
        chain = _certificates(files.certificate.read_bytes())
        root = _certificates(files.root.read_bytes())
        ends = min(expires_at(pem) for pem in (*chain, *root))
    except OSError as error:
        return fail(name, f"{error.filename}: {error.strerror}", "Correct the path, or enrol again")
    except ConfigError as error:
        return fail(name, f"{files.certificate}, {files.root}: {error}", renew)
    day = f"{ends:%Y-%m-%d %H:%M} UTC"
    if ends <= now:
        return fail(name, f"{files.certificate}: ended {day}", f"{renew}; check the clock, too")
    if ends - now < EXPIRY_MARGIN:
        return warn(name, f"{files.certificate}: ends {day}", renew)
    return ok(name, f"good until {day}")


def certificate_chain(
    name: str, files: IdentityFiles, *, role: Literal["site", "server"], expired: bool = False
) -> Finding:
    """Whether a peer that trusts the pinned root alone accepts this identity in its role.

    Proven by a TLS 1.3 handshake in memory. `expired`: do not say again that it is too late.
    """
    client, server = tls13_client(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    holder, judge = (client, server) if role == "site" else (server, client)
    try:
        holder.load_cert_chain(files.certificate, files.key, password=files.password)
    except (OSError, ValueError) as error:  # ssl.SSLError included
        return fail(
            name,
            f"{files.certificate} with {files.key}: {ssl_reason(error)}",
            "Put the certificate and the key it was made for together (PEM), and the passphrase of "
            "an encrypted key into keys.passphrase_file",
        )
    try:
        judge.load_verify_locations(files.root)
    except (OSError, ValueError) as error:
        return fail(name, f"{files.root}: {ssl_reason(error)}", "Put the federation's root there")
    judge.verify_mode = ssl.CERT_REQUIRED
    if expired:
        judge.verify_flags = ssl.VerifyFlags(int(judge.verify_flags) | NO_CHECK_TIME)
    with tempfile.TemporaryDirectory() as scratch:
        if role == "site":
            other = make_loopback_identity(Path(scratch))
            server.load_cert_chain(other.certificate, other.key)
            client.verify_mode = ssl.CERT_NONE
        try:
            _handshake(client, server)
        except ssl.SSLError as error:
            return fail(
                name,
                f"{files.certificate}: no way to the root in {files.root}: {ssl_reason(error)}",
                "Put in the chain (own certificate first) and the root that the federation's "
                "operator gave you, from the same federation and for this role",
            )
    return ok(name, "leads to the pinned root, key fits")


def shows_certificate_of(port: int, root: Path) -> bool:
    """Whether the program on the loopback port holds a certificate that `root` signed."""
    context = tls13_client()
    context.check_hostname, context.verify_mode = True, ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(root)
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PROBE_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname="localhost"),
        ):
            return True
    except (OSError, ValueError):
        return False


def tls13_client() -> ssl.SSLContext:
    """A client's context that speaks TLS 1.3 only and trusts nothing yet, no system store either.

    The caller loads what it trusts and sets `verify_mode` and `check_hostname`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    return context


def ssl_reason(error: Exception) -> str:
    """The library's own word for an error: never what a file holds."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no PEM").replace("_", " ").lower()
    return str(error.strerror) if isinstance(error, OSError) else "not readable"


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """A handshake in memory. Raises ssl.SSLError when one side refuses."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
    if ends:
        raise ssl.SSLError("expected the handshake to end, found it open")


def _certificates(pem: bytes) -> list[bytes]:
    """The certificates in `pem`, or `pem` itself when there is none (whose reader then says so)."""
    found = re.findall(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL)
    return found or [pem]
