"""What is in a conversation is found by its id, however long ago it was said."""

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_PAGE = 512
_ITEMS = sa.table("items", *(sa.column(name) for name in ("session_id", "id", "seq", "kind", "call_id")))
_ADDING = ("items_added", "turn_accepted", "item_closed")


def upgrade() -> None:
    op.create_table(
        "items",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("call_id", sa.String(128)),
        sa.PrimaryKeyConstraint("session_id", "id", name="pk_items"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_items_session_id_sessions"),
    )
    op.create_index("ix_items_session_id", "items", ["session_id", "call_id"])
    op.create_index("ix_items_said", "items", ["session_id", "kind", "seq"])
    connection = op.get_bind()
    for session_id, seq, kind, body in _rows(connection):
        event = json.loads(body)
        if kind == "items_removed":
            for item_id in event["item_ids"]:
                connection.execute(sa.delete(_ITEMS).where(_ITEMS.c.session_id == session_id, _ITEMS.c.id == item_id))
            continue
        for item in _items(kind, event):
            row = {"session_id": session_id, "id": item["item_id"], "seq": seq, **_told(item)}
            connection.execute(sa.insert(_ITEMS).prefix_with("OR REPLACE"), row)


def downgrade() -> None:
    op.drop_table("items")


def _rows(connection: sa.Connection) -> Iterator[tuple[str, int, str, str]]:
    """Yield the rows that items came or went with, a page at a time: logs may be long."""
    after = ("", 0)
    statement = sa.text(
        "SELECT session_id, seq, kind, body FROM events WHERE (session_id, seq) > (:session_id, :seq) "
        "AND kind IN ('items_added', 'turn_accepted', 'item_closed', 'items_removed') "
        f"ORDER BY session_id, seq LIMIT {_PAGE}"
    )
    while page := connection.execute(statement, {"session_id": after[0], "seq": after[1]}).fetchall():
        yield from ((session_id, seq, kind, body) for session_id, seq, kind, body in page)
        after = (page[-1][0], page[-1][1])


def _items(kind: str, event: dict[str, Any]) -> list[dict[str, Any]]:
    match kind:
        case "items_added":
            found: list[dict[str, Any]] = event["items"]
        case "turn_accepted":
            found = event["input"]["items"]
        case _:
            found = [event["item"]]
    return found


def _told(item: dict[str, Any]) -> dict[str, Any]:
    match item["kind"]:
        case "call":
            is_whole = item.get("status", "completed") == "completed"
            return {"kind": "call" if is_whole else "cut_call", "call_id": item["call_id"]}
        case "call_result":
            return {"kind": "call_result", "call_id": item["call_id"]}
        case _:
            return {"kind": item["role"], "call_id": None}
