"""Branches: a session that shares the rows of another one up to a number, by reference.

A branch's log is its ancestors' rows, each ancestor's up to the number at which it was left, and then its own. What
branches need of a session that was deleted stays until the last of them goes; under the session's own id it is gone.
Every function takes a connection and runs within the caller's transaction.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, func, insert, literal, null, select, update

from memory.items import ItemPlace
from memory.schema import blob_uses, effects, events, items, sessions, settings, turns
from memory.uses import drop_uses
from models.errors import NotFound, quoted
from models.owner import Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Rows of a session's log that are in one ancestor's, or in its own: those up to `last_seq`; None is to the end."""

    log_id: str
    last_seq: int | None


def lineage(connection: Connection, tenant: str, session_id: str) -> tuple[Stretch, ...]:
    """Return where the rows of a session are, from the first on.

    Raises:
        NotFound: the tenant has no such session.
    """
    found = _found(connection, tenant, session_id)
    stretches = [Stretch(log_id=session_id, last_seq=None)]
    while found.parent_id is not None:
        stretches.append(Stretch(log_id=found.parent_id, last_seq=found.parent_seq))
        found = connection.execute(select(sessions).where(sessions.c.id == found.parent_id)).one()
    return tuple(reversed(stretches))


def log_of(stretches: tuple[Stretch, ...], seq: int) -> str:
    """Return whose log a session's row is in."""
    return next(one.log_id for one in stretches if one.last_seq is None or seq <= one.last_seq)


def make_branch(connection: Connection, tenant: str, session_id: str, branch_id: str, seq: int, at_ms: int) -> None:
    """Begin a session with the rows of another one up to `seq`. What it is called and set to is as it is there now.

    Raises:
        NotFound: the tenant has no such session.
    """
    stretches = lineage(connection, tenant, session_id)
    found = _found(connection, tenant, session_id)
    parent_id = log_of(stretches, seq)
    connection.execute(
        insert(sessions).values(
            id=branch_id,
            tenant=tenant,
            subject=Owner(tenant, found.subject).moved(branch_id).subject,
            created_ms=at_ms,
            updated_ms=at_ms,
            last_seq=seq,
            title=found.title,
            instructions=found.instructions,
            model=found.model,
            parent_id=parent_id,
            parent_seq=seq,
            root_id=stretches[0].log_id,
        )
    )
    shared = select(
        literal(branch_id),
        items.c.id,
        items.c.seq,
        items.c.kind,
        items.c.call_id,
        func.coalesce(items.c.log_id, session_id),
        null(),
    ).where(
        items.c.session_id == session_id,
        items.c.seq <= seq,
        items.c.removed_seq.is_(None) | (items.c.removed_seq > seq),
    )
    connection.execute(
        insert(items).from_select(["session_id", "id", "seq", "kind", "call_id", "log_id", "removed_seq"], shared)
    )


def family(connection: Connection, session_id: str) -> tuple[str, ...]:
    """Return the sessions that may share rows with one, itself included, also those that were deleted."""
    root = connection.execute(select(sessions.c.root_id).where(sessions.c.id == session_id)).scalar_one_or_none()
    root = root or session_id
    return (root, *connection.execute(select(sessions.c.id).where(sessions.c.root_id == root)).scalars())


def sharers(connection: Connection, session_id: str, log_id: str, item_id: str, seq: int) -> tuple[str, ...]:
    """Return the other sessions in whose conversation an item of row `seq` of a log is."""
    kin = family(connection, session_id)
    if len(kin) == 1:
        return ()
    query = (
        select(items.c.session_id)
        .join(sessions, sessions.c.id == items.c.session_id)
        .where(items.c.session_id.in_(kin), items.c.session_id != session_id, items.c.id == item_id)
        .where(items.c.seq == seq, func.coalesce(items.c.log_id, items.c.session_id) == log_id)
        .where(items.c.removed_seq.is_(None), sessions.c.deleted_ms.is_(None))
    )
    return tuple(connection.execute(query).scalars())


def last_of(connection: Connection, session_id: str) -> tuple[ItemPlace, ...]:
    """Return the items of a session's conversation that no other has, though others may have their rows."""
    if len(family(connection, session_id)) == 1:
        return ()
    query = select(items).where(items.c.session_id == session_id, items.c.removed_seq.is_(None))
    return tuple(
        ItemPlace(item_id=row.id, seq=row.seq, kind=row.kind, call_id=row.call_id, log_id=row.log_id)
        for row in connection.execute(query)
        if not sharers(connection, session_id, row.log_id or session_id, row.id, row.seq)
    )


def delete_session(connection: Connection, tenant: str, session_id: str, at_ms: int = 0) -> tuple[str, ...]:
    """Delete a session and all that belongs to it, but for the rows that branches of it need.

    Returns:
        The sha-256 of blobs that nobody refers to any more: their content can go once this is committed.

    Raises:
        NotFound: the tenant has no such session.
    """
    _found(connection, tenant, session_id)
    for table in (effects, turns):
        connection.execute(delete(table).where(table.c.session_id == session_id))
    connection.execute(
        update(sessions)
        .where(sessions.c.id == session_id)
        .values(deleted_ms=at_ms, title=None, instructions=None, model=None)
    )
    return _release(connection, tenant, session_id)


def _release(connection: Connection, tenant: str, session_id: str | None) -> tuple[str, ...]:
    """Delete what nobody needs of a session that was deleted, and of its ancestors that were."""
    loose: set[str] = set()
    while session_id is not None:
        found = connection.execute(select(sessions).where(sessions.c.id == session_id)).one()
        if found.deleted_ms is None:
            break
        branches = select(func.max(sessions.c.parent_seq)).where(
            sessions.c.root_id == (found.root_id or session_id), sessions.c.parent_id == session_id
        )
        needed: int | None = connection.execute(branches).scalar_one()
        loose.update(_keep_to(connection, tenant, session_id, needed))
        if needed is not None:
            break
        connection.execute(delete(sessions).where(sessions.c.id == session_id))
        session_id = found.parent_id
    return tuple(sorted(loose))


def _keep_to(connection: Connection, tenant: str, session_id: str, seq: int | None) -> tuple[str, ...]:
    """Delete a deleted session's rows after `seq`, or all (None), with what only they refer to."""
    last = -1 if seq is None else seq
    gone = (events.c.session_id == session_id) & (events.c.seq > last)
    said = select(items.c.id).where(items.c.session_id == session_id, items.c.log_id.is_(None), items.c.seq <= last)
    kept = set(connection.execute(said).scalars())
    used = connection.execute(
        select(blob_uses.c.item_id, blob_uses.c.sha256).where(blob_uses.c.session_id == session_id)
    ).all()
    connection.execute(delete(events).where(gone))
    if seq is None:
        for table in (items, settings):
            connection.execute(delete(table).where(table.c.session_id == session_id))
        return drop_uses(connection, tenant, session_id)
    connection.execute(delete(items).where(items.c.session_id == session_id, items.c.seq > last))
    _drop_documents(connection, session_id)
    return drop_uses(connection, tenant, session_id, [(item, sha256) for item, sha256 in used if item not in kept])


def _drop_documents(connection: Connection, session_id: str) -> None:
    """Delete the documents of a session that none of its rows names any more."""
    digests = connection.execute(select(settings.c.sha256).where(settings.c.session_id == session_id)).scalars()
    for digest in list(digests):
        named = select(events.c.seq).where(events.c.session_id == session_id, func.instr(events.c.body, digest) > 0)
        if connection.execute(named.limit(1)).first() is None:
            connection.execute(delete(settings).where(settings.c.session_id == session_id, settings.c.sha256 == digest))


def _found(connection: Connection, tenant: str, session_id: str) -> Row[tuple[object, ...]]:
    found = connection.execute(
        select(sessions).where(
            sessions.c.id == session_id, sessions.c.tenant == tenant, sessions.c.deleted_ms.is_(None)
        )
    ).one_or_none()
    if found is None:
        raise NotFound(f"There is no session {quoted(session_id)}.", code="session_not_found")
    return found
