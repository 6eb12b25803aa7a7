"""The session log: numbered rows, and the turns that they belong to.

Every function takes a connection and runs within the caller's transaction, so that rows, turns and effects change
together or not at all. `seq` counts from 1 without gaps, per session, and is assigned in the transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, bindparam, insert, select, update

from memory.prepared import Prepared
from memory.schema import events, sessions, turns
from models.errors import NotFound

_NUMBER = Prepared(
    update(sessions)
    .where(sessions.c.id == bindparam("session"), sessions.c.tenant == bindparam("owner"))
    .values(last_seq=sessions.c.last_seq + bindparam("count"), updated_ms=bindparam("at_ms"))
    .returning(sessions.c.last_seq)
)
_INSERT_EVENTS = Prepared(insert(events), columns=[column.name for column in events.c])
_ACCEPT = Prepared(insert(turns), columns=["id", "session_id", "tenant", "state", "accepted_ms"])
_END = Prepared(
    update(turns)
    .where(turns.c.id == bindparam("turn"))
    .values(state=bindparam("end_state"), ended_ms=bindparam("at_ms"))
)

EndState = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row before it has its number. `body` is JSON text; `turn_id` is None if it belongs to no turn."""

    turn_id: str | None
    kind: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A committed row of a session's log."""

    seq: int
    turn_id: str | None
    kind: str
    body: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTurn:
    """A turn that was accepted and has not ended."""

    tenant: str
    session_id: str
    turn_id: str


def last_seq(connection: Connection, tenant: str, session_id: str) -> int:
    """Return the number of the last row; 0 before the first.

    Raises:
        NotFound: the tenant has no such session.
    """
    found: int | None = connection.execute(
        select(sessions.c.last_seq).where(sessions.c.id == session_id, sessions.c.tenant == tenant)
    ).scalar_one_or_none()
    if found is None:
        raise NotFound(f"There is no session {session_id!r}.")
    return found


def append(
    connection: Connection, tenant: str, session_id: str, entries: Sequence[Entry], at_ms: int
) -> tuple[Row, ...]:
    """Number the entries and write them.

    Raises:
        NotFound: the tenant has no such session.
    """
    parameters = {"session": session_id, "owner": tenant, "count": len(entries), "at_ms": at_ms}
    last: int | None = _NUMBER.run(connection, parameters).scalar_one_or_none()
    if last is None:
        raise NotFound(f"There is no session {session_id!r}.")
    rows = tuple(
        Row(seq=seq, turn_id=entry.turn_id, kind=entry.kind, body=entry.body, at_ms=at_ms)
        for seq, entry in enumerate(entries, start=last - len(entries) + 1)
    )
    if not rows:
        return ()
    _INSERT_EVENTS.run_many(
        connection,
        [
            {
                "session_id": session_id,
                "seq": row.seq,
                "turn_id": row.turn_id,
                "kind": row.kind,
                "body": row.body,
                "at_ms": row.at_ms,
            }
            for row in rows
        ],
    )
    return rows


def read(connection: Connection, tenant: str, session_id: str, *, after: int, limit: int) -> tuple[Row, ...]:
    """Return up to `limit` rows after number `after`, in order.

    Raises:
        NotFound: the tenant has no such session.
    """
    last_seq(connection, tenant, session_id)
    found = connection.execute(
        select(events.c.seq, events.c.turn_id, events.c.kind, events.c.body, events.c.at_ms)
        .where(events.c.session_id == session_id, events.c.seq > after)
        .order_by(events.c.seq)
        .limit(limit)
    )
    return tuple(
        Row(seq=seq, turn_id=turn_id, kind=kind, body=body, at_ms=at_ms) for seq, turn_id, kind, body, at_ms in found
    )


def accept_turn(connection: Connection, tenant: str, session_id: str, turn_id: str, at_ms: int) -> None:
    """Note that a turn was accepted: from here on it may not be lost."""
    row = {"id": turn_id, "session_id": session_id, "tenant": tenant, "state": "accepted", "accepted_ms": at_ms}
    _ACCEPT.run(connection, row)


def end_turn(connection: Connection, turn_id: str, state: EndState, at_ms: int) -> None:
    """Note how a turn ended."""
    _END.run(connection, {"turn": turn_id, "end_state": state, "at_ms": at_ms})


def open_turns(connection: Connection) -> tuple[OpenTurn, ...]:
    """Return the turns of all tenants that were accepted and have not ended, oldest first."""
    found = connection.execute(
        select(turns.c.tenant, turns.c.session_id, turns.c.id)
        .where(turns.c.state == "accepted")
        .order_by(turns.c.accepted_ms)
    )
    return tuple(OpenTurn(tenant=tenant, session_id=session_id, turn_id=id_) for tenant, session_id, id_ in found)
