"""Where in its session's log an item of a conversation is, by its id and by its call's.

Every function takes a connection and runs within the caller's transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, bindparam, insert, or_, select, update

from memory.schema import items, sessions
from memory.statements import Prepared

ItemKind = Literal["system", "user", "assistant", "call", "cut_call", "call_result", "other", "beside"]
"""A message by its role; a `cut_call` got no further than its beginning, and is not answered; what no model is shown is `other`,
and what is `beside` the conversation no part of it."""

_COLUMNS = ("session_id", "id", "seq", "kind", "call_id")
_NOTE = Prepared(insert(items).prefix_with("OR REPLACE"), columns=_COLUMNS)
_FORGET = Prepared(
    update(items)
    .where(items.c.session_id == bindparam("session"), items.c.id == bindparam("item"), items.c.removed_seq.is_(None))
    .values(removed_seq=bindparam("at_seq"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPlace:
    """An item of a conversation, and the row of the log that it came with; `log_id` is the ancestor whose row that is, if any."""

    item_id: str
    seq: int
    kind: ItemKind
    call_id: str | None
    log_id: str | None = None


def note_items(connection: Connection, session_id: str, places: Sequence[ItemPlace]) -> None:
    """Note that items are part of the conversation."""
    rows = [
        {"session_id": session_id, "id": one.item_id, "seq": one.seq, "kind": one.kind, "call_id": one.call_id}
        for one in places
    ]
    if rows:
        _NOTE.run_many(connection, rows)


def forget_items(connection: Connection, session_id: str, item_ids: Sequence[str], seq: int) -> None:
    """Note that items are part of it no more, from row `seq` on."""
    for item_id in item_ids:
        _FORGET.run(connection, {"session": session_id, "item": item_id, "at_seq": seq})


def find_items(
    connection: Connection, tenant: str, session_id: str, *, item_ids: Sequence[str] = (), call_ids: Sequence[str] = ()
) -> tuple[ItemPlace, ...]:
    """Return the items of a tenant's session that have one of these ids, or belong to one of these calls."""
    wanted = or_(items.c.id.in_(item_ids), items.c.call_id.in_(call_ids))
    found = connection.execute(_places().where(items.c.session_id == session_id, sessions.c.tenant == tenant, wanted))
    return tuple(_place(row) for row in found)


def last_of_user(connection: Connection, tenant: str, session_id: str) -> ItemPlace | None:
    """Return what the user has said last in a tenant's session."""
    query = _places().where(items.c.session_id == session_id, sessions.c.tenant == tenant, items.c.kind == "user")
    found = connection.execute(query.order_by(items.c.seq.desc()).limit(1)).one_or_none()
    return None if found is None else _place(found)


def _places() -> Select[Any]:
    return select(items.c.id, items.c.seq, items.c.kind, items.c.call_id, items.c.log_id).join(
        sessions, (sessions.c.id == items.c.session_id) & items.c.removed_seq.is_(None)
    )


def _place(row: Row[Any]) -> ItemPlace:
    return ItemPlace(item_id=row.id, seq=row.seq, kind=row.kind, call_id=row.call_id, log_id=row.log_id)
