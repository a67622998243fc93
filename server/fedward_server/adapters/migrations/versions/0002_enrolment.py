"""Enrolment: invites, requests, certificates, keys and statements; the overlap of a renewal."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = ("certificates", "site_keys", "invites", "enrolment_requests", "statements")


def upgrade() -> None:
    """Makes the tables and adds two columns to the sites."""
    with op.batch_alter_table("sites") as sites:
        sites.add_column(sa.Column("previous_certificate_sha256", sa.String(64), nullable=True))
        sites.add_column(sa.Column("secagg_public_key", sa.String(64), nullable=True))
    op.create_table(
        "certificates",
        sa.Column("certificate_sha256", sa.String(64), primary_key=True),
        sa.Column("site_id", sa.String(63), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("chain_pem", sa.LargeBinary(), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "site_keys",
        sa.Column("key_sha256", sa.String(64), primary_key=True),
        sa.Column("site_id", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
    )
    op.create_table(
        "invites",
        sa.Column("token_sha256", sa.String(64), primary_key=True),
        sa.Column("proof_public_key", sa.String(64), nullable=False),
        sa.Column("site_id", sa.String(63), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
    )
    op.create_table(
        "enrolment_requests",
        sa.Column("request_sha256", sa.String(64), primary_key=True),
        sa.Column("site_id", sa.String(63), nullable=False),
        sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("submitted_at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("fetched_at", sa.BigInteger(), nullable=True),
    )
    op.create_table(
        "statements",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("site_id", sa.String(63), nullable=False),
        sa.Column("said_at", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
    )


def downgrade() -> None:
    """Drops what `upgrade` made."""
    for table in TABLES:
        op.drop_table(table)
    with op.batch_alter_table("sites") as sites:
        sites.drop_column("secagg_public_key")
        sites.drop_column("previous_certificate_sha256")
