"""Responses beside the conversation, and responses to a context of their own, over the websocket."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from support.server import Server, receive, say, send, serving, until, words
from support.wire import check_event

_WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    rules = [
        {"pattern": r"^slowly$", "reply": "{n} ", "times": "500", "gap_s": 0.02},
        {"pattern": r"^weather$", "reply": "{}", "call": "get_weather"},
        {"pattern": r"^fail$", "reply": "I am about to ", "fault": "error"},
        {"pattern": r"(?s)(.*)", "reply": "You said: \\1"},
    ]
    async with serving(tmp_path_factory.mktemp("server") / "home", rules=rules) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


def _said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


async def _items(server: Server, session: str) -> list[str]:
    async with httpx.AsyncClient(base_url=server.address) as client:
        read = (await client.get(f"/v1/sessions/{session}")).json()
    return [part["text"] for item in read["items"] for part in item["content"]]


def _of(events: list[dict[str, Any]], response_id: str) -> list[dict[str, Any]]:
    return [e for e in events if response_id in (e.get("response_id"), e.get("response", {}).get("id"))]


async def test_a_response_beside_the_conversation_runs_beside_the_turn_and_leaves_no_trace(server: Server) -> None:
    async with server.connect() as socket:
        assert socket.response is not None
        session = socket.response.headers["x-baton-session"]
        await say(socket, "slowly")
        events = await until(socket, "response.output_text.delta")
        main = events[-1]["response_id"]
        beside = {"conversation": "none", "metadata": {"topic": "mood"}, "input": [_said("hello")]}
        await send(socket, type="response.create", response=beside)
        events += await until(socket, "response.done")
        done = events[-1]["response"]
        assert done["id"] != main
        assert (done["status"], done["conversation_id"], done["metadata"]) == ("completed", None, {"topic": "mood"})
        assert done["output"][0]["content"][0]["text"] == "You said: hello"
        assert done["usage"]["output_tokens"] > 0
        kinds = [event["type"] for event in _of(events, done["id"])]
        assert list(dict.fromkeys(kinds)) == [
            "response.created",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
        ]
        await send(socket, type="response.cancel")
        events += await until(socket, "response.done")
        assert (events[-1]["response"]["id"], events[-1]["response"]["status"]) == (main, "cancelled")
        for event in events:
            check_event(event)
        added = [event["item"]["id"] for event in events if event["type"] == "conversation.item.added"]
        assert done["output"][0]["id"] not in added
    assert [text for text in await _items(server, session) if "hello" in text] == []


async def test_without_input_it_answers_the_conversation_and_items_are_named_by_reference(server: Server) -> None:
    async with server.connect() as socket:
        for name in ("one", "two"):
            await send(socket, type="conversation.item.create", item={"id": name, **_said(name)})
        await send(socket, type="response.create", response={"conversation": "none"})
        assert words(await until(socket, "response.done")) == "You said: two"
        by_name = {"conversation": "none", "input": [_said("new"), {"type": "item_reference", "id": "one"}]}
        await send(socket, type="response.create", response=by_name)
        assert words(await until(socket, "response.done")) == "You said: one"


async def test_a_conversation_that_lacks_what_was_said_last_is_not_answered_beside_it_either(server: Server) -> None:
    async with server.connect() as socket:
        await send(socket, type="conversation.item.create", item=_said("one"))
        await send(socket, type="conversation.item.create", item=_said("two"), previous_item_id="nowhere")
        await send(socket, type="response.create", response={"conversation": "none"}, event_id="mine")
        events = await until(socket, "error")
        events += await until(socket, "error")
        assert (events[-1]["error"]["code"], events[-1]["error"]["event_id"]) == ("item_not_found", "mine")
        own = {"conversation": "none", "input": [_said("this")]}
        await send(socket, type="response.create", response=own)
        assert words(await until(socket, "response.done")) == "You said: this"


async def test_input_of_its_own_is_the_context_of_a_response_that_joins_the_conversation(server: Server) -> None:
    async with server.connect() as socket:
        assert socket.response is not None
        session = socket.response.headers["x-baton-session"]
        await say(socket, "first")
        await until(socket, "response.done")
        own = {"input": [{"type": "item_reference", "id": "nowhere"}]}
        await send(socket, type="response.create", response=own, event_id="mine")
        error = (await until(socket, "error"))[-1]["error"]
        assert (error["code"], error["param"], error["event_id"]) == ("item_not_found", "response.input", "mine")
        await send(socket, type="response.create", response={"input": [_said("only this")]})
        events = await until(socket, "response.done")
        assert words(events) == "You said: only this"
        assert events[-1]["response"]["conversation_id"] == session
    assert await _items(server, session) == ["first", "You said: first", "You said: only this"]


async def test_it_is_cancelled_by_its_id_and_a_cancel_without_one_is_the_turns(server: Server) -> None:
    async with server.connect() as socket:
        await send(socket, type="response.create", response={"conversation": "none", "input": [_said("slowly")]})
        beside = (await until(socket, "response.output_text.delta"))[-1]["response_id"]
        await send(socket, type="response.cancel")
        error = (await until(socket, "error"))[-1]["error"]
        assert error["code"] == "response_cancel_not_active"
        await send(socket, type="response.cancel", response_id=beside)
        events = await until(socket, "response.done")
        done = events[-1]["response"]
        assert (done["id"], done["status"], done["status_details"]["reason"]) == (
            beside,
            "cancelled",
            "client_cancelled",
        )
        assert done["output"][0]["status"] == "incomplete"
        await say(socket, "go on")
        assert words(await until(socket, "response.done")) == "You said: go on"


async def test_there_are_few_at_a_time_and_one_that_ends_makes_room(server: Server) -> None:
    async with server.connect() as socket:
        slow = {"conversation": "none", "input": [_said("slowly")]}
        for _ in range(5):
            await send(socket, type="response.create", response=slow, event_id="mine")
        events = await until(socket, "error")
        assert events[-1]["error"]["code"] == "too_many_turns"
        while len(ids := {e["response"]["id"] for e in events if e["type"] == "response.created"}) < 4:
            events.append(await receive(socket))
        await send(socket, type="response.cancel", response_id=min(ids))
        await until(socket, "response.done")
        await send(socket, type="response.create", response={**slow, "input": [_said("hi")]})
        assert (await until(socket, "response.done"))[-1]["response"]["status"] == "completed"
    # The others were stopped when the client left: there is room for whoever comes next.
    async with server.connect() as socket:
        await send(socket, type="response.create", response={**slow, "input": [_said("hi")]})
        await until(socket, "response.done")


async def test_calls_and_failures_are_told_as_in_a_turn(server: Server) -> None:
    async with server.connect() as socket:
        call = {"conversation": "none", "input": [_said("weather")], "tools": [_WEATHER]}
        await send(socket, type="response.create", response=call)
        events = await until(socket, "response.done")
        assert events[-1]["response"]["output"][0]["name"] == "get_weather"
        assert "response.function_call_arguments.done" in [event["type"] for event in events]
        await send(socket, type="response.create", response={"conversation": "none", "input": [_said("fail")]})
        events += await until(socket, "response.done")
        assert events[-1]["response"]["status"] == "failed"
        for event in events:
            check_event(event)


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"conversation": "some"}, "response.conversation"),
        ({"conversation": "none", "input": [{"type": "nonsense"}]}, "response.input[0].type"),
        ({"conversation": "none", "input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}, "response.input"),
        ({"conversation": "none", "input": "hi"}, "response.input"),
        ({"conversation": "none", "prompt": {"id": "p"}}, "response.prompt"),
    ],
)  # fmt: skip
async def test_what_cannot_be_answered_is_refused_by_its_name(
    server: Server, response: dict[str, Any], param: str
) -> None:
    async with server.connect() as socket:
        await send(socket, type="response.create", response=response, event_id="mine")
        error = (await until(socket, "error"))[-1]
        check_event(error)
        assert (error["error"]["param"], error["error"]["event_id"]) == (param, "mine")


async def test_the_official_client_is_answered_beside_its_conversation(server: Server) -> None:
    client = AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none")
    async with asyncio.timeout(20), client.realtime.connect(model="scripted") as connection:
        await connection.response.create(
            response={
                "conversation": "none",
                "metadata": {"topic": "mood"},
                "output_modalities": ["text"],
                "input": [_said("hello")],  # type: ignore[list-item]
            }
        )
        async for event in connection:
            if event.type == "response.done":
                assert event.response.metadata == {"topic": "mood"}
                assert event.response.conversation_id is None
                break
