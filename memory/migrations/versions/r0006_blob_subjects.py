"""What refers to a blob is an end user's, too: who has put or used it, and not everybody of the tenant."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_COLUMNS = "tenant, sha256, media_type, size_bytes, created_ms, held_ms"


def upgrade() -> None:
    op.create_table(
        "blobs_of_owners",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False, server_default=""),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("media_type", sa.String(128), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("held_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("tenant", "subject", "sha256", name="pk_blobs"),
    )
    # Before, every use was the tenant's own.
    op.execute(f"INSERT INTO blobs_of_owners ({_COLUMNS}) SELECT {_COLUMNS} FROM blobs")
    op.drop_table("blobs")
    op.rename_table("blobs_of_owners", "blobs")
    op.create_index("ix_blobs_sha256", "blobs", ["sha256"])


def downgrade() -> None:
    op.drop_index("ix_blobs_sha256", "blobs")
    op.create_table(
        "blobs_of_tenants",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("media_type", sa.String(128), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("held_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("tenant", "sha256", name="pk_blobs"),
    )
    op.execute(f"INSERT OR IGNORE INTO blobs_of_tenants ({_COLUMNS}) SELECT {_COLUMNS} FROM blobs")
    op.drop_table("blobs")
    op.rename_table("blobs_of_tenants", "blobs")
