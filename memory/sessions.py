"""What is kept of each session beside its log: its name, its settings, and when it was last active.

Every function takes a connection and runs within the caller's transaction.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, insert, select, tuple_, update

from memory.schema import sessions
from models.errors import NotFound, quoted
from models.owner import Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A session without its log.

    Attributes:
        session_id: its id.
        title: what people call it; None until it has a name.
        instructions: the system message of its turns that bring none.
        model: the card of its turns that name none.
        created_ms: Unix milliseconds.
        updated_ms: when its log last grew, likewise.
        last_seq: the number of its last row.
        owner: the server that wrote to it last; None is any.
        lease_until_ms: until when that server may be taken to run its turn.
        subject: the end user whose it is; None is the tenant's own. See `models.owner.Owner`.
    """

    session_id: str
    title: str | None
    instructions: str | None
    model: str | None
    created_ms: int
    updated_ms: int
    last_seq: int
    owner: str | None = None
    lease_until_ms: int | None = None
    subject: str | None = None


def create_session(
    connection: Connection,
    owner: Owner,
    session_id: str,
    at_ms: int,
    *,
    title: str | None = None,
    instructions: str | None = None,
    model: str | None = None,
) -> None:
    """Begin a session, whose log is empty."""
    owner = Owner.of(owner)
    connection.execute(
        insert(sessions).values(
            id=session_id,
            tenant=owner.tenant,
            subject=owner.subject,
            created_ms=at_ms,
            updated_ms=at_ms,
            last_seq=0,
            title=title,
            instructions=instructions,
            model=model,
        )
    )


def find_session(connection: Connection, owner: Owner, session_id: str) -> SessionRecord:
    """Return a session.

    Raises:
        NotFound: the owner has no such session.
    """
    found = connection.execute(
        select(sessions).where(sessions.c.id == session_id, *_is(owner), sessions.c.deleted_ms.is_(None))
    ).one_or_none()
    if found is None:
        raise _not_found(session_id)
    return _record(found)


def owner_of(connection: Connection, tenant: str, session_id: str) -> Owner:
    """Return whose a session of a tenant's is, for who runs the server: every other way in says for whom it comes.

    Raises:
        NotFound: the tenant has no such session.
    """
    query = select(sessions.c.subject).where(sessions.c.id == session_id, sessions.c.tenant == tenant)
    found = connection.execute(query.where(sessions.c.deleted_ms.is_(None))).one_or_none()
    if found is None:
        raise _not_found(session_id)
    return Owner(tenant, found.subject)


def list_sessions(
    connection: Connection, owner: Owner, *, limit: int, before: str | None = None
) -> tuple[SessionRecord, ...]:
    """Return up to `limit` sessions of an owner, the last active first, from the one after `before` on.

    Raises:
        NotFound: the owner has no session `before`.
    """
    order = tuple_(sessions.c.updated_ms, sessions.c.id)
    query = select(sessions).where(*_is(owner), sessions.c.deleted_ms.is_(None))
    if before is not None:
        last = find_session(connection, owner, before)
        query = query.where(order < (last.updated_ms, last.session_id))
    query = query.order_by(sessions.c.updated_ms.desc(), sessions.c.id.desc()).limit(limit)
    return tuple(_record(row) for row in connection.execute(query))


def change_session(connection: Connection, session_id: str, **values: str | None) -> None:
    """Set `title`, `instructions` or `model`; the log says that it was done."""
    connection.execute(update(sessions).where(sessions.c.id == session_id).values(**values))


def name_session(connection: Connection, session_id: str, title: str) -> None:
    """Give a session a title, unless it has one."""
    connection.execute(
        update(sessions).where(sessions.c.id == session_id, sessions.c.title.is_(None)).values(title=title)
    )


def clear_title(connection: Connection, session_id: str, title: str) -> None:
    """Take a title from a session that is called that."""
    connection.execute(
        update(sessions).where(sessions.c.id == session_id, sessions.c.title == title).values(title=None)
    )


def _is(owner: Owner) -> tuple[ColumnElement[bool], ...]:
    owner = Owner.of(owner)
    return (sessions.c.tenant == owner.tenant, sessions.c.subject.is_not_distinct_from(owner.subject))


def _record(row: Row[Any]) -> SessionRecord:
    return SessionRecord(
        session_id=row.id,
        subject=row.subject,
        title=row.title,
        instructions=row.instructions,
        model=row.model,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        last_seq=row.last_seq,
        owner=row.owner,
        lease_until_ms=row.lease_until_ms,
    )


def _not_found(session_id: str) -> NotFound:
    return NotFound(f"There is no session {quoted(session_id)}.", code="session_not_found")
