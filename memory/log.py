"""The session log: numbered rows, and the turns that they belong to.

Every function takes a connection and runs within the caller's transaction, so that rows, turns and effects change
together or not at all. `seq` counts from 1 without gaps, per session, and is assigned in the transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, bindparam, func, insert, or_, select, update

from memory.branches import lineage
from memory.schema import events, sessions, turns
from memory.sessions import find_session
from memory.statements import Prepared
from models.errors import NotFound, quoted
from models.owner import Owner

_NUMBER = Prepared(
    update(sessions)
    .where(
        sessions.c.id == bindparam("session"),
        sessions.c.tenant == bindparam("whose"),
        sessions.c.deleted_ms.is_(None),
    )
    .values(
        last_seq=sessions.c.last_seq + bindparam("count"),
        updated_ms=bindparam("at_ms"),
        owner=bindparam("server"),
        lease_until_ms=bindparam("until_ms"),
    )
    .returning(sessions.c.last_seq)
)
_INSERT_EVENTS = Prepared(insert(events), columns=[column.name for column in events.c])
_ACCEPT = Prepared(insert(turns), columns=["id", "session_id", "tenant", "state", "accepted_ms"])
_END = Prepared(
    update(turns)
    .where(turns.c.id == bindparam("turn"))
    .values(state=bindparam("end_state"), ended_ms=bindparam("at_ms"))
)

_REWRITE = Prepared(
    update(events)
    .where(events.c.session_id == bindparam("session"), events.c.seq == bindparam("number"))
    .values(kind=bindparam("new_kind"), v=bindparam("new_v"), body=bindparam("new_body"))
)
_ROWS = select(events.c.seq, events.c.turn_id, events.c.kind, events.c.v, events.c.body, events.c.at_ms)

EndState = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row before it has its number.

    Attributes:
        turn_id: the turn that it belongs to, if it belongs to one.
        kind: what kind of row it is.
        v: the version of its kind's format.
        body: JSON text.
    """

    turn_id: str | None
    kind: str
    body: str
    v: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """A committed row of a session's log."""

    seq: int
    turn_id: str | None
    kind: str
    v: int
    body: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who writes to a session, and for how long after it may be taken to run its turn."""

    owner: str
    length_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTurn:
    """A turn that was accepted and has not ended."""

    owner: Owner
    session_id: str
    turn_id: str


def last_seq(connection: Connection, owner: Owner, session_id: str) -> int:
    """Return the number of the last row; 0 before the first.

    Raises:
        NotFound: the tenant has no such session.
    """
    return find_session(connection, owner, session_id).last_seq


def append(
    connection: Connection,
    tenant: str,
    session_id: str,
    entries: Sequence[Entry],
    at_ms: int,
    lease: Lease | None = None,
) -> tuple[LogRow, ...]:
    """Number the entries and write them, for whoever has the `lease` of the session from now on; None is nobody.

    Raises:
        NotFound: the tenant has no such session.
    """
    parameters = {
        "session": session_id,
        "whose": tenant,
        "count": len(entries),
        "at_ms": at_ms,
        "server": None if lease is None else lease.owner,
        "until_ms": None if lease is None else at_ms + lease.length_ms,
    }
    last: int | None = _NUMBER.run(connection, parameters).scalar_one_or_none()
    if last is None:
        raise NotFound(f"There is no session {quoted(session_id)}.")
    rows = tuple(
        LogRow(seq=seq, turn_id=entry.turn_id, kind=entry.kind, v=entry.v, body=entry.body, at_ms=at_ms)
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
                "v": row.v,
            }
            for row in rows
        ],
    )
    return rows


def read(connection: Connection, tenant: str, session_id: str, *, after: int, limit: int) -> tuple[LogRow, ...]:
    """Return up to `limit` rows after number `after`, in order.

    Raises:
        NotFound: the tenant has no such session.
    """
    rows: list[LogRow] = []
    for stretch in lineage(connection, tenant, session_id):
        if len(rows) == limit or (stretch.last_seq is not None and stretch.last_seq <= after):
            continue
        query = _ROWS.where(events.c.session_id == stretch.log_id, events.c.seq > after)
        if stretch.last_seq is not None:
            query = query.where(events.c.seq <= stretch.last_seq)
        rows.extend(_row(row) for row in connection.execute(query.order_by(events.c.seq).limit(limit - len(rows))))
    return tuple(rows)


def mentioning(
    connection: Connection, tenant: str, session_id: str, text: str, *, kind: str | None = None
) -> tuple[tuple[str, LogRow], ...]:
    """Return the rows of a session whose body holds `text`, in their order, each with the session whose log has it.

    Raises:
        NotFound: the tenant has no such session.
    """
    found: list[tuple[str, LogRow]] = []
    for stretch in lineage(connection, tenant, session_id):
        query = _ROWS.where(events.c.session_id == stretch.log_id, func.instr(events.c.body, text) > 0)
        if stretch.last_seq is not None:
            query = query.where(events.c.seq <= stretch.last_seq)
        if kind is not None:
            query = query.where(events.c.kind == kind)
        found.extend((stretch.log_id, _row(row)) for row in connection.execute(query.order_by(events.c.seq)))
    return tuple(found)


def row_at(connection: Connection, log_id: str, seq: int) -> LogRow | None:
    """Return a row of a session's own log; None if it is not there."""
    found = connection.execute(_ROWS.where(events.c.session_id == log_id, events.c.seq == seq)).one_or_none()
    return None if found is None else _row(found)


def rows_of_kind(connection: Connection, log_id: str, kind: str, *, before_v: int) -> tuple[LogRow, ...]:
    """Return the rows of one kind in a session's own log that are of an earlier version."""
    query = _ROWS.where(events.c.session_id == log_id, events.c.kind == kind, events.c.v < before_v)
    return tuple(_row(row) for row in connection.execute(query.order_by(events.c.seq)))


def rewrite(connection: Connection, log_id: str, seq: int, entry: Entry) -> None:
    """Write what takes the place of a row's content; its number, its turn and its time stay."""
    _REWRITE.run(
        connection, {"session": log_id, "number": seq, "new_kind": entry.kind, "new_v": entry.v, "new_body": entry.body}
    )


def accept_turn(connection: Connection, tenant: str, session_id: str, turn_id: str, at_ms: int) -> None:
    """Note that a turn was accepted: from here on it may not be lost."""
    row = {"id": turn_id, "session_id": session_id, "tenant": tenant, "state": "accepted", "accepted_ms": at_ms}
    _ACCEPT.run(connection, row)


def end_turn(connection: Connection, turn_id: str, state: EndState, at_ms: int) -> None:
    """Note how a turn ended."""
    _END.run(connection, {"turn": turn_id, "end_state": state, "at_ms": at_ms})


def open_turns(connection: Connection, *, owner: str | None = None, now_ms: int | None = None) -> tuple[OpenTurn, ...]:
    """Return the turns of all tenants that were accepted and have not ended, oldest first.

    Args:
        connection: the database.
        owner: who asks; turns that another server may still be running are left out. None is somebody without leases.
        now_ms: the time; by default, leases have not run out.
    """
    query = (
        select(turns.c.tenant, sessions.c.subject, turns.c.session_id, turns.c.id)
        .join(sessions, sessions.c.id == turns.c.session_id)
        .where(turns.c.state == "accepted")
        .order_by(turns.c.accepted_ms)
    )
    if owner is not None:
        until_ms = sessions.c.lease_until_ms
        is_over = until_ms.is_(None) if now_ms is None else or_(until_ms.is_(None), until_ms <= now_ms)
        query = query.where(or_(sessions.c.owner.is_(None), sessions.c.owner == owner, is_over))
    found = connection.execute(query)
    return tuple(
        OpenTurn(owner=Owner(tenant, subject), session_id=session_id, turn_id=id_)
        for tenant, subject, session_id, id_ in found
    )


def _row(found: Any) -> LogRow:
    seq, turn_id, kind, v, body, at_ms = found
    return LogRow(seq=seq, turn_id=turn_id, kind=kind, v=v, body=body, at_ms=at_ms)
