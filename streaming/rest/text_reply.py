"""What `POST /v1/completions` gives: OpenAI's older completion object, whole or in chunks.

Source: OpenAI's API reference, "The completion object".
"""

import codecs
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, assert_never

from models.content import ScoredToken, WrittenToken
from models.errors import BatonError, Internal
from orchestrator.events import Decision, TurnEnded, Usage
from streaming.rest.answer import Answer, CallPiece, Inset, Thought, Words
from streaming.rest.chat_reply import baton_fields, finish_reason
from streaming.wire.errors import failure
from streaming.wire.sse import event
from streaming.wire.usage import completion_usage


class TextReply:
    """Puts one answer into OpenAI's words; see `streaming.rest.choices.ChoiceReply`."""

    def __init__(self, answer_id: str, decision: Decision, created_s: int, *, index: int = 0, before: str = "") -> None:
        """Take what the answer is known by.

        Args:
            answer_id: the id of a turn.
            decision: who answers.
            created_s: in Unix seconds.
            index: its place among several.
            before: what is said before its words: the prompt, if that is to be repeated.
        """
        self._index = index
        self._decision = decision
        self._before: str | None = before
        self._tail: dict[str, None] = {}
        self._places = _Places()
        self._head = {
            "id": "cmpl-" + answer_id.removeprefix("turn_"),
            "object": "text_completion",
            "created": created_s,
            "model": decision.card,
        }

    def tell_usage(self, wanted: bool) -> None:
        """Have chunks say that they have no usage, if it was asked for: only the last one's is one."""
        self._tail = {"usage": None} if wanted else {}

    def said(self, piece: Answer) -> list[bytes]:
        """Return the chunks that say a piece of the answer; at its end those that are still to come before its last.

        Raises:
            BatonError: the turn failed.
        """
        if isinstance(piece, Thought | Inset):
            return []  # a completion of text has no place for it
        before, self._before = self._before, None
        match piece:
            case Words():
                return [self._chunk((before or "") + piece.text, logprobs=self._places.of(piece.tokens))]
            case TurnEnded():
                raise_fault(piece)
                # An empty answer is one all the same.
                return [] if before is None else [self._chunk(before)]
            case CallPiece():
                raise Internal("The model called a function, and none was on offer.")
            case _:
                assert_never(piece)

    def last(self, end: TurnEnded) -> bytes:
        """Return the chunk that says why the answer ended."""
        return self._chunk("", finish_reason(end))

    def ending(self, end: TurnEnded, *, include_usage: bool, total: Usage | None = None) -> list[bytes]:
        """Return the last chunks of all; `total` is what was used, if that is not the turn's own usage."""
        chunks = [self._chunk("", finish_reason(end), rest={"baton": baton_fields(self._decision, end)})]
        if include_usage:
            chunks.append(_event({**self._head, "choices": [], "usage": completion_usage(total or end.usage)}))
        return [*chunks, event("[DONE]")]

    async def whole(self, answer: AsyncGenerator[Answer, None]) -> dict[str, Any]:
        """Return the completion object. Closes `answer`.

        Raises:
            BatonError: the turn failed.
        """
        words = [self._before or ""]
        tokens: list[WrittenToken] = []
        async with aclosing(answer) as pieces:
            async for piece in pieces:
                match piece:
                    case Words():
                        words.append(piece.text)
                        tokens += piece.tokens
                    case TurnEnded():
                        raise_fault(piece)
                        choice = self._choice("".join(words), finish_reason(piece), self._places.of(tokens))
                        usage, baton = completion_usage(piece.usage), baton_fields(self._decision, piece)
                        return {**self._head, "choices": [choice], "usage": usage, "baton": baton}
                    case CallPiece():
                        raise Internal("The model called a function, and none was on offer.")
                    case Thought() | Inset():
                        pass
        raise Internal("The answer broke off. Try again.")

    def _choice(self, text: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"text": text, "index": self._index, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(
        self,
        text: str,
        reason: str | None = None,
        *,
        logprobs: dict[str, Any] | None = None,
        rest: dict[str, Any] | None = None,
    ) -> bytes:
        return _event({**self._head, "choices": [self._choice(text, reason, logprobs)], **self._tail, **(rest or {})})


class _Places:
    """Where the tokens of one answer begin in its text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def of(self, tokens: Sequence[WrittenToken]) -> dict[str, Any] | None:
        """Return the next tokens as the API has them; None if there are none."""
        if not tokens:
            return None
        places = []
        for token in tokens:
            before = self._characters
            self._characters += len(self._decoder.decode(token.chosen.data))
            whole = _words_of(token.chosen)
            # What came before it may have waited for the rest of a character that never came.
            places.append(before if whole is None else self._characters - len(whole))
        return {
            "tokens": [_spelled(token.chosen) for token in tokens],
            "token_logprobs": [token.chosen.logprob for token in tokens],
            "top_logprobs": [
                {_spelled(scored): scored.logprob for scored in (*token.top, token.chosen)} for token in tokens
            ],
            "text_offset": places,
        }


def _spelled(token: ScoredToken) -> str:
    """Return a token's text; if it is only part of a character its bytes, as OpenAI writes them."""
    words = _words_of(token)
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data) if words is None else words


def _words_of(token: ScoredToken) -> str | None:
    try:
        return token.data.decode()
    except UnicodeDecodeError:
        return None


_FIELDS = {"input": "prompt", "item": "prompt", "messages": "prompt", "raw": "prompt"}


def in_texts_words(error: BatonError) -> BatonError:
    """Return an error with its field named as this request has it, not as the conductor or an engine calls it."""
    error.field = _FIELDS.get(error.field or "", error.field)
    return error


def raise_fault(end: TurnEnded) -> None:
    """Raise what a turn failed with, or that it was interrupted.

    Raises:
        BatonError: unless it finished.
    """
    if (error := failure(end)) is not None:
        raise in_texts_words(error)


def _event(fields: dict[str, Any]) -> bytes:
    return event(json.dumps(fields, ensure_ascii=False, separators=(",", ":")))
