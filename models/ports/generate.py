"""What engines are asked, and the two Protocols through which they are asked it.

Fixed from the first commit: an engine added later implements these and nothing else.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from models.content import Delta, Message, Said
from models.errors import BadInput, Unsupported
from models.owner import Owner
from models.ports.media import MediaGrant

Signal = Literal["token_ids", "logprobs", "entropies", "margins"]

EffectKind = Literal["pure", "idempotent", "effectful"]
"""What a call does to the world: nothing, the same however often it is made, or something each time."""

Priority = Literal["interactive", "normal", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        seed: makes a sampled answer repeatable; None draws one.
        max_output_tokens: the bound on the answer; an engine never writes more.
        stop: the answer ends before any of these strings.
        logit_bias: what is added to the scores of tokens, by their ids in the model's own vocabulary.
        repetition_penalty: what the scores of tokens are divided by, or multiplied with if they are negative, that the
            prompt or the answer has already (Keskar et al. 2019); 1 is none.
        frequency_penalty: what is taken off a token's score for each time that the answer has it already.
        presence_penalty: likewise, once.
        top_k: only so many of the likeliest tokens may be chosen, and those as likely as the last; 0 is all.
        min_p: only tokens may be chosen that are at least this times as likely as the likeliest.

    They come in the order of transformers' processors: bias and penalties on the model's scores, then temperature, `top_k`,
    `top_p` and `min_p`. The form that an answer is held to always holds.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    max_output_tokens: int = 512
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_k: int = 0
    min_p: float = 0.0


PROCESSORS = frozenset({"logit_bias", "repetition_penalty", "frequency_penalty", "presence_penalty", "top_k", "min_p"})
"""The fields of `Sampling` that an engine need not honour; at their defaults they change nothing."""

_PLAIN = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSchemaConstraint:
    """The answer is JSON that fits `schema`, a JSON Schema as JSON text.

    Attributes:
        strict: what cannot be held while it is written is refused; else it is checked afterwards (`models.language.forms`).
        lenient: a remote server need not hold it, since the answer will be checked.
    """

    kind: Literal["json_schema"] = "json_schema"
    schema: str
    strict: bool = False
    lenient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RegexConstraint:
    """The answer matches `pattern` as a whole."""

    kind: Literal["regex"] = "regex"
    pattern: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarConstraint:
    """The answer is derived from `grammar`, in Lark's notation."""

    kind: Literal["grammar"] = "grammar"
    grammar: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A function that may be called.

    Attributes:
        parameters: a JSON Schema as JSON text.
        strict: what cannot be held while arguments are written is refused; else it is checked afterwards
            (`models.language.forms`). A remote server is told so, too.
        held: what a grammar holds of `parameters`, where that is not the whole; the model is never shown it.
        runner: who runs it: `client`, `server`, or a server of tools, as `mcp:<name>`.
        effect: what a call of it does. A client's function may do anything: until it says otherwise, it is effectful.
    """

    name: str
    description: str
    parameters: str
    strict: bool = False
    held: str | None = None
    runner: str = "client"
    effect: EffectKind = "effectful"


Form = JsonSchemaConstraint | RegexConstraint | GrammarConstraint
"""What form an answer in words has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolConstraint:
    """Functions on offer, and whether one has to be called: any (`required`), or the one that `function` names.

    Attributes:
        parallel: one answer may hold several calls.
        form: what form the answer has if it is no call; None leaves its words free.
    """

    kind: Literal["tools"] = "tools"
    tools: tuple[ToolSpec, ...]
    choice: Literal["auto", "none", "required"] = "auto"
    function: str | None = None
    parallel: bool = True
    form: Form | None = None

    def place_of(self, name: str) -> str:
        """Return the path of a function's parameters, as errors name it."""
        return f"tools[{[tool.name for tool in self.tools].index(name)}].parameters"


FormKind = Literal["json_schema", "regex", "grammar"]

Constraint = Form | ToolConstraint


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An answer that another model has begun.

    Attributes:
        text: its words.
        tolerance_nats: how much less likely than the model's own choice, in nats, a token of it may be and still stay. 0 is exact:
            what is written is what the model alone would write. More is for cascades, where a smaller model's words are good
            enough unless the larger one objects (BiLD, Kim et al. 2023). It holds for this draft, and for no other guess.
    """

    text: str
    tolerance_nats: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One request to an engine.

    Attributes:
        messages: the conversation, oldest first, a system message first of all if there is one.
        sampling: how tokens are chosen and when to stop.
        constraint: what shape the answer must have.
        adapter: name of a LoRA adapter that the engine knows.
        draft: an answer begun by another model, which this one verifies; it goes on from the first token that it refuses.
        priority: who goes first when there is not room for all.
        deadline: absolute time in seconds of the injected clock; the engine stops there with
            `DeadlineExceeded`.
        tenant: whose request it is.
        subject: the end user of the tenant that it is for; no cache entry is shared between two owners.
        signals: the token statistics wanted in each `TextDelta`.
        reads_ahead: `messages` begin a request that is expected: they are read, so that it finds them read, while nobody
            else has work. Nothing is written: usage, of what was read as it is read, and the end.
        logprobs: how many of the likeliest tokens of each place are to be told in `TextDelta.tokens`, besides the one
            that was written; None tells no tokens.
        continues: the answer goes on where the last message stops, which is the assistant's.
        raw: `messages` are one message, and its words are the prompt as it is: no chat template, no roles. Words that are
            spelled like a special token are that token. Neither tools nor `continues` nor `reads_ahead` goes with it.
        media: leave to read the media that `messages` refer to.
        fork: requests of an owner that carry the same and ask the same are answers to one prompt, which an engine may read
            once. It changes nothing of what is written.
    """

    messages: tuple[Said, ...]
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    adapter: str | None = None
    draft: Draft | None = None
    priority: Priority = "normal"
    deadline: float | None = None
    tenant: str
    subject: str | None = None
    signals: frozenset[Signal] = frozenset()
    reads_ahead: bool = False
    logprobs: int | None = None
    continues: bool = False
    raw: bool = False
    fork: str | None = None
    media: tuple[MediaGrant, ...] = ()

    @property
    def owner(self) -> Owner:
        """Whose request it is, and so whose is what is remembered of it."""
        return Owner(self.tenant, self.subject)


class Engine(Protocol):
    """Something that writes an answer."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer as it is written, `FinishDelta` last.

        Closing the iterator (`aclose`) stops the work within one step of the engine and frees what it held.

        Raises:
            Unsupported: on the first step, if `request` has a field that this engine cannot honour.
            DeadlineExceeded: the deadline passed.
            Overloaded: there is no room for another request now.
        """
        ...

    async def aclose(self) -> None:
        """Stop all work and free everything. Idempotent."""
        ...


@runtime_checkable
class Watched(Protocol):
    """An engine that works in a thread of its own, which may come to stand still while the process still answers."""

    def stalled_s(self) -> float:
        """Return for how long it has been at the same step, in seconds; 0 if it rests, infinity if it has come to an end."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """An engine, of whatever port, that keeps something of requests that are over: prompts it has read, answers to draft from."""

    async def forget(self, tenant: str, subject: str | None) -> None:
        """Let go of all that is kept of a tenant, or of one subject of it. Returns once it is gone."""
        ...


def stalled_s(engine: object) -> float:
    """Return for how long an engine has been at the same step, as far as that can be known."""
    return engine.stalled_s() if isinstance(engine, Watched) else 0.0


def refuse_unsupported(request: GenerateRequest, honoured: frozenset[str], engine: str) -> None:
    """Raise `Unsupported` if `request` sets an optional field that is not in `honoured`, `BadInput` if one contradicts another.

    Args:
        request: the request as it came in.
        honoured: names of `GenerateRequest`'s optional fields that the engine does honour, besides
            `messages`, `sampling`, `priority`, `deadline`, `tenant` and `subject`, which every engine must; a constraint
            is named by kind, as `constraint.regex`. Of `sampling`, `PROCESSORS` are optional as well.
        engine: the engine's name, for the message.
    """
    if request.raw and (
        request.continues
        or request.reads_ahead
        or isinstance(request.constraint, ToolConstraint)
        or not (len(request.messages) == 1 and isinstance(request.messages[0], Message))
    ):
        raise BadInput("A prompt that is taken as it is has to be one message, without functions.", field="messages")
    asked = {name for name in ("adapter", "draft", "logprobs") if getattr(request, name) is not None}
    asked |= {f"signals.{signal}" for signal in request.signals}
    asked |= {name for name in ("reads_ahead", "continues", "raw") if getattr(request, name)}
    asked |= {name for name in PROCESSORS if getattr(request.sampling, name) != getattr(_PLAIN, name)}
    if request.constraint is not None:
        asked.add(f"constraint.{request.constraint.kind}")
    if isinstance(request.constraint, ToolConstraint) and request.constraint.form is not None:
        asked.add(f"constraint.{request.constraint.form.kind}")
    if refused := sorted(asked - honoured):
        raise Unsupported(
            f"The engine {engine!r} cannot honour {', '.join(refused)}. Leave it out or choose another model.",
            field=refused[0],
        )
