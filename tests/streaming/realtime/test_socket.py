"""What the socket adapter does with clients that do not behave."""

import asyncio
import json
import socket as sockets
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

import psutil
import pytest
import websockets
from prometheus_client import CollectorRegistry

from memory.keys import Key, RequestDefaults
from models.clock import ManualClock
from models.content import Item
from models.errors import Conflict, Overloaded, too_long
from orchestrator.decide.inputs import Controlled, Inputs
from orchestrator.decide.ports import Asked, Ports
from orchestrator.events import SessionEvent, SessionSettings, TurnInput
from orchestrator.sessions.order import Order
from orchestrator.sessions.requests import Pending
from streaming.auth import Caller
from streaming.limits import RateLimits, SurfaceLimits
from streaming.metrics import SurfaceMeters
from streaming.realtime.options import Options
from streaming.realtime.protocol import RealtimeProtocol
from streaming.realtime.socket import _Connection

_FLOOD = json.dumps({"rules": [{"pattern": ".*", "reply": "{n} " + "x" * 2000 + " ", "times": "500", "gap_s": 0.0005}]})


def _is_connected(server_port: int, client_port: int) -> bool:
    return any(
        (c.laddr.port, c.raddr.port) == (server_port, client_port)
        for c in psutil.Process().net_connections("tcp")
        if c.raddr
    )


async def _ask(socket: websockets.ClientConnection) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]}
    await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
    await socket.send(json.dumps({"type": "response.create"}))


async def test_a_client_that_stops_reading_is_dropped_and_its_session_goes_on(serve) -> None:
    limits = SurfaceLimits(send_timeout_s=0.5, drain_s=1)
    async with serve(limits=limits, script=_FLOOD) as served:
        raw = sockets.socket()
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        raw.setblocking(False)
        host, port = served.address.split(":")
        await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
        lazy = await websockets.connect(f"ws://{served.address}/v1/realtime", sock=raw, max_queue=1, ping_interval=None)
        assert lazy.response is not None
        session_id = lazy.response.headers["x-baton-session"]
        session = await served.conductor.sessions.open("local", session_id)
        for _ in range(8):
            await _ask(lazy)
        # It reads nothing; what it is sent fills the buffers, and after the time-out its connection is let go.
        async with asyncio.timeout(30):
            while _is_connected(int(port), raw.getsockname()[1]):  # noqa: ASYNC110  # the kernel sets no event
                await asyncio.sleep(0.1)
        await served.until(lambda: served.sample("baton_websockets", tenant="local") == 0)
        events = session.events(0)
        async with asyncio.timeout(30):
            async for event in events:
                if event.kind == "committed" and event.event.kind == "turn_ended":
                    break
        await events.aclose()
        assert event.event.state == "finished"
        lazy.transport.abort()


async def test_more_connections_than_the_limit_are_refused_with_its_number(serve) -> None:
    async with serve(limits=SurfaceLimits(sockets=1, drain_s=1)) as served:
        url = f"ws://{served.address}/v1/realtime"
        async with websockets.connect(url):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(url)
            assert refused.value.response.status_code == 503
            assert b"1 websockets are open" in refused.value.response.body


class _Socket:
    """A websocket on which everything the client sends has arrived already, its going included."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._messages = [{"type": "websocket.receive", "text": json.dumps(message)} for message in messages]
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        return self._messages.pop(0) if self._messages else {"type": "websocket.disconnect"}

    async def send_text(self, text: str) -> None:
        self.sent.append(json.loads(text))

    async def close(self, code: int, reason: str) -> None:
        self.sent.append({"type": "closed", "code": code})

    def told(self) -> list[str]:
        """Return the types of what was sent, and an error's code."""
        return [event["error"]["code"] if event["type"] == "error" else event["type"] for event in self.sent[1:]]


class _Session:
    """A session that notes what is asked of it, and fails at what it is told to."""

    session_id = "sess_1"
    settings = SessionSettings()
    running_turn: str | None = None
    requested_turn: str | None = None

    def __init__(self, fails: Mapping[str, Exception]) -> None:
        self._fails = fails
        self.asked: list[str] = []

    async def events(self, after: int) -> AsyncGenerator[SessionEvent, None]:
        await asyncio.get_running_loop().create_future()
        yield  # type: ignore[misc]  # never reached; it makes this a generator

    async def say(self, items: tuple[Item, ...]) -> Pending:
        return self._note("say")

    async def request(self, turn_input: TurnInput, context: object = None, *, interrupts: str | None = None) -> Pending:
        if interrupts is not None:
            self.requested_turn = "turn_new"
        elif self.requested_turn is None and "run" in self._fails:
            self.running_turn = "turn_old"
        return self._note("request" if interrupts is None else f"request instead of {interrupts}")

    async def cancel(self, turn_id: str, reason: str) -> None:
        self._note(f"cancel {turn_id}")

    def _note(self, what: str) -> Pending:
        self.asked.append(what)
        if what in self._fails:
            raise self._fails[what]
        pending = Pending()
        pending.settle(None)
        return pending


class _Lenient:
    async def check(self, caller: Caller) -> None: ...


async def _hear(
    *messages: dict[str, Any], per_minute: int | None = None, **fails: Exception
) -> tuple[list[str], list[str], RateLimits, Key]:
    """Have a connection hear messages that came together. Return what it asked, what it said, and what it counted."""
    socket, session = _Socket(*messages), _Session({name.replace("_", " "): error for name, error in fails.items()})
    protocol = RealtimeProtocol(
        "sess_1",
        0,
        options=Options(),
        defaults=RequestDefaults(),
        settings=session.settings,
        order=Order(),
    )
    rates = RateLimits(ManualClock())
    key = Key(
        key_id="a",
        tenant="t",
        name="",
        requests_per_minute=per_minute,
        defaults=RequestDefaults(),
        created_ms=0,
        revoked_ms=None,
    )
    caller, meters = Caller(tenant="t", key=key), SurfaceMeters(CollectorRegistry())
    made: Any = _Connection(
        cast("Any", socket),
        cast("Any", session),
        protocol,
        caller,
        cast("Any", _Lenient()),
        rates,
        meters,
        cast("Any", None),
        cast("Any", None),
        ManualClock(),
    )
    before = asyncio.all_tasks()
    await made.run(0)
    assert asyncio.all_tasks() == before, "a task outlived its connection"
    return session.asked, socket.told(), rates, key


_SAY = {
    "type": "conversation.item.create",
    "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
}
_ASK = {"type": "response.create"}
_UPDATE = {"type": "session.update", "session": {"type": "realtime"}}


async def test_what_came_before_the_client_went_is_done() -> None:
    assert (await _hear(_SAY, _ASK))[0] == ["say", "request"]


async def test_answers_come_in_the_order_in_which_was_asked_also_after_a_failure() -> None:
    asked, told, *_ = await _hear(_SAY, _UPDATE, say=Conflict("taken", code="item_exists"))
    assert (asked, told) == (["say"], ["item_exists", "session.updated"])


async def test_what_is_refused_counts_at_the_keys_rate() -> None:
    refused = Conflict("A turn is running.", code="turn_active")
    asked, told, rates, key = await _hear(_SAY, _ASK, per_minute=3, request=refused)
    assert (asked, told) == (["say", "request"], ["conversation_already_has_active_response"])
    rates.take(key)
    with pytest.raises(Overloaded):
        rates.take(key)


async def test_a_defect_costs_neither_the_connection_nor_what_is_asked_next(caplog: pytest.LogCaptureFixture) -> None:
    asked, told, *_ = await _hear(_SAY, _ASK, _UPDATE, request=ZeroDivisionError())
    assert (asked, told) == (["say", "request"], ["internal", "session.updated"])
    assert "ZeroDivisionError" in caplog.text


async def test_a_cancellation_stops_what_runs_and_what_was_to_interrupt_it() -> None:
    instead = {**_ASK, "response": {"baton": {"interrupts": True}}}
    stop = {"type": "response.cancel"}
    asked, told, *_ = await _hear(_ASK, instead, stop, run=Conflict("", code="it runs on"))
    assert asked == ["request", "request instead of turn_old", "cancel turn_new", "cancel turn_old"]
    assert told == []
    ended = Conflict("It has ended.", code="turn_not_active")
    named = {**stop, "response_id": "resp_new"}
    asked, told, *_ = await _hear(_ASK, instead, named, run=ended)
    assert asked[2:] == ["cancel turn_new"]
    assert (await _hear(stop))[1] == ["response_cancel_not_active"]


_BAD_SAY = {**_SAY, "item": {**_SAY["item"], "content": [{"type": "input_text"}]}}
_TOO_LONG = too_long("an item", 2, 1)


async def test_a_conversation_that_lacks_what_was_said_last_is_not_answered_for_the_reason_that_it_lacks_it() -> None:
    code = "context_length_exceeded"
    assert (await _hear(_SAY, _UPDATE, _ASK, _ASK, say=_TOO_LONG))[:2] == (
        ["say", "request"],
        [code, "session.updated", code],
    )
    assert (await _hear(_SAY, _ASK, say=_TOO_LONG))[:2] == (["say"], [code, code])
    assert (await _hear(_BAD_SAY, _ASK))[:2] == ([], ["invalid_value", "invalid_value"])
    assert (await _hear(_SAY, _UPDATE, _ASK, say=ZeroDivisionError()))[1] == ["internal", "session.updated", "internal"]


async def test_it_is_answered_once_something_else_was_said_or_if_it_was_there_already() -> None:
    assert (await _hear(_BAD_SAY, _SAY, _ASK))[:2] == (["say", "request"], ["invalid_value"])
    taken = Conflict("taken", code="item_exists")
    assert (await _hear(_SAY, _UPDATE, _ASK, say=taken))[:2] == (
        ["say", "request"],
        ["item_exists", "session.updated"],
    )


async def test_messages_and_asks_count_at_the_keys_rate() -> None:
    assert (await _hear(_SAY, _ASK, per_minute=1))[:2] == (["say"], ["rate_limited"])
    assert (await _hear(_SAY, _SAY, _UPDATE, per_minute=1))[:2] == (["say"], ["rate_limited", "session.updated"])


class _SlowController:
    """Takes a second to say who does it, as a model would; notes how it was left."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    async def control(self, asked: Asked, inputs: Inputs, fault: str | None) -> Controlled:
        self.asked.set()
        try:
            await asyncio.sleep(1.0)  # the second is what is tried here
        finally:
            self.left.set()
        return Controlled(agent="writer", card=None, reason="it said so")


async def test_a_response_is_cancelled_while_it_is_decided_and_the_client_is_told_at_once(serve) -> None:
    async with serve(rules=[{"pattern": "(?s)(.*)", "reply": r"you said \1"}]) as served:
        decider = served.conductor.executor._decider
        await decider.graph()  # LangGraph takes its time once
        controller = _SlowController()
        decider._graph = None
        decider._ports = Ports(controller=controller)
        await decider.graph()
        async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
            session_id = socket.response.headers["x-baton-session"]
            await socket.recv()
            await _ask(socket)
            await asyncio.wait_for(controller.asked.wait(), 10)
            await asyncio.sleep(0.1)
            began_s = time.perf_counter()
            await socket.send(json.dumps({"type": "response.cancel", "event_id": "mine"}))
            told = []
            while not told or told[-1]["type"] != "response.done":
                told.append(json.loads(await socket.recv()))
            took_s = time.perf_counter() - began_s
            assert took_s < 0.05
            await asyncio.wait_for(controller.left.wait(), 1)
            assert told[-1]["response"]["status"] == "cancelled"
            assert [event["type"] for event in told if event["type"].startswith("response.")] == [
                *("response.created", "response.done")
            ]
            # What was said is part of the conversation, and the next response is decided as ever.
            await _until(socket, "conversation.item.done", told)
            await socket.send(json.dumps({"type": "response.create"}))
            told = await _until(socket, "response.done")
            assert told[-1]["response"]["output"][0]["content"][0]["text"] == "you said go"
        session = await served.conductor.sessions.open("local", session_id)
        assert [type(item).__name__ for item in session.items] == ["Message", "Message"]


async def test_while_one_is_decided_everything_else_is_heard_and_a_second_is_refused(serve) -> None:
    async with serve(rules=[{"pattern": "(?s)(.*)", "reply": r"you said \1"}]) as served:
        controller = _SlowController()
        served.conductor.executor._decider._ports = Ports(controller=controller)
        async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
            await socket.recv()
            await _ask(socket)
            await asyncio.wait_for(controller.asked.wait(), 10)
            await socket.send(json.dumps(_UPDATE))
            await socket.send(json.dumps({**_ASK, "event_id": "second"}))
            told = await _until(socket, "error")
            assert "session.updated" in [event["type"] for event in told]
            assert told[-1]["error"]["code"] == "conversation_already_has_active_response"
            assert told[-1]["error"]["event_id"] == "second"
            assert not controller.left.is_set()
            told = await _until(socket, "response.done")
            assert told[-1]["response"]["status"] == "completed"


async def test_a_message_and_the_request_that_was_sent_with_it_are_one_transaction(serve) -> None:
    async with serve(rules=[{"pattern": "(?s)(.*)", "reply": r"you said \1"}]) as served:
        async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
            session_id = socket.response.headers["x-baton-session"]
            await socket.recv()
            await _ask(socket)
            await _until(socket, "response.done")
        session = await served.conductor.sessions.open("local", session_id)
        rows = await session._journal.read(0, 10)
        assert [row.event.kind for row in rows] == ["turn_accepted", "item_closed", "task_ended", "turn_ended"]


async def _until(socket: Any, kind: str, told: Any = ()) -> list[dict[str, Any]]:
    """Return what was told, and what is received until there is an event of a kind."""
    told = list(told)
    while all(event["type"] != kind for event in told):
        told.append(json.loads(await socket.recv()))
    return told
