"""`GET /v1/sessions/{id}/events`: a session followed over plain HTTP, and taken up again wherever it broke off."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
import websockets
from support.app import Served, serving_app
from support.rules import RULES
from support.server import count, say, send, until
from support.sse import Event, Parser
from support.wire import OrderChecker

from models.clock import ManualClock
from streaming.limits import SurfaceLimits

pytestmark = pytest.mark.asyncio(loop_scope="module")

_TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    async with serving_app(folder, limits=SurfaceLimits(drain_s=1), rules=RULES) as running:
        yield running


async def _made(served: Served, **fields: Any) -> str:
    async with served.http() as client:
        return str((await client.post("/v1/sessions", json=fields)).json()["id"])


def _connect(served: Served, session_id: str) -> websockets.connect:
    return websockets.connect(f"ws://{served.address}/v1/realtime?session={session_id}")


async def _follow(
    served: Served,
    session_id: str,
    done: Callable[[Event], bool],
    *,
    after: int | None = None,
    last_event_id: int | None = None,
) -> list[Event]:
    """Follow a session up to and with the first event that is `done`."""
    params = {} if after is None else {"after": after}
    headers = {} if last_event_id is None else {"last-event-id": str(last_event_id)}
    parser, events = Parser(), []
    path = f"/v1/sessions/{session_id}/events"
    async with (
        served.http() as client,
        client.stream("GET", path, params=params, headers=headers) as answer,
        aclosing(answer.aiter_bytes()) as data,  # type: ignore[type-var]  # a generator, whatever httpx calls it
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        async for piece in data:
            for event in parser.feed(piece):
                assert event.kind == event.json()["type"]
                events.append(event)
                if done(event):
                    return events
    raise AssertionError("the stream ended")


def _row(seq: int) -> Callable[[Event], bool]:
    return lambda event: event.seq == seq


def _kind(kind: str) -> Callable[[Event], bool]:
    return lambda event: event.kind == kind


def _told(events: list[Event]) -> list[dict[str, Any]]:
    """Return what was said, without what differs from one connection to another."""
    return [{name: value for name, value in event.json().items() if name != "event_id"} for event in events]


async def _eventful(served: Served) -> tuple[str, int]:
    """Make a session in which everything has happened that can; return it and its last row."""
    session_id = await _made(served, instructions="Be kind.")
    async with _connect(served, session_id) as socket, served.http() as client:
        await send(socket, type="session.update", session={"type": "realtime", "tools": [_TOOL]})
        await say(socket, "count to 3", item_id="first")
        await until(socket, "response.done")
        await say(socket, "What is the weather in Bern?")
        (call,) = (await until(socket, "response.done"))[-1]["response"]["output"]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        await send(socket, type="conversation.item.create", item=output)
        await send(socket, type="response.create", response={"metadata": {"a": "b"}, "max_output_tokens": 9})
        await until(socket, "response.done")
        await client.patch(f"/v1/sessions/{session_id}", json={"title": "Weather", "instructions": None})
        await send(socket, type="conversation.item.delete", item_id="first")
        await until(socket, "conversation.item.deleted")
        await say(socket, "slowly count to 1000")
        await until(socket, "response.output_text.delta")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "meanwhile"}]}
        await send(socket, type="conversation.item.create", item=item)
        await until(socket, "conversation.item.done")
        await send(socket, type="response.cancel")
        await until(socket, "response.done")
        await say(socket, "fail")
        await until(socket, "response.done")
        last_seq = (await client.get(f"/v1/sessions/{session_id}")).json()["last_seq"]
    return session_id, int(last_seq)


async def test_every_row_comes_once_in_order_with_its_number_on_its_last_event(served: Served) -> None:
    session_id, last_seq = await _eventful(served)
    events = await _follow(served, session_id, _row(last_seq), after=0)
    assert [event.seq for event in events if event.seq is not None] == list(range(1, last_seq + 1))
    for event in events:
        assert (event.kind == "baton.sequence") == (event.seq is not None)
        assert event.seq is None or event.json()["seq"] == event.seq
    checker = OrderChecker()
    for event in events:
        checker.feed(event.json())
    assert [done["status"] for done in checker.done] == ["completed", "completed", "completed", "cancelled", "failed"]


async def test_it_is_what_the_websocket_says(served: Served) -> None:
    session_id, last_seq = await _eventful(served)
    events = _told(await _follow(served, session_id, _row(last_seq), after=0))
    url = f"ws://{served.address}/v1/realtime?session={session_id}&after=0&baton=events"
    said: list[dict[str, Any]] = []
    async with websockets.connect(url) as socket:
        while not (said and said[-1]["type"] == "baton.sequence" and said[-1]["seq"] == last_seq):
            said.append(json.loads(await socket.recv()))
    for event in said:
        del event["event_id"]
    opening = ["session.created", "baton.session.attached", "baton.session.updated"]
    assert [event["type"] for event in said[:3]] == opening
    assert events == said[3:]


@pytest.mark.parametrize("way", ["header", "parameter"])
async def test_wherever_it_breaks_off_both_parts_together_are_the_whole_once(served: Served, way: str) -> None:
    session_id, last_seq = await _eventful(served)
    whole = await _follow(served, session_id, _row(last_seq), after=0)
    for cut in range(last_seq):
        # What came after the last number is what a reader drops: it is told again.
        kept = whole[: 1 + next((n for n, event in enumerate(whole) if event.seq == cut), -1)]
        point = {"last_event_id": cut} if way == "header" else {"after": cut}
        rest = await _follow(served, session_id, _row(last_seq), **point)
        assert _told(kept) + _told(rest) == _told(whole), f"cut after row {cut}"


async def test_a_running_turn_goes_on_where_it_broke_off(served: Served) -> None:
    session_id = await _made(served)
    async with _connect(served, session_id) as socket:
        await say(socket, "slowly count to 60")
        await until(socket, "response.output_text.delta")
        first = await _follow(served, session_id, _kind("response.output_text.delta"), after=0)
        at = max(n for n, event in enumerate(first) if event.seq is not None)
        kept = first[: at + 1]
        assert any(event.kind == "response.created" for event in kept)
        rest = await _follow(served, session_id, _kind("response.done"), last_event_id=kept[-1].seq)
        fresh = await _follow(served, session_id, _kind("response.done"), after=0)
    checker = OrderChecker()
    for event in (*kept, *rest):
        checker.feed(event.json())
    assert list(checker.texts.values()) == [count(60)]
    assert _told([*kept, *rest])[-1] == _told(fresh)[-1]


async def test_who_comes_anew_in_the_middle_is_told_the_turn_from_its_beginning(served: Served) -> None:
    session_id = await _made(served)
    async with _connect(served, session_id) as socket:
        await say(socket, "count to 2")
        await until(socket, "response.done")
        await say(socket, "slowly count to 40")
        await until(socket, "response.output_text.delta")
        events = await _follow(served, session_id, _kind("response.done"))
    checker = OrderChecker()
    for event in events:
        checker.feed(event.json())
    # The question may be in the turn's first row: it is, if it came together with the ask for an answer.
    kinds = [event.kind for event in events if not event.kind.startswith("conversation.item.")]
    assert kinds[0] == "response.created"
    assert list(checker.texts.values()) == [count(40)]


async def test_without_a_row_it_begins_now(served: Served) -> None:
    session_id, last_seq = await _eventful(served)
    parser, events = Parser(), []
    async with (
        served.http() as client,
        client.stream("GET", f"/v1/sessions/{session_id}/events") as answer,
        aclosing(answer.aiter_bytes()) as data,  # type: ignore[type-var]  # a generator, whatever httpx calls it
    ):
        assert parser.feed(await anext(data)) == []
        assert parser.comments, "the answer has to begin at once, or a client takes the server for dead"
        await client.patch(f"/v1/sessions/{session_id}", json={"title": "New"})
        while not any(event.seq for event in events):
            events += parser.feed(await anext(data))
    assert [event.kind for event in events] == ["baton.session.updated", "baton.sequence"]
    assert (events[0].json()["title"], events[1].seq) == ("New", last_seq + 1)


@pytest.mark.parametrize(
    ("params", "headers", "code", "param"),
    [
        ({"after": "999"}, {}, "sequence_gap", "after"),
        ({"after": "9" * 30}, {}, "sequence_gap", "after"),
        ({"after": "-1"}, {}, "invalid_input", "after"),
        ({"after": "x"}, {}, "invalid_input", "after"),
        ({}, {"last-event-id": "999"}, "sequence_gap", "after"),
        ({"after": "0"}, {"last-event-id": "999"}, "sequence_gap", "after"),
        ({}, {"last-event-id": "x"}, "sequence_gap", "Last-Event-ID"),
        ({}, {"last-event-id": "9" * 30}, "sequence_gap", "Last-Event-ID"),
    ],
    ids=str,
)
async def test_a_row_that_the_session_has_not_reached_is_an_explicit_error(
    served: Served, params: dict[str, str], headers: dict[str, str], code: str, param: str
) -> None:
    session_id = await _made(served)
    async with served.http() as client:
        answer = await client.get(f"/v1/sessions/{session_id}/events", params=params, headers=headers)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


async def test_a_reader_who_goes_leaves_nothing_behind(served: Served) -> None:
    session_id = await _made(served)
    session = await served.conductor.sessions.open("local", session_id)
    assert session._state.idle
    async with served.http() as client, client.stream("GET", f"/v1/sessions/{session_id}/events") as answer:
        async with aclosing(answer.aiter_bytes()) as data:  # type: ignore[type-var]  # as above
            await anext(data)
        await served.until(lambda: not session._state.idle)
    await served.until(lambda: session._state.idle)


async def test_a_quiet_session_is_bridged_by_comments(serve: Any) -> None:
    clock = ManualClock()
    async with serve(rules=RULES, clock=clock) as served:
        session_id = await _made(served)
        parser = Parser()
        async with (
            served.http() as client,
            client.stream("GET", f"/v1/sessions/{session_id}/events") as answer,
            aclosing(answer.aiter_bytes()) as data,  # type: ignore[type-var]  # as above
        ):
            for _ in range(3):
                assert parser.feed(await anext(data)) == []
                clock.advance(15)
        assert len(parser.comments) == 3
