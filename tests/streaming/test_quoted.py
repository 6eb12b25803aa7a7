"""What a caller has written is quoted in errors, never handed back whole, and faults are named by their place."""

import base64
import pickle
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from support.app import Served, serving_app
from support.realtime import confirmed
from support.rules import RULES

from memory.keys import RequestDefaults
from models.content import Call, CallResult, TextPart
from models.errors import BadInput, BatonError, Conflict, NotFound, quoted
from models.language.forms.planning_process import planned
from orchestrator.events import SessionSettings
from orchestrator.sessions.conversation import Conversation
from orchestrator.sessions.order import Order
from streaming.limits import SurfaceLimits
from streaming.realtime.options import Options
from streaming.realtime.protocol import RealtimeProtocol
from streaming.rest.chat_reply import in_chats_words
from streaming.rest.chat_request import ChatRequest
from streaming.wire.complaints import complaint

_MOST_CHARACTERS = 700
_LONG = st.text(min_size=1, max_size=8).map(lambda text: text * 2000)
_USER = {"role": "user", "content": "hi"}
_CHAT: TypeAdapter[ChatRequest] = TypeAdapter(ChatRequest)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving_app(tmp_path_factory.mktemp("q"), limits=SurfaceLimits(drain_s=1), rules=RULES) as running:
        yield running


def _chat_error(body: dict[str, Any]) -> BatonError:
    try:
        request = _CHAT.validate_python(body)
    except ValidationError as exc:
        return complaint(exc.errors(include_url=False), body)
    with pytest.raises(BatonError) as refused:
        request.turn(RequestDefaults())
    return refused.value


def _realtime_errors(event: dict[str, Any]) -> list[dict[str, Any]]:
    text = TypeAdapter(Any).dump_json(event).decode()
    settings = SessionSettings()
    protocol = RealtimeProtocol(
        "session_1", 0, options=Options(), defaults=RequestDefaults(), settings=settings, order=Order()
    )
    return [
        each["error"]
        for each in confirmed(protocol, protocol.receive(text, settings), settings).replies
        if each["type"] == "error"
    ]


@given(name=_LONG)
def test_no_error_is_long_whatever_a_chat_names(name: str) -> None:
    for fields in (
        {name: 1},
        {"messages": [{"role": "tool", "tool_call_id": name, "content": "x"}]},
        {"messages": [{"role": "function", "name": name, "content": "x"}]},
        {"messages": [{"role": name, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": name}]}]},
        {"tool_choice": name},
        {"tool_choice": {"type": name}},
        {"tool_choice": {"type": "function", "function": {"name": name}}},
        {"tools": [{"type": name}]},
        {"tools": [{"type": "function", "function": {"name": name + " "}}]},
        {"response_format": {"type": name}},
    ):
        error = _chat_error({"messages": [_USER], **fields})
        assert len(error.message) <= _MOST_CHARACTERS
        assert len(error.field or "") <= _MOST_CHARACTERS


@given(name=_LONG)
def test_nor_whatever_a_client_of_the_websocket_names(name: str) -> None:
    for event in (
        {"type": name},
        {"type": "session.update", "session": {name: 1}},
        {"type": "session.update", "session": {"type": name}},
        {"type": "session.update", "session": {"tools": [{"type": name}]}},
        {"type": "session.update", "session": {"tools": [{"type": "function", "name": name + " "}]}},
        {"type": "session.update", "session": {"tool_choice": {"type": name}}},
        {"type": "session.update", "session": {"tool_choice": {"type": "function", "name": name}}},
        {"type": "response.create", "response": {"conversation": name}},
        {"type": "response.create", "response": {name: 1}},
        {"type": "conversation.item.create", "item": {"type": name}},
    ):
        errors = _realtime_errors(event)
        assert errors
        for error in errors:
            assert len(error["message"]) <= _MOST_CHARACTERS
            assert len(error["param"] or "") <= _MOST_CHARACTERS


@given(name=_LONG)
def test_nor_whatever_items_are_called(name: str) -> None:
    call = Call(item_id=name, call_id=name, name="look", arguments="{}", status="completed")
    result = CallResult(item_id="other", call_id=name, parts=(TextPart(text="x", source="tool"),))
    kept = Conversation(items=9, characters=10**9, item_characters=10**9)
    refusals: list[BatonError] = []
    with pytest.raises(NotFound) as missing:
        kept.check_new((result,))
    kept.add((call,))
    for item in (call, Call(item_id="new", call_id=name, name="look", arguments="{}", status="completed")):
        with pytest.raises(Conflict) as taken:
            kept.check_new((item,))
        refusals.append(taken.value)
    kept.add((result,))
    with pytest.raises(Conflict) as answered:
        kept.check_new((CallResult(item_id="third", call_id=name, parts=()),))
    with pytest.raises(NotFound) as unknown:
        kept.check_known((name + "?",))
    with pytest.raises(NotFound) as nowhere:
        kept.check_place((), name + "?", left=False, open_indexes={})
    refusals += [missing.value, answered.value, unknown.value, nowhere.value]
    assert all(len(error.message) <= _MOST_CHARACTERS for error in refusals)


@given(value=st.text())
def test_what_is_short_is_quoted_whole(value: str) -> None:
    assert len(quoted(value)) <= 67
    assert quoted(value) == repr(value) or len(repr(value)) > 66


@given(before=st.integers(0, 5))
def test_a_fault_of_a_functions_schema_is_at_its_place(before: int) -> None:
    good = {"type": "function", "function": {"name": "f"}}
    functions = [good | {"function": {"name": f"f{n}"}} for n in range(before)]
    schema = {"properties": {"a": {"type": "objekt"}}}
    body = {
        "messages": [_USER],
        "tools": [*functions, {"type": "function", "function": {"name": "g", "parameters": schema}}],
    }
    _, turn_input = _CHAT.validate_python(body).turn(RequestDefaults())

    asked = base64.b64encode(pickle.dumps((turn_input.tools, "whole", False))).decode()
    error = pickle.loads(base64.b64decode(planned(asked)))  # our own

    assert isinstance(error, BadInput)
    assert error.field == f"tools[{before}].parameters"
    assert in_chats_words(error).field == f"tools[{before}].function.parameters"


@pytest.mark.parametrize("kind", ["allowed_tools", "custom"])
def test_a_choice_that_is_not_offered_is_refused_by_its_type_on_both_surfaces(kind: str) -> None:
    choice = {"type": kind, kind: {"mode": "auto", "tools": []}}
    error = _chat_error({"messages": [_USER], "tool_choice": choice})
    (told,) = _realtime_errors({"type": "session.update", "session": {"tool_choice": choice}})

    assert (error.code, error.field) == ("unsupported", "tool_choice.type")
    assert (told["code"], told["param"]) == ("unsupported", "session.tool_choice.type")
    for message in (error.message, told["message"]):
        assert repr(kind) in message
        assert "parameter" not in message


def test_a_call_has_one_result_kept_or_not() -> None:
    function = {"name": "look", "arguments": "{}"}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "c", "content": "x"}
    for store in (True, False):
        error = _chat_error({"messages": [_USER, called, result, result], "store": store})
        assert (error.code, error.field) == ("call_answered", "messages[3].tool_call_id")
        again = {"messages": [_USER, called, result, called, result], "store": store}
        _CHAT.validate_python(again).turn(RequestDefaults())  # an id may serve again


@pytest.mark.parametrize("strict", [True, False])
def test_a_session_is_told_whether_its_functions_are_strict(strict: bool) -> None:
    settings = SessionSettings()
    protocol = RealtimeProtocol(
        "session_1", 0, options=Options(), defaults=RequestDefaults(), settings=settings, order=Order()
    )
    tool = f'{{"type": "function", "name": "f", "strict": {str(strict).lower()}}}'
    received = protocol.receive(f'{{"type": "session.update", "session": {{"tools": [{tool}]}}}}', settings)
    replies = confirmed(protocol, received, settings).replies

    assert replies[-1]["session"]["tools"][0]["strict"] is strict


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_too_large_is_called_too_large(digits: int) -> None:
    error = _chat_error({"messages": [_USER], "temperature": 10**digits})

    assert isinstance(error, BadInput)
    assert error.field == "temperature"
    assert "larger than" in error.message


async def _post(served: Served, body: bytes) -> httpx.Response:
    async with served.http() as client:
        return await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})


@pytest.mark.asyncio(loop_scope="module")
async def test_a_byte_order_mark_is_passed_over_and_half_a_character_is_named(served: Served) -> None:
    marked = await _post(served, b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "hi"}]}')
    halved = await _post(served, b'{"messages": [{"role": "user", "content": "\\ud800"}]}')

    assert marked.status_code == 200
    assert halved.status_code == 400
    assert "surrogate" in halved.json()["error"]["message"]


@given(session=st.dictionaries(st.sampled_from(["instructions", "nonsense", "temperature"]), st.text()))
def test_a_byte_order_mark_before_a_message_changes_nothing(session: dict[str, str]) -> None:
    settings = SessionSettings()
    text = TypeAdapter(Any).dump_json({"type": "session.update", "event_id": "mine", "session": session}).decode()
    told = []
    for sent in (text, f"\ufeff{text}"):
        protocol = RealtimeProtocol(
            "session_1", 0, options=Options(), defaults=RequestDefaults(), settings=settings, order=Order()
        )
        told.append(
            [
                {**each, "event_id": None}
                for each in confirmed(protocol, protocol.receive(sent, settings), settings).replies
            ]
        )

    assert told[0] == told[1]
    assert told[0][-1]["type"] == "session.updated"
