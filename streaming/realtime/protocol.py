"""The realtime protocol without I/O.

Feed it what the client sends (`receive`) and what the session yields (`session_event`); send what it returns, in order.
"""

from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal, TypeVar, assert_never

from pydantic import TypeAdapter, ValidationError

from memory.keys import RequestDefaults
from models.content import ApprovalResponse, Call, CallResult, Item, ItemStatus, Message, TextPart
from models.errors import BadInput, BatonError, Conflict, Unsupported, quoted
from models.ids import new_id
from orchestrator.events import OnLeave, SamplingOverrides, SessionEvent, SessionSettings, TurnInput
from orchestrator.sessions.order import Order
from streaming.realtime.events import (
    CLIENT_EVENT,
    SUPPORTED,
    UNSUPPORTED,
    ApprovalItem,
    AssistantItem,
    ClientEvent,
    ClientItem,
    FunctionCallItem,
    FunctionOutputItem,
    InputItem,
    ItemCreate,
    ItemDelete,
    ItemReference,
    ItemRetrieve,
    ItemTruncate,
    ResponseCancel,
    ResponseCreate,
    ResponseOptions,
    ServerEvent,
    SessionUpdate,
    UserItem,
    error_event,
    session_event,
)
from streaming.realtime.extensions import BatonAttached, BatonSession
from streaming.realtime.options import (
    ANYTHING,
    BatonOptions,
    Bounds,
    Options,
    for_response,
    take,
    tool_constraint,
    unknown,
    validated,
    with_changes,
)
from streaming.realtime.server_events import ServerEvents
from streaming.realtime.updates import SetOptions, placed
from streaming.wire.complaints import complaint
from streaming.wire.errors import told
from streaming.wire.items import turn_id, wire_item

T = TypeVar("T")

_JSON: TypeAdapter[Any] = TypeAdapter(Any)
_SESSION_TYPE = TypeAdapter(Literal["realtime"] | None)
_BATON = TypeAdapter(BatonOptions)
_RESPONSE = TypeAdapter(ResponseOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddItem:
    """The client adds an item to the conversation: after another, at the front (`order.FRONT`), or at the end (None)."""

    item: Item
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowItem:
    """The client asks for an item as the session has it."""

    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveItem:
    """The client takes an item out of the conversation."""

    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    """The client has stopped playing an item."""

    item_id: str
    heard_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Respond:
    """The client asks for a response.

    Attributes:
        turn_input: how it is to be.
        context: what it answers instead of the conversation: items, and ids of the session's. None is the conversation.
        is_aside: whether it is to stay out of the conversation.
        interrupts: whether it ends the response that runs.
        own: which of `instructions` and `tools` it brings itself; the others are the session's.
        tools_at: the places of its functions, as the client sent them.
    """

    turn_input: TurnInput
    context: tuple[Item | str, ...] | None = None
    is_aside: bool = False
    interrupts: bool = False
    own: frozenset[str] = frozenset()
    tools_at: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The client stops a response: the one named, or whichever runs."""

    turn_id: str | None


Command = AddItem | ShowItem | RemoveItem | Truncate | Respond | Cancel | SetOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What came of a client's message: something for the session to do, and what to send at once.

    `refused` is why an item is not added, where its message says so already.
    """

    command: Command | None = None
    event_id: str | None = None
    replies: tuple[ServerEvent, ...] = ()
    refused: BatonError | None = None


class RealtimeProtocol:
    """One connection's side of the protocol."""

    def __init__(
        self,
        session_id: str,
        seq: int,
        *,
        options: Options,
        baton_events: bool = False,
        subject: str | None = None,
        bounds: Bounds = ANYTHING,
        defaults: RequestDefaults,
        settings: SessionSettings,
        order: Order,
    ) -> None:
        """Begin after row `seq`, where the conversation's items are in `order`.

        Args:
            session_id: the session.
            seq: its row.
            baton_events: whether the client is sent Baton's own events.
            subject: the end user whose session it is, if the client's application has named one.
            bounds: what can be asked for.
            options: what the client has set for this connection; it goes before the session's `settings`, and those
                before the `defaults` of its key.
            defaults: of the key.
            settings: of the session, at present.
            order: of the conversation's items, as far back as they are known; it is taken over.
        """
        self._session_id = session_id
        self._options = options
        self._defaults = defaults
        # One ULID a connection and a count: an id is needed per token, and a ULID costs as much as sending one.
        prefix = new_id("event")
        self._event_ids = (f"{prefix}_{n}" for n in count(1))
        self._baton_events = baton_events
        self._subject = subject
        self._bounds = bounds
        self._narrator = ServerEvents(session_id, seq, order, settings)

    # From the client

    def opening(self) -> tuple[ServerEvent, ...]:
        """Return what is sent first."""
        session = self._effective(self._narrator.settings)
        return self._stamp(session_event("session.created", session), *self._attached())

    def receive(self, text: str, settings: SessionSettings) -> Received:
        """Take one message of the client.

        Args:
            text: the message; a byte-order mark before it is passed over (RFC 8259, 8.1).
            settings: of the session, at present; the client may not have come so far yet.
        """
        text = text.removeprefix("\ufeff")
        try:
            event = CLIENT_EVENT.validate_json(text)
        except ValidationError as exc:
            return self._refuse(text, exc)
        try:
            return self._act(event, settings)
        except BatonError as exc:
            return self._refused(exc, event.event_id, event.type)

    def trial(self, update: SetOptions, settings: SessionSettings) -> TurnInput:
        """Return what a response would be asked with, were an update confirmed."""
        options, _ = with_changes(self._options, update.changes)
        options = replace(self._effective(settings, options), tool_choice=None)
        return TurnInput(
            instructions=options.instructions, model=options.model, tools=tool_constraint(options, self._bounds)
        )

    def confirm(self, update: SetOptions, settings: SessionSettings) -> tuple[ServerEvent, ...]:
        """Set what an update says, and return what tells the client of it."""
        self._options, misfit = with_changes(self._options, update.changes)
        replies = [error_event(told(error), event_id=update.event_id) for error in (*update.refused, *misfit)]
        replies.append(session_event("session.updated", self._effective(settings)))
        if (baton := update.baton) is not None:
            if "events" in baton.model_fields_set or baton.subject is None:
                self._baton_events = baton.events
            replies.extend(self._attached())
        return self._stamp(*replies)

    def failed(
        self, error: BatonError, event_id: str | None, command: Command | None = None
    ) -> tuple[ServerEvent, ...]:
        """Return what tells the client that its event `event_id` failed, which asked for `command`."""
        if isinstance(command, Respond):
            error = placed(error, command.tools_at, command.own)
        return self._stamp(error_event(told(error), event_id=event_id))

    def _act(self, event: ClientEvent, settings: SessionSettings) -> Received:
        match event:
            case SessionUpdate():
                return self._update(event, settings)
            case ItemCreate():
                added = AddItem(item=_item(event.item), after=event.previous_item_id)
                return Received(command=added, event_id=event.event_id)
            case ItemRetrieve():
                return Received(command=ShowItem(item_id=event.item_id), event_id=event.event_id)
            case ItemDelete():
                return Received(command=RemoveItem(item_id=event.item_id), event_id=event.event_id)
            case ItemTruncate():
                stopped = Truncate(item_id=event.item_id, heard_ms=event.audio_end_ms)
                return Received(command=stopped, event_id=event.event_id)
            case ResponseCreate():
                return Received(command=self._respond(event, settings), event_id=event.event_id)
            case ResponseCancel():
                cancelled = None if event.response_id is None else turn_id(event.response_id)
                return Received(command=Cancel(turn_id=cancelled), event_id=event.event_id)
            case _:
                assert_never(event)

    def _update(self, event: SessionUpdate, settings: SessionSettings) -> Received:
        sent = dict(event.session)
        validated(_SESSION_TYPE, sent.pop("type", None), "session", "type")
        taken = take("session", sent, self._bounds)
        refused = [*taken.refused]
        baton: BatonOptions | None = None
        for name, value in taken.rest.items():
            if value is None:
                continue  # whatever it is, nothing of it is asked for
            try:
                if name != "baton":
                    raise unknown("session", name)
                baton = validated(_BATON, value, "session", name)
                if baton is not None and baton.subject not in {None, self._subject}:
                    raise Conflict(
                        "Whose a session is, is settled when it is connected to, and does not change. Connect again, with the "
                        "header 'Baton-Subject' or '?user='.",
                        code="subject_settled",
                        field="session.baton.subject",
                    )
            except BatonError as exc:
                refused.append(exc)
        update = SetOptions(event_id=event.event_id, changes=taken.changes, refused=tuple(refused), baton=baton)
        if update.weighed:
            return Received(command=update, event_id=event.event_id)
        return Received(event_id=event.event_id, replies=self.confirm(update, settings))

    def _attached(self) -> list[ServerEvent]:
        if not self._baton_events:
            return []
        attached = BatonAttached(session_id=self._session_id, seq=self._narrator.seq)
        session = BatonSession.of(self._session_id, self._narrator.settings)
        return [attached.model_dump(mode="json"), session.model_dump(mode="json")]

    def _effective(self, kept: SessionSettings, asked: Options | None = None) -> Options:
        """Return what holds for a response that brings nothing of its own, with what the client has `asked` for."""
        asked, default = self._options if asked is None else asked, self._defaults
        return replace(
            asked,
            model=_first(asked.model, kept.model, default.model),
            instructions=_first(asked.instructions, kept.instructions, default.instructions),
            max_output_tokens=_first(asked.max_output_tokens, default.max_output_tokens),
        )

    def _respond(self, event: ResponseCreate, settings: SessionSettings) -> Respond:
        taken = take("response", event.response or {}, self._bounds)
        for error in taken.refused:
            raise error
        own: ResponseOptions = validated(_RESPONSE, taken.rest, "response")
        if own.conversation not in {None, "auto", "none", self._session_id}:
            raise BadInput(
                f"Invalid value for 'response.conversation': {quoted(own.conversation)}. It has to be 'auto' or 'none'.",
                code="invalid_value",
                field="response.conversation",
            )
        options = for_response(self._effective(settings), taken.changes)
        tokens = options.max_output_tokens
        turn_input = TurnInput(
            instructions=options.instructions,
            model=options.model,
            tools=tool_constraint(options, self._bounds),
            max_output_tokens=tokens if isinstance(tokens, int) else None,
            sampling=SamplingOverrides(temperature=options.temperature),
            metadata=own.metadata,
            on_leave=self._on_leave(own),
        )
        context = None if own.input is None else tuple(_context_item(item) for item in own.input)
        return Respond(
            turn_input=turn_input,
            context=context,
            is_aside=own.conversation == "none",
            interrupts=self._interrupts(own),
            own=frozenset(name for name in ("instructions", "tools") if taken.changes.get(name)),
            tools_at=options.tools_at or (),
        )

    @staticmethod
    def _interrupts(own: ResponseOptions) -> bool:
        interrupts = own.baton is not None and own.baton.interrupts
        if own.conversation == "none" and interrupts:
            raise Unsupported(
                "A response beside the conversation interrupts nothing. Leave 'interrupts' out, or 'conversation'.",
                field="response.baton.interrupts",
            )
        return interrupts

    @staticmethod
    def _on_leave(own: ResponseOptions) -> OnLeave:
        asked = None if own.baton is None else own.baton.on_leave
        if own.conversation == "none" and asked not in {None, "cancel"}:
            raise Unsupported(
                "A response beside the conversation ends with its connection. Leave 'on_leave' out, or 'conversation'.",
                field="response.baton.on_leave",
            )
        return asked or "grace"

    def _refuse(self, text: str, exc: ValidationError) -> Received:
        first = exc.errors(include_url=False)[0]
        sent = _peek(text)
        event_id = sent.get("event_id") if isinstance(sent.get("event_id"), str) else None
        kind = sent.get("type")
        if isinstance(kind, str) and kind in UNSUPPORTED:
            error: BatonError = Unsupported(f"'{kind}' is not supported here. {UNSUPPORTED[kind]}", field="type")
        elif first["type"].startswith("json"):
            error = BadInput("The message is not valid JSON. Send one JSON object a message.", code="invalid_json")
        elif kind not in SUPPORTED:
            known = ", ".join(SUPPORTED)
            error = BadInput(
                f"Unknown event type {quoted(str(kind))}. Known: {known}.", code="unknown_event", field="type"
            )
        else:
            error = complaint(exc.errors(include_url=False), sent, code="invalid_value")
        return self._refused(error, event_id, kind)

    def _refused(self, error: BatonError, event_id: str | None, kind: object) -> Received:
        is_item = kind == "conversation.item.create"
        return Received(event_id=event_id, replies=self.failed(error, event_id), refused=error if is_item else None)

    # From the session

    def session_event(self, event: SessionEvent) -> tuple[ServerEvent, ...]:
        """Return what the client is sent of what the session yields."""
        out = self._narrator.tell(event)
        return self._stamp(*(one for one in out if self._baton_events or not one["type"].startswith("baton.")))

    def never_begun(self, turn_id: str, turn_input: TurnInput) -> tuple[ServerEvent, ...]:
        """Return what tells of a response that was cancelled while it was decided."""
        return self._stamp(*self._narrator.never_begun(turn_id, turn_input))

    def retrieved(self, item: Item, status: ItemStatus | Literal["in_progress"]) -> tuple[ServerEvent, ...]:
        """Return what shows the client an item that it asked for."""
        return self._stamp({"type": "conversation.item.retrieved", "item": wire_item(item, status)})

    def aside(self) -> ServerEvents:
        """Return what tells of a response beside the conversation; see `aside_event`."""
        return ServerEvents(None, 0, Order(), self._narrator.settings)

    def aside_event(self, narrator: ServerEvents, event: SessionEvent) -> tuple[ServerEvent, ...]:
        """Return what the client is sent of a response beside the conversation: nothing about items of the conversation."""
        out = [one for one in narrator.tell(event) if not one["type"].startswith(("conversation.", "baton.sequence"))]
        return self._stamp(*(one for one in out if self._baton_events or not one["type"].startswith("baton.")))

    def _stamp(self, *events: ServerEvent) -> tuple[ServerEvent, ...]:
        return tuple({"event_id": next(self._event_ids), **event} for event in events)


def _first(*choices: T | None) -> T | None:
    return next((choice for choice in choices if choice is not None), None)


def _item(item: ClientItem) -> Item:
    item_id = item.id or new_id("item")
    match item:
        case UserItem():
            parts = tuple(TextPart(text=content.text, source="typed") for content in item.content)
            return Message(item_id=item_id, role=item.role, parts=parts)
        case AssistantItem():
            parts = tuple(TextPart(text=content.text, source="generated") for content in item.content)
            return Message(item_id=item_id, role="assistant", parts=parts)
        case FunctionCallItem():
            return Call(
                item_id=item_id,
                call_id=item.call_id or new_id("call"),
                name=item.name,
                arguments=item.arguments,
                status="incomplete" if item.status == "incomplete" else "completed",
            )
        case FunctionOutputItem():
            return CallResult(item_id=item_id, call_id=item.call_id, parts=(TextPart(text=item.output, source="tool"),))
        case ApprovalItem():
            return ApprovalResponse(
                item_id=item_id, request_id=item.approval_request_id, approve=item.approve, reason=item.reason
            )
        case _:
            assert_never(item)


def _context_item(item: InputItem) -> Item | str:
    return item.id if isinstance(item, ItemReference) else _item(item)


def _peek(text: str) -> dict[str, Any]:
    """Return the fields of a message that is not valid, as far as it is JSON."""
    try:
        sent = _JSON.validate_json(text)
    except ValidationError:
        return {}
    return sent if isinstance(sent, dict) else {}
