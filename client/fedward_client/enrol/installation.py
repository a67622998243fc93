"""A grant in its place: what was verified, in an order that a crash cannot harm, site.toml last."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedward_client.adapters.key_files import read_passphrase
from fedward_client.adapters.tls_pair import TlsPair
from fedward_client.enrol.keys import stored_invite, stored_request
from fedward_client.enrol.places import Places, SiteOptions
from fedward_client.enrol.template import site_toml
from fedward_client.settings import load_site_settings
from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.trust.certificates import PeerCertificate
from fedward_common.trust.enrolment import Grant, Invite
from fedward_common.trust.private_files import write_atomically, write_private
from fedward_common.users import Account


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolment:
    """A site that is a member now: its settings file and until when its certificate is good."""

    site: str
    federation: str
    config: Path
    until: datetime
    granted_by: tuple[str, ...]


def passphrase_file(places: Places, options: SiteOptions) -> Path | None:
    """Of the site that is there, or as it was said for a new one."""
    if places.present is not None:
        return places.present.keys.passphrase_file
    return options.passphrase_file


def stored_grant(invite: Invite, places: Places) -> Grant | None:
    """The grant that this very invite brought before: only its installation may be unfinished."""
    try:
        if stored_invite(places).token_sha256 != invite.token_sha256:
            return None
        grant = Grant.parse(places.grant.read_bytes())
    except (ConfigError, ProtocolError, OSError):
        return None
    return grant if grant.request_sha256 == stored_request(places).sha256 else None


def placed(grant: Grant, places: Places, options: SiteOptions, *, now: datetime) -> PeerCertificate:
    """Puts a grant that holds into its place: the grant, then the root, then the pair.

    Each of these may have been done before: what is there already stays as it is.

    Raises:
        SignatureRefused: the grant does not hold; nothing is changed then.
    """
    request, invited = stored_request(places), stored_invite(places)
    peer = grant.verify(request, root_sha256=invited.root_sha256, now=now)
    chain = grant.chain_pem.encode()
    pair = TlsPair(
        certificate=places.tls_certificate,
        key=places.tls_key,
        passphrase=read_passphrase(passphrase_file(places, options)),
    )
    pair.settle()
    write_private(places.grant, grant.canonical)
    write_atomically(places.ca, grant.root_pem.encode())
    if not (pair.certificate.exists() and pair.certificate.read_bytes() == chain):
        pair.switch(chain)
    return peer


def configured(
    grant: Grant,
    peer: PeerCertificate,
    places: Places,
    options: SiteOptions,
    *,
    owner: Account | None,
) -> Enrolment:
    """Writes site.toml, the last step, where there is none: the service user's group reads it."""
    if places.present is None:
        write_atomically(places.config, site_toml(grant, places, options), mode=0o640)
        if owner is not None:
            os.chown(places.config, -1, owner.gid, follow_symlinks=False)
    settings = load_site_settings(places.config)
    return Enrolment(
        site=settings.site,
        federation=settings.federation,
        config=places.config,
        until=peer.not_after,
        granted_by=tuple(statement.person for statement in grant.statements),
    )
