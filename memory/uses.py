"""Which items use a blob. Its content goes with the last use of anybody, an owner's right to it with the owner's last.

Every function takes a connection and runs within the caller's transaction: an item and its uses are committed together.
What was put and is not used yet is held for whoever put it (`blobs.held_ms`). A file uses its content, too.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, Table, bindparam, delete, exists, func, insert, or_, select, update

from memory.schema import blob_uses, blobs, files
from memory.statements import Prepared

_USE = Prepared(
    insert(blob_uses).prefix_with("OR IGNORE"), columns=("session_id", "item_id", "sha256", "tenant", "subject")
)
_USED = Prepared(
    update(blobs)
    .where(
        blobs.c.tenant == bindparam("whose"),
        blobs.c.subject == bindparam("for_whom"),
        blobs.c.sha256 == bindparam("digest"),
    )
    .values(held_ms=None)
)


def note_uses(
    connection: Connection, tenant: str, session_id: str, uses: Sequence[tuple[str, str]], *, subject: str | None = None
) -> None:
    """Note that items of a session's log use blobs; each use is an item's id and a blob's sha-256."""
    for item_id, sha256 in uses:
        row = {"session_id": session_id, "item_id": item_id, "sha256": sha256, "tenant": tenant, "subject": subject}
        _USE.run(connection, row)
        _USED.run(connection, {"whose": tenant, "for_whom": subject or "", "digest": sha256})


def drop_uses(
    connection: Connection, tenant: str, session_id: str, uses: Iterable[tuple[str, str]] | None = None
) -> tuple[str, ...]:
    """Drop some uses of a session's log, or all (None), and what its owner so uses no more.

    Returns:
        The sha-256 of what nobody refers to any more: its content can go once this is committed.
    """
    is_there = blob_uses.c.session_id == session_id
    if uses is None:
        dropped = set(connection.execute(select(blob_uses.c.sha256).where(is_there)).scalars())
        connection.execute(delete(blob_uses).where(is_there))
    else:
        dropped = set()
        for item_id, sha256 in uses:
            dropped.add(sha256)
            connection.execute(
                delete(blob_uses).where(is_there, blob_uses.c.item_id == item_id, blob_uses.c.sha256 == sha256)
            )
    for sha256 in sorted(dropped):
        connection.execute(
            delete(blobs).where(
                blobs.c.tenant == tenant, blobs.c.sha256 == sha256, blobs.c.held_ms.is_(None), ~_is_used()
            )
        )
    return unreferred(connection, sorted(dropped))


def drop_unused(connection: Connection, before_ms: int) -> tuple[str, ...]:
    """Drop the references to blobs that nothing uses and that were put before a time. Return as `drop_uses` does."""
    where = (
        ~_is_used(),
        (blobs.c.held_ms.is_(None) & (blobs.c.created_ms < before_ms)) | (blobs.c.held_ms < before_ms),
    )
    dropped = sorted(set(connection.execute(select(blobs.c.sha256).where(*where)).scalars()))
    connection.execute(delete(blobs).where(*where))
    return unreferred(connection, dropped)


def unreferred(connection: Connection, digests: Iterable[str]) -> tuple[str, ...]:
    """Return those of the digests that nobody refers to."""
    return tuple(
        sha256
        for sha256 in digests
        if connection.execute(select(blobs.c.sha256).where(blobs.c.sha256 == sha256).limit(1)).first() is None
    )


def _is_used() -> ColumnElement[bool]:
    return or_(*(exists().where(*_is_by(table)) for table in (blob_uses, files)))


def _is_by(users: Table) -> tuple[ColumnElement[bool], ...]:
    return (
        users.c.tenant == blobs.c.tenant,
        func.coalesce(users.c.subject, "") == blobs.c.subject,
        users.c.sha256 == blobs.c.sha256,
    )
