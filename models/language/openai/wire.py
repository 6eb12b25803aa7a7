"""OpenAI's completions, of chats and of texts, both ways: what to send for a request, and what the answer means. Pure.

The formats are described at https://platform.openai.com/docs/api-reference/chat and /completions beside it. Servers differ
in what they leave out, so in an answer nothing is counted on but the text, and what is unknown is passed over.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from models.content import (
    Call,
    CallDelta,
    CallResult,
    Delta,
    EvidencePart,
    FinishDelta,
    Part,
    ReasoningDelta,
    Said,
    TextDelta,
    TextPart,
    UsageDelta,
)
from models.errors import BadInput, BatonError, Internal, LimitExceeded, NotFound, Overloaded, Unsupported
from models.ids import new_id
from models.language.openai.chunks import CHUNK, CallFields, Fragment, Logprobs, UsageFields, margin, written
from models.owner import Owner
from models.ports.generate import (
    PROCESSORS,
    Constraint,
    GenerateRequest,
    JsonSchemaConstraint,
    Sampling,
    ToolConstraint,
)

_log = logging.getLogger(__name__)

Fixed = Literal["temperature", "top_p", "seed", "stop"]

UNAVAILABLE = "upstream_unavailable"
REFUSED = "upstream_refused"
RATE_LIMITED = "upstream_rate_limited"
TIMEOUT = "upstream_timeout"

_FILTERED = frozenset({"content_filter", "content_policy_violation", "moderation_blocked"})
"""What servers call it when they refuse to read or to write something."""

_TOO_LONG = re.compile(r"context[ _](length|window|size)|maximum context|prompt is too long", re.IGNORECASE)
_MESSAGE_CHARACTERS = 500
_PLAIN = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a server wants to be told, and how.

    Attributes:
        model: the model's name there.
        max_tokens_field: the field that bounds the answer; OpenAI's own newer models know only the second.
        fixed: sampling that the model does not let callers choose, and refuses requests for.
        tenant_field: a field that carries a digest of the owner's names, such as vLLM's `cache_salt`, which keeps
            the prefix cache of one owner from another, or OpenAI's `safety_identifier`.
    """

    model: str
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    fixed: Collection[Fixed] = ()
    tenant_field: str | None = None


def body(request: GenerateRequest, dialect: Dialect) -> dict[str, Any]:
    """Return the request as JSON's values.

    Raises:
        Unsupported: a message has a part that is not text, or an answer of a form is to be gone on with.
        BadInput: the schema of a tool or of the answer is no JSON.
    """
    fields: dict[str, Any] = {
        "model": dialect.model,
        **_prompt(request),
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens" if request.raw else dialect.max_tokens_field: request.sampling.max_output_tokens,
        **_sampling(request.sampling),
    }
    if request.continues and _has_form(request.constraint):
        raise Unsupported(
            "A remote server holds what it adds to its form, not the whole that the assistant's words begin. Leave "
            "'continue_final_message' or the form out, or choose a local model.",
            field="continue_final_message",
        )
    if request.continues:  # as vLLM and SGLang name it
        fields |= {"add_generation_prompt": False, "continue_final_message": True}
    for name in dialect.fixed:
        fields.pop(name, None)
    if dialect.tenant_field is not None:
        fields[dialect.tenant_field] = _digest(request.owner)
    most = max(2 if "margins" in request.signals else 0, request.logprobs or 0)
    if request.signals or request.logprobs is not None:
        fields["logprobs"] = most if request.raw else True
    if most and not request.raw:
        fields["top_logprobs"] = most
    match request.constraint:
        case ToolConstraint() as tools:
            fields.update(_tools(tools))
            if isinstance(tools.form, JsonSchemaConstraint):
                fields["response_format"] = _response_format(tools.form)
        case JsonSchemaConstraint() as form:
            fields["response_format"] = _response_format(form)
        case _:
            pass  # the engine refuses the others
    return fields


def _has_form(constraint: Constraint | None) -> bool:
    """Return whether an answer in words is of a form."""
    return constraint is not None and (not isinstance(constraint, ToolConstraint) or constraint.form is not None)


def _prompt(request: GenerateRequest) -> dict[str, Any]:
    """Return what is to be answered: a conversation, or for completions a text."""
    if not request.raw:
        return {"messages": _messages(request.messages)}
    (prompt,) = request.messages
    return {"prompt": "" if isinstance(prompt, Call) else _words(prompt.parts)}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Return how tokens are to be chosen. What changes nothing is left out: not every server knows all of it."""
    fields: dict[str, Any] = {"temperature": sampling.temperature}
    for name in ("top_p", "seed", "stop", *sorted(PROCESSORS)):
        if (asked := getattr(sampling, name)) != getattr(_PLAIN, name):
            fields[name] = asked
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return fields


def _messages(items: Sequence[Said]) -> list[dict[str, Any]]:
    """Return items as messages. Calls belong to the assistant's message before them, which may have no words."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case Call():
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                function = {"name": item.name, "arguments": item.arguments or "{}"}
                calls = messages[-1].setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": function})
            case CallResult():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _words(item.parts)})
            case _:
                messages.append({"role": item.role, "content": _words(item.parts)})
    return messages


def _words(parts: Sequence[Part]) -> str:
    words = []
    for part in parts:
        if isinstance(part, EvidencePart):
            continue
        if not isinstance(part, TextPart):
            raise Unsupported(
                f"This model is reached over a connection that carries only text so far, not {part.kind}. "
                "Leave it out or choose another model.",
                field="messages",
            )
        words.append(part.text)
    return "".join(words)


def _tools(constraint: ToolConstraint) -> dict[str, Any]:
    if not constraint.tools:
        return {}
    tools = []
    for tool in constraint.tools:
        parameters = _json(tool.parameters, constraint.place_of(tool.name))
        function = {"name": tool.name, "description": tool.description, "parameters": parameters}
        tools.append({"type": "function", "function": function | ({"strict": True} if tool.strict else {})})
    fields: dict[str, Any] = {"tools": tools}
    if not constraint.parallel:
        fields["parallel_tool_calls"] = False
    if constraint.function is not None and constraint.choice != "none":
        fields["tool_choice"] = {"type": "function", "function": {"name": constraint.function}}
    elif constraint.choice != "auto":  # which is every server's default, and some refuse to hear it said
        fields["tool_choice"] = constraint.choice
    return fields


def _response_format(form: JsonSchemaConstraint) -> dict[str, Any]:
    schema = _json(form.schema, "constraint.json_schema")
    if schema == {"type": "object"}:  # any JSON: as a schema, it is refused where schemas have to name everything
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": not form.lenient}}


def _json(text: str, field: str) -> object:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise BadInput(f"This schema is no JSON: {exc}.", field=field) from exc


class ChunkReader:
    """Turns the events of one answer into deltas."""

    def __init__(self, request: GenerateRequest, server: str) -> None:
        """Take the request that is answered, and what to call the server in errors."""
        self.done = False
        self._server = server
        self._signals = request.signals
        self._most = request.logprobs
        self._reason: str | None = None
        self._usage: UsageFields | None = None
        self._call: tuple[int | None, str, str] | None = None
        self._indexes: set[int] = set()
        self._pieces = 0  # servers send a piece for a token, and tell the true count only at the end

    def take(self, data: bytes) -> Iterator[Delta]:
        """Yield what an event says; to be run to its end.

        Raises:
            BatonError: it says that the answer failed, or is not understood.
        """
        self.done = self.done or data == b"[DONE]"
        if self.done:
            return
        try:
            chunk = CHUNK.validate_json(data)
        except ValidationError as exc:
            raise Internal(
                f"{self._server} sent something that is no chunk of an answer. Try again.", code=UNAVAILABLE
            ) from exc
        if chunk.error is not None:
            _log.warning("%s ends an answer with an error: %s", self._server, chunk.error)
            raise explain(_status_in(chunk.error), chunk.error, self._server)
        self._usage = chunk.usage or self._usage
        self._pieces += any(choice.said is not None for choice in chunk.choices or ())
        for choice in chunk.choices or ():
            self._reason = choice.finish_reason or self._reason
            if (said := choice.said) is None:
                continue
            if thought := said.reasoning_content or said.reasoning:
                yield ReasoningDelta(text=thought, written=self._pieces)
            if (text := said.content or said.refusal) or (self._scored and choice.logprobs):
                yield self._text(text or "", choice.logprobs)
            for fragment in said.tool_calls or ():
                yield self._fragment(fragment)

    def end(self) -> Iterator[Delta]:
        """Yield usage, if the server told it, and the end.

        Raises:
            Internal: the answer broke off.
            BadInput: the server withheld it.
        """
        if self._reason is None:
            raise Internal(f"{self._server} broke its answer off. Try again.", code=UNAVAILABLE)
        if self._reason == "content_filter":
            raise BadInput(f"{self._server} withholds this answer: its content filter objects.", code="content_filter")
        if self._usage is not None:
            used = self._usage
            yield UsageDelta(input_tokens=used.prompt_tokens, output_tokens=used.completion_tokens or 0)
        if self._reason == "length":
            yield FinishDelta(reason="length")
        else:
            # A call that was asked for by name ends with "stop" at some servers.
            yield FinishDelta(reason="stop" if self._call is None else "calls")

    @property
    def _scored(self) -> bool:
        return bool(self._signals) or self._most is not None

    def _text(self, text: str, logprobs: Logprobs | None) -> TextDelta:
        if not self._scored:
            return TextDelta(text=text, written=self._pieces)
        tokens = () if logprobs is None else logprobs.scored
        if text and not tokens:
            raise Unsupported(
                f"{self._server} was asked for log-probabilities and sends none. Leave them out or choose another model.",
                field="signals" if self._most is None else "logprobs",
            )
        return TextDelta(
            text=text,
            logprobs=tuple(token.logprob for token in tokens) if "logprobs" in self._signals else (),
            margins=tuple(map(margin, tokens)) if "margins" in self._signals else (),
            written=self._pieces,
            tokens=() if self._most is None else tuple(written(token, self._most) for token in tokens),
        )

    def _fragment(self, fragment: Fragment) -> CallDelta:
        function = fragment.function or CallFields()
        # Some servers leave the index out; there, a name begins a call.
        begins = bool(function.name) if fragment.index is None else self._call and fragment.index != self._call[0]
        if self._call is None or begins:
            if fragment.index in self._indexes:
                raise Internal(f"{self._server} sends the fragments of several calls in turn.", code=UNAVAILABLE)
            if fragment.index is not None:
                self._indexes.add(fragment.index)
            self._call = (fragment.index, fragment.id or new_id("call"), function.name or "")
        _, call_id, name = self._call
        return CallDelta(call_id=call_id, name=name, arguments=function.arguments or "", written=self._pieces)


@dataclass(frozen=True, slots=True)
class _Error:
    message: str = ""
    type: str | None = None
    code: Any = None


_ERROR = TypeAdapter(_Error)


def parse_error(content: bytes) -> object:
    """Return the error object in the body of a response; None if there is none."""
    try:
        return CHUNK.validate_json(content).error
    except ValidationError:
        return None


def explain(status: int, error: object, server: str, *, raw: bool = False) -> BatonError:
    """Return what a refusal means to the caller.

    Args:
        status: of the response, or what stands in its stead in a stream.
        error: the error object, however the server fills it.
        server: what to call the server.
        raw: whether it was asked for a completion of text, which many servers have not, or not with every model.
    """
    told = _told(error)
    said = f" It says: {told.message[:_MESSAGE_CHARACTERS]}" if told.message else ""
    match status:
        case 401 | 403:
            # What it says may hold part of the key, and is the operator's business in any case.
            return Internal(
                f"{server} refuses the key that it is given. Whoever runs Baton has to look at api_key_env in the "
                "catalog, and at the variable it names.",
                code=REFUSED,
                retryable=False,
            )
        case 404 | 405 | 501 if raw and told.code != "model_not_found":
            return Unsupported(
                f"{server} does not go on with texts with this model, or not at all. Ask for a chat completion, or choose "
                f"another model.{said}",
                field="raw",
            )
        case 404:
            return NotFound(
                f"{server} does not have this model, or is not at this address. Whoever runs Baton has to look at "
                "model and base_url in the catalog.",
                code="model_not_found",
                field="model",
            )
        case 402 | 429 if status == 402 or told.code == "insufficient_quota":
            return Internal(f"The account at {server} is used up.", code=REFUSED, retryable=False)
        case 429:
            return Overloaded(f"{server} has too many requests at the moment. Try again later.", code=RATE_LIMITED)
        case _ if told.code in _FILTERED and status < 500:
            return BadInput(f"{server} withholds this answer: its content filter objects.{said}", code="content_filter")
        case 400 | 413 | 422 if told.code == "context_length_exceeded" or _TOO_LONG.search(told.message):
            return LimitExceeded(
                f"The prompt is too long for this model. Please reduce the length of the messages.{said}",
                code="context_length_exceeded",
                field="messages",
            )
        case _ if 400 <= status < 500 and status != 408:
            return BadInput(f"{server} refuses this request.{said}")
        case _:
            return Internal(f"{server} failed ({status}). Try again.", code=UNAVAILABLE)


def _told(error: object) -> _Error:
    if isinstance(error, str):
        return _Error(message=error)
    try:
        return _ERROR.validate_python(error)
    except ValidationError:
        return _Error()


_STATUS_OF_WORDS = (
    ("rate_limit", 429),
    ("insufficient_quota", 429),
    ("authentication", 401),
    ("invalid_api_key", 401),
    ("permission", 403),
    ("not_found", 404),
    ("invalid_request", 400),
)


def _digest(owner: Owner) -> str:
    names = owner.tenant if owner.subject is None else f"{owner.tenant}\0{owner.subject}"
    return hashlib.sha256(names.encode()).hexdigest()


def _status_in(error: object) -> int:
    """Return the status that an error in a stream would have had as a response."""
    told = _told(error)
    with suppress(ValueError, TypeError):  # some say it as text
        if 400 <= (code := int(told.code)) < 600:
            return code
    if told.code in {"context_length_exceeded", *_FILTERED} or _TOO_LONG.search(told.message):
        return 400
    words = f"{told.type} {told.code}"
    return next((status for word, status in _STATUS_OF_WORDS if word in words), 500)
