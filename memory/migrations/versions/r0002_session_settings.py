"""Sessions have a title, instructions and a model, and say when they were last active."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Column by column: SQLite's way around, a new table, would take the rows that refer to this one with it.
    op.add_column("sessions", sa.Column("title", sa.Text))
    op.add_column("sessions", sa.Column("instructions", sa.Text))
    op.add_column("sessions", sa.Column("model", sa.String(128)))
    op.add_column("sessions", sa.Column("updated_ms", sa.BigInteger, nullable=False, server_default="0"))
    op.execute(
        "UPDATE sessions SET updated_ms = COALESCE("
        "(SELECT MAX(at_ms) FROM events WHERE events.session_id = sessions.id), created_ms)"
    )
    op.drop_index("ix_sessions_tenant", "sessions")
    op.create_index("ix_sessions_tenant", "sessions", ["tenant", "updated_ms"])


def downgrade() -> None:
    op.drop_index("ix_sessions_tenant", "sessions")
    op.create_index("ix_sessions_tenant", "sessions", ["tenant", "created_ms"])
    for column in ("updated_ms", "model", "instructions", "title"):
        op.drop_column("sessions", column)
