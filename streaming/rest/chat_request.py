"""What `POST /v1/chat/completions` takes: OpenAI's request, and what it means here.

Source: OpenAI's API reference, "Create chat completion". A field that would change the answer and cannot be honoured
is refused by name; one that changes nothing here (`user`, `service_tier`, …) is taken.
"""

import json
from collections.abc import Iterator
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag

from memory.keys import RequestDefaults
from models.content import Call, CallResult, Item, Message, TextPart
from models.errors import BadInput, Unsupported
from models.ids import new_id
from models.ports import Form, GrammarConstraint, JsonSchemaConstraint, RegexConstraint, ToolConstraint, ToolSpec
from orchestrator.events import SamplingOverrides, TurnInput
from streaming.realtime.events import Metadata
from streaming.realtime.options import JsonObject


class _Typed(BaseModel):
    """Types are as OpenAI has them: a number in a string is a string, and true is no number."""

    model_config = ConfigDict(frozen=True, strict=True)


class _Strict(_Typed):
    model_config = ConfigDict(extra="forbid")


class TextContent(_Typed):
    """Words. What else servers write beside them, such as `cache_control`, changes nothing."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalContent(_Typed):
    """Words by which a model refused."""

    type: Literal["refusal"]
    refusal: str


class OtherContent(_Typed):
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


class SystemMessage(_Strict):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Contents
    name: str | None = None
    cache_control: JsonValue = None


class UserMessage(_Strict):
    """What the user says."""

    role: Literal["user"]
    content: Contents
    name: str | None = None
    cache_control: JsonValue = None


FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionCall(_Typed):
    """A call's function, its arguments as JSON text. Clients add what they have read in them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,256}$")]
    arguments: str | JsonObject | None = None

    @property
    def text(self) -> str:
        """The arguments as JSON text; some servers write them as an object."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments or {})


class ToolCall(_Typed):
    """A call that the assistant made, as the client was given it."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(_Typed):
    """What the assistant said before. Clients send back what they were given, so further fields are passed over."""

    role: Literal["assistant"]
    content: History = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None


class ToolMessage(_Typed):
    """What a call returned."""

    role: Literal["tool"]
    tool_call_id: str
    content: History = None


class FunctionMessage(_Typed):
    """What a call returned, as it was said before calls had ids: it answers the last call of that name."""

    role: Literal["function"]
    name: str
    content: History = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Discriminator("role"),
]


class FunctionDefinition(_Typed):
    """A function on offer."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(_Typed):
    """A tool on offer."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(_Strict):
    """A function by name."""

    name: str


class NamedTool(_Strict):
    """A tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(_Strict):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(_Strict):
    """Words, as they come."""

    type: Literal["text"]

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        return None


class JsonObjectFormat(_Strict):
    """Any JSON object."""

    type: Literal["json_object"]

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        return JsonSchemaConstraint(schema='{"type": "object"}')


class JsonSchema(_Strict):
    """A schema with the name that it goes by, which changes nothing here; without one, any object."""

    name: str
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(_Strict):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        schema = {"type": "object"} if self.json_schema.schema_ is None else self.json_schema.schema_
        return JsonSchemaConstraint(schema=json.dumps(schema), strict=self.json_schema.strict or False)


class RegexFormat(_Strict):
    """Text that a regular expression matches as a whole. Not OpenAI's."""

    type: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1)]

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        return RegexConstraint(pattern=self.pattern)


class GrammarFormat(_Strict):
    """Text that a grammar derives. Not OpenAI's."""

    type: Literal["grammar"]
    grammar: Annotated[str, Field(min_length=1)]

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        return GrammarConstraint(grammar=self.grammar)


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat, Discriminator("type")
]


_SMALLEST_TOP_P = 1e-9  # 0 is the likeliest token alone, and not every model takes it

Penalty = Annotated[float, Field(ge=-2, le=2)]

TokenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
LogitBias = Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)]


MOST_CHOICES = 16
"""As many as a local model writes at a time by default."""


class ChatRequest(_Strict):
    """The body."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    n: Annotated[int | None, Field(ge=1, le=MOST_CHOICES)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: Annotated[list[Tool] | None, Field(max_length=128)] = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    # Not OpenAI's: as vLLM names them.
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=2)] = None

    # Honoured only at the value that changes nothing; see `_refuse`.
    modalities: list[str] | None = None
    audio: JsonValue = None
    reasoning_effort: str | None = None

    # These change nothing here.
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prediction: JsonValue = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonValue = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    def turn(self, defaults: RequestDefaults) -> tuple[tuple[Item, ...], TurnInput]:
        """Return the conversation so far, and what is asked now.

        Raises:
            BadInput: a result answers no call, the function that has to be called is not on offer, or fields contradict
                each other.
            Unsupported: a field asks for what cannot be given.
        """
        self._refuse()
        leading = 0
        while leading < len(self.messages) and isinstance(self.messages[leading], SystemMessage):
            leading += 1
        instructions = "\n\n".join(
            _text(message.content, f"messages[{at}].content")
            for at, message in enumerate(self.messages[:leading])
            if isinstance(message, SystemMessage)
        )
        items: list[Item] = []
        calls: dict[str, str] = {}
        # What is kept has ids of its own for ever; what is not needs them only here, and a ULID is not cheap.
        ids = iter(lambda: new_id("item"), None) if self.store else (f"item_{n}" for n in count())
        for at, message in enumerate(self.messages[leading:], start=leading):
            items += _items(message, f"messages[{at}]", calls, ids)
        asked = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        turn_input = TurnInput(
            items=tuple(items[-1:]),
            instructions=instructions or defaults.instructions,
            model=self.model or defaults.model,
            tools=self._tools(),
            form=None if self.response_format is None else self.response_format.form(),
            max_output_tokens=defaults.max_output_tokens if asked is None else asked,
            sampling=SamplingOverrides(
                temperature=self.temperature,
                top_p=None if self.top_p is None else max(self.top_p, _SMALLEST_TOP_P),
                seed=self.seed,
                stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
                logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
                repetition_penalty=self.repetition_penalty or 1.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                presence_penalty=self.presence_penalty or 0.0,
                top_k=max(self.top_k or 0, 0),
                min_p=self.min_p or 0.0,
            ),
            logprobs=self._logprobs(),
            continues=self._continues(),
            metadata=self.metadata,
        )
        return tuple(items[:-1]), turn_input

    def _refuse(self) -> None:
        wanted: dict[str, Any] = {
            "modalities": self.modalities not in (None, ["text"]),
            "audio": self.audio,
            "reasoning_effort": self.reasoning_effort not in {None, "none", "minimal"},
        }
        if self.store and self.choices > 1:
            raise Unsupported("A conversation that is kept has one answer. Leave 'store' or 'n' out.", field="n")
        for field, is_wanted in wanted.items():
            if is_wanted:
                raise Unsupported(f"'{field}' cannot be honoured here yet. Leave it out.", field=field)

    def _continues(self) -> bool:
        if not self.continue_final_message:
            if self.add_generation_prompt is False:
                raise Unsupported(
                    "Without a prompt for an answer there has to be one to go on with: set 'continue_final_message'.",
                    field="add_generation_prompt",
                )
            return False
        if self.add_generation_prompt:
            raise BadInput("It contradicts 'continue_final_message'. Set it to false.", field="add_generation_prompt")
        last = self.messages[-1]
        if not isinstance(last, AssistantMessage) or not last.content or last.tool_calls:
            raise BadInput("The last message has to be words of the assistant's.", field="continue_final_message")
        if self.store:
            raise Unsupported("A conversation that is kept is not gone on with.", field="continue_final_message")
        return True

    def _logprobs(self) -> int | None:
        if not self.logprobs:
            if self.top_logprobs:
                raise BadInput("'top_logprobs' needs 'logprobs' to be true.", field="top_logprobs")
            return None
        if self.store:
            raise Unsupported(
                "A conversation that is kept has words alone, not their log-probabilities. Leave 'store' or 'logprobs' out.",
                field="logprobs",
            )
        return self.top_logprobs or 0

    def _tools(self) -> ToolConstraint | None:
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedTool) else None
        if named is not None and named not in {tool.function.name for tool in self.tools or ()}:
            raise BadInput(f"The function {named!r} is not among the tools.", field="tool_choice")
        if not self.tools:
            if choice == "required":
                raise BadInput("A call is required, and there are no tools. Send 'tools' with it.", field="tool_choice")
            return None
        return ToolConstraint(
            tools=tuple(
                ToolSpec(
                    name=tool.function.name,
                    description=tool.function.description or "",
                    parameters=json.dumps(tool.function.parameters or {}),
                    strict=tool.function.strict or False,
                )
                for tool in self.tools
            ),
            choice="required" if isinstance(choice, NamedTool) else choice or "auto",
            function=named,
            parallel=self.parallel_tool_calls is not False,
        )


def _items(message: ChatMessage, field: str, calls: dict[str, str], ids: Iterator[str]) -> list[Item]:
    """Return the items of a message; the calls it makes are added to `calls`, each with its name."""
    match message:
        case SystemMessage():
            return [_message(next(ids), "system", _text(message.content, f"{field}.content"))]
        case UserMessage():
            return [_message(next(ids), "user", _text(message.content, f"{field}.content"))]
        case AssistantMessage():
            return _assistant(message, field, calls, ids)
        case ToolMessage():
            if message.tool_call_id not in calls:
                raise BadInput(
                    f"There is no call {message.tool_call_id!r} before this result.", field=f"{field}.tool_call_id"
                )
            return [_result(next(ids), message.tool_call_id, message.content, field)]
        case FunctionMessage():
            call_id = next((call_id for call_id, name in reversed(calls.items()) if name == message.name), None)
            if call_id is None:
                raise BadInput(f"There is no call of {message.name!r} before this result.", field=f"{field}.name")
            return [_result(next(ids), call_id, message.content, field)]


def _assistant(message: AssistantMessage, field: str, calls: dict[str, str], ids: Iterator[str]) -> list[Item]:
    made: list[Item] = []
    if words := _text(message.content, f"{field}.content", _THOUGHTS):
        made.append(_message(next(ids), "assistant", words))
    named = [(call.id, call.function) for call in message.tool_calls or ()]
    if message.function_call is not None:
        named.append((f"call_{field}", message.function_call))
    for call_id, function in named:
        calls[call_id] = function.name
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
                message = f"Content of type {part.type[:40]!r} is not read here yet. Send text."
                raise Unsupported(message, field=f"{field}[{at}]")
            case _:
                pass
    return "".join(words)
