"""The scripted engine: a real engine without a model.

It answers from rules at a stated pace, honours limits, stops, tools and deadlines, and can be told to fail or to
take its process down. Everything around a model can so be run, and loaded, exactly.
"""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from models.catalog import EngineSpec
from models.clock import sleep_until
from models.content import (
    CallDelta,
    Delta,
    EvidencePart,
    FinishDelta,
    Message,
    ReasoningDelta,
    TextDelta,
    TextPart,
    UsageDelta,
    text_of,
)
from models.errors import BadInput, DeadlineExceeded, Internal
from models.ids import new_id
from models.ports.context import EngineContext
from models.ports.generate import GenerateRequest, ToolConstraint, refuse_unsupported

_TOKEN = re.compile(r"\S+\s*|\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    r"""What to answer when the last message of the user matches.

    Attributes:
        pattern: searched in the user's text.
        reply: a template in which `\\1` stands for a group of the match.
        times: how often the reply is written, itself a template; `{n}` in the reply counts from 1.
        gap_s: seconds before each token.
        call: name of a tool to call with the reply as its arguments, if that tool is on offer.
        thought: what is thought before the reply, itself a template.
        fault: `error` raises an internal error after the reply, `exit` ends the process.
    """

    pattern: str
    reply: str
    times: str = "1"
    gap_s: float | None = None
    call: str | None = None
    thought: str = ""
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedOptions:
    """Options of the engine; `gap_s` holds for rules that set none."""

    rules: tuple[Rule, ...] = (
        Rule(pattern=r"^count to (\d{1,5})$", reply="{n} ", times=r"\1"),
        Rule(
            pattern=r"(?s)(.*)",
            reply="You said: \\1\n\nI am the scripted engine: I answer from rules, so that everything around a "
            "model can be tried without one.",
        ),
    )
    gap_s: float = 0.0


_OPTIONS = TypeAdapter(ScriptedOptions)


def build(spec: EngineSpec, context: EngineContext) -> "ScriptedEngine":
    """Build the engine; its options have the fields of `ScriptedOptions`.

    Raises:
        BadInput: the text does not fit.
    """
    try:
        return ScriptedEngine(_OPTIONS.validate_json(spec.options), context)
    except ValidationError as exc:
        raise BadInput(f"The options of the scripted engine do not fit: {exc}") from exc


class ScriptedEngine:
    """Answers from rules; see the module."""

    def __init__(self, options: ScriptedOptions, context: EngineContext) -> None:
        self._options = options
        self._clock = context.clock
        self._media = context.media
        self._patterns = tuple((re.compile(rule.pattern), rule) for rule in options.rules)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer of the first rule that matches, one token a delta."""
        refuse_unsupported(request, frozenset({"constraint.tools", "raw"}), "scripted")
        prompt = _last_words(request) + "".join(self._seen(request))
        match, rule = self._choose(prompt, request)
        yield UsageDelta(input_tokens=sum(len(_TOKEN.findall(text_of(m))) for m in request.messages), output_tokens=0)
        gap_s = self._options.gap_s if rule.gap_s is None else rule.gap_s
        limit = request.sampling.max_output_tokens
        written = 0
        call_id = new_id("call")
        for token in _TOKEN.findall(match.expand(rule.thought)):
            await self._pace(gap_s, request.deadline)
            yield ReasoningDelta(text=token)
        for token in _cut(_reply(rule, match), request.sampling.stop):
            if written == limit:
                break
            await self._pace(gap_s, request.deadline)
            written += 1
            if rule.call is None:
                yield TextDelta(text=token, written=written)
            else:
                yield CallDelta(call_id=call_id, name=rule.call, arguments=token, written=written)
        else:
            limit = written + 1
        if rule.fault == "exit":
            os._exit(70)
        if rule.fault is not None:
            raise Internal("The script ended in a fault, as it says.")
        yield UsageDelta(input_tokens=0, output_tokens=written)
        yield FinishDelta(reason="length" if written == limit else "calls" if rule.call else "stop")

    async def aclose(self) -> None:
        """Do nothing: the engine holds nothing."""

    def _seen(self, request: GenerateRequest) -> Iterator[str]:
        """Say what there is to see of the media that the request grants: how long they are."""
        granted = {grant.sha256 for grant in request.media}
        for item in request.messages:
            for part in item.parts if isinstance(item, Message) else ():
                if not isinstance(part, TextPart | EvidencePart) and part.blob.sha256 in granted:
                    with self._media.open(part.blob, request.media, request.owner) as content:
                        yield f" [{part.kind}, {len(content.read())} bytes]"

    def _choose(self, prompt: str, request: GenerateRequest) -> tuple[re.Match[str], Rule]:
        offered = _offered(request)
        for pattern, rule in self._patterns:
            match = pattern.search(prompt)
            if match is not None and (rule.call is None or rule.call in offered):
                return match, rule
        raise BadInput("No rule of the script matches this message. End the script with a rule for '(?s).*'.")

    async def _pace(self, gap_s: float, deadline_s: float | None) -> None:
        now_s = self._clock.now_s()
        if deadline_s is not None and now_s + gap_s > deadline_s:
            await sleep_until(self._clock, deadline_s)
            raise DeadlineExceeded("The deadline passed before the answer was whole.")
        if gap_s > 0:
            await sleep_until(self._clock, now_s + gap_s)
        else:
            await asyncio.sleep(0)


def _last_words(request: GenerateRequest) -> str:
    for item in reversed(request.messages):
        if not isinstance(item, Message) or item.role == "user":
            return text_of(item)
    return ""


def _offered(request: GenerateRequest) -> set[str]:
    """Return the names of the tools that may be called."""
    constraint = request.constraint
    if not isinstance(constraint, ToolConstraint) or constraint.choice == "none":
        return set()
    names = {tool.name for tool in constraint.tools}
    return names if constraint.function is None else names & {constraint.function}


def _reply(rule: Rule, match: re.Match[str]) -> Iterator[str]:
    # Expanded piece by piece: a `{n}` that the user wrote is not the template's.
    pieces = [match.expand(piece) for piece in rule.reply.split("{n}")]
    for n in range(1, int(match.expand(rule.times)) + 1):
        yield from _TOKEN.findall(str(n).join(pieces))


def _cut(tokens: Iterator[str], stop: tuple[str, ...]) -> Iterator[str]:
    """Yield `tokens` up to the first occurrence of a stop string, which may span tokens."""
    if not stop:
        yield from tokens
        return
    text = "".join(tokens)
    ends = [at for at in (text.find(s) for s in stop if s) if at >= 0]
    yield from _TOKEN.findall(text[: min(ends, default=len(text))])
