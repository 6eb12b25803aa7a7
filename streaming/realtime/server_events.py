"""Tells one client, in the Realtime API's words, what its session yields.

The strict order holds for every client, also for one that arrives in the middle of a turn:

`response.created` → `response.output_item.added` → `conversation.item.added` → `response.content_part.added` → deltas →
`response.output_text.done` → `response.content_part.done` → `conversation.item.done` → `response.output_item.done` → `response.done`

Several items of a response may be open at once: each has that order of its own, and an `output_index` that says which one it
is. What is beside the conversation, thoughts and work for other tasks, is told by extension events alone.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, assert_never

from models.content import Call, Item, Message, Part, TextPart, is_beside, parts_of, status_of, text_of
from orchestrator.events import (
    AudioChunk,
    Committed,
    ItemClosed,
    ItemDelta,
    ItemsAdded,
    ItemSnapshot,
    ItemsRedacted,
    ItemsRemoved,
    LogEvent,
    PartAdded,
    PlanMade,
    PlanRevised,
    PlaybackHeard,
    SessionEvent,
    SessionSettings,
    SettingsChanged,
    TaskEnded,
    TurnAccepted,
    TurnEnded,
    TurnInput,
    title_of,
)
from orchestrator.sessions.order import FRONT, Order
from streaming.realtime.events import ServerEvent, ended_fields, response_object
from streaming.realtime.extensions import (
    BatonPlanned,
    BatonRedacted,
    BatonReplanned,
    BatonRouted,
    BatonSequence,
    BatonSession,
    BatonTaskEnded,
    BatonTimed,
    beside_event,
)
from streaming.wire.items import response_id, wire_item, wire_part

_REMEMBERED_ITEMS = 512
"""Items whose order a client's narrator remembers, to say what a new one comes after."""


@dataclass(slots=True, kw_only=True)
class _Response:
    """A response that this client was told of and that has not ended."""

    fields: dict[str, Any]
    output: dict[int, dict[str, Any]] = field(default_factory=dict)
    begun: int = 0


@dataclass(slots=True, kw_only=True)
class _Told:
    """An item that this client was told of and that is not closed: where it stands, and its content so far."""

    index: int
    previous: str | None = None
    is_beside: bool = False
    call_id: str | None = None
    content_index: int = 0
    is_text: bool = False
    text: list[str] = field(default_factory=list)


class ServerEvents:
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
        self._told: dict[str, _Told] = {}

    def tell(self, event: SessionEvent) -> list[ServerEvent]:
        """Return the events, without ids; those of Baton's own are among them."""
        match event:
            case Committed():
                self.seq = event.seq
                return [*self._logged(event.event), BatonSequence(seq=event.seq).model_dump(mode="json")]
            case ItemSnapshot():
                return self._opened(event)
            case ItemDelta():
                return self._grown(event.turn_id, event.item_id, event.text)
            case PartAdded():
                return self._part(event.turn_id, event.item_id, event.part)
            case AudioChunk():
                return []  # a response here is of text; see `options`
            case _:
                assert_never(event)

    def never_begun(self, turn_id: str, turn_input: TurnInput) -> list[ServerEvent]:
        """Return what tells of a response that was cancelled before it was accepted: there is no row of it."""
        fields = response_object(
            turn_id, self._session_id, max_output_tokens=turn_input.max_output_tokens, metadata=turn_input.metadata
        )
        ended = TurnEnded(turn_id=turn_id, generation=0, state="interrupted", reason="client_cancelled")
        return [
            {"type": "response.created", "response": fields},
            {"type": "response.done", "response": {**fields, **ended_fields(ended), "output": []}},
        ]

    def _logged(self, event: LogEvent) -> list[ServerEvent]:
        match event:
            case ItemsAdded():
                return [*self._added(event), *self._named(event)]
            case ItemsRemoved():
                return [*self._removed(event.item_ids), *self._unnamed(event)]
            case ItemsRedacted():
                told = [BatonRedacted(item_id=item_id).model_dump(mode="json") for item_id in event.item_ids]
                return [*told, *self._unnamed(event)]
            case SettingsChanged():
                return [self._set(event.settings)]
            case TurnAccepted():
                added = ItemsAdded(items=event.input.items)
                return [*self._added(added), *self._named(event), *self._accepted(event)]
            case PlaybackHeard():
                return _truncated(event) if event.is_over else []
            case ItemClosed() | TurnEnded() | PlanMade() | PlanRevised() | TaskEnded():
                return self._logged_of_turn(event)
            case _:
                assert_never(event)

    def _logged_of_turn(self, event: ItemClosed | TurnEnded | PlanMade | PlanRevised | TaskEnded) -> list[ServerEvent]:
        match event:
            case ItemClosed():
                return self._closed(event)
            case TurnEnded():
                return self._ended(event)
            case PlanMade():
                return [BatonPlanned.of(event).model_dump(mode="json")]
            case PlanRevised():
                return [BatonReplanned.of(event).model_dump(mode="json")]
            case TaskEnded():
                return [BatonTaskEnded.of(event).model_dump(mode="json")]
            case _:
                assert_never(event)

    def _added(self, event: ItemsAdded) -> list[ServerEvent]:
        items, after = event.items, event.after
        at = self._order.add([item.item_id for item in items], after, is_open=event.after_open, index=event.after_index)
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

    def _unnamed(self, event: ItemsRemoved | ItemsRedacted) -> list[ServerEvent]:
        return [self._set(replace(self.settings, title=None))] if event.untitled else []

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

    def _opened(self, event: ItemSnapshot) -> list[ServerEvent]:
        turn_id, item = event.turn_id, event.item
        out = self._begin(turn_id)
        response = self._responses[turn_id]
        if is_beside(item):
            self._told[item.item_id] = _Told(index=0, is_beside=True)
            wire = wire_item(item, "in_progress")
            return [*out, beside_event("added", turn_id, item.item_id, task_id=event.task_id, item=wire)]
        index = response.begun if event.index is None else event.index
        response.begun = max(response.begun, index + 1)
        told = self._told[item.item_id] = _Told(index=index)
        told.call_id = item.call_id if isinstance(item, Call) else None
        wire = wire_item(_emptied(item), "in_progress")
        out.append({"type": "response.output_item.added", **self._place(turn_id, told), "item": wire})
        told.previous = self._order.before(self._order.take(item.item_id, event.index))
        out.append(self._item("added", told.previous, wire))
        if isinstance(item, Message):
            if not item.parts or isinstance(item.parts[0], TextPart):
                out.append(self._text_begins(turn_id, item.item_id, told))
            for part in item.parts:
                if isinstance(part, TextPart):
                    out += self._grown(turn_id, item.item_id, part.text)
                else:
                    out += self._part(turn_id, item.item_id, part)
        elif isinstance(item, Call) and (text := text_of(item)):
            out += self._grown(turn_id, item.item_id, text)
        return out

    def _text_begins(self, turn_id: str, item_id: str, told: _Told) -> ServerEvent:
        told.is_text = True
        return self._content(turn_id, "response.content_part.added", item_id, told, part={"type": "text", "text": ""})

    def _text_ends(self, turn_id: str, item_id: str, told: _Told) -> list[ServerEvent]:
        if not told.is_text:
            return []
        text = "".join(told.text)
        ends = [
            self._content(turn_id, "response.output_text.done", item_id, told, text=text),
            self._content(turn_id, "response.content_part.done", item_id, told, part={"type": "text", "text": text}),
        ]
        told.is_text, told.text, told.content_index = False, [], told.content_index + 1
        return ends

    def _grown(self, turn_id: str, item_id: str, text: str) -> list[ServerEvent]:
        told = self._told[item_id]
        if told.is_beside:
            return [beside_event("delta", turn_id, item_id, delta=text)]
        place = {**self._place(turn_id, told), "item_id": item_id}
        if told.call_id is not None:
            return [{"type": "response.function_call_arguments.delta", **place, "call_id": told.call_id, "delta": text}]
        begins = [] if told.is_text else [self._text_begins(turn_id, item_id, told)]
        told.text.append(text)
        return [
            *begins,
            {"type": "response.output_text.delta", **place, "content_index": told.content_index, "delta": text},
        ]

    def _part(self, turn_id: str, item_id: str, part: Part) -> list[ServerEvent]:
        told, wire = self._told[item_id], wire_part(part, "assistant")
        if told.is_beside:
            return [beside_event("part", turn_id, item_id, part=wire)]
        ends = self._text_ends(turn_id, item_id, told)
        out = [
            *ends,
            self._content(turn_id, "response.content_part.added", item_id, told, part=wire),
            self._content(turn_id, "response.content_part.done", item_id, told, part=wire),
        ]
        told.content_index += 1
        return out

    def _closed(self, event: ItemClosed) -> list[ServerEvent]:
        turn_id, item = event.turn_id, event.item
        wire = wire_item(item, status_of(item))
        told = self._told.pop(item.item_id)
        if told.is_beside:
            return [beside_event("done", turn_id, item.item_id, task_id=event.task_id, item=wire)]
        out: list[ServerEvent] = []
        if isinstance(item, Message):
            out += self._text_ends(turn_id, item.item_id, told)
        elif isinstance(item, Call):
            place = {**self._place(turn_id, told), "item_id": item.item_id, "call_id": item.call_id, "name": item.name}
            out.append({"type": "response.function_call_arguments.done", **place, "arguments": item.arguments})
        out.append(self._item("done", told.previous, wire))
        out.append({"type": "response.output_item.done", **self._place(turn_id, told), "item": wire})
        self._responses[turn_id].output[told.index] = wire
        return out

    def _ended(self, event: TurnEnded) -> list[ServerEvent]:
        self._order.end()
        out = self._begin(event.turn_id)
        response = self._responses.pop(event.turn_id)
        fields = {
            **response.fields,
            **ended_fields(event),
            "output": [response.output[index] for index in sorted(response.output)],
        }
        timed = BatonTimed(
            response_id=response_id(event.turn_id),
            decided_ms=event.decided_ms,
            first_delta_ms=event.first_delta_ms,
            duration_ms=event.duration_ms,
        )
        return [*out, timed.model_dump(mode="json"), {"type": "response.done", "response": fields}]

    def _content(self, turn_id: str, kind: str, item_id: str, told: _Told, **fields: object) -> ServerEvent:
        place = {**self._place(turn_id, told), "item_id": item_id, "content_index": told.content_index}
        return {"type": kind, **place, **fields}

    def _place(self, turn_id: str, told: _Told) -> dict[str, Any]:
        return {"response_id": response_id(turn_id), "output_index": told.index}

    def _item(self, what: Literal["added", "done"], previous: str | None, wire: dict[str, Any]) -> ServerEvent:
        return {"type": f"conversation.item.{what}", "previous_item_id": previous, "item": wire}


def _truncated(event: PlaybackHeard) -> list[ServerEvent]:
    return [
        {
            "type": "conversation.item.truncated",
            "item_id": event.item_id,
            "content_index": 0,
            "audio_end_ms": event.heard_ms,
        }
    ]


def _emptied(item: Item) -> Item:
    """Return an item as it is before it has grown; one that comes whole has not."""
    if isinstance(item, Call):
        return replace(item, arguments="")
    return replace(item, parts=()) if isinstance(item, Message) and parts_of(item) else item
