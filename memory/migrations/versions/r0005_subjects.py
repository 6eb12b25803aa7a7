"""A key is a person's or an application's, and the sessions of one end user are found without looking at everybody's."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("keys", sa.Column("kind", sa.String(16), nullable=False, server_default="personal"))
    op.drop_index("ix_sessions_tenant", "sessions")
    op.create_index("ix_sessions_tenant", "sessions", ["tenant", "subject", "updated_ms"])


def downgrade() -> None:
    op.drop_index("ix_sessions_tenant", "sessions")
    op.create_index("ix_sessions_tenant", "sessions", ["tenant", "updated_ms"])
    op.drop_column("keys", "kind")
