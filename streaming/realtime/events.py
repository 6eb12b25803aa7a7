"""The wire of `/v1/realtime`: OpenAI's Realtime API (GA), text.

What clients send is validated here, strictly: an unknown field is an error that names it. What the server sends is built
by the functions below as plain dictionaries, since it is sent per token; tests hold each against the types of the
`openai` package. Baton's own events are in `extensions`.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from orchestrator.events import TurnEnded
from streaming.realtime.options import Options, wire_session
from streaming.wire.errors import Told, failure, told
from streaming.wire.items import response_id
from streaming.wire.shapes import ID, BatonTurn, Metadata, Sparse
from streaming.wire.usage import response_usage

ServerEvent = dict[str, Any]
"""A server event without its `event_id`."""


class _ClientEvent(Sparse):
    event_id: Annotated[str | None, Field(max_length=512)] = None


class SessionUpdate(_ClientEvent):
    """`session.update`."""

    type: Literal["session.update"]
    session: dict[str, Any]


class InputText(Sparse):
    """Words of the user or the system."""

    type: Literal["input_text"]
    text: str


class OutputText(Sparse):
    """Words of the assistant."""

    type: Literal["output_text", "text"]
    text: str


class _ItemBase(Sparse):
    id: Annotated[str | None, Field(pattern=ID)] = None
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class UserItem(_ItemBase):
    """A message of the user or the system."""

    type: Literal["message"]
    role: Literal["user", "system"]
    content: Annotated[list[InputText], Field(min_length=1)]


class AssistantItem(_ItemBase):
    """A message of the assistant, put into the conversation by the client."""

    type: Literal["message"]
    role: Literal["assistant"]
    content: Annotated[list[OutputText], Field(min_length=1)]


class FunctionCallItem(_ItemBase):
    """A call that was made elsewhere, and is part of the conversation."""

    type: Literal["function_call"]
    call_id: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    name: Annotated[str, Field(pattern=ID)]
    arguments: str


class FunctionOutputItem(_ItemBase):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str


class ApprovalItem(_ItemBase):
    """Whether a call may be made that waits for it."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str
    approve: bool
    reason: Annotated[str | None, Field(max_length=1000)] = None


class ItemReference(Sparse):
    """An item of the session, by its id."""

    type: Literal["item_reference"]
    id: str


def _item_tag(value: Any) -> str | None:
    """Tell the items apart: by type, messages also by role."""
    if not isinstance(value, dict):
        return None
    if value.get("type") == "message":
        return "assistant" if value.get("role") == "assistant" else "user"
    return str(value.get("type"))


ClientItem = Annotated[
    Annotated[UserItem, Tag("user")]
    | Annotated[AssistantItem, Tag("assistant")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ApprovalItem, Tag("mcp_approval_response")],
    Discriminator(
        _item_tag,
        custom_error_type="item_type",
        custom_error_message="an item's type is 'message', 'function_call', 'function_call_output' or 'mcp_approval_response'",
    ),
]

InputItem = Annotated[
    Annotated[UserItem, Tag("user")]
    | Annotated[AssistantItem, Tag("assistant")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(
        _item_tag,
        custom_error_type="item_type",
        custom_error_message="its type is 'message', 'function_call', 'function_call_output' or 'item_reference'",
    ),
]
"""An item of a response's own input."""


class ItemCreate(_ClientEvent):
    """`conversation.item.create`."""

    type: Literal["conversation.item.create"]
    previous_item_id: str | None = None
    item: ClientItem


class ResponseBaton(BatonTurn):
    """Baton's extensions to one response: whether it ends the one that runs, which is an error otherwise."""

    interrupts: bool = False


class ResponseOptions(Sparse):
    """What `response.create` may say of one response beside `options.Options`."""

    metadata: Metadata | None = None
    conversation: str | None = None
    input: Annotated[list[InputItem], Field(max_length=256)] | None = None
    baton: ResponseBaton | None = None


class ItemRetrieve(_ClientEvent):
    """`conversation.item.retrieve`."""

    type: Literal["conversation.item.retrieve"]
    item_id: str


class ItemDelete(_ClientEvent):
    """`conversation.item.delete`."""

    type: Literal["conversation.item.delete"]
    item_id: str


class ItemTruncate(_ClientEvent):
    """`conversation.item.truncate`; words and sound of an item are its first content."""

    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: Annotated[int, Field(ge=0, le=0)]
    audio_end_ms: Annotated[int, Field(ge=0)]


class ResponseCreate(_ClientEvent):
    """`response.create`."""

    type: Literal["response.create"]
    response: dict[str, Any] | None = None


class ResponseCancel(_ClientEvent):
    """`response.cancel`."""

    type: Literal["response.cancel"]
    response_id: str | None = None


ClientEvent = Annotated[
    SessionUpdate | ItemCreate | ItemRetrieve | ItemTruncate | ItemDelete | ResponseCreate | ResponseCancel,
    Discriminator("type"),
]

CLIENT_EVENT: TypeAdapter[ClientEvent] = TypeAdapter(ClientEvent)

SUPPORTED = (
    "session.update",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "conversation.item.delete",
    "response.create",
    "response.cancel",
)

UNSUPPORTED = {
    "input_audio_buffer.append": "This session takes text: send `conversation.item.create` with `input_text`.",
    "input_audio_buffer.commit": "This session takes text: send `conversation.item.create` with `input_text`.",
    "input_audio_buffer.clear": "This session takes text, and has no input audio.",
    "output_audio_buffer.clear": "This belongs to WebRTC; over a websocket, the client holds the audio.",
}
"""Client events of the Realtime API that are known here and not served, and what to do instead."""


def session_event(kind: Literal["session.created", "session.updated"], options: Options) -> ServerEvent:
    """Build `session.created` or `session.updated`."""
    return {"type": kind, "session": wire_session(options)}


def error_event(error: Told, *, event_id: str | None) -> ServerEvent:
    """Build `error`; `event_id` is the client's, of the event that was at fault."""
    return {"type": "error", "error": {**error.body["error"], "event_id": event_id}}


def response_object(
    turn: str, conversation: str | None, *, max_output_tokens: int | None, metadata: dict[str, str] | None
) -> dict[str, Any]:
    """Build the response as it is when it begins."""
    return {
        "object": "realtime.response",
        "id": response_id(turn),
        "conversation_id": conversation,
        "status": "in_progress",
        "status_details": None,
        "output": [],
        "output_modalities": ["text"],
        "max_output_tokens": "inf" if max_output_tokens is None else max_output_tokens,
        "metadata": metadata,
        "usage": None,
    }


def ended_fields(ended: TurnEnded) -> dict[str, Any]:
    """Return `status`, `status_details` and `usage` of a response that has ended."""
    status, details = _status(ended)
    return {"status": status, "status_details": {"type": status, **details}, "usage": response_usage(ended.usage)}


def _status(ended: TurnEnded) -> tuple[str, dict[str, Any]]:
    error = failure(ended)
    if error is None:
        return ("incomplete", {"reason": "max_output_tokens"}) if ended.reason == "length" else ("completed", {})
    if error.code == "interrupted":
        return "cancelled", {"reason": "client_cancelled"}
    said = told(error)
    return "failed", {"error": {"type": said.type, "code": said.code, "message": said.message}}
