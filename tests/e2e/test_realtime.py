"""Real clients against the running server, over the websocket."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import websockets
from openai import AsyncOpenAI
from support.server import Server, count, receive, say, send, serving, until, words
from support.wire import OrderChecker, check_event

_WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Say what the weather is.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    rules = [
        {"pattern": r"^count to (\d+)$", "reply": "{n} ", "times": r"\1"},
        {"pattern": r"^slowly count to (\d+)$", "reply": "{n} ", "times": r"\1", "gap_s": 0.02},
        {"pattern": r"weather in (\w+)", "reply": '{"city": "\\1"}', "call": "get_weather"},
        {"pattern": r"^sunny$", "reply": "The sun shines."},
        {"pattern": r"^fail$", "reply": "I am about to ", "fault": "error"},
        {"pattern": r"^die$", "reply": "I am about to ", "fault": "exit"},
        {"pattern": r"(?s)(.*)", "reply": "You said: \\1"},
    ]
    async with serving(tmp_path_factory.mktemp("server") / "home", rules=rules) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_turn_is_valid_and_in_the_strict_order_event_by_event(server: Server) -> None:
    checker = OrderChecker()
    async with server.connect() as socket:
        await send(socket, type="session.update", session={"type": "realtime", "baton": {"events": True}})
        for text in ("count to 12", "naïve 👋🏽 text\nin two lines"):
            await say(socket, text)
            for event in await until(socket, "response.done"):
                checker.feed(event)
    assert list(checker.texts.values()) == [count(12), "You said: naïve 👋🏽 text\nin two lines"]
    assert [response["status"] for response in checker.done] == ["completed", "completed"]
    assert checker.done[0]["usage"]["output_tokens"] == 12


async def test_batons_own_events_go_only_to_a_client_that_asked(server: Server) -> None:
    async with server.connect() as socket:
        await say(socket, "count to 3")
        assert not [e for e in await until(socket, "response.done") if e["type"].startswith("baton.")]
        await send(socket, type="session.update", session={"type": "realtime", "baton": {"events": True}})
        await say(socket, "count to 3")
        kinds = {e["type"] for e in await until(socket, "response.done")}
    assert {"baton.session.attached", "baton.turn.routed", "baton.turn.timed", "baton.sequence"} <= kinds


async def test_the_official_client_holds_a_conversation(server: Server) -> None:
    client = AsyncOpenAI(base_url=f"{server.address}/v1", api_key="placeholder")
    async with client, client.realtime.connect(model="scripted") as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        content = [{"type": "input_text", "text": "count to 5"}]
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create()
        text = ""
        async for event in connection:
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                break
    assert text == count(5)
    assert event.response.status == "completed"


async def test_an_unknown_model_is_refused_before_the_connection_with_the_names_there_are(server: Server) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await server.connect("?model=nonesuch")
    assert refused.value.response.status_code == 404
    error = json.loads(refused.value.response.body)["error"]
    assert error["code"] == "model_not_found"
    assert "scripted" in error["message"]


async def test_a_function_is_called_answered_once_and_the_conversation_goes_on(server: Server) -> None:
    checker = OrderChecker()
    async with server.connect() as socket:
        await send(socket, type="session.update", session={"type": "realtime", "tools": [_WEATHER]})
        await say(socket, "What is the weather in Bern?")
        for event in await until(socket, "response.done"):
            checker.feed(event)
        (call,) = checker.done[0]["output"]
        assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Bern"})
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        await send(socket, type="conversation.item.create", item=output)
        await send(socket, type="conversation.item.create", item=output, event_id="twice")
        (refused,) = [e for e in await until(socket, "error") if e["type"] == "error"]
        assert (refused["error"]["code"], refused["error"]["event_id"]) == ("call_answered", "twice")
        await send(socket, type="response.create")
        for event in await until(socket, "response.done"):
            checker.feed(event)
    assert list(checker.texts.values())[-1] == "The sun shines."


async def test_cancel_stops_an_answer_and_the_conversation_keeps_what_was_said(server: Server) -> None:
    checker = OrderChecker()
    async with server.connect() as socket:
        await say(socket, "slowly count to 5000")
        events = await until(socket, "response.output_text.delta")
        await send(socket, type="response.cancel")
        events += await until(socket, "response.done")
        for event in events:
            checker.feed(event)
        (response,) = checker.done
        assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        assert response["output"][0]["status"] == "incomplete"
        assert count(5000).startswith(words(events))
        await say(socket, "count to 2")
        assert words(await until(socket, "response.done")) == count(2)


async def test_a_second_response_is_refused_while_one_runs_and_an_item_is_not(server: Server) -> None:
    async with server.connect() as socket:
        await say(socket, "slowly count to 100")
        await until(socket, "response.output_text.delta")
        await send(socket, type="response.create", event_id="early")
        events = await until(socket, "error")
        assert events[-1]["error"]["code"] == "conversation_already_has_active_response"
        assert events[-1]["error"]["event_id"] == "early"
        content = [{"type": "input_text", "text": "count to 4"}]
        await send(
            socket,
            type="conversation.item.create",
            item={"id": "meanwhile", "type": "message", "role": "user", "content": content},
        )
        events += await until(socket, "response.done")
        assert "meanwhile" in {e["item"]["id"] for e in events if e["type"] == "conversation.item.done"}
        await send(socket, type="response.create")
        assert words(await until(socket, "response.done")) == count(4)


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[]", "unknown_event", "type"),
        ('{"type": "sing"}', "unknown_event", "type"),
        ('{"type": "conversation.item.truncate"}', "invalid_value", "item_id"),
        ('{"type": "response.create", "response": {"nonsense": {}}}', "unknown_parameter", "response.nonsense"),
        ('{"type": "session.update", "session": {"type": "transcription"}}', "invalid_value", "session.type"),
        (
            '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": []}}',
            "invalid_value",
            "item.content",
        ),
        ('{"type": "response.cancel"}', "response_cancel_not_active", None),
        (
            '{"type": "conversation.item.create", "item": '
            '{"type": "function_call_output", "call_id": "x", "output": ""}}',
            "not_found",
            "call_id",
        ),
    ],
)
async def test_bad_input_gets_an_error_that_names_the_field_and_costs_nothing(
    server: Server, message: str, code: str, param: str | None
) -> None:
    async with server.connect() as socket:
        await socket.send(message)
        error = (await until(socket, "error"))[-1]
        check_event(error)
        assert (error["error"]["code"], error["error"]["param"]) == (code, param)
        await say(socket, "count to 2")
        assert words(await until(socket, "response.done")) == count(2)


async def test_a_message_over_the_limit_closes_the_connection_with_its_code(server: Server) -> None:
    async with server.connect() as socket:
        await receive(socket)
        await socket.send("x" * 1_100_000)
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await receive(socket)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_a_failing_engine_fails_its_turn_and_not_the_session(server: Server) -> None:
    checker = OrderChecker()
    async with server.connect() as socket:
        for text in ("fail", "die"):
            await say(socket, text)
            for event in await until(socket, "response.done"):
                checker.feed(event)
        await say(socket, "count to 2")
        assert words(await until(socket, "response.done")) == count(2)
    assert [r["status_details"]["error"]["code"] for r in checker.done] == ["internal", "worker_died"]


async def test_a_reader_that_reconnects_in_the_middle_gets_every_character_once(server: Server) -> None:
    first, second, live = OrderChecker(), OrderChecker(), OrderChecker()
    async with server.connect("?baton=events") as socket:
        assert socket.response is not None
        session = socket.response.headers["x-baton-session"]
        await say(socket, "slowly count to 100")
        events = await until(socket, "response.output_text.delta")
        for event in events:
            first.feed(event)
        seen = max(event["seq"] for event in events if event["type"] == "baton.sequence")
    async with (
        server.connect(f"?session={session}&after={seen}") as again,
        server.connect(f"?session={session}") as other,
    ):
        for checker, socket in ((second, again), (live, other)):
            for event in await until(socket, "response.done"):
                checker.feed(event)
    assert list(second.texts.values()) == list(live.texts.values()) == [count(100)]
    assert count(100).startswith(next(iter(first.texts.values())))
    async with server.connect(f"?session={session}&after=0") as socket:
        replay = OrderChecker()
        for event in await until(socket, "response.done"):
            replay.feed(event)
    assert replay.texts == second.texts


async def test_whoever_comes_in_the_middle_is_told_the_response_as_it_was_announced(server: Server) -> None:
    async with server.connect() as first:
        assert first.response is not None
        session = first.response.headers["x-baton-session"]
        content = [{"type": "input_text", "text": "slowly count to 60"}]
        item = {"type": "message", "role": "user", "content": content}
        await send(first, type="conversation.item.create", item=item)
        await send(first, type="response.create", response={"metadata": {"a": "b"}, "max_output_tokens": 50})
        told = await until(first, "response.output_text.delta")
        async with server.connect(f"?session={session}") as second:
            told += await until(first, "response.done")
            heard = await until(second, "response.done")
    for kind in ("response.created", "response.done"):
        (one,), (other,) = ([e["response"] for e in events if e["type"] == kind] for events in (told, heard))
        assert one == other
    assert (one["metadata"], one["max_output_tokens"], one["status"]) == ({"a": "b"}, 50, "incomplete")


async def test_a_replay_names_before_each_item_the_one_that_was_there(server: Server) -> None:
    def links(events: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
        return [(e["item"]["id"], e["previous_item_id"]) for e in events if e["type"] == "conversation.item.added"]

    ends: list[int] = []
    async with server.connect("?baton=events") as socket:
        assert socket.response is not None
        session = socket.response.headers["x-baton-session"]
        live: list[tuple[str, str | None]] = []
        for _ in range(2):
            await say(socket, "count to 2")
            live += links(await until(socket, "response.done"))
            ends.append((await until(socket, "baton.sequence"))[-1]["seq"])
    assert live == [(item, None if n == 0 else live[n - 1][0]) for n, (item, _) in enumerate(live)]
    for after, from_here in ((0, live), (ends[0], live[2:])):
        async with server.connect(f"?session={session}&after={after}") as socket:
            replayed = links(await until(socket, "response.done"))
            if after == 0:
                replayed += links(await until(socket, "response.done"))
        assert replayed == from_here


async def test_a_binary_message_is_refused_and_costs_nothing(server: Server) -> None:
    async with server.connect() as socket:
        await socket.send(b"\x00\x01")
        assert (await until(socket, "error"))[-1]["error"]["code"] == "invalid_json"
        await say(socket, "count to 2")
        assert words(await until(socket, "response.done")) == count(2)


@pytest.mark.parametrize("after", ["999", "-1", "x", "²"])
async def test_a_row_that_the_session_has_not_reached_is_refused_as_a_gap(server: Server, after: str) -> None:
    async with server.connect() as socket:
        assert socket.response is not None
        session = socket.response.headers["x-baton-session"]
    with pytest.raises(websockets.InvalidStatus) as refused:
        await server.connect(f"?session={session}&after={after}")
    assert refused.value.response.status_code == 400
    assert json.loads(refused.value.response.body)["error"]["code"] == "sequence_gap"


async def test_many_clients_in_one_session_are_told_the_same(server: Server) -> None:
    async with server.connect() as speaker:
        assert speaker.response is not None
        session = speaker.response.headers["x-baton-session"]
        async with server.connect(f"?session={session}") as listener:
            await receive(listener)
            await say(speaker, "count to 30")
            told, heard = await asyncio.gather(until(speaker, "response.done"), until(listener, "response.done"))
    assert words(told) == words(heard) == count(30)


async def test_an_item_that_is_deleted_is_shown_to_no_model_and_told_to_everybody(server: Server) -> None:
    async with server.connect("?baton=events") as socket:
        assert socket.response is not None
        session = socket.response.headers["x-baton-session"]
        checker = OrderChecker()
        await say(socket, "count to 2", item_id="mine")
        events = await until(socket, "response.done")
        async with server.connect(f"?session={session}") as other:
            await receive(other)
            await send(socket, type="conversation.item.delete", item_id="mine")
            events += await until(socket, "conversation.item.deleted")
            assert (await until(other, "conversation.item.deleted"))[-1]["item_id"] == "mine"
        assert events[-1]["item_id"] == "mine"
        await send(socket, type="conversation.item.delete", item_id="mine", event_id="again")
        error = (await until(socket, "error"))[-1]["error"]
        assert (error["code"], error["param"], error["event_id"]) == ("item_not_found", "item_id", "again")
        await say(socket, "sunny")
        told = await until(socket, "response.done")
        for event in (*events, *told):
            checker.feed(event)
        (first, *_) = [e for e in told if e["type"] == "conversation.item.added"]
        assert first["previous_item_id"] == checker.done[0]["output"][0]["id"]
    async with server.connect(f"?session={session}") as later:
        await receive(later)
        await send(later, type="conversation.item.delete", item_id=first["item"]["id"])
        assert (await until(later, "conversation.item.deleted"))[-1]["item_id"] == first["item"]["id"]


async def test_nothing_is_deleted_while_a_response_is_written(server: Server) -> None:
    async with server.connect() as socket:
        await say(socket, "slowly count to 100", item_id="mine")
        await until(socket, "response.output_text.delta")
        await send(socket, type="conversation.item.delete", item_id="mine", event_id="early")
        error = (await until(socket, "error"))[-1]["error"]
        assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "early")
        await send(socket, type="response.cancel")
        await until(socket, "response.done")
        await send(socket, type="conversation.item.delete", item_id="mine")
        assert (await until(socket, "conversation.item.deleted"))[-1]["item_id"] == "mine"


async def test_the_official_client_deletes_an_item(server: Server) -> None:
    client = AsyncOpenAI(base_url=f"{server.address}/v1", api_key="placeholder")
    async with client, client.realtime.connect(model="scripted") as connection:
        content = [{"type": "input_text", "text": "count to 5"}]
        item = {"id": "mine", "type": "message", "role": "user", "content": content}
        await connection.conversation.item.create(item=item)
        await connection.conversation.item.delete(item_id="mine")
        async for event in connection:
            if event.type == "conversation.item.deleted":
                break
    assert event.item_id == "mine"


async def test_a_client_that_asked_is_told_what_a_session_is_called(server: Server) -> None:
    async with server.connect("?baton=events") as socket:
        events = await until(socket, "baton.session.updated")
        assert [event["type"] for event in events[-2:]] == ["baton.session.attached", "baton.session.updated"]
        assert events[-1]["title"] is None
        await say(socket, "count to 2")
        told = await until(socket, "response.done")
        for event in (*events, *told):
            check_event(event)
        (named,) = [event for event in told if event["type"] == "baton.session.updated"]
        assert named["title"] == "count to 2"
        (timed,) = [event for event in told if event["type"] == "baton.turn.timed"]
        assert 0 <= timed["decided_ms"] <= timed["first_delta_ms"] <= timed["duration_ms"]
