"""What the chunks of an answer of OpenAI's completions consist of, as servers send them. Pure."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from models.content import ScoredToken, WrittenToken

_LEAST = -9999.0


@dataclass(frozen=True, slots=True)
class CallFields:
    """A function that is called, or a piece of its arguments."""

    name: str | None = None
    arguments: str | None = None


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a call."""

    index: int | None = None
    id: str | None = None
    function: CallFields | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token, and how likely it was."""

    logprob: float
    token: str = ""
    bytes: tuple[Annotated[int, Field(ge=0, le=255)], ...] | None = None


@dataclass(frozen=True, slots=True)
class Token(Alternative):
    """A token that was written, and the likeliest at its place."""

    top_logprobs: tuple[Alternative, ...] | None = None


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Tokens with how likely they were: `content` is of chat completions, the other fields of completions."""

    content: tuple[Token, ...] | None = None
    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] | None = None
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None

    @property
    def scored(self) -> tuple[Token, ...]:
        """The tokens, whichever way they came."""
        if self.content is not None:
            return self.content
        tops = self.top_logprobs or (None,) * len(self.tokens)
        return tuple(
            Token(
                logprob=logprob,
                token=_text(token),
                bytes=_bytes(token),
                top_logprobs=tuple(
                    Alternative(logprob=likely, token=_text(other), bytes=_bytes(other))
                    for other, likely in (top or {}).items()
                ),
            )
            for token, logprob, top in zip(self.tokens, self.token_logprobs or (), tops, strict=False)
            if logprob is not None
        )


@dataclass(frozen=True, slots=True)
class DeltaFields:
    """What a chunk of a chat completion says.

    Thoughts are `reasoning_content` at DeepSeek and older servers of vLLM, `reasoning` at newer ones and at OpenRouter.
    """

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[Fragment, ...] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A piece of one answer: `delta` of a chat completion, `text` of a completion."""

    delta: DeltaFields | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None

    @property
    def said(self) -> DeltaFields | None:
        """What it says, if it says anything."""
        return DeltaFields(content=self.text) if self.delta is None and self.text is not None else self.delta


@dataclass(frozen=True, slots=True)
class UsageFields:
    """What was used."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk, or what a server says in its place."""

    choices: tuple[Choice, ...] | None = None
    usage: UsageFields | None = None
    error: Any = None


CHUNK = TypeAdapter(Chunk)


_PIECES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")
"""How completions write a token that is only part of a character."""


def _bytes(token: str) -> tuple[int, ...]:
    found = _PIECES.fullmatch(token)
    return tuple(token.encode() if found is None else bytes.fromhex(found[1].replace("\\x", "")))


def _text(token: str) -> str:
    return bytes(_bytes(token)).decode(errors="replace")


def written(token: Token, most: int) -> WrittenToken:
    """Return a token that was written, with so many of the likeliest."""
    top = sorted(token.top_logprobs or (), key=lambda other: -other.logprob)[:most]
    return WrittenToken(chosen=_of(token), top=tuple(map(_of, top)))


def _of(token: Alternative) -> ScoredToken:
    data = token.token.encode() if token.bytes is None else bytes(token.bytes)
    # No chance at all is -9999 in OpenAI's API, and has no number in JSON; some servers say infinity all the same.
    return ScoredToken(text=token.token, data=data, logprob=token.logprob if token.logprob > _LEAST else _LEAST)


def margin(token: Token) -> float:
    """Return by how much the likeliest was likelier than the next."""
    best = sorted((math.exp(other.logprob) for other in token.top_logprobs or ()), reverse=True)
    return best[0] - best[1] if len(best) > 1 else 1.0
