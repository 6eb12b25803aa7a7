"""A log with a format: versions, settings by digest, branches, uses of blobs, files, and whose a session is."""

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_PAGE = 512
_SESSION_COLUMNS: dict[str, Any] = {
    "subject": sa.String(128),
    "owner": sa.String(64),
    "lease_until_ms": sa.BigInteger,
    "parent_id": sa.String(64),
    "parent_seq": sa.BigInteger,
    "root_id": sa.String(64),
    "deleted_ms": sa.BigInteger,
}
_USES = sa.table("blob_uses", *(sa.column(name) for name in ("session_id", "item_id", "sha256", "tenant")))


def upgrade() -> None:
    # Column by column, as in 0002.
    for name, type_ in _SESSION_COLUMNS.items():
        op.add_column("sessions", sa.Column(name, type_))
    op.create_index("ix_sessions_branches", "sessions", ["root_id"], sqlite_where=sa.text("root_id IS NOT NULL"))
    op.add_column("events", sa.Column("v", sa.Integer, nullable=False, server_default="1"))
    op.create_table(
        "settings",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "sha256", name="pk_settings"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_settings_session_id_sessions"),
    )
    _rebuild_items()
    op.add_column("effects", sa.Column("call_id", sa.String(128)))
    op.execute('UPDATE effects SET call_id = "key"')
    op.create_index("ix_effects_session_id", "effects", ["session_id", "call_id"])
    op.add_column("blobs", sa.Column("held_ms", sa.BigInteger))
    op.create_table(
        "blob_uses",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("item_id", sa.String(128), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(128)),
        sa.PrimaryKeyConstraint("session_id", "item_id", "sha256", name="pk_blob_uses"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_blob_uses_session_id_sessions"),
    )
    op.create_index("ix_blob_uses_tenant", "blob_uses", ["tenant", "sha256"])
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(128)),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
    )
    op.create_index("ix_files_tenant", "files", ["tenant", "sha256"])
    connection = op.get_bind()
    for session_id, tenant, body in _rows_with_media(connection):
        for item_id, sha256 in _media(json.loads(body)):
            row = {"session_id": session_id, "item_id": item_id, "sha256": sha256, "tenant": tenant}
            connection.execute(sa.insert(_USES).prefix_with("OR IGNORE"), row)


def downgrade() -> None:
    op.drop_table("files")
    op.drop_table("blob_uses")
    op.drop_column("blobs", "held_ms")
    op.drop_index("ix_effects_session_id", "effects")
    op.drop_column("effects", "call_id")
    op.execute("DELETE FROM items WHERE removed_seq IS NOT NULL")
    op.rename_table("items", "items_now")
    for index in ("ix_items_session_id", "ix_items_said"):
        op.drop_index(index, "items_now")
    _items("items", sa.PrimaryKeyConstraint("session_id", "id", name="pk_items"))
    _copy_items("items_now", "items")
    op.drop_table("settings")
    op.drop_column("events", "v")
    op.drop_index("ix_sessions_branches", "sessions")
    for name in reversed(_SESSION_COLUMNS):
        op.drop_column("sessions", name)


def _rebuild_items() -> None:
    """Have an item known by its row as well: the ids of removed ones may serve again."""
    op.rename_table("items", "items_before")
    for index in ("ix_items_session_id", "ix_items_said"):
        op.drop_index(index, "items_before")
    _items(
        "items",
        sa.Column("log_id", sa.String(64)),
        sa.Column("removed_seq", sa.BigInteger),
        sa.PrimaryKeyConstraint("session_id", "id", "seq", name="pk_items"),
    )
    _copy_items("items_before", "items")


def _items(name: str, *more: Any) -> None:
    op.create_table(
        name,
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("call_id", sa.String(128)),
        *more,
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_items_session_id_sessions"),
    )
    op.create_index("ix_items_session_id", name, ["session_id", "call_id"])
    op.create_index("ix_items_said", name, ["session_id", "kind", "seq"])


def _copy_items(source: str, target: str) -> None:
    columns = "session_id, id, seq, kind, call_id"
    op.execute(f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {source}")
    op.drop_table(source)


def _rows_with_media(connection: sa.Connection) -> Iterator[tuple[str, str, str]]:
    """Yield session, tenant and body of the rows whose items have media, a page at a time: logs may be long."""
    after = ("", 0)
    statement = sa.text(
        "SELECT events.session_id, events.seq, sessions.tenant, events.body FROM events "
        "JOIN sessions ON sessions.id = events.session_id WHERE (events.session_id, events.seq) > (:session_id, :seq) "
        "AND events.kind IN ('items_added', 'turn_accepted', 'item_closed') AND instr(events.body, '\"blob\"') > 0 "
        f"ORDER BY events.session_id, events.seq LIMIT {_PAGE}"
    )
    while page := connection.execute(statement, {"session_id": after[0], "seq": after[1]}).fetchall():
        yield from ((session_id, tenant, body) for session_id, _, tenant, body in page)
        after = (page[-1][0], page[-1][1])


def _media(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield which blobs the items of a row of the first version refer to."""
    items = event.get("items") or (event.get("input") or {}).get("items") or [event.get("item") or {}]
    for item in items:
        for part in item.get("parts") or ():
            if (blob := part.get("blob")) is not None:
                yield item["item_id"], blob["sha256"]
