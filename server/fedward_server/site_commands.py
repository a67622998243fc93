"""`fedward-server site ...`: the desk with its registry, authority, log and clock put together.

Each command is one step. What it refuses is logged before the error reaches the terminal.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedward_common.errors import ConfigError, StartError
from fedward_common.ids import SiteId, parse_site_id
from fedward_common.trust.enrolment import SITE_GRANT
from fedward_common.trust.private_files import write_atomically, write_private
from fedward_common.trust.words import words
from fedward_server.adapters.certificate_authority import CertificateAuthority, open_authority
from fedward_server.adapters.registry import SqlRegistry, open_registry
from fedward_server.adapters.shared_log import SharedLog
from fedward_server.enrolment_desk import (
    SITE_DENIAL,
    SITE_REVOCATION,
    DeskRules,
    EnrolmentDesk,
    grant_facts,
)
from fedward_server.enrolment_intake import EnrolmentIntake
from fedward_server.enrolment_rules import EnrolmentRefused, stamp
from fedward_server.operators import sign_as
from fedward_server.ports import RequestStatus
from fedward_server.serve import register_nodes, require_running
from fedward_server.settings import CoordinatorSettings

MAX_CARRIED_BYTES = 1 << 17


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """Who types a command: the name in coordinator.toml and the file of the key.

    `passphrase_file` opens the issuing key where the file that the settings name is a credential of
    the service alone.
    """

    name: str
    key_file: Path
    passphrase_file: Path | None = None


def invite_site(settings: CoordinatorSettings, site: str, *, out: Path | None) -> str:
    """The text of a new invite; into `out` (0600) if given. A secret until it is used."""
    name, address = parse_site_id(site), settings.enrolment.address or settings.address
    if address is None:
        raise ConfigError(
            "enrolment.address: expected host:port for sites in coordinator.toml, found none"
        )
    try:
        root_pem = settings.tls.ca.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{settings.tls.ca}: expected the federation's root, found {error.strerror}"
        ) from error
    with _desk(settings, name) as desk:
        invite = desk.invite(
            name, address=address, server_name=settings.server_name, root_pem=root_pem
        )
    if out is not None:
        write_private(out, invite.text.encode() + b"\n")
    return invite.text


def review_site(settings: CoordinatorSettings, site: str) -> dict[str, Any]:
    """What an operator compares with the hospital, over the telephone, before granting."""
    name = parse_site_id(site)
    with _desk(settings, name) as desk:
        review = desk.review(name)
    return {
        "site": name,
        "federation": review.request.federation,
        "words": review.words,
        "request_sha256": review.record.request_sha256,
        "submitted_at": stamp(review.record.submitted_at),
        "granted_by": list(review.granted_by),
        "operators_needed": settings.enrolment.operators_needed,
    }


def grant_site(
    settings: CoordinatorSettings, site: str, operator: Operator, *, compared: str
) -> dict[str, Any]:
    """One operator's grant; `compared` are the words that the hospital read out.

    Raises:
        EnrolmentRefused: with the reason.
        ConfigError: other words, no such operator, or no authority on this machine.
    """
    name, needed = parse_site_id(site), settings.enrolment.operators_needed
    if settings.address is None:
        raise ConfigError(
            "address: expected host:port of the edge for sites in coordinator.toml, found none"
        )
    if len(settings.operators) < needed:
        raise ConfigError(
            f"operators: expected at least enrolment.operators_needed = {needed} in "
            f"coordinator.toml, found {len(settings.operators)}. "
            "Make keys with `fedward-server operator new`"
        )
    authority = _authority(settings, operator)
    with _desk(settings, name) as desk:
        review = desk.review(name)
        if re.findall("[a-z]+", compared.lower()) != review.words.split("-"):
            raise ConfigError(
                f"site {name}: expected the words that the hospital reads, found others. "
                "Do not grant: someone else may have used the invite. Deny it and invite again"
            )
        statement = sign_as(
            settings,
            operator.name,
            operator.key_file,
            kind=SITE_GRANT,
            facts=grant_facts(review.record),
            now=_now(),
        )
        member = desk.grant(statement, authority)
    if member is None:
        return {
            "site": name,
            "status": "waiting",
            "granted_by": [*review.granted_by, operator.name],
        }
    return {
        "site": name,
        "status": "granted",
        "certificate_sha256": member.certificate_sha256,
        "registered": _tell_superlink(settings),
    }


def deny_site(settings: CoordinatorSettings, site: str, operator: Operator) -> None:
    """Ends the waiting request of a site."""
    name = parse_site_id(site)
    with _desk(settings, name) as desk:
        facts = grant_facts(desk.review(name).record)
        desk.deny(
            sign_as(
                settings,
                operator.name,
                operator.key_file,
                kind=SITE_DENIAL,
                facts=facts,
                now=_now(),
            )
        )


def revoke_site(settings: CoordinatorSettings, site: str, operator: Operator) -> None:
    """Ends a membership: the edge refuses the site's next call."""
    name = parse_site_id(site)
    statement = sign_as(
        settings,
        operator.name,
        operator.key_file,
        kind=SITE_REVOCATION,
        facts={"site": name},
        now=_now(),
    )
    with _desk(settings, name) as desk:
        desk.revoke(statement)


def import_request(settings: CoordinatorSettings, file: Path) -> dict[str, Any]:
    """Takes a request that was carried here; what `review_site` says of it."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_CARRIED_BYTES)
    except OSError as error:
        raise ConfigError(f"{file}: expected a carried request, found {error.strerror}") from error
    registry = open_registry(settings.database)
    log = SharedLog(settings.desk_log)
    try:
        intake = EnrolmentIntake(
            federation=settings.federation, registry=registry, log=log, clock=_now
        )
        with _logged(log, None):
            request = intake.import_carried(data)
    finally:
        registry.close()
    return review_site(settings, request.site)


def export_grant(settings: CoordinatorSettings, site: str, out: Path) -> None:
    """Writes the grant of a member to `out`, to be carried to it. It holds no secret."""
    name = parse_site_id(site)
    with _desk(settings, name) as desk:
        write_atomically(out, desk.export(name))


def list_sites(settings: CoordinatorSettings) -> list[dict[str, Any]]:
    """Every member, former member, waiting request and open invite, by site."""
    registry = open_registry(settings.database)
    try:
        return [*_members(registry), *_expected(registry)]
    finally:
        registry.close()


def _members(registry: SqlRegistry) -> Iterator[dict[str, Any]]:
    for record in registry.sites():
        certificate = registry.present_certificate(record.site_id)
        yield {
            "site": record.site_id,
            "status": record.status.value,
            "key_sha256": record.key_sha256,
            "key_words": words(record.key_sha256),
            "node_key_sha256": record.node_key_sha256,
            "certificate_sha256": record.certificate_sha256,
            "not_after": None if certificate is None else stamp(certificate.not_after),
            "granted_by": _granted_by(registry, record.site_id),
        }


def _granted_by(registry: SqlRegistry, site: SiteId) -> list[str]:
    """Whose signatures made the site a member; each is verified again."""
    granted = [
        request.request_sha256
        for request in registry.book.requests(site)
        if request.status is RequestStatus.GRANTED
    ]
    statements = registry.book.statements(SITE_GRANT, site)
    return sorted(
        {s.person for s in statements if granted and s.facts["request_sha256"] == granted[-1]}
    )


def _expected(registry: SqlRegistry) -> Iterator[dict[str, Any]]:
    now = _now()
    for request in registry.book.requests():
        if request.status is RequestStatus.WAITING:
            yield {"site": request.site, "status": "waits for operators"}
    for invite in registry.book.invites():
        if invite.used_at is None and now <= invite.expires_at:
            yield {"site": invite.site, "status": f"invited until {stamp(invite.expires_at)}"}


@contextmanager
def _desk(settings: CoordinatorSettings, site: SiteId) -> Iterator[EnrolmentDesk]:
    registry = open_registry(settings.database)
    log = SharedLog(settings.desk_log)
    rules = DeskRules(
        federation=settings.federation,
        operators={entry.public_key: entry.name for entry in settings.operators},
        operators_needed=settings.enrolment.operators_needed,
        edge_address=settings.address or settings.listen,
        server_name=settings.server_name,
    )
    try:
        with _logged(log, site):
            yield EnrolmentDesk(rules=rules, registry=registry, log=log, clock=_now)
    finally:
        registry.close()


@contextmanager
def _logged(log: SharedLog, site: SiteId | None) -> Iterator[None]:
    """Notes a refusal in the operators' log before it goes on to the terminal."""
    try:
        yield
    except EnrolmentRefused as refused:
        named = site or refused.site
        log.append("site.refused", code=refused.refusal.value, **({"site": named} if named else {}))
        raise


def _authority(settings: CoordinatorSettings, operator: Operator) -> CertificateAuthority:
    authority = open_authority(settings, passphrase_file=operator.passphrase_file)
    if authority is None:
        raise ConfigError(
            f"{settings.authority_folder}: expected the issuing authority, found none. "
            "Run this where it lies, or make one with `fedward-server init`"
        )
    return authority


def _tell_superlink(settings: CoordinatorSettings) -> bool:
    """Whether a coordinator that runs knows the new site's node now; a stopped one will."""
    try:
        require_running(settings)
        register_nodes(settings)
    except StartError:
        return False
    return True


def _now() -> datetime:
    return datetime.now(UTC)
