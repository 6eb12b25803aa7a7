"""Items that a client puts into the conversation, over the websocket, and where they are then."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.server import Server, receive, say, send, serving, until
from support.wire import check_event


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    rules = [
        {"pattern": r"^slowly$", "reply": "{n} ", "times": "500", "gap_s": 0.02},
        {"pattern": r"(?s)(.*)", "reply": "You said: \\1"},
    ]
    async with serving(tmp_path_factory.mktemp("server") / "home", rules=rules) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


def _message(name: str) -> dict[str, Any]:
    return {"id": name, "type": "message", "role": "user", "content": [{"type": "input_text", "text": name}]}


async def _create(socket: Any, name: str, **more: Any) -> None:
    await send(socket, type="conversation.item.create", item=_message(name), **more)


def _placed(events: list[dict[str, Any]], there: list[str] | None = None) -> list[str]:
    """Put the items where the events say, as a client does."""
    there = list(there or ())
    for event in events:
        if event["type"] == "conversation.item.added":
            check_event(event)
            previous = event["previous_item_id"]
            there.insert(0 if previous is None else there.index(previous) + 1, event["item"]["id"])
    return there


async def _over_rest(server: Server, session: str) -> list[str]:
    async with httpx.AsyncClient(base_url=server.address) as client:
        read = (await client.get(f"/v1/sessions/{session}")).json()
        exported = (await client.get(f"/v1/sessions/{session}/export")).json()
    assert read["items"] == exported["items"]
    return [item["id"] for item in read["items"]]


async def test_items_go_to_the_front_after_any_other_and_after_one_sent_a_moment_ago(server: Server) -> None:
    async with server.connect() as socket:
        assert socket.response is not None
        session = socket.response.headers["x-baton-session"]
        # Sent without waiting for what comes back: each is checked when those before it are there.
        await _create(socket, "b")
        await _create(socket, "a", previous_item_id="root")
        await _create(socket, "d", previous_item_id="b")
        await _create(socket, "c", previous_item_id="b")
        await _create(socket, "lost", previous_item_id="nowhere", event_id="mine")
        await _create(socket, "e", previous_item_id=None)
        events = [await receive(socket) for _ in range(12)]
        assert _placed(events) == ["a", "b", "c", "d", "e"]
        (error,) = [event["error"] for event in events if event["type"] == "error"]
        assert (error["code"], error["param"], error["event_id"]) == ("item_not_found", "previous_item_id", "mine")
    assert await _over_rest(server, session) == ["a", "b", "c", "d", "e"]


async def test_what_is_added_while_a_response_runs_has_one_place_for_everybody(server: Server) -> None:
    async with server.connect("?baton=events") as socket:
        assert socket.response is not None
        session = socket.response.headers["x-baton-session"]
        await say(socket, "slowly", item_id="asked")
        events = await until(socket, "response.output_text.delta")
        written = events[-1]["item_id"]
        await _create(socket, "at_the_end")
        await _create(socket, "after_it", previous_item_id=written)
        await _create(socket, "before_it", previous_item_id="asked")
        await _create(socket, "first", previous_item_id="root")
        while sum(event["type"] == "conversation.item.done" for event in events) < 5:
            events.append(await receive(socket))
        await send(socket, type="response.cancel")
        events += await until(socket, "response.done")
        right = ["first", "asked", "before_it", written, "after_it", "at_the_end"]
        assert _placed(events) == right
    seqs = [event["seq"] for event in events if event["type"] == "baton.sequence"]
    for seq in (0, *seqs):
        async with server.connect(f"?session={session}&after={seq}&baton=events") as again:
            told = [await receive(again)]
            while not any(e["type"] == "baton.sequence" and e["seq"] > seqs[-1] for e in told):
                told.append(await receive(again))
        before = events[: next((n for n, e in enumerate(events) if e.get("seq") == seq), -1) + 1]
        # What was not done when a connection ended is told again.
        done = {event["item"]["id"] for event in before if event["type"] == "conversation.item.done"}
        assert _placed(told, [item for item in _placed(before) if item in done]) == right, seq
    assert await _over_rest(server, session) == right


async def test_a_client_brings_a_call_and_its_result_and_reads_them_again(server: Server) -> None:
    async with server.connect() as socket:
        call = {"id": "call", "type": "function_call", "call_id": "c", "name": "look", "arguments": '{"at": 1}'}
        result = {"id": "result", "type": "function_call_output", "call_id": "c", "output": "nothing"}
        early = {**result, "id": "early"}
        await send(socket, type="conversation.item.create", item=call)
        await send(socket, type="conversation.item.create", item=early, previous_item_id="root", event_id="early")
        await send(socket, type="conversation.item.create", item=result, previous_item_id="call")
        await send(socket, type="conversation.item.retrieve", item_id="call")
        await send(socket, type="conversation.item.retrieve", item_id="nowhere", event_id="mine")
        events = [await receive(socket) for _ in range(8)]
        for event in events:
            check_event(event)
        assert _placed(events) == ["call", "result"]
        errors = [event["error"] for event in events if event["type"] == "error"]
        assert [(e["param"], e["event_id"]) for e in errors] == [("previous_item_id", "early"), ("item_id", "mine")]
        (shown,) = [event["item"] for event in events if event["type"] == "conversation.item.retrieved"]
        assert shown == {**call, "object": "realtime.item", "status": "completed"}


async def test_an_item_that_is_being_written_is_shown_as_far_as_it_is(server: Server) -> None:
    async with server.connect() as socket:
        await say(socket, "slowly")
        written = (await until(socket, "response.output_text.delta"))[-1]["item_id"]
        await send(socket, type="conversation.item.retrieve", item_id=written)
        shown = (await until(socket, "conversation.item.retrieved"))[-1]
        check_event(shown)
        assert shown["item"]["status"] == "in_progress"
        assert shown["item"]["content"][0]["text"].startswith("1 ")
        await send(socket, type="response.cancel")
        await until(socket, "response.done")
