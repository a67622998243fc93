"""The sites table."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "sites",
        sa.Column("site_id", sa.String(63), primary_key=True),
        sa.Column("certificate_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("node_public_key", sa.String(1024), nullable=False, unique=True),
        sa.Column("signing_public_key", sa.String(64), nullable=False, unique=True),
        sa.Column("status", sa.String(16), nullable=False),
    )


def downgrade() -> None:
    """Drops the table."""
    op.drop_table("sites")
