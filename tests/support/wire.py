"""The Realtime API's rules, held strictly: types of the `openai` package, no unknown field, the order of events."""

import json
from typing import Any

from openai.types.realtime import RealtimeServerEvent
from pydantic import BaseModel, TypeAdapter

from streaming.realtime.extensions import BatonEvent

_OFFICIAL: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
_BATON: TypeAdapter[Any] = TypeAdapter(BatonEvent)

_REQUIRED = {
    "response.created": {"response"},
    "response.output_item.added": {"response_id", "output_index", "item"},
    "conversation.item.added": {"previous_item_id", "item"},
    "response.content_part.added": {"response_id", "item_id", "output_index", "content_index", "part"},
    "response.output_text.delta": {"response_id", "item_id", "output_index", "content_index", "delta"},
    "response.output_text.done": {"response_id", "item_id", "output_index", "content_index", "text"},
    "response.function_call_arguments.delta": {"response_id", "item_id", "output_index", "call_id", "delta"},
    "response.function_call_arguments.done": {
        *("response_id", "item_id", "output_index", "call_id", "name", "arguments"),
    },
    "response.content_part.done": {"response_id", "item_id", "output_index", "content_index", "part"},
    "conversation.item.done": {"previous_item_id", "item"},
    "response.output_item.done": {"response_id", "output_index", "item"},
    "response.done": {"response"},
    "conversation.item.deleted": {"item_id"},
    "conversation.item.retrieved": {"item"},
    "error": {"error"},
    "session.created": {"session"},
    "session.updated": {"session"},
}


def check_event(event: dict[str, Any]) -> None:
    """Assert that one server event is as the specification has it."""
    assert event["event_id"]
    if event["type"].startswith("baton."):
        fields = {name: value for name, value in event.items() if name != "event_id"}
        assert _BATON.validate_json(json.dumps(fields), strict=True).model_dump(mode="json") == fields
        return
    missing = _REQUIRED[event["type"]] - event.keys()
    assert not missing, f"{event['type']} lacks {missing}"
    no_extra(_OFFICIAL.validate_json(json.dumps(event), strict=True), event["type"])


def no_extra(value: Any, path: str, allowed: frozenset[str] = frozenset()) -> None:
    """Assert that a type of the `openai` package was given no field that it does not know, but those `allowed`."""
    if isinstance(value, BaseModel):
        extra = set(value.model_extra or ()) - allowed
        assert not extra, f"{path} has unknown fields {extra}"
        for name in type(value).model_fields:
            no_extra(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for one in value:
            no_extra(one, f"{path}[]")


class OrderChecker:
    """Asserts, event by event, the order that strict clients rely on, and puts the text together."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.done: list[dict[str, Any]] = []
        self._response: str | None = None
        self._item: str | None = None
        self._stage = ""

    def feed(self, event: dict[str, Any]) -> None:
        """Take the next event."""
        check_event(event)
        kind = event["type"]
        if kind == "response.created":
            assert self._response is None, "a response began before the last one was done"
            self._response, self._stage = event["response"]["id"], "created"
        elif kind == "response.done":
            assert event["response"]["id"] == self._response
            assert self._stage in {"created", "item_done"}, self._stage
            self.done.append(event["response"])
            self._response = None
        elif kind.startswith("response."):
            assert event["response_id"] == self._response
            self._inside(kind, event)
        elif kind == "conversation.item.added" and event["item"]["id"] == self._item:
            self._step({"item_added"}, "conversation_added")
        elif kind == "conversation.item.done" and event["item"]["id"] == self._item:
            self._step({"content_done", "arguments_done"}, "conversation_done")

    def _inside(self, kind: str, event: dict[str, Any]) -> None:
        match kind:
            case "response.output_item.added":
                self._step({"created", "item_done"}, "item_added")
                assert event["item"]["status"] == "in_progress"
                self._item = event["item"]["id"]
                self.texts[self._item] = ""
            case "response.content_part.added":
                self._step({"conversation_added"}, "delta")
            case "response.output_text.delta":
                self._step({"delta"}, "delta")
                self.texts[event["item_id"]] += event["delta"]
            case "response.function_call_arguments.delta":
                self._step({"conversation_added", "arguments"}, "arguments")
                self.texts[event["item_id"]] += event["delta"]
            case "response.output_text.done":
                self._step({"delta"}, "text_done")
                assert event["text"] == self.texts[event["item_id"]]
            case "response.function_call_arguments.done":
                self._step({"conversation_added", "arguments"}, "arguments_done")
                assert event["arguments"] == self.texts[event["item_id"]]
            case "response.content_part.done":
                self._step({"text_done"}, "content_done")
                assert event["part"]["text"] == self.texts[event["item_id"]]
            case "response.output_item.done":
                self._step({"conversation_done"}, "item_done")
            case _:
                raise AssertionError(f"unexpected {kind}")

    def _step(self, expected: set[str], stage: str) -> None:
        assert self._stage in expected, f"{stage} after {self._stage}"
        self._stage = stage
