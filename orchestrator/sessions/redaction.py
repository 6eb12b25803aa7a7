"""Taking the content of items out of a log for good: out of their rows, and out of every copy of their words.

Runs within the caller's transaction. A row is in one log, which its branches read by reference: so all of them are
reached. The number of every row stays.
"""

import json
from collections.abc import Collection

from sqlalchemy import Connection

from memory import log
from memory.branches import family, lineage
from memory.documents import drop_document, keep_documents
from memory.effects import redact_effect
from memory.sessions import clear_title
from memory.uses import drop_uses
from models.content import Call, CallResult, Item
from orchestrator.events import ItemsAdded, items_of, title_of
from orchestrator.sessions import codec
from orchestrator.sessions.tombstones import without


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
    wanted = frozenset(item_ids)
    loose: list[str] = []
    titles: set[str] = set()
    for item_id in sorted(wanted):
        for log_id, row in log.mentioning(connection, tenant, session_id, json.dumps(item_id, ensure_ascii=False)):
            stored = codec.parse(row)
            found = [item for item in items_of(stored.event) if item.item_id == item_id]
            if not found or row.seq >= before_seq:
                continue
            _rewrite(connection, log_id, stored, {item_id})
            for item in found:
                _redact_effects(connection, log_id, item)
                if (title := title_of(ItemsAdded(items=(item,)))) is not None:
                    titles.add(title)
            loose += drop_uses(connection, tenant, log_id, codec.blobs_of(found))
    for title in titles:
        _forget_title(connection, tenant, session_id, title)
    return loose


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


def _forget_title(connection: Connection, tenant: str, session_id: str, title: str) -> None:
    """Take a title that was made of an item's words from every session that may have it, and from their logs."""
    for log_id in family(connection, session_id):
        clear_title(connection, log_id, title)
        drop_document(connection, log_id, codec.title_digest(title))
    for stretch in lineage(connection, tenant, session_id):
        for row in log.rows_of_kind(connection, stretch.log_id, "settings_changed", before_v=2):
            stored = codec.parse(row)  # of when titles stood in their rows
            entry, documents = codec.encode(stored.event)
            documents.pop(codec.title_digest(title), None)
            keep_documents(connection, stretch.log_id, documents)
            log.rewrite(connection, stretch.log_id, row.seq, entry)
