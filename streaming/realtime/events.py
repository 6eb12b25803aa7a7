"""The wire of `/v1/realtime`: OpenAI's Realtime API (GA), text.

What clients send is validated here, strictly: an unknown field is an error that names it. What the server sends is built
by the functions below as plain dictionaries, since it is sent per token; tests hold each against the types of the
`openai` package. Baton's own events are in `extensions`.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, TypeAdapter

from models.content import Call, CallResult, Item, TextPart, text_of
from models.content import Message as MessageItem
from models.errors import BadInput
from models.ports import ToolConstraint, ToolSpec
from orchestrator.events import TurnEnded
from streaming.errors import Told, failure, told

ServerEvent = dict[str, Any]
"""A server event without its `event_id`."""

_ID = r"^[A-Za-z0-9_-]{1,64}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _ClientEvent(_Strict):
    event_id: Annotated[str | None, Field(max_length=512)] = None


def _plain_json(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse the numbers that JSON has no words for, which parsers take in and strict ones choke on."""
    json.dumps(value, allow_nan=False)
    return value


JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_plain_json)]
"""A JSON object that every parser takes."""


class FunctionTool(_Strict):
    """A function that the client runs."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=_ID)]
    description: str = ""
    parameters: JsonObject = Field(default_factory=dict)


class FunctionChoice(_Strict):
    """One function by name."""

    type: Literal["function"]
    name: str


Tools = Annotated[list[FunctionTool], Field(max_length=128)]
ToolChoice = Literal["auto", "none", "required"] | FunctionChoice
MaxOutputTokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]
Modalities = Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)]


class BatonOptions(_Strict):
    """Baton's extensions, for clients that ask."""

    events: bool = False


class SessionOptions(_Strict):
    """What `session.update` may set. A field that is left out stays as it is."""

    type: Literal["realtime"]
    model: str | None = None
    instructions: str | None = None
    output_modalities: Modalities | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    max_output_tokens: MaxOutputTokens | None = None
    baton: BatonOptions | None = None


class SessionUpdate(_ClientEvent):
    """`session.update`."""

    type: Literal["session.update"]
    session: SessionOptions


class InputText(_Strict):
    """Words of the user or the system."""

    type: Literal["input_text"]
    text: str


class OutputText(_Strict):
    """Words of the assistant."""

    type: Literal["output_text"]
    text: str


class _ItemBase(_Strict):
    id: Annotated[str | None, Field(pattern=_ID)] = None
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


class FunctionOutputItem(_ItemBase):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str


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
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    Discriminator(
        _item_tag,
        custom_error_type="item_type",
        custom_error_message="an item's type is 'message' or 'function_call_output'",
    ),
]


class ItemCreate(_ClientEvent):
    """`conversation.item.create`."""

    type: Literal["conversation.item.create"]
    previous_item_id: str | None = None
    item: ClientItem


_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=16)]


class ResponseOptions(_Strict):
    """What `response.create` may set for one response; what is left out is the session's."""

    instructions: str | None = None
    output_modalities: Modalities | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    max_output_tokens: MaxOutputTokens | None = None
    metadata: Metadata | None = None
    conversation: Literal["auto"] | None = None


class ItemDelete(_ClientEvent):
    """`conversation.item.delete`."""

    type: Literal["conversation.item.delete"]
    item_id: str


class ResponseCreate(_ClientEvent):
    """`response.create`."""

    type: Literal["response.create"]
    response: ResponseOptions = ResponseOptions()


class ResponseCancel(_ClientEvent):
    """`response.cancel`."""

    type: Literal["response.cancel"]
    response_id: str | None = None


ClientEvent = Annotated[
    SessionUpdate | ItemCreate | ItemDelete | ResponseCreate | ResponseCancel, Discriminator("type")
]

CLIENT_EVENT: TypeAdapter[ClientEvent] = TypeAdapter(ClientEvent)

SUPPORTED = (
    "session.update",
    "conversation.item.create",
    "conversation.item.delete",
    "response.create",
    "response.cancel",
)

UNSUPPORTED = {
    "conversation.item.retrieve": "Read the session's events instead: connect with `?session=ID&after=0`.",
    "conversation.item.truncate": "This session writes text, and text has no audio to truncate.",
    "input_audio_buffer.append": "This session takes text: send `conversation.item.create` with `input_text`.",
    "input_audio_buffer.commit": "This session takes text: send `conversation.item.create` with `input_text`.",
    "input_audio_buffer.clear": "This session takes text, and has no input audio.",
    "output_audio_buffer.clear": "This belongs to WebRTC; over a websocket, the client holds the audio.",
}
"""Client events of the Realtime API that are known here and not served, and what to do instead."""


def response_id(turn_id: str) -> str:
    """Return the response's id, which is the turn's under another prefix."""
    return "resp_" + turn_id.removeprefix("turn_")


def turn_id(response_id_: str) -> str:
    """Return the turn's id of a response's."""
    return "turn_" + response_id_.removeprefix("resp_")


def tool_constraint(tools: list[FunctionTool] | None, choice: ToolChoice | None) -> ToolConstraint | None:
    """Return what an engine is told of the tools on offer.

    Raises:
        BadInput: the function that has to be called is not among them.
    """
    if isinstance(choice, FunctionChoice) and choice.name not in {tool.name for tool in tools or ()}:
        raise BadInput(f"The function {choice.name!r} is not among the tools.", field="tool_choice")
    if not tools:
        return None
    return ToolConstraint(
        tools=tuple(
            ToolSpec(name=tool.name, description=tool.description, parameters=json.dumps(tool.parameters))
            for tool in tools
        ),
        choice="required" if isinstance(choice, FunctionChoice) else choice or "auto",
        function=choice.name if isinstance(choice, FunctionChoice) else None,
    )


def session_event(kind: Literal["session.created", "session.updated"], options: SessionOptions) -> ServerEvent:
    """Build `session.created` or `session.updated`."""
    session = options.model_dump(exclude_none=True, exclude={"baton"}, mode="json")
    return {"type": kind, "session": session}


def error_event(error: Told, *, event_id: str | None) -> ServerEvent:
    """Build `error`; `event_id` is the client's, of the event that was at fault."""
    return {"type": "error", "error": {**error.body["error"], "event_id": event_id}}


def wire_item(item: Item, status: Literal["completed", "incomplete", "in_progress"]) -> dict[str, Any]:
    """Build an item as the wire has it."""
    base = {"id": item.item_id, "object": "realtime.item", "status": status}
    match item:
        case MessageItem():
            part = "output_text" if item.role == "assistant" else "input_text"
            texts = [p.text for p in item.parts if isinstance(p, TextPart)]
            content = [{"type": part, "text": text} for text in texts]
            return {**base, "type": "message", "role": item.role, "content": content}
        case Call():
            return {
                **base,
                "type": "function_call",
                "call_id": item.call_id,
                "name": item.name,
                "arguments": item.arguments,
            }
        case CallResult():
            return {**base, "type": "function_call_output", "call_id": item.call_id, "output": text_of(item)}


def response_object(
    turn: str, conversation: str, *, max_output_tokens: int | None, metadata: dict[str, str] | None
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
    usage = ended.usage
    return {
        "status": status,
        "status_details": {"type": status, **details},
        "usage": {
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "input_token_details": {"cached_tokens": usage.cached_tokens},
        },
    }


def _status(ended: TurnEnded) -> tuple[str, dict[str, Any]]:
    error = failure(ended)
    if error is None:
        return ("incomplete", {"reason": "max_output_tokens"}) if ended.reason == "length" else ("completed", {})
    if error.code == "interrupted":
        return "cancelled", {"reason": "client_cancelled"}
    said = told(error)
    return "failed", {"error": {"type": said.type, "code": said.code, "message": said.message}}
