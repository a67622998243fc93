"""The site's keys and certificates: whose they are, who may read them, until when they hold."""

import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from fedward_client.adapters.key_files import (
    is_encrypted,
    read_node_key,
    read_passphrase,
    read_signing_key,
    read_tls_key,
)
from fedward_client.isolation.accounts import named_users
from fedward_client.renew import renewal_moment
from fedward_client.settings import SiteSettings
from fedward_common import doctor as shared
from fedward_common.doctor import Finding, IdentityFiles, fail, ok, warn
from fedward_common.errors import ChannelError, ConfigError
from fedward_common.trust.certificates import parse_peer_certificate
from fedward_common.users import user_id

OVERDUE: Final = timedelta(days=1)
"""A gateway that runs renews within the hour: a day later something keeps it from it."""


def keys(settings: SiteSettings) -> Iterator[Finding]:
    """Permissions and owner of each private key, and whether it is a key of the right kind."""
    paths = settings.keys
    passphrase, finding = _passphrase(settings)
    if finding is not None:
        yield finding
        if finding.level == "fail":
            return
    readers: list[tuple[str, Path | None, str, Callable[..., object]]] = [
        ("key.tls", paths.tls_key, "gateway_user", read_tls_key),
        ("key.node", paths.node_key, "node_user", read_node_key),
        ("key.signing", paths.signing_key, "guard_user", read_signing_key),
        ("key.secagg", paths.secagg_key, "guard_user", read_signing_key),
    ]
    for name, path, user, read in readers:
        if path is not None:
            owners = owners_of(settings, user)
            yield _key(name, path, read, owners=owners, passphrase=passphrase)


def _passphrase(settings: SiteSettings) -> tuple[bytes | None, Finding | None]:
    path = settings.keys.passphrase_file
    if path is None:
        return None, None
    try:
        return read_passphrase(path), ok("key.passphrase", f"{path}: private, long enough")
    except ConfigError as error:
        fix = "Correct keys.passphrase_file; keys under a passphrase that is lost must be replaced"
        return None, fail("key.passphrase", str(error), fix)


def _key(
    name: str,
    path: Path,
    read: Callable[..., object],
    *,
    owners: set[int],
    passphrase: bytes | None,
) -> Finding:
    finding = shared.key_file(name, path, owners=owners)
    if finding.level != "ok" or path.lstat().st_uid != os.geteuid():
        return finding
    try:
        read(path, passphrase=passphrase)
        if passphrase is not None and not is_encrypted(path):
            return warn(
                name,
                f"{path}: not encrypted, although keys.passphrase_file is set",
                f"Run: openssl pkcs8 -topk8 -v2 aes-256-cbc -in {path} (with that passphrase)",
            )
    except ConfigError as error:
        return fail(name, f"{path}: {error}", "Put the site's own key there, or enrol")
    return finding


def owners_of(settings: SiteSettings, *keys: str) -> set[int]:
    """The user ids that these keys of [guard] name; this process's own where none is named.

    One that does not exist is left to the guard's own check.
    """
    found, named = set(), named_users(settings)
    for key in keys or named:
        if (name := named[key]) is not None:
            try:
                found.add(user_id(name, key=f"[guard] {key}"))
            except ConfigError:
                continue
    return found or {os.geteuid()}


def identity_files(settings: SiteSettings) -> IdentityFiles:
    """Where the site's TLS identity lies, with the passphrase where there is one."""
    passphrase, _ = _passphrase(settings)
    paths = settings.keys
    return IdentityFiles(
        certificate=paths.tls_certificate, key=paths.tls_key, root=paths.ca, passphrase=passphrase
    )


def certificates(settings: SiteSettings, *, now: datetime) -> Iterator[Finding]:
    """Dates, the way to the root, whose it is, and whether it is renewed in time."""
    files = identity_files(settings)
    expiry = shared.certificate_expiry("certificate.expiry", files, now=now)
    late = expiry.level == "fail"
    yield expiry
    yield shared.certificate_chain("certificate.chain", files, role="site", expired=late)
    name = certificate_name("certificate.name", settings)
    yield name
    if name.level == "ok" and not late:
        yield renewal("certificate.renewal", settings, now=now)


def certificate_name(name: str, settings: SiteSettings) -> Finding:
    """Whether the certificate names this site of this federation."""
    path = settings.keys.tls_certificate
    try:
        peer = parse_peer_certificate(path.read_bytes())
    except OSError as error:
        return fail(name, f"{path}: {error.strerror}", "Correct keys.tls_certificate")
    except ChannelError as error:
        return fail(name, f"{path}: {error}", "Put this site's certificate there")
    if (peer.site_id, peer.federation) != (settings.site, settings.federation):
        return fail(
            name,
            f"{path}: of {peer.site_id} in {peer.federation}; the settings say {settings.site} in "
            f"{settings.federation}",
            "Put this site's certificate there, or correct site and federation",
        )
    return ok(name, f"{peer.site_id} in {peer.federation}")


def renewal(name: str, settings: SiteSettings, *, now: datetime) -> Finding:
    """Whether the gateway renews the certificate in time, as far as can be seen from here."""
    path = settings.keys.tls_certificate
    moment = renewal_moment(parse_peer_certificate(path.read_bytes()))
    if now > moment + OVERDUE:
        return warn(
            name,
            f"due since {moment:%Y-%m-%d}, and not done",
            "Let the site run; if it does, gateway.renewal-failed in the gateway's log says what "
            "keeps it from it",
        )
    ours = settings.guard.gateway_user is None
    folders = {path.parent, settings.keys.tls_key.parent}
    if ours and not all(os.access(folder, os.W_OK | os.X_OK) for folder in folders):
        return warn(
            name,
            f"{path.parent}: the gateway may not write there, a new pair has no place",
            "Give the folder of keys.tls_key and keys.tls_certificate to the gateway's user",
        )
    return ok(name, f"by itself, on {moment:%Y-%m-%d}")
