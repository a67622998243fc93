"""The tables of the registry; `migrations` is how a database comes to have them.

Times are seconds since 1970 (whole), which every database compares alike.
"""

from sqlalchemy import BigInteger, LargeBinary, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables."""


class SiteRow(Base):
    """One site, one row: what the edge asks on every call."""

    __tablename__ = "sites"

    site_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    certificate_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    node_public_key: Mapped[str] = mapped_column(String(1024), unique=True)
    signing_public_key: Mapped[str] = mapped_column(String(64), unique=True)
    status: Mapped[str] = mapped_column(String(16))
    previous_certificate_sha256: Mapped[str | None] = mapped_column(String(64))
    secagg_public_key: Mapped[str | None] = mapped_column(String(64))


class CertificateRow(Base):
    """Every certificate that was issued to a site by enrolment or renewal."""

    __tablename__ = "certificates"

    certificate_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    site_id: Mapped[str] = mapped_column(String(63))
    key_sha256: Mapped[str] = mapped_column(String(64))
    chain_pem: Mapped[bytes] = mapped_column(LargeBinary)
    issued_at: Mapped[int] = mapped_column(BigInteger)
    not_before: Mapped[int] = mapped_column(BigInteger)
    not_after: Mapped[int] = mapped_column(BigInteger)


class KeyRow(Base):
    """Every public key that a member has or had; none is taken a second time."""

    __tablename__ = "site_keys"

    key_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    site_id: Mapped[str] = mapped_column(String(63))
    kind: Mapped[str] = mapped_column(String(16))


class InviteRow(Base):
    """Every invite, by the digest of its token."""

    __tablename__ = "invites"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    proof_public_key: Mapped[str] = mapped_column(String(64))
    site_id: Mapped[str] = mapped_column(String(63))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    used_at: Mapped[int | None] = mapped_column(BigInteger)


class RequestRow(Base):
    """Every enrolment request and its answer."""

    __tablename__ = "enrolment_requests"

    request_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    site_id: Mapped[str] = mapped_column(String(63))
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    document: Mapped[bytes] = mapped_column(LargeBinary)
    submitted_at: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    answer: Mapped[bytes] = mapped_column(LargeBinary)
    fetched_at: Mapped[int | None] = mapped_column(BigInteger)


class StatementRow(Base):
    """What operators signed: grants, denials, revocations."""

    __tablename__ = "statements"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(64))
    site_id: Mapped[str] = mapped_column(String(63))
    said_at: Mapped[int] = mapped_column(BigInteger)
    document: Mapped[bytes] = mapped_column(LargeBinary)
