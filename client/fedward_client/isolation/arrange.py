"""Folders and files of a site, each with its owner, before any of its processes starts.

With users of their own (rules 14) the guard owns the state folder and what is its own in there, the
gateway its TLS key and the loopback identity, SuperNode the node key, the worker an empty home. All
are in one group, which may pass through the folders on the way and read site.toml, and no more.
"""

import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedward_client.adapters.key_files import read_node_key
from fedward_client.isolation.accounts import SiteAccounts, public_node_key_file
from fedward_client.isolation.flower import (
    loopback_folder,
    node_home,
    node_secret,
    worker_home,
    worker_secret,
)
from fedward_client.isolation.owners import Owners
from fedward_client.settings import SiteSettings
from fedward_common.errors import ConfigError, StartError
from fedward_common.trust.certificates import make_loopback_identity
from fedward_common.trust.private_files import write_atomically, write_private
from fedward_common.users import Account, acting_as

SECRET_BYTES: Final = 32


def arrange(settings: SiteSettings, accounts: SiteAccounts) -> None:
    """Makes what is missing and gives what root made to the user it is for. Safe to repeat.

    Raises:
        ConfigError: a key cannot be read, or several users would need one passphrase file.
        StartError: something belongs to another user, or the worker cannot read the data.
    """
    owners = Owners(group=accounts.group)
    if accounts.separate:
        _open_the_way(settings, owners)
        _give_keys(settings, owners, accounts)
    _make_folders(settings, owners, accounts)
    with acting_as(accounts.gateway):
        make_loopback_identity(loopback_folder(settings))
    _share_secret(settings, accounts)
    _publish_node_key(settings, accounts)
    if accounts.guard is not None and accounts.worker is not None:
        _require_readable(settings.data_files, "worker", accounts.worker)
        if settings.exclusions is not None:
            # The worker leaves these patients out, the guard notes which list it was.
            owners.shared(settings.exclusions, accounts.guard, reader=accounts.worker)
            _require_readable([settings.exclusions], "worker", accounts.worker)
            _require_readable([settings.exclusions], "guard", accounts.guard)


def _open_the_way(settings: SiteSettings, owners: Owners) -> None:
    """Every process of the site may read site.toml, and reach its own key."""
    keys, site = settings.keys, settings.source.parent
    public = (settings.source, keys.ca, keys.tls_certificate)
    private = (keys.signing_key, keys.node_key, keys.tls_key)
    for path in (*public, *private):
        for folder in path.parents:
            if folder.is_relative_to(site) or folder.is_relative_to(settings.folders.state):
                owners.passable(folder)
        owners.passable(path.parent)
    for path in public:
        owners.readable(path)


def _give_keys(settings: SiteSettings, owners: Owners, accounts: SiteAccounts) -> None:
    keys = settings.keys
    if keys.passphrase_file is not None:
        raise ConfigError(
            "keys.passphrase_file: expected none where root starts processes of several users: it "
            "would be every user's. Start each by its own service unit, with a credential"
        )
    rest = [(keys.signing_key, accounts.guard), (keys.node_key, accounts.node)]
    if keys.secagg_key is not None:
        rest.append((keys.secagg_key, accounts.guard))
    proxy = settings.coordinator.proxy_auth_file
    gateways = (keys.tls_key,) if proxy is None else (keys.tls_key, proxy)
    for path, owner in (*rest, *((path, accounts.gateway) for path in gateways)):
        if owner is not None:
            owners.file(path, owner)
    shared = {settings.source.parent, *(path.parent for path, _ in rest)}
    if keys.tls_key.parent not in shared:
        # A renewal writes a new key there: nobody else's may lie in that folder.
        owners.folder(keys.tls_key.parent, accounts.gateway, passage=True)


def _make_folders(settings: SiteSettings, owners: Owners, accounts: SiteAccounts) -> None:
    state, run = settings.folders.state, settings.folders.run
    node, worker = node_home(settings), worker_home(settings)
    loopback = loopback_folder(settings)
    keys = settings.keys
    own = (node, worker, loopback, settings.spool, settings.blob_folder)
    elsewhere = (*own, keys.node_key, keys.tls_key, keys.signing_key)
    keep = {path.relative_to(state).parts[0] for path in elsewhere if path.is_relative_to(state)}
    owners.folder(state, accounts.guard, passage=True, keep=keep)
    owners.folder(run, accounts.guard, passage=True)
    owners.folder(state / "logs", accounts.guard)
    owners.folder(node, accounts.node)
    owners.folder(worker, accounts.worker)
    owners.folder(loopback, accounts.gateway, passage=True)
    owners.folder(settings.spool, accounts.gateway)
    owners.folder(settings.blob_folder, accounts.gateway)
    owners.folder(settings.fleet_socket.parent, accounts.gateway)
    owners.folder(settings.phase_socket.parent, accounts.gateway, passage=True)


def _share_secret(settings: SiteSettings, accounts: SiteAccounts) -> None:
    """The same secret in SuperNode's and in the worker's folder, each readable by its user only."""
    files = ((node_secret(settings), accounts.node), (worker_secret(settings), accounts.worker))
    known = set[bytes]()
    for path, owner in files:
        with acting_as(owner):
            known.add(_short(path))
    if len(known) == 1 and known != {b""}:
        return
    secret = secrets.token_bytes(SECRET_BYTES)
    for path, owner in files:
        with acting_as(owner):
            write_private(path, secret)


def _short(path: Path) -> bytes:
    """The first bytes of a user's own file; none where it is missing, a link or something else.

    Root must not wait at what that user put there (a pipe), or read without end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, SECRET_BYTES + 1) if regular else b""
    finally:
        os.close(descriptor)


def _publish_node_key(settings: SiteSettings, accounts: SiteAccounts) -> None:
    """The public half beside the node key: the gateway needs it and may not read the key."""
    public = public_node_key_file(settings)
    if accounts.node is None or public.exists():
        return
    with acting_as(accounts.node):
        key = read_node_key(settings.keys.node_key)
    write_atomically(public, f"{key.header}\n".encode())


def _require_readable(paths: Sequence[Path], role: str, account: Account) -> None:
    for path in paths:
        try:
            with acting_as(account), path.open("rb"):
                pass
        except PermissionError as error:
            raise StartError(
                f"{path}: expected that the {role} ({account.name}) may read it, found that it may "
                f"not. Give it to that user's group: chgrp {account.gid} and chmod 0640, and let "
                "the group pass through the folders above it"
            ) from error
        except OSError:
            continue  # missing: whoever needs it names it when a study asks for it
