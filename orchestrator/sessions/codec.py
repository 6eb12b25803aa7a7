"""The format of the log: a row is known by its kind, and read by the version that it was written in.

- *Kinds and versions.* Each kind of event has a version; a row of an older one is lifted when it is read (`_LIFTS`). A
  field that is added with a default needs no new version. A kind or a version that is not known here is one clear error,
  `unknown_row`: of that session, and no other.
- *Content lives in item bodies and documents only.* Items are whole within their rows; what a turn's or a session's
  settings say in words (instructions, tools, forms, a title) is a document, kept once a session and known by its digest.
  So either can be taken out for good, and the rest of the row stays as it is.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import Field, TypeAdapter, ValidationError

from memory.documents import digest_of
from memory.log import Entry, LogRow
from memory.trouble import corrupt
from models.content import AudioPart, FilePart, ImagePart, Item, VideoPart, parts_of
from models.errors import Internal
from models.ports.generate import Form, ToolConstraint
from orchestrator.decide.inputs import lifted
from orchestrator.events import (
    ANSWERING_AGENT,
    LogEvent,
    SettingsChanged,
    TurnAccepted,
    canonical,
)

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=LogEvent)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWords:
    """Instructions, or a title: two documents, though the words be the same."""

    kind: Literal["instructions", "title"]
    text: str


Document = StoredWords | ToolConstraint | Form
"""What rows name by its digest."""

_DOCUMENT: TypeAdapter[Document] = TypeAdapter(Annotated[Document, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented(Generic[E]):
    """How an event is stored whose words are documents: without them, and their digests by the names of its fields."""

    event: E
    documents: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A row as it was read: whole but for its documents.

    Attributes:
        row: the row.
        event: what it says.
        documents: the digests of what is missing, by the names of its fields.
    """

    row: LogRow
    event: LogEvent
    documents: Mapping[str, str]


_EVENTS = {one.__dataclass_fields__["kind"].default: one for one in get_args(LogEvent)}
_DOCUMENTED: dict[str, TypeAdapter[Documented[Any]]] = {
    "turn_accepted": TypeAdapter(Documented[TurnAccepted]),
    "settings_changed": TypeAdapter(Documented[SettingsChanged]),
}
_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    kind: _DOCUMENTED.get(kind) or TypeAdapter(one) for kind, one in _EVENTS.items()
}

VERSIONS: Mapping[str, int] = {kind: 2 if kind in _DOCUMENTED else 1 for kind in _EVENTS}
"""The version that rows of each kind are written in."""


def encode(event: LogEvent, named: Mapping[str, str] = MappingProxyType({})) -> tuple[Entry, dict[str, str]]:
    """Return the row of an event, and the documents that it brings along, by their digests.

    `named` are documents that it names already and does not have with it, as in `Stored`.
    """
    documents: dict[str, str] = {}
    stored: object = event
    match event:
        case TurnAccepted():
            told = event.input
            names = _name_all(
                documents,
                instructions=None
                if told.instructions is None
                else StoredWords(kind="instructions", text=told.instructions),
                tools=told.tools,
                form=told.form,
            )
            bare = replace(event, input=replace(told, instructions=None, tools=None, form=None))
            stored = Documented(event=bare, documents={**named, **names})
        case SettingsChanged(settings=settings):
            names = _name_all(
                documents,
                instructions=None
                if settings.instructions is None
                else StoredWords(kind="instructions", text=settings.instructions),
                title=None if settings.title is None else StoredWords(kind="title", text=settings.title),
            )
            bare_settings = replace(event, settings=replace(settings, title=None, instructions=None))
            stored = Documented(event=bare_settings, documents={**named, **names})
        case _:
            pass
    body = _ADAPTERS[event.kind].dump_json(stored).decode()
    turn_id: str | None = getattr(event, "turn_id", None)
    return Entry(turn_id=turn_id, kind=event.kind, v=VERSIONS[event.kind], body=body), documents


def parse(row: LogRow) -> Stored:
    """Read a row, lifted to the version that is written today.

    Raises:
        Internal: `unknown_row`, it is of a kind or a version that is not known here; or it is not what was written.
    """
    if not 1 <= row.v <= VERSIONS.get(row.kind, 0):
        raise Internal(
            f"Row {row.seq} of this session's log is of kind {row.kind!r}, version {row.v}, which this server does not"
            " know. It was written by a newer Baton: update this one. Other sessions are not affected.",
            code="unknown_row",
            retryable=False,
        )
    adapter = _ADAPTERS[row.kind]
    try:
        read = adapter.validate_json(row.body) if row.v == VERSIONS[row.kind] else _lifted(adapter, row)
    except (ValidationError, ValueError, KeyError, TypeError) as exc:
        _log.exception("a row of a session's log is not what was written there")
        raise corrupt() from exc
    if isinstance(read, Documented):
        return Stored(row=row, event=read.event, documents=read.documents)
    return Stored(row=row, event=read, documents={})


def whole(stored: Stored, documents: Mapping[str, Document]) -> LogEvent:
    """Return the event of a row with its documents in their places; a title that was taken out is none.

    Raises:
        Internal: a document that it names is not there.
    """
    if not stored.documents:
        return stored.event
    found: dict[str, Any] = {}
    for name, digest in stored.documents.items():
        document = documents.get(digest)
        if document is None and name != "title":
            _log.error("a document that row %d of a session's log names is missing: %s", stored.row.seq, digest)
            raise corrupt()
        found[name] = document.text if isinstance(document, StoredWords) else document
    match stored.event:
        case TurnAccepted():
            return replace(stored.event, input=replace(stored.event.input, **found))
        case SettingsChanged():
            return replace(stored.event, settings=replace(stored.event.settings, **found))
        case _:
            return stored.event


def load(body: str) -> Document:
    """Read a document.

    Raises:
        Internal: it is not what was written.
    """
    try:
        return _DOCUMENT.validate_json(body)
    except ValidationError as exc:
        _log.exception("a document of a session's log is not what was written there")
        raise corrupt() from exc


def title_digest(title: str) -> str:
    """Return the digest that a title has as a document."""
    return digest_of(_dump(StoredWords(kind="title", text=title)))


def blobs_of(items: Sequence[Item]) -> list[tuple[str, str]]:
    """Return which blobs items use: each use is an item's id and a sha-256."""
    return [
        (item.item_id, part.blob.sha256)
        for item in items
        for part in parts_of(item)
        if isinstance(part, ImagePart | AudioPart | VideoPart | FilePart)
    ]


def _name_all(documents: dict[str, str], **named: Document | None) -> dict[str, str]:
    """Take documents into `documents`; return their digests by their names."""
    names: dict[str, str] = {}
    for name, document in named.items():
        if document is not None:
            body = _dump(document)
            names[name] = digest_of(body)
            documents[names[name]] = body
    return names


def _dump(document: Document) -> str:
    return _DOCUMENT.dump_json(document).decode()


# Rows of earlier versions


def _lifted(adapter: TypeAdapter[Any], row: LogRow) -> Any:
    body: dict[str, Any] = json.loads(row.body)
    for v in range(row.v, VERSIONS[row.kind]):
        body = _LIFTS[row.kind, v](body)
    return adapter.validate_python(body)


def _accepted_1(body: dict[str, Any]) -> dict[str, Any]:
    """Words stood in the row; decisions named an agent and a card, and were made from less."""
    decision = body["decision"]
    agent, card = decision.pop("agent"), decision.pop("card")
    is_answer = agent == ANSWERING_AGENT
    decision["control"] = {"kind": "answer"} if is_answer else {"kind": "delegate", "agent": agent}
    decision["route"] = {"kind": "single", "card": card}
    if inputs := json.loads(body["decision"]["inputs"]):
        body["decision"]["inputs"] = canonical(dict(lifted(inputs)))
    return {"event": body, "documents": {}}


def _changed_1(body: dict[str, Any]) -> dict[str, Any]:
    """Words stood in the row."""
    return {"event": body, "documents": {}}


_LIFTS: Mapping[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("turn_accepted", 1): _accepted_1,
    ("settings_changed", 1): _changed_1,
}
