"""Rows of the registry's tables as the values of `ports`, and back."""

from datetime import UTC, datetime

from fedward_common.ids import Digest, SiteId
from fedward_server.adapters.registry_tables import (
    CertificateRow,
    InviteRow,
    RequestRow,
    SiteRow,
)
from fedward_server.ports import (
    CertificateRecord,
    InviteRecord,
    RequestRecord,
    RequestStatus,
    SiteRecord,
    SiteStatus,
)


def seconds(moment: datetime) -> int:
    """Whole seconds since 1970."""
    return int(moment.timestamp())


def moment(since_1970: int) -> datetime:
    """The time (aware, UTC)."""
    return datetime.fromtimestamp(since_1970, UTC)


def site_record(row: SiteRow) -> SiteRecord:
    """The site in a row."""
    previous = row.previous_certificate_sha256
    return SiteRecord(
        site_id=SiteId(row.site_id),
        certificate_sha256=Digest(row.certificate_sha256),
        node_public_key=row.node_public_key,
        signing_public_key=row.signing_public_key,
        status=SiteStatus(row.status),
        previous_certificate_sha256=None if previous is None else Digest(previous),
        secagg_public_key=row.secagg_public_key,
    )


def row_of_site(record: SiteRecord) -> SiteRow:
    """The row of a site."""
    return SiteRow(
        site_id=record.site_id,
        certificate_sha256=record.certificate_sha256,
        node_public_key=record.node_public_key,
        signing_public_key=record.signing_public_key,
        status=record.status.value,
        previous_certificate_sha256=record.previous_certificate_sha256,
        secagg_public_key=record.secagg_public_key,
    )


def certificate_record(row: CertificateRow) -> CertificateRecord:
    """The certificate in a row."""
    return CertificateRecord(
        certificate_sha256=Digest(row.certificate_sha256),
        key_sha256=Digest(row.key_sha256),
        chain_pem=row.chain_pem,
        issued_at=moment(row.issued_at),
        not_before=moment(row.not_before),
        not_after=moment(row.not_after),
    )


def certificate_row(site: SiteId, certificate: CertificateRecord) -> CertificateRow:
    """The row of a certificate of `site`."""
    return CertificateRow(
        certificate_sha256=certificate.certificate_sha256,
        site_id=site,
        key_sha256=certificate.key_sha256,
        chain_pem=certificate.chain_pem,
        issued_at=seconds(certificate.issued_at),
        not_before=seconds(certificate.not_before),
        not_after=seconds(certificate.not_after),
    )


def invite_record(row: InviteRow) -> InviteRecord:
    """The invite in a row."""
    return InviteRecord(
        token_sha256=Digest(row.token_sha256),
        proof_public_key=row.proof_public_key,
        site=SiteId(row.site_id),
        created_at=moment(row.created_at),
        expires_at=moment(row.expires_at),
        used_at=None if row.used_at is None else moment(row.used_at),
    )


def request_record(row: RequestRow) -> RequestRecord:
    """The enrolment request in a row."""
    return RequestRecord(
        request_sha256=Digest(row.request_sha256),
        site=SiteId(row.site_id),
        token_sha256=Digest(row.token_sha256),
        document=row.document,
        submitted_at=moment(row.submitted_at),
        status=RequestStatus(row.status),
        grant=row.answer,
        fetched_at=None if row.fetched_at is None else moment(row.fetched_at),
    )
