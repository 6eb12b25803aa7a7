"""What a client asks of its session, or of one response, taken field by field.

Clients of the Realtime API send much that asks for nothing here: nulls, defaults, and how sound is to be, in a session of
text. That is taken and has no effect. What would ask for something that is not offered, or cannot be, is refused by an
error that names it. Of `session.update` the rest takes effect all the same, so that nobody loses instructions or tools
over another field; of `response.create` nothing does, since half a response helps nobody.

Names of the API before it was generally available are understood (`modalities`, `max_response_output_tokens`, …).
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
)

from models.errors import BadInput, BatonError, NotFound, Unsupported, quoted, too_long
from models.ports.generate import ToolConstraint, ToolSpec
from streaming.wire.complaints import complaint, not_offered_choice
from streaming.wire.shapes import Sparse
from streaming.wire.tools import FunctionOnOffer, ServerTool, ToolMode, on_offer


class FunctionTool(Sparse, FunctionOnOffer):
    """A function on offer."""

    type: Literal["function"]


Tool = FunctionTool | ServerTool


class FunctionChoice(Sparse):
    """One function by name."""

    type: Literal["function"]
    name: str


ToolChoice = ToolMode | FunctionChoice


class BatonOptions(Sparse):
    """Baton's extensions, for clients that ask."""

    events: bool = False
    subject: str | None = None  # who it is: that is settled at the handshake, and may be repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What holds for a connection's responses, or for one of them. None leaves it to what holds otherwise.

    `tools_at` are the places of the tools as their client sent them: of those beside them, some may have been refused.
    """

    model: str | None = None
    instructions: str | None = None
    tools: tuple[Tool, ...] | None = None
    tools_at: tuple[str, ...] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | Literal["inf"] | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What can be asked for here.

    Attributes:
        check_model: raises `NotFound` for a model that is not served.
        characters: the most of instructions.
        tools: that this server runs.
    """

    check_model: Callable[[str], None] = lambda name: None
    characters: int = sys.maxsize
    tools: Mapping[str, ToolSpec] = field(default_factory=dict)


ANYTHING = Bounds()
"""Where nobody asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOptions:
    """What came of it: the fields of `Options` that were set, what is left for others to read, and what was refused."""

    changes: dict[str, Any]
    rest: dict[str, Any]
    refused: tuple[BatonError, ...]


_HONOURED: Mapping[str, TypeAdapter[Any]] = {
    "model": TypeAdapter(str | None),
    "instructions": TypeAdapter(str | None),
    "output_modalities": TypeAdapter(list[Literal["text", "audio"]] | None),
    "tools": TypeAdapter(Annotated[list[Any], Field(max_length=128)] | None),
    "tool_choice": TypeAdapter(ToolChoice | None),
    "parallel_tool_calls": TypeAdapter(bool | None),
    "max_output_tokens": TypeAdapter(Annotated[int, Field(ge=1, le=4096)] | Literal["inf"] | None),
    "temperature": TypeAdapter(Annotated[float, Field(ge=0, le=2)] | None),
}
_FUNCTION = TypeAdapter(FunctionTool)
_SERVER_TOOL = TypeAdapter(ServerTool)

_OLD_NAMES = {"modalities": "output_modalities", "max_response_output_tokens": "max_output_tokens"}
"""Names that fields had before, and have now."""

_OF_SOUND = frozenset(
    {
        *("input_audio_format", "output_audio_format", "input_audio_transcription", "input_audio_noise_reduction"),
        *("turn_detection", "voice", "speed"),
    }
)
"""How sound is to be, by names of before; in a session of text there is none, and whoever sends some is told so."""

_ECHOED = frozenset({"id", "object", "expires_at", "client_secret"})
"""What a session is told to be, and clients send back."""

_INERT: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "audio": (lambda value: value is None or isinstance(value, dict), "It has to be an object."),
    "tracing": (lambda value: value in (None, "auto"), "Nothing is traced for you here."),
    "truncation": (
        lambda value: value in (None, "auto"),
        "When a conversation is longer than the model's window, its oldest items are left out, as 'auto' says.",
    ),
    "prompt": (lambda value: value is None, "No prompts are stored here: send 'instructions'."),
    "include": (lambda value: value in (None, []), "There is nothing to add to what is sent."),
    "reasoning": (
        lambda value: value is None or (isinstance(value, dict) and value.get("effort") in (None, "none", "minimal")),
        "No model here reasons before it answers.",
    ),
}
"""Fields that may be sent as long as they ask for nothing: what asks for nothing, and what to say of the rest."""


def take(section: Literal["session", "response"], sent: Mapping[str, Any], bounds: Bounds) -> TakenOptions:
    """Take the fields that were sent, each alone."""
    changes: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    refused: list[BatonError] = []
    for key, value in sent.items():
        name = _OLD_NAMES.get(key, key)
        if name in _OF_SOUND or (section == "session" and name in _ECHOED):
            continue
        try:
            if name in _INERT:
                _check_inert(section, name, value)
            elif name not in _HONOURED or (section == "response" and name == "model"):
                rest[key] = value
            elif name == "tools":
                tools, errors = _tools(section, _valid(section, key, value), bounds)
                changes[name] = None if tools is None else tuple(tools.values())
                changes["tools_at"] = None if tools is None else tuple(tools)
                refused += errors
            elif name == "output_modalities":
                _check_modalities(section, key, _valid(section, key, value))
            else:
                if name == "tool_choice":
                    _check_is_function(value, f"{section}.tool_choice.type", not_offered_choice)
                changes[name] = _possible(section, name, _valid(section, key, value), bounds)
        except BatonError as exc:
            refused.append(exc)
    return TakenOptions(changes=changes, rest=rest, refused=tuple(refused))


def check_choice(section: str, tools: tuple[Tool, ...] | None, choice: ToolChoice | None) -> None:
    """Check that what has to be called is on offer.

    Raises:
        BadInput: it is not.
    """
    if choice == "required" and not tools:
        raise BadInput(
            f"Invalid '{section}.tool_choice': 'required' has a function called, and there are none.",
            code="invalid_value",
            field=f"{section}.tool_choice",
        )
    if isinstance(choice, FunctionChoice) and choice.name not in {tool.name for tool in tools or ()}:
        raise BadInput(
            f"Invalid '{section}.tool_choice': the function {quoted(choice.name)} is not among the tools.",
            code="invalid_value",
            field=f"{section}.tool_choice",
        )


def with_changes(standing: Options, changes: Mapping[str, Any]) -> tuple[Options, list[BatonError]]:
    """Return what holds from here on, and what of it cannot be.

    A choice of a function that is not on offer, or not any more, makes way for the one before it, or for `auto`.
    """
    changed = replace(standing, **changes)
    refused: list[BatonError] = []
    for choice in (changed.tool_choice, standing.tool_choice, None):
        changed = replace(changed, tool_choice=choice)
        try:
            check_choice("session", changed.tools, choice)
            break
        except BadInput as exc:
            refused = refused or [exc]
    return changed, refused


def for_response(session: Options, changes: Mapping[str, Any]) -> Options:
    """Return what holds for a response: its own, else the session's; a choice among tools does not outlive them."""
    own = {name: value for name, value in changes.items() if value is not None}
    if "tools" in own and "tool_choice" not in own:
        choice = session.tool_choice
        is_there = isinstance(choice, FunctionChoice) and choice.name in {tool.name for tool in own["tools"]}
        if not (is_there or (isinstance(choice, str) and (own["tools"] or choice != "required"))):
            own["tool_choice"] = "auto"
    return replace(session, **own)


def unknown(section: str, name: str) -> BadInput:
    """Return the error for a field that there is not."""
    field = f"{section}.{name[:64]}"
    return BadInput(f"Unknown or unsupported parameter: '{field}'.", code="unknown_parameter", field=field)


def tool_constraint(options: Options, bounds: Bounds = ANYTHING) -> ToolConstraint | None:
    """Return what an engine is told of the tools on offer; those that the server runs are in `bounds`.

    Raises:
        BadInput: a function has to be called, and there is none, or not that one.
    """
    check_choice("response", options.tools, options.tool_choice)
    choice = options.tool_choice
    if not options.tools:
        return None
    tools = [bounds.tools[tool.name] if isinstance(tool, ServerTool) else tool for tool in options.tools]
    named = choice.name if isinstance(choice, FunctionChoice) else None
    return on_offer(
        tools,
        None if isinstance(choice, FunctionChoice) else choice,
        named=named,
        parallel=options.parallel_tool_calls,
    )


def wire_session(options: Options) -> dict[str, Any]:
    """Return the session as its client is told it; what is not offered is told as it is."""
    choice = options.tool_choice or "auto"
    return {
        "type": "realtime",
        **({} if options.model is None else {"model": options.model}),
        "instructions": options.instructions or "",
        "output_modalities": ["text"],
        "tools": [_wire_tool(tool) for tool in options.tools or ()],
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "parallel_tool_calls": options.parallel_tool_calls is not False,
        "max_output_tokens": options.max_output_tokens or "inf",
        "truncation": "auto",
        "tracing": None,
        "prompt": None,
    }


def _wire_tool(tool: Tool) -> dict[str, Any]:
    if isinstance(tool, ServerTool):
        return {"type": "server", "name": tool.name}
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.parameters or {},
        **({} if tool.strict is None else {"strict": tool.strict}),
    }


def _valid(section: str, key: str, value: Any) -> Any:
    return validated(_HONOURED[_OLD_NAMES.get(key, key)], value, section, key)


def validated(adapter: TypeAdapter[Any], value: Any, *path: str | int) -> Any:
    """Return what was sent at `path`.

    Raises:
        BadInput: it does not fit.
    """
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as exc:
        errors = [{**error, "loc": (*path, *error["loc"])} for error in exc.errors(include_url=False)]
        sent: Any = value
        for step in reversed(path):
            sent = [None] * step + [sent] if isinstance(step, int) else {step: sent}
        raise complaint(errors, sent, code="invalid_value") from None  # type: ignore[arg-type]  # as they were


def _check_inert(section: str, name: str, value: Any) -> None:
    asks_nothing, said = _INERT[name]
    if not asks_nothing(value):
        field = f"{section}.{name}"
        raise Unsupported(f"'{field}' asks for something that is not offered. {said}", field=field)


def _check_modalities(section: str, name: str, modalities: list[str] | None) -> None:
    field = f"{section}.{name}"
    if modalities is not None and "audio" in modalities:
        raise Unsupported(f"Of '{field}' only [\"text\"] is offered: there is no sound yet.", field=field)
    if modalities is not None and modalities != ["text"]:
        raise BadInput(f"Invalid '{field}': it has to be [\"text\"].", code="invalid_value", field=field)


def _possible(section: str, name: str, value: Any, bounds: Bounds) -> Any:
    """Return what can be done as it was asked.

    Raises:
        BatonError: it cannot.
    """
    if name == "model" and value is not None:
        try:
            bounds.check_model(value)
        except NotFound as exc:
            raise NotFound(exc.message, code=exc.code, field=f"{section}.model") from None
    if name == "instructions" and value is not None and len(value) > bounds.characters:
        raise too_long("the text of the instructions", len(value), bounds.characters, field=f"{section}.instructions")
    return value


def _tools(section: str, sent: list[Any] | None, bounds: Bounds) -> tuple[dict[str, Tool] | None, list[BatonError]]:
    """Return those tools that can be offered, by their places, and why the others cannot."""
    if sent is None:
        return None, []
    tools: dict[str, Tool] = {}
    refused: list[BatonError] = []
    for at, one in enumerate(sent):
        try:
            is_server = isinstance(one, dict) and one.get("type") == "server"
            tool = _server_tool(section, at, one, bounds) if is_server else _function(section, at, one)
            if any(tool.name == other.name for other in tools.values()):
                field = f"{section}.tools[{at}].name"
                raise BadInput(
                    f"Invalid '{field}': there is a function {quoted(tool.name)} before it. Each needs a name of its own.",
                    code="invalid_value",
                    field=field,
                )
            tools[f"{section}.tools[{at}]"] = tool
        except BatonError as exc:
            refused.append(exc)
    return tools, refused


def _server_tool(section: str, at: int, sent: Any, bounds: Bounds) -> ServerTool:
    tool: ServerTool = validated(_SERVER_TOOL, sent, section, "tools", at)
    if tool.name not in bounds.tools:
        known = f"It runs {', '.join(sorted(bounds.tools))}" if bounds.tools else "It runs none"
        raise BadInput(
            f"This server runs no tool {tool.name!r}. {known}.",
            code="unknown_tool",
            field=f"{section}.tools[{at}].name",
        )
    return tool


def _function(section: str, at: int, sent: Any) -> FunctionTool:
    _check_is_function(sent, f"{section}.tools[{at}].type")
    tool: FunctionTool = validated(_FUNCTION, sent, section, "tools", at)
    schema, field = tool.parameters or {}, f"{section}.tools[{at}].parameters"
    for name, fits, expected in (
        ("type", schema.get("type", "object") == "object", "'object': a function's parameters are one"),
        ("properties", isinstance(schema.get("properties", {}), dict), "an object"),
        ("required", isinstance(schema.get("required", []), list), "an array"),
    ):
        if not fits:
            raise BadInput(
                f"Invalid '{field}.{name}': it has to be {expected}.", code="invalid_value", field=f"{field}.{name}"
            )
    return tool


def _not_offered(kind: str) -> str:
    return f"tools of the type {quoted(kind)} are not offered."


def _check_is_function(sent: Any, field: str, said: Callable[[str], str] = _not_offered) -> None:
    kind = sent.get("type") if isinstance(sent, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise Unsupported(f"Invalid '{field}': {said(kind)}", field=field)
