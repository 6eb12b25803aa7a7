"""What does not fit is named as the caller wrote it, with what was expected and what came, whatever the validator calls it."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from support.rules import RULES

from memory.keys import RequestDefaults
from models.errors import BadInput
from orchestrator.events import SessionSettings
from orchestrator.sessions.order import Order
from streaming.realtime.options import Options
from streaming.realtime.protocol import RealtimeProtocol
from streaming.rest.chat_request import ChatRequest
from streaming.rest.sessions import SessionChanges
from streaming.wire.complaints import PathStep, complaint, written

_TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}

_BODY: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "text"}, {"type": "text", "text": "x"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "text"},
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
    "store": False,
    "metadata": {"text": "function"},
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": 1,
    "stop": ["a", "b"],
    "tools": [_TOOL],
    "tool_choice": {"type": "function", "function": {"name": "look"}},
    "parallel_tool_calls": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "n": 1,
}

_REALTIME_TOOL = {"type": "function", "name": "look", "description": "d", "parameters": {"type": "object"}}

_EVENTS: list[dict[str, Any]] = [
    {
        "type": "session.update",
        "event_id": "e",
        "session": {
            "type": "realtime",
            "model": "m",
            "instructions": "i",
            "output_modalities": ["text"],
            "tools": [_REALTIME_TOOL],
            "tool_choice": "auto",
            "max_output_tokens": 5,
        },
    },
    {
        "type": "conversation.item.create",
        "event_id": "e",
        "item": {"id": "i", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "text"}]},
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "assistant"}]},
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call_output", "call_id": "c", "output": "function_call_output"},
    },
    {
        "type": "response.create",
        "response": {"instructions": "i", "tools": [_REALTIME_TOOL], "tool_choice": "auto", "metadata": {"a": "b"}},
    },
    {"type": "response.cancel", "response_id": "r"},
]

_WRONG: list[Any] = [None, True, 0, 7, 1.5, "", "nonsense", [], ["nonsense"], [{}], {}, {"nonsense": 1}]

_VALIDATORS_WORDS = re.compile(
    r"constrained|literal\[|function-|Value error|tagged|list\[|dict\[|[Vv]alid (string|integer)"
)


def _places(value: Any, path: tuple[PathStep, ...] = ()) -> Iterator[tuple[PathStep, ...]]:
    yield path
    if isinstance(value, dict | list):
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*path, step))


def _at(value: Any, path: tuple[PathStep, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


@st.composite
def _spoiled(draw: st.DrawFn, valid: list[dict[str, Any]]) -> tuple[dict[str, Any], tuple[PathStep, ...]]:
    """Draw something valid with one fault in it, and where the fault is."""
    body = copy.deepcopy(draw(st.sampled_from(valid)))
    path = draw(st.sampled_from([path for path in _places(body) if path]))
    what = draw(st.sampled_from(["replace", "remove", "add"]))
    *way, last = path
    inside = _at(body, tuple(way))
    if what == "remove" and isinstance(inside, dict):
        del inside[last]
    elif what == "add" and isinstance(inside[last], dict):
        inside[last]["nonsense"] = draw(st.sampled_from(_WRONG))
        path = (*path, "nonsense")
    else:
        inside[last] = draw(st.sampled_from(_WRONG))
    return body, path


def _refusal(adapter: TypeAdapter[Any], body: Any) -> BadInput | None:
    """Validate as the route does, which parses JSON first."""
    sent = json.loads(json.dumps(body))
    try:
        adapter.validate_python(sent)
    except ValidationError as exc:
        return complaint(exc.errors(), sent)
    return None


def _check(field: str | None, message: str, path: tuple[PathStep, ...]) -> None:
    place = written(path)
    assert field is not None
    if "parameters" in path and field.endswith(".parameters"):
        assert place.startswith(field)  # a schema is refused as a whole
    else:  # it is there, or within what was put there
        assert field == place or field.startswith((f"{place}.", f"{place}[")), (field, place)
    assert f"'{field}'" in message
    assert not _VALIDATORS_WORDS.search(message.replace(f"'{field}'", "")), message


_CHAT: TypeAdapter[Any] = TypeAdapter(ChatRequest)


def test_the_bodies_are_valid_before_they_are_spoiled() -> None:
    assert _refusal(_CHAT, _BODY) is None
    for event in _EVENTS:
        assert _receive(event) is None


@given(spoiled=_spoiled([_BODY]))
def test_a_body_with_one_fault_is_refused_for_the_field_with_the_fault(
    spoiled: tuple[dict[str, Any], tuple[PathStep, ...]],
) -> None:
    body, path = spoiled
    if (error := _refusal(_CHAT, body)) is not None:
        _check(error.field, error.message, path)


def _receive(event: Any) -> dict[str, Any] | None:
    protocol = RealtimeProtocol(
        "sess_1",
        0,
        options=Options(),
        defaults=RequestDefaults(),
        settings=SessionSettings(),
        order=Order(),
    )
    (reply, *_) = protocol.receive(json.dumps(event), SessionSettings()).replies or ({},)
    return reply["error"] if reply.get("type") == "error" else None


@given(spoiled=_spoiled(_EVENTS))
def test_an_event_with_one_fault_is_refused_for_the_field_with_the_fault(
    spoiled: tuple[dict[str, Any], tuple[PathStep, ...]],
) -> None:
    event, path = spoiled
    error = _receive(event)
    if error is not None and path != ("type",) and error["code"] in {"invalid_value", "unknown_parameter"}:
        _check(error["param"], error["message"], path)


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5, "cache_control": {}}]}]},
            "messages[0].content[0].text",
            "expected a string, but got an integer (5)",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "json_schema": {}}}},
            "response_format.json_schema.json_schema",
            "Unknown or unsupported parameter",
        ),
        ({"top_p": 2}, "top_p", "it has to be less than or equal to 1"),
        ({"stop": ["a"] * 5}, "stop", "it has 5 entries, and has to have at most 4"),
        ({"stop": 5}, "stop", "expected a string or an array, but got an integer (5)"),
        ({"stop": ["a", 5]}, "stop[1]", "expected a string, but got an integer (5)"),
        ({"temperature": "hot"}, "temperature", "expected a number, but got a string ('hot')"),
        ({"tool_choice": "sometimes"}, "tool_choice", "expected 'none', 'auto', 'required' or an object"),
        ({"messages": {}}, "messages", "expected an array, but got an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "Missing required parameter"),
        ({"messages": [{"role": "nobody"}]}, "messages[0].role", "It has to be"),
        ({"response_format": "json"}, "response_format", "expected an object, but got a string ('json')"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing required parameter"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_message_says_what_was_expected_and_what_came(fields: dict[str, Any], field: str, said: str) -> None:
    error = _refusal(_CHAT, {**_BODY, **fields})
    assert error is not None
    assert error.field == field
    assert said.replace("'none', 'auto'", "'auto', 'none'") in error.message


# Types

_CHANGES: TypeAdapter[Any] = TypeAdapter(SessionChanges)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(
            (name, wrong)
            for name in ("max_tokens", "max_completion_tokens", "n", "seed")
            for wrong in (True, "1", 1.0, 1.5)
        ),
        *((name, wrong) for name in ("temperature", "top_p") for wrong in (True, "0.5")),
        *(
            (name, wrong)
            for name in ("stream", "store", "parallel_tool_calls", "logprobs")
            for wrong in (1, 0, "true", "no")
        ),
        *((name, wrong) for name in ("model", "user") for wrong in (1, True)),
        ("stop", 1),
        ("stop", [1]),
        ("metadata", {"a": 1}),
        ("stream_options", {"include_usage": "true"}),
    ],
    ids=str,
)
def test_no_type_is_taken_for_another(field: str, wrong: Any) -> None:
    error = _refusal(_CHAT, {**_BODY, field: wrong})
    assert error is not None
    assert (error.field or "").startswith(field)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: {"type": "session.update", "session": {"type": "realtime", "max_output_tokens": "5"}},
        lambda: {"type": "session.update", "session": {"type": "realtime", "max_output_tokens": True}},
        lambda: {"type": "session.update", "session": {"type": "realtime", "max_output_tokens": 5.0}},
        lambda: {"type": "session.update", "session": {"type": "realtime", "baton": {"events": "true"}}},
        lambda: {"type": "response.create", "response": {"metadata": {"a": 1}}},
        lambda: {"type": "response.create", "response": {"instructions": 1}},
    ],
)
def test_nor_on_the_websocket(spoil: Callable[[], dict[str, Any]]) -> None:
    error = _receive(spoil())
    assert error is not None
    assert "expected" in error["message"]


def test_a_whole_number_is_a_number_and_null_is_what_is_left_out() -> None:
    assert _refusal(_CHAT, {**_BODY, "temperature": 1, "top_p": 1, "max_tokens": None, "stop": None}) is None


def test_a_session_takes_no_number_for_a_title() -> None:
    error = _refusal(_CHANGES, {"title": 5})
    assert error is not None
    assert error.field == "title"


async def test_what_stands_in_an_address_or_a_header_is_named_as_it_is_there(serve: Any) -> None:
    async with serve(rules=RULES) as served, served.http() as client:
        for query, said in {
            "limit=many": "expected an integer, but got a string ('many')",
            "limit=0": "or equal to 1",
        }.items():
            answer = await client.get(f"/v1/sessions?{query}")
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_input", "limit")
            assert said in error["message"]
        answer = await client.post("/v1/chat/completions", json=[1])
        assert answer.json()["error"]["message"] == "The body is not the JSON object it has to be."
        answer = await client.post("/v1/sessions", json={"title": 5})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "title")
