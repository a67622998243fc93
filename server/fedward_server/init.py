"""`fedward-server init`: a new federation, from nothing to a coordinator that `serve` can start.

Nothing is ever overwritten. The root's key goes, encrypted, to a folder of its own, which is meant
to be a medium that is then put into a safe.
"""

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from fedward_common.errors import ConfigError
from fedward_common.trust.certificates import expires_at, new_request, parse_federation
from fedward_common.trust.chains import spki_sha256
from fedward_common.trust.private_files import write_atomically, write_private
from fedward_common.trust.words import words
from fedward_server.adapters.certificate_authority import (
    ROOT_KEY,
    CertificateAuthority,
    open_authority,
    server_hosts,
)
from fedward_server.adapters.secret_files import read_passphrase
from fedward_server.settings import CoordinatorSettings

SETTINGS: Final = "coordinator.toml"
TEMPLATE: Final = """\
# The coordinator of a Fedward federation (made by `fedward-server init`).
federation = {federation}
# Where the edge listens, and how sites reach it.
listen = {listen}
address = {address}
state = {state}
run = {run}

[tls]
certificate = "keys/tls.pem"
key = "keys/tls.key"
ca = "keys/ca.pem"

# How hospitals join: the port is open only while an invite is.
[enrolment]
listen = {enrolment_listen}
address = {enrolment_address}
# Granting takes this many different operators.
operators_needed = 2
{authority}
# One table per operator, as `fedward-server operator new NAME --key FILE` prints it:
# [[operators]]
# name = "..."
# public_key = "..."
"""
AUTHORITY: Final = """
[authority]
passphrase_file = {passphrase_file}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFederation:
    """What `init` is told. `host` is the name by which sites reach this machine."""

    folder: Path
    federation: str
    host: str
    root_folder: Path
    root_passphrase: bytes
    issuing_passphrase: bytes | None = None
    issuing_passphrase_file: Path | None = None
    listen_host: str = "0.0.0.0"  # noqa: S104 - sites come from outside
    port: int = 9443
    enrolment_port: int = 9444
    state: Path = Path("state")
    run: Path = Path("run")


def init_federation(new: NewFederation, *, now: datetime) -> dict[str, str]:
    """Makes the federation; returns what its operator should write down.

    Raises:
        ConfigError: something is there already, or a name is not of its form.
    """
    parse_federation(new.federation)
    folder, keys = new.folder.absolute(), new.folder.absolute() / "keys"
    root_file = new.root_folder.absolute() / ROOT_KEY
    for path in (folder / SETTINGS, keys / "tls.key", root_file):
        if os.path.lexists(path):
            raise ConfigError(f"{path}: expected nothing there, found a file. Name another folder")
    for made in (folder, keys, folder / new.state):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = CertificateAuthority.create(
        folder / new.state / "authority",
        federation=new.federation,
        now=now,
        root_file=root_file,
        root_passphrase=new.root_passphrase,
        issuing_passphrase=new.issuing_passphrase,
    )
    _write_server_certificate(
        authority, hosts=_hosts(new.host), files=(keys / "tls.pem", keys / "tls.key"), now=now
    )
    write_atomically(keys / "ca.pem", authority.root_pem)
    # Last, because it is what says that a coordinator is there.
    write_atomically(folder / SETTINGS, _settings(new).encode(), mode=0o600)
    pin = spki_sha256(authority.root_pem)
    return {
        "settings": str(folder / SETTINGS),
        "root_key": str(root_file),
        "root_sha256": pin,
        "root_words": words(pin),
    }


def renew_server_certificate(settings: CoordinatorSettings, *, now: datetime) -> datetime:
    """A new key and certificate of the edge, for the same hosts; returns when it ends.

    The edge and the enrolment listener read it when they start.

    Raises:
        ConfigError: the issuing authority is not on this machine, or there is no certificate.
    """
    authority = open_authority(settings)
    if authority is None:
        raise ConfigError(
            f"{settings.authority_folder}: expected the issuing authority, found none"
        )
    try:
        present = settings.tls.certificate.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{settings.tls.certificate}: expected the edge's certificate, found {error.strerror}"
        ) from error
    files = (settings.tls.certificate, settings.tls.key)
    return _write_server_certificate(authority, hosts=server_hosts(present), files=files, now=now)


def renew_issuing_authority(
    settings: CoordinatorSettings, *, root_file: Path, root_passphrase: bytes, now: datetime
) -> datetime:
    """The next issuing authority, signed by the root on its medium; returns when it ends.

    What the former one signed stays good; the edge uses the new one from its next start.

    Raises:
        ConfigError: another federation's root, or another passphrase.
    """
    secret = settings.authority.passphrase_file
    authority = CertificateAuthority.renew_issuing(
        settings.authority_folder,
        federation=settings.federation,
        now=now,
        root_file=root_file,
        root_passphrase=root_passphrase,
        issuing_passphrase=None if secret is None else read_passphrase(secret),
    )
    return expires_at(authority.issuing_pem)


def _write_server_certificate(
    authority: CertificateAuthority, *, hosts: list[str], files: tuple[Path, Path], now: datetime
) -> datetime:
    request = new_request("coordinator")
    chain = authority.issue_server(request.request_pem, hosts=hosts, now=now)
    certificate, key = files
    write_private(key, request.key_pem)
    write_atomically(certificate, chain)
    return expires_at(chain)


def _settings(new: NewFederation) -> str:
    """coordinator.toml; JSON texts and numbers are TOML as well."""
    passphrase_file = new.issuing_passphrase_file
    values = {
        "federation": new.federation,
        "listen": f"{new.listen_host}:{new.port}",
        "address": f"{new.host}:{new.port}",
        "state": str(new.state),
        "run": str(new.run),
        "enrolment_listen": f"{new.listen_host}:{new.enrolment_port}",
        "enrolment_address": f"{new.host}:{new.enrolment_port}",
    }
    encoded = {name: json.dumps(value) for name, value in values.items()}
    authority = ""
    if passphrase_file is not None:
        authority = AUTHORITY.format(passphrase_file=json.dumps(str(passphrase_file.absolute())))
    return TEMPLATE.format(**encoded, authority=authority)


def _hosts(host: str) -> list[str]:
    # The edge's own self-test and commands on this machine use loopback.
    return list(dict.fromkeys([host, "localhost", "127.0.0.1"]))
