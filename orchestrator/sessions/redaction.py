"""Taking the content of items out of a log for good: out of their rows, and out of every copy of their words.

Runs within the caller's transaction. A row is in one log, which its branches read by reference: so all of them are
reached. The number of every row stays.
"""

import json
import logging
from collections.abc import Collection

from sqlalchemy import Connection

from memory import log
from memory.branches import delete_session, family, last_of
from memory.documents import drop_document, keep_documents
from memory.effects import redact_effect
from memory.sessions import clear_title
from memory.uses import drop_uses
from models.content import Call, CallResult, Item
from models.errors import Internal
from orchestrator.events import ItemsAdded, items_of, title_of
from orchestrator.sessions import codec
from orchestrator.sessions.tombstones import without

_log = logging.getLogger(__name__)


def redact_items(
    connection: Connection, tenant: str, session_id: str, item_ids: Collection[str], before_seq: int
) -> list[str]:
    """Take the content of items out of the rows before one of a session, and its copies with it.

    Returns:
        The sha-256 of blobs that nobody refers to any more: their content can go once this is committed.

    Raises:
        NotFound: the tenant has no such session.
        Internal: one of the rows is of a kind or version that is not known here.
    """
    loose: list[str] = []
    for item_id in sorted(set(item_ids)):
        for log_id, row in log.mentioning(connection, tenant, session_id, json.dumps(item_id, ensure_ascii=False)):
            if row.seq < before_seq:
                loose += _redact_row(connection, tenant, log_id, row, item_id)
    return loose


def delete_whole(connection: Connection, tenant: str, session_id: str, at_ms: int) -> list[str]:
    """Delete a session; what no other conversation has of its items is then in no row any more that is kept for branches.

    Returns:
        The sha-256 of blobs that nobody refers to any more: their content can go once this is committed.

    Raises:
        NotFound: the tenant has no such session.
    """
    alone = last_of(connection, session_id)
    loose = list(delete_session(connection, tenant, session_id, at_ms))
    for place in alone:
        if (row := log.row_at(connection, place.log_id or session_id, place.seq)) is not None:
            try:
                loose += _redact_row(connection, tenant, place.log_id or session_id, row, place.item_id)
            except Internal:  # not known here: the branches cannot read it either, and it goes with the last of them
                _log.warning("row %d of %s could not be redacted", row.seq, place.log_id or session_id, exc_info=True)
    return loose


def _redact_row(connection: Connection, tenant: str, log_id: str, row: log.LogRow, item_id: str) -> list[str]:
    """Take the content of an item out of a row, if it is in there; return the blobs that nobody refers to then."""
    stored = codec.parse(row)
    found = [item for item in items_of(stored.event) if item.item_id == item_id]
    if not found:
        return []
    _rewrite(connection, log_id, stored, {item_id})
    for item in found:
        _redact_effects(connection, log_id, item)
        if (title := title_of(ItemsAdded(items=(item,)))) is not None:
            _forget_title(connection, log_id, title)
    return list(drop_uses(connection, tenant, log_id, codec.blobs_of(found)))


def _rewrite(connection: Connection, log_id: str, stored: codec.Stored, item_ids: Collection[str]) -> None:
    """Write a row as it is written today, without the content of some items; what it named by digest, it names still."""
    entry, documents = codec.encode(without(stored.event, item_ids), stored.documents)
    keep_documents(connection, log_id, documents)
    log.rewrite(connection, log_id, stored.row.seq, entry)


def _redact_effects(connection: Connection, log_id: str, item: Item) -> None:
    match item:
        case Call():
            redact_effect(connection, log_id, item.call_id, arguments="{}")
        case CallResult():
            redact_effect(connection, log_id, item.call_id, result="[]")
        case _:
            pass


def _forget_title(connection: Connection, session_id: str, title: str) -> None:
    """Take a title that was made of an item's words from every session that may have it, and from their logs."""
    for log_id in family(connection, session_id):
        clear_title(connection, log_id, title)
        drop_document(connection, log_id, codec.title_digest(title))
        for row in log.rows_of_kind(connection, log_id, "settings_changed", before_v=2):
            stored = codec.parse(row)  # of when titles stood in their rows
            entry, documents = codec.encode(stored.event)
            documents.pop(codec.title_digest(title), None)
            keep_documents(connection, log_id, documents)
            log.rewrite(connection, log_id, row.seq, entry)
