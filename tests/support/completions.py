"""Chat completions, held strictly: the types of the `openai` package, no unknown field but `baton`, the order of chunks."""

import json
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model

from support.sse import Event
from support.wire import no_extra

_OURS = frozenset({"baton"})
_BATON = {"model", "reasons", "refused", "decided_ms", "first_delta_ms", "duration_ms", "session"}


def check_completion(sent: dict[str, Any]) -> ChatCompletion:
    """Assert that a completion is as the reference has it, and return it."""
    assert sent["object"] == "chat.completion"
    assert sent["id"].startswith("chatcmpl-")
    assert set(sent["baton"]) == _BATON
    completion = ChatCompletion.model_validate_json(json.dumps(sent), strict=True)
    no_extra(completion, "completion", _OURS)
    (choice,) = completion.choices
    assert (choice.message.content is None) == bool(choice.message.tool_calls)
    assert (choice.finish_reason == "tool_calls") == bool(choice.message.tool_calls)
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    return completion


def check_model(sent: dict[str, Any]) -> Model:
    """Assert that a model is as the reference has it, and return it."""
    model = Model.model_validate_json(json.dumps(sent), strict=True)
    no_extra(model, "model", _OURS)
    return model


class Chunks:
    """A stream of chunks, checked, and what they come to."""

    def __init__(self, events: list[Event], *, usage: bool = False) -> None:
        """Take all events of a stream that ended well; `usage` if it was asked for."""
        *chunks, done = events
        assert done.data == "[DONE]"
        assert all(event.kind is None and event.seq is None for event in events)
        self.chunks = [self._check(event.json(), usage=usage) for event in chunks]
        self.text = ""
        self.calls: list[dict[str, Any]] = []
        self.finish_reason: str | None = None
        self.usage = None
        self.baton: dict[str, Any] = {}
        if usage:
            *body, last = self.chunks
            assert not last.choices
            assert last.usage is not None
            self.usage = last.usage
        else:
            body = self.chunks
        for n, chunk in enumerate(body):
            self._take(chunk, is_first=n == 0, is_last=n == len(body) - 1)
        assert len({(c.id, c.created, c.model) for c in self.chunks}) == 1

    def _check(self, sent: dict[str, Any], *, usage: bool) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk.model_validate_json(json.dumps(sent), strict=True)
        no_extra(chunk, "chunk", _OURS)
        assert chunk.id.startswith("chatcmpl-")
        assert ("usage" in sent) == usage
        return chunk

    def _take(self, chunk: ChatCompletionChunk, *, is_first: bool, is_last: bool) -> None:
        (choice,) = chunk.choices
        assert chunk.usage is None
        assert (choice.delta.role == "assistant") == is_first
        assert (choice.finish_reason is not None) == is_last
        self.text += choice.delta.content or ""
        for piece in choice.delta.tool_calls or ():
            assert piece.function is not None
            if piece.index == len(self.calls):
                assert piece.type == "function"
                self.calls.append({"id": piece.id, "name": piece.function.name, "arguments": ""})
            assert piece.index == len(self.calls) - 1, "the pieces of calls are mixed"
            self.calls[piece.index]["arguments"] += piece.function.arguments or ""
        if is_last:
            self.finish_reason = choice.finish_reason
            self.baton = (chunk.model_extra or {})["baton"]
            assert set(self.baton) == _BATON
