"""Tells one client, in the Realtime API's words, what its session yields.

The strict order holds for every client, also for one that arrives in the middle of a turn:

`response.created` → `response.output_item.added` → `conversation.item.added` → `response.content_part.added` → deltas →
`response.output_text.done` → `response.content_part.done` → `conversation.item.done` → `response.output_item.done` → `response.done`
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, assert_never

from models.content import Call, CallResult, Item, Message, text_of
from orchestrator.events import (
    Committed,
    ItemClosed,
    ItemDelta,
    ItemsAdded,
    ItemSnapshot,
    ItemsRemoved,
    LogEvent,
    PlaybackHeard,
    SessionEvent,
    SessionSettings,
    SettingsChanged,
    TurnAccepted,
    TurnEnded,
    title_of,
)
from orchestrator.sessions.order import FRONT, Order
from streaming.realtime.events import ServerEvent, ended_fields, response_object
from streaming.realtime.extensions import BatonRouted, BatonSequence, BatonSession, BatonTimed
from streaming.wire.items import response_id, wire_item

_REMEMBERED_ITEMS = 512
"""Items whose order a client's narrator remembers, to say what a new one comes after."""


@dataclass(slots=True, kw_only=True)
class _Response:
    """A response that this client was told of and that has not ended."""

    fields: dict[str, Any]
    output: list[dict[str, Any]] = field(default_factory=list)
    call_id: str | None = None


class Narrator:
    """What one client knows of its session, and what it is told next."""

    def __init__(self, session_id: str | None, seq: int, order: Order, settings: SessionSettings) -> None:
        """Begin after row `seq`, where the conversation's items are in `order`; it is taken over.

        `session_id` is None for a response that is part of no conversation.
        """
        self.seq = seq
        self.settings = settings
        self._session_id = session_id
        self._order = order
        self._responses: dict[str, _Response] = {}
        self._previous: dict[str, str | None] = {}

    def tell(self, event: SessionEvent) -> list[ServerEvent]:
        """Return the events, without ids; those of Baton's own are among them."""
        match event:
            case Committed():
                self.seq = event.seq
                return [*self._logged(event.event), BatonSequence(seq=event.seq).model_dump(mode="json")]
            case ItemSnapshot():
                return self._opened(event.turn_id, event.item)
            case ItemDelta():
                return [self._grown(event.turn_id, event.item_id, event.text)]
            case _:
                assert_never(event)

    def _logged(self, event: LogEvent) -> list[ServerEvent]:
        match event:
            case ItemsAdded():
                return [*self._added(event.items, event.after, is_open=event.after_open), *self._named(event)]
            case ItemsRemoved():
                return self._removed(event.item_ids)
            case SettingsChanged():
                return [self._set(event.settings)]
            case TurnAccepted():
                return [*self._added(event.input.items), *self._named(event), *self._accepted(event)]
            case ItemClosed():
                return self._closed(event.turn_id, event.item)
            case TurnEnded():
                return self._ended(event)
            case PlaybackHeard():
                return []
            case _:
                assert_never(event)

    def _added(self, items: tuple[Item, ...], after: str | None = None, *, is_open: bool = False) -> list[ServerEvent]:
        at = self._order.add([item.item_id for item in items], after, is_open=is_open)
        # What is after an item that is not known here is directly after it all the same.
        previous = (None if after == FRONT else after) if at is None else self._order.before(at)
        out = []
        for item in items:
            wire = wire_item(item, "completed")
            out += [self._item("added", previous, wire), self._item("done", previous, wire)]
            previous = item.item_id
        self._order.forget(len(self._order.ids) - _REMEMBERED_ITEMS)
        return out

    def _removed(self, item_ids: tuple[str, ...]) -> list[ServerEvent]:
        self._order.remove(item_ids)
        return [{"type": "conversation.item.deleted", "item_id": item_id} for item_id in item_ids]

    def _named(self, event: LogEvent) -> list[ServerEvent]:
        if self.settings.title is not None or (title := title_of(event)) is None:
            return []
        return [self._set(replace(self.settings, title=title))]

    def _set(self, settings: SessionSettings) -> ServerEvent:
        self.settings = settings
        return BatonSession.of(self._session_id or "", settings).model_dump(mode="json")

    def _accepted(self, event: TurnAccepted) -> list[ServerEvent]:
        self._order.begin()
        begun = self._begin(event.turn_id, event.input.max_output_tokens, event.input.metadata)
        return [*begun, BatonRouted.of(event.turn_id, event.decision).model_dump(mode="json")]

    def _begin(
        self, turn_id: str, max_output_tokens: int | None = None, metadata: dict[str, str] | None = None
    ) -> list[ServerEvent]:
        """Tell the client of a response, unless it knows of it."""
        if turn_id in self._responses:
            return []
        fields = response_object(turn_id, self._session_id, max_output_tokens=max_output_tokens, metadata=metadata)
        self._responses[turn_id] = _Response(fields=fields)
        return [{"type": "response.created", "response": fields}]

    def _opened(self, turn_id: str, item: Item) -> list[ServerEvent]:
        out = self._begin(turn_id)
        self._responses[turn_id].call_id = item.call_id if isinstance(item, Call) else None
        wire = wire_item(_emptied(item), "in_progress")
        out.append({"type": "response.output_item.added", **self._place(turn_id), "item": wire})
        self._previous[item.item_id] = previous = self._order.before(self._order.take(item.item_id))
        out.append(self._item("added", previous, wire))
        if isinstance(item, Message):
            out.append(self._content(turn_id, "response.content_part.added", item, part={"type": "text", "text": ""}))
        if text := text_of(item):
            out.append(self._grown(turn_id, item.item_id, text))
        return out

    def _grown(self, turn_id: str, item_id: str, text: str) -> ServerEvent:
        place = {**self._place(turn_id), "item_id": item_id}
        if (call_id := self._responses[turn_id].call_id) is not None:
            return {"type": "response.function_call_arguments.delta", **place, "call_id": call_id, "delta": text}
        return {"type": "response.output_text.delta", **place, "content_index": 0, "delta": text}

    def _closed(self, turn_id: str, item: Item) -> list[ServerEvent]:
        text = text_of(item)
        out: list[ServerEvent] = []
        if isinstance(item, Message):
            out.append(self._content(turn_id, "response.output_text.done", item, text=text))
            out.append(self._content(turn_id, "response.content_part.done", item, part={"type": "text", "text": text}))
        elif isinstance(item, Call):
            place = {**self._place(turn_id), "item_id": item.item_id, "call_id": item.call_id, "name": item.name}
            out.append({"type": "response.function_call_arguments.done", **place, "arguments": text})
        wire = wire_item(item, "completed" if isinstance(item, CallResult) else item.status)
        out.append(self._item("done", self._previous.pop(item.item_id, None), wire))
        out.append({"type": "response.output_item.done", **self._place(turn_id), "item": wire})
        self._responses[turn_id].output.append(wire)
        return out

    def _ended(self, event: TurnEnded) -> list[ServerEvent]:
        self._order.end()
        out = self._begin(event.turn_id)
        response = self._responses.pop(event.turn_id)
        fields = {**response.fields, **ended_fields(event), "output": response.output}
        timed = BatonTimed(
            response_id=response_id(event.turn_id),
            decided_ms=event.decided_ms,
            first_delta_ms=event.first_delta_ms,
            duration_ms=event.duration_ms,
        )
        return [*out, timed.model_dump(mode="json"), {"type": "response.done", "response": fields}]

    def _content(self, turn_id: str, kind: str, item: Message, **fields: object) -> ServerEvent:
        return {"type": kind, **self._place(turn_id), "item_id": item.item_id, "content_index": 0, **fields}

    def _place(self, turn_id: str) -> dict[str, Any]:
        return {"response_id": response_id(turn_id), "output_index": len(self._responses[turn_id].output)}

    def _item(self, what: Literal["added", "done"], previous: str | None, wire: dict[str, Any]) -> ServerEvent:
        return {"type": f"conversation.item.{what}", "previous_item_id": previous, "item": wire}


def _emptied(item: Item) -> Item:
    match item:
        case Message() | CallResult():
            return replace(item, parts=())
        case Call():
            return replace(item, arguments="")
        case _:
            assert_never(item)
