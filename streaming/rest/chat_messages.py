"""Messages of `POST /v1/chat/completions`, and the items that they are.

Source: OpenAI's API reference, "Create chat completion".
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from models.content import Call, CallResult, Item, Message, TextPart
from models.errors import BadInput, Conflict, Unsupported, quoted
from models.ids import new_id
from streaming.wire.shapes import JsonObject, Strict, Typed


class TextContent(Typed):
    """Words. What else servers write beside them, such as `cache_control`, changes nothing."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalContent(Typed):
    """Words by which a model refused."""

    type: Literal["refusal"]
    refusal: str


class OtherContent(Typed):
    """Content that no model here reads yet."""

    type: str


def _kind_of_content(content: Any) -> str:
    kind = content.get("type") if isinstance(content, dict) else getattr(content, "type", None)
    if not isinstance(kind, str):  # which is said of the field, by the first
        return "text"
    return "text" if kind in {"text", "input_text", "output_text"} else "refusal" if kind == "refusal" else "other"


Content = Annotated[
    Annotated[TextContent, Tag("text")]
    | Annotated[RefusalContent, Tag("refusal")]
    | Annotated[OtherContent, Tag("other")],
    Discriminator(_kind_of_content),
]
Contents = str | Annotated[list[Content], Field(min_length=1)]
History = str | list[Content] | None
"""What others have said before, which may be nothing."""


class SystemMessage(Strict):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Contents
    name: str | None = None
    cache_control: JsonValue = None


class UserMessage(Strict):
    """What the user says."""

    role: Literal["user"]
    content: Contents
    name: str | None = None
    cache_control: JsonValue = None


class FunctionCall(Typed):
    """A call's function, its arguments as JSON text. Clients add what they have read in them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,256}$")]
    arguments: str | JsonObject | None = None

    @property
    def text(self) -> str:
        """The arguments as JSON text; some servers write them as an object."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments or {})


class CallSent(Typed):
    """A call that the assistant made, as the client was given it."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Typed):
    """What the assistant said before. Clients send back what they were given, so further fields are passed over."""

    role: Literal["assistant"]
    content: History = None
    tool_calls: list[CallSent] | None = None
    function_call: FunctionCall | None = None


class ToolMessage(Typed):
    """What a call returned."""

    role: Literal["tool"]
    tool_call_id: str
    content: History = None


class FunctionMessage(Typed):
    """What a call returned, as it was said before calls had ids: it answers the last call of that name."""

    role: Literal["function"]
    name: str
    content: History = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Discriminator("role"),
]


class _Calls:
    """The calls so far: each has one result, as in a conversation that is kept."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._waiting: Counter[str] = Counter()

    def add(self, call_id: str, name: str) -> None:
        """Add a call. An id may serve again."""
        self._names.pop(call_id, None)  # it is the latest from now on
        self._names[call_id] = name
        self._waiting[call_id] += 1

    def last_of(self, name: str, field: str) -> str:
        """Return the last call of a function, or rather the last that waits for its result.

        Raises:
            BadInput: there is none; `field` says so.
        """
        called = [call_id for call_id, each in reversed(self._names.items()) if each == name]
        if not called:
            raise BadInput(f"There is no call of {quoted(name)} before this result.", field=field)
        return next((call_id for call_id in called if self._waiting[call_id] > 0), called[0])

    def answer(self, call_id: str, field: str) -> None:
        """Note the result of a call.

        Raises:
            BadInput: there is no such call; `field` says where.
            Conflict: it has its result already.
        """
        if call_id not in self._names:
            raise BadInput(f"There is no call {quoted(call_id)} before this result.", field=field)
        if self._waiting[call_id] <= 0:
            raise Conflict(f"The call {quoted(call_id)} has its result already.", code="call_answered", field=field)
        self._waiting[call_id] -= 1


def conversation_of(messages: Sequence[ChatMessage], *, kept: bool) -> tuple[str, list[Item]]:
    """Return the instructions that messages begin with, and the items of the others.

    Raises:
        BadInput: a result answers no call.
        Conflict: a call has two results.
        Unsupported: there is something other than text in them.
    """
    leading = 0
    while leading < len(messages) and isinstance(messages[leading], SystemMessage):
        leading += 1
    instructions = "\n\n".join(
        _text(message.content, f"messages[{at}].content")
        for at, message in enumerate(messages[:leading])
        if isinstance(message, SystemMessage)
    )
    items: list[Item] = []
    calls = _Calls()
    # What is kept has ids of its own for ever; what is not needs them only here, and a ULID is not cheap.
    ids = iter(lambda: new_id("item"), None) if kept else (f"item_{n}" for n in count())
    for at, message in enumerate(messages[leading:], start=leading):
        items += _items(message, f"messages[{at}]", calls, ids)
    return instructions, items


def _items(message: ChatMessage, field: str, calls: "_Calls", ids: Iterator[str]) -> list[Item]:
    """Return the items of a message; the calls it makes are added to `calls`, and its result answers one."""
    match message:
        case SystemMessage():
            return [_message(next(ids), "system", _text(message.content, f"{field}.content"))]
        case UserMessage():
            return [_message(next(ids), "user", _text(message.content, f"{field}.content"))]
        case AssistantMessage():
            return _assistant(message, field, calls, ids)
        case ToolMessage():
            calls.answer(message.tool_call_id, f"{field}.tool_call_id")
            return [_result(next(ids), message.tool_call_id, message.content, field)]
        case FunctionMessage():
            call_id = calls.last_of(message.name, f"{field}.name")
            calls.answer(call_id, f"{field}.name")
            return [_result(next(ids), call_id, message.content, field)]


def _assistant(message: AssistantMessage, field: str, calls: "_Calls", ids: Iterator[str]) -> list[Item]:
    made: list[Item] = []
    if words := _text(message.content, f"{field}.content", _THOUGHTS):
        made.append(_message(next(ids), "assistant", words))
    named = [(call.id, call.function) for call in message.tool_calls or ()]
    if message.function_call is not None:
        named.append((f"call_{field}", message.function_call))
    for call_id, function in named:
        calls.add(call_id, function.name)
        made.append(Call(item_id=next(ids), call_id=call_id, name=function.name, arguments=function.text))
    return made


def _result(item_id: str, call_id: str, content: History, field: str) -> CallResult:
    part = TextPart(text=_text(content, f"{field}.content"), source="tool")
    return CallResult(item_id=item_id, call_id=call_id, parts=(part,))


def _message(item_id: str, role: Literal["system", "user", "assistant"], text: str) -> Message:
    source: Literal["generated", "typed"] = "generated" if role == "assistant" else "typed"
    return Message(item_id=item_id, role=role, parts=(TextPart(text=text, source=source),))


_THOUGHTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
"""What models wrote for themselves. It is not read again."""


def _text(content: History, field: str, passed_over: frozenset[str] = frozenset()) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    words = []
    for at, part in enumerate(content):
        match part:
            case TextContent():
                words.append(part.text)
            case RefusalContent():
                words.append(part.refusal)
            case OtherContent() if part.type not in passed_over:
                message = f"Content of type {quoted(part.type)} is not read here yet. Send text."
                raise Unsupported(message, field=f"{field}[{at}]")
            case _:
                pass
    return "".join(words)
