"""What many rows of a session's log say alike, kept once and known by its digest: instructions, tools, forms.

Every function takes a connection and runs within the caller's transaction. What belongs to a session goes with it.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select

from memory.schema import settings
from memory.statements import Prepared

_KEEP = Prepared(insert(settings).prefix_with("OR IGNORE"), columns=("session_id", "sha256", "body"))
_FIND = Prepared(
    select(settings.c.body).where(
        settings.c.session_id == bindparam("session"), settings.c.sha256 == bindparam("digest")
    )
)


def digest_of(body: str) -> str:
    """Return the name of a document: its sha-256, 64 hexadecimal digits."""
    return hashlib.sha256(body.encode()).hexdigest()


def keep_documents(connection: Connection, session_id: str, documents: Mapping[str, str]) -> None:
    """Keep documents by their digests; those that are kept already stay as they are."""
    rows = [{"session_id": session_id, "sha256": digest, "body": body} for digest, body in documents.items()]
    if rows:
        _KEEP.run_many(connection, rows)


def drop_document(connection: Connection, session_id: str, digest: str) -> None:
    """Drop a document; rows that name it go without."""
    connection.execute(delete(settings).where(settings.c.session_id == session_id, settings.c.sha256 == digest))


def find_documents(connection: Connection, session_ids: Sequence[str], digests: Collection[str]) -> dict[str, str]:
    """Return the documents of these digests that one of the sessions has."""
    found: dict[str, str] = {}
    for digest in digests:
        for session_id in session_ids:
            body = _FIND.run(connection, {"session": session_id, "digest": digest}).scalar_one_or_none()
            if body is not None:
                found[digest] = body
                break
    return found
