"""What `POST /v1/chat/completions` gives: OpenAI's completion object, whole or in chunks.

Source: OpenAI's API reference, "The chat completion object" and "The chat completion chunk object". `baton` is ours: who
answered, why, and where the time went.
"""

import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, assert_never

from models.content import EvidencePart, FormReport, Part, ScoredToken, WrittenToken
from models.errors import BatonError, Internal
from orchestrator.events import Decision, TurnEnded, Usage
from streaming.rest.answer import Answer, CallPiece, Inset, Thought, Words
from streaming.wire.errors import failure
from streaming.wire.items import wire_part
from streaming.wire.sse import event
from streaming.wire.usage import completion_usage


class _Message:
    """A message as its pieces come."""

    def __init__(self) -> None:
        self.tokens: list[WrittenToken] = []
        self._words: list[str] = []
        self._thoughts: list[str] = []
        self._insets: list[tuple[int, Part]] = []
        self._calls: dict[str, dict[str, Any]] = {}

    def take(self, piece: Words | Thought | Inset | CallPiece) -> None:
        match piece:
            case Words():
                self._words.append(piece.text)
                self.tokens += piece.tokens
            case Thought():
                self._thoughts.append(piece.text)
            case Inset():
                self._insets.append((sum(map(len, self._words)), piece.part))
            case CallPiece():
                function = {"name": piece.name, "arguments": ""}
                call = self._calls.setdefault(
                    piece.call_id, {"id": piece.call_id, "type": "function", "function": function}
                )
                call["function"]["arguments"] += piece.arguments
            case _:
                assert_never(piece)

    def fields(self, *, is_cut: bool) -> dict[str, Any]:
        """Return it as OpenAI has it. Of an answer that is cut, a call that is not whole is none."""
        calls = [call for call in self._calls.values() if not is_cut or _is_whole(call["function"]["arguments"])]
        text = "".join(self._words)
        message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        return message | _inset_fields(self._insets)


class Reply:
    """Puts one answer into OpenAI's words."""

    def __init__(
        self, turn_id: str, decision: Decision, created_s: int, *, session_id: str | None, index: int = 0
    ) -> None:
        """Take what the answer is known by; `index` is its place among several."""
        self._index = index
        self._opening = '"role":"assistant",'
        self._decision = decision
        self._session_id = session_id
        self._calls: dict[str, int] = {}
        self._characters = 0
        self._tail = ""
        self._head = {
            "id": "chatcmpl-" + turn_id.removeprefix("turn_"),
            "created": created_s,
            "model": decision.card,
        }
        chunk = json.dumps({**self._head, "object": "chat.completion.chunk", "choices": []}, separators=(",", ":"))
        self._chunk_head = chunk[: -len("]}")]

    async def chunks(self, answer: AsyncGenerator[Answer, None], *, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """Yield the answer as server-sent events. Closes `answer`.

        Raises:
            BatonError: the turn failed.
        """
        self.tell_usage(include_usage)
        async with aclosing(answer) as pieces:
            async for piece in pieces:
                for chunk in self.said(piece):
                    yield chunk
                if isinstance(piece, TurnEnded):
                    for last in self.ending(piece, include_usage=include_usage):
                        yield last

    def tell_usage(self, wanted: bool) -> None:
        """Have chunks say that they have no usage, if it was asked for: as the reference has it, only the last one's is one."""
        self._tail = ',"usage":null' if wanted else ""

    def said(self, piece: Answer) -> list[bytes]:
        """Return the chunks that say a piece of the answer; at its end those that are still to come before its last.

        Raises:
            BatonError: the turn failed.
        """
        opening, self._opening = self._opening, ""
        match piece:
            case Words():
                content = json.dumps(piece.text, ensure_ascii=False)
                logprobs = json.dumps(_logprobs(piece.tokens), ensure_ascii=False) if piece.tokens else "null"
                self._characters += len(piece.text)
                return [self._chunk(f'{opening}"content":{content}', logprobs=logprobs)]
            case Thought():
                return [self._chunk(f'{opening}"reasoning_content":{json.dumps(piece.text, ensure_ascii=False)}')]
            case Inset():
                fields = json.dumps(_inset_fields([(self._characters, piece.part)]), ensure_ascii=False)
                return [self._chunk(opening + fields[1:-1])]
            case CallPiece():
                return [self._chunk(opening + self._call_chunk(piece))]
            case TurnEnded():
                raise_fault(piece)
                # An empty answer is one all the same.
                return [self._chunk(f'{opening}"content":""')] if opening else []
            case _:
                assert_never(piece)

    async def whole(self, answer: AsyncGenerator[Answer, None]) -> dict[str, Any]:
        """Return the completion object. Closes `answer`.

        Raises:
            BatonError: the turn failed.
        """
        message, end = _Message(), None
        async with aclosing(answer) as pieces:
            async for piece in pieces:
                if isinstance(piece, TurnEnded):
                    end = piece
                else:
                    message.take(piece)
        if end is None:
            raise Internal("The answer broke off. Try again.")
        raise_fault(end)
        choice = {
            "index": self._index,
            "message": message.fields(is_cut=end.reason == "length"),
            "logprobs": _logprobs(message.tokens) if message.tokens else None,
            "finish_reason": finish_reason(end),
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": completion_usage(end.usage),
            "baton": self._baton(end),
        }

    def _chunk(self, delta: str, finish_reason: str = "null", rest: str = "", logprobs: str = "null") -> bytes:
        choice = f'{{"index":{self._index},"delta":{{{delta}}},"logprobs":{logprobs},"finish_reason":{finish_reason}}}'
        return event(f"{self._chunk_head}{choice}]{self._tail}{rest}}}")

    def _call_chunk(self, piece: CallPiece) -> str:
        function: dict[str, str] = {"arguments": piece.arguments}
        fields: dict[str, Any] = {"index": self._calls.get(piece.call_id, len(self._calls)), "function": function}
        if piece.call_id not in self._calls:
            self._calls[piece.call_id] = len(self._calls)
            fields |= {"id": piece.call_id, "type": "function"}
            function["name"] = piece.name
        return f'"tool_calls":[{json.dumps(fields, ensure_ascii=False)}]'

    def last(self, end: TurnEnded, rest: str = "") -> bytes:
        """Return the chunk that says why the answer ended."""
        return self._chunk("", json.dumps(finish_reason(end)), rest)

    def ending(self, end: TurnEnded, *, include_usage: bool, total: Usage | None = None) -> list[bytes]:
        """Return the last chunks of all; `total` is what was used, if that is not the turn's own usage."""
        baton = f',"baton":{json.dumps(self._baton(end), ensure_ascii=False)}'
        chunks = [self.last(end, baton)]
        if include_usage:
            chunks.append(event(f'{self._chunk_head}],"usage":{json.dumps(completion_usage(total or end.usage))}}}'))
        return [*chunks, event("[DONE]")]

    def _baton(self, end: TurnEnded) -> dict[str, Any]:
        return baton_fields(self._decision, end, session_id=self._session_id)


def baton_fields(decision: Decision, end: TurnEnded, *, session_id: str | None = None) -> dict[str, Any]:
    """Return who answered, why, and where the time went."""
    return {
        "model": decision.card,
        "reasons": list(decision.remarks),
        "refused": {refused.card: refused.reason for refused in decision.refused},
        "decided_ms": end.decided_ms,
        "first_delta_ms": end.first_delta_ms,
        "duration_ms": end.duration_ms,
        "session": session_id,
        **_form(end.usage.form),
    }


_FIELDS = {
    "constraint.grammar": "response_format",
    "constraint.json_schema": "response_format",
    "constraint.regex": "response_format",
    "constraint.tools": "tools",
    "form": "response_format",
    "input": "messages",
    "item": "messages",
}


_OF_FUNCTION = re.compile(r"^(tools\[\d+\])\.(parameters|name)")


def in_chats_words(error: BatonError) -> BatonError:
    """Return an error with its field named as this request has it, not as the conductor or an engine calls it."""
    field = error.field or ""
    error.field = _OF_FUNCTION.sub(r"\1.function.\2", _FIELDS.get(field, field)) or None
    return error


def _inset_fields(insets: Sequence[tuple[int, Part]]) -> dict[str, Any]:
    """Return what a message has that is no words: citations as OpenAI has them, and every part with its place, as ours."""
    fields: dict[str, Any] = {}
    if insets:
        fields["baton_parts"] = [{**wire_part(part, "assistant"), "offset": offset} for offset, part in insets]
    cited = [
        {"start_index": offset, "end_index": offset, "title": part.title, "url": part.url}
        for offset, part in insets
        if isinstance(part, EvidencePart) and part.url is not None
    ]
    if cited:
        fields["annotations"] = [{"type": "url_citation", "url_citation": one} for one in cited]
    return fields


def _form(report: FormReport | None) -> dict[str, Any]:
    if report is None:
        return {}
    return {"form": {"held_back": True, "attempts": report.attempts, "valid": report.valid}}


def _is_whole(arguments: str) -> bool:
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return True


def raise_fault(end: TurnEnded) -> None:
    """Raise what a turn failed with, or that it was interrupted.

    Raises:
        BatonError: unless it finished.
    """
    if (error := failure(end)) is not None:
        raise in_chats_words(error)


def _logprobs(tokens: Sequence[WrittenToken]) -> dict[str, Any]:
    return {
        "content": [
            {**_scored(token.chosen), "top_logprobs": [_scored(other) for other in token.top]} for token in tokens
        ],
        "refusal": None,
    }


def _scored(token: ScoredToken) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}


def finish_reason(end: TurnEnded) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return {"calls": "tool_calls", "length": "length"}.get(end.reason or "", "stop")
