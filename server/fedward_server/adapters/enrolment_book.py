"""Who was invited, asked, was granted, denied and revoked: the registry's other tables."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedward_common.errors import ConfigError
from fedward_common.ids import Digest, SiteId
from fedward_common.trust.statements import Statement
from fedward_server.adapters.registry_tables import (
    CertificateRow,
    InviteRow,
    KeyRow,
    RequestRow,
    SiteRow,
    StatementRow,
)
from fedward_server.adapters.registry_values import (
    certificate_record,
    certificate_row,
    invite_record,
    request_record,
    row_of_site,
    seconds,
)
from fedward_server.ports import (
    CertificateRecord,
    InviteRecord,
    RequestRecord,
    RequestStatus,
    SiteRecord,
    SiteStatus,
)


class SqlEnrolmentBook:
    """Implements `EnrolmentBook`. Each method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_invite(self, invite: InviteRecord) -> None:
        """Keeps an invite."""
        row = InviteRow(
            token_sha256=invite.token_sha256,
            proof_public_key=invite.proof_public_key,
            site_id=invite.site,
            created_at=seconds(invite.created_at),
            expires_at=seconds(invite.expires_at),
            used_at=None if invite.used_at is None else seconds(invite.used_at),
        )
        with Session(self._engine) as session, session.begin():
            session.add(row)

    def withdraw_invites(self, site: SiteId, at: datetime) -> None:
        """Makes every unused invite of `site` used."""
        unused = update(InviteRow).where(InviteRow.site_id == site, InviteRow.used_at.is_(None))
        with self._engine.begin() as connection:
            connection.execute(unused.values(used_at=seconds(at)))

    def find_invite(self, token_sha256: Digest) -> InviteRecord | None:
        """The invite, used or not, expired or not, or None."""
        with Session(self._engine) as session:
            row = session.get(InviteRow, token_sha256)
            return None if row is None else invite_record(row)

    def invites(self) -> list[InviteRecord]:
        """Every invite, the oldest first."""
        query = select(InviteRow).order_by(InviteRow.created_at, InviteRow.token_sha256)
        with Session(self._engine) as session:
            return [invite_record(row) for row in session.scalars(query)]

    def submit(self, request: RequestRecord) -> bool:
        """Keeps a request and marks its invite as used, both or neither.

        False when the invite was used by another request in between.
        """
        # One statement decides between two requests that come at the same time.
        use = (
            update(InviteRow)
            .where(InviteRow.token_sha256 == request.token_sha256, InviteRow.used_at.is_(None))
            .values(used_at=seconds(request.submitted_at))
        )
        row = RequestRow(
            request_sha256=request.request_sha256,
            site_id=request.site,
            token_sha256=request.token_sha256,
            document=request.document,
            submitted_at=seconds(request.submitted_at),
            status=request.status.value,
            answer=request.grant,
            fetched_at=None,
        )
        try:
            with Session(self._engine) as session, session.begin():
                if session.execute(use).rowcount != 1:  # type: ignore[attr-defined]
                    return False
                session.add(row)
        except IntegrityError:
            return False
        return True

    def find_request(self, request_sha256: Digest) -> RequestRecord | None:
        """The request, or None."""
        with Session(self._engine) as session:
            row = session.get(RequestRow, request_sha256)
            return None if row is None else request_record(row)

    def requests(self, site: SiteId | None = None) -> list[RequestRecord]:
        """Every request (of `site`), the oldest first."""
        query = select(RequestRow).order_by(RequestRow.submitted_at, RequestRow.request_sha256)
        if site is not None:
            query = query.where(RequestRow.site_id == site)
        with Session(self._engine) as session:
            return [request_record(row) for row in session.scalars(query)]

    def key_used(self, key_sha256: Digest) -> bool:
        """Whether a member has or had a key with this digest, of whatever kind."""
        with Session(self._engine) as session:
            return session.get(KeyRow, key_sha256) is not None

    def add_statement(self, statement: Statement) -> None:
        """Keeps what an operator signed; the same statement again changes nothing."""
        row = StatementRow(
            sha256=statement.sha256,
            kind=statement.kind,
            site_id=str(statement.facts["site"]),
            said_at=seconds(statement.time),
            document=statement.canonical,
        )
        with Session(self._engine) as session, session.begin():
            session.merge(row)

    def statements(self, kind: str, site: SiteId) -> list[Statement]:
        """What operators signed of this kind about a site, the oldest first; verified again."""
        query = (
            select(StatementRow)
            .where(StatementRow.kind == kind, StatementRow.site_id == site)
            .order_by(StatementRow.said_at, StatementRow.sha256)
        )
        with Session(self._engine) as session:
            documents = [row.document for row in session.scalars(query)]
        return [Statement.parse(document, kind=kind) for document in documents]

    def enrol(
        self,
        request_sha256: Digest,
        record: SiteRecord,
        *,
        certificate: CertificateRecord,
        keys: Mapping[str, Digest],
        grant: bytes,
    ) -> None:
        """Makes a site a member and its waiting request granted, all in one step or not at all.

        `keys` are the digests of its new keys by kind. A revoked site of that name is replaced; a
        member whose certificate has ended gets another one for the same keys.

        Raises:
            ConfigError: the site is a member, a key or the certificate is another's or was used
                before, or the request does not wait.
        """
        site = record.site_id
        try:
            with Session(self._engine) as session, session.begin():
                # The write comes first and the row is locked: what is read of the site then stands
                # until this is done, against a revocation or another grant in the same moment.
                waited = _answer(session, request_sha256, RequestStatus.GRANTED, grant)
                found = session.get(SiteRow, site, with_for_update=True)
                if found is not None and not _may_be_replaced(session, found, record, certificate):
                    raise ConfigError(f"site {site}: expected a new site, found it a member")
                if not waited:
                    raise ConfigError(f"site {site}: expected a request that waits, found none")
                for kind, digest in sorted(keys.items()):
                    session.add(KeyRow(key_sha256=digest, site_id=site, kind=kind))
                session.add(certificate_row(site, certificate))
                session.merge(row_of_site(record))
        except IntegrityError as error:
            raise ConfigError(
                f"site {site}: expected a certificate and keys of its own, found one of them used"
            ) from error

    def deny(self, request_sha256: Digest) -> bool:
        """Makes a waiting request denied; False when it does not wait."""
        with Session(self._engine) as session, session.begin():
            return _answer(session, request_sha256, RequestStatus.DENIED, b"")

    def fetched(self, request_sha256: Digest, at: datetime) -> None:
        """Notes when an answer was first handed over."""
        first = (
            update(RequestRow)
            .where(RequestRow.request_sha256 == request_sha256, RequestRow.fetched_at.is_(None))
            .values(fetched_at=seconds(at))
        )
        with self._engine.begin() as connection:
            connection.execute(first)

    def present_certificate(self, site: SiteId) -> CertificateRecord | None:
        """What is known of a site's present certificate, or None."""
        query = (
            select(CertificateRow)
            .join(SiteRow, SiteRow.certificate_sha256 == CertificateRow.certificate_sha256)
            .where(SiteRow.site_id == site)
        )
        with Session(self._engine) as session:
            row = session.scalars(query).one_or_none()
            return None if row is None else certificate_record(row)


def _answer(session: Session, request: Digest, status: RequestStatus, answer: bytes) -> bool:
    waiting = RequestRow.status == RequestStatus.WAITING.value
    change = update(RequestRow).where(RequestRow.request_sha256 == request, waiting)
    done = session.execute(change.values(status=status.value, answer=answer))
    return bool(done.rowcount == 1)  # type: ignore[attr-defined]


def _keys_of(row: SiteRow) -> set[str | None]:
    return {row.node_public_key, row.signing_public_key, row.secagg_public_key} - {None}


def _may_be_replaced(
    session: Session, found: SiteRow, record: SiteRecord, certificate: CertificateRecord
) -> bool:
    """Whether a row gives way: it is revoked, or the same site returns after its certificate.

    Who was revoked comes back under new keys only: a member that returns with its own was revoked
    after the desk had looked.
    """
    if found.status == SiteStatus.REVOKED.value:
        return not _keys_of(found) & {
            record.node_public_key,
            record.signing_public_key,
            record.secagg_public_key,
        }
    present = session.get(CertificateRow, found.certificate_sha256)
    ended = present is not None and present.not_after < seconds(certificate.issued_at)
    return ended and found.node_public_key == record.node_public_key
