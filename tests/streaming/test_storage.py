"""What clients are told while the storage fails: the cause, on every surface, and that it is over once it is."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest
import websockets
from support.app import Served
from support.rules import RULES

_PATH = "/v1/chat/completions"
_SAID = {"messages": [{"role": "user", "content": "count to 3"}], "store": True}
_ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "count to 3"}]}


async def _fill(served: Served) -> None:
    """Leave the file no page to grow by, which SQLite answers as it does a full disk."""
    pages = await served.conductor.database.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
    await served.conductor.database.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}"))


async def _make_room(served: Served) -> None:
    await served.conductor.database.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1000000"))


async def _until_full(served: Served, client: Any) -> Any:
    """Keep what is said until nothing more can be."""
    for _ in range(50):
        body = {**_SAID, "messages": [{"role": "user", "content": "count to 3 " + "x" * 20_000}]}
        if (answer := await client.post(_PATH, json=body)).status_code != 200:
            return answer
    raise AssertionError("it never got full")


async def _read_to_the_end(socket: websockets.ClientConnection, events: list[dict[str, Any]]) -> None:
    while True:
        events.append(json.loads(await socket.recv()))


@pytest.fixture
async def served(serve: Any) -> AsyncIterator[Served]:
    async with serve(rules=RULES) as running:
        yield running


async def test_a_full_disk_is_507_over_rest_and_the_server_is_not_ready_until_there_is_room(served: Served) -> None:
    async with served.http() as client:
        await served.until(lambda: True)
        assert (await client.post(_PATH, json=_SAID)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        await _fill(served)
        refused = await _until_full(served, client)
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
        assert refused.json()["error"]["type"] == "server_error"
        assert refused.headers["x-should-retry"] == "false"
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")
        assert ready.json()["storage"]["code"] == "storage_full"
        assert "disk is full" in ready.json()["storage"]["message"]
        # What keeps nothing goes on.
        assert (await client.post(_PATH, json={**_SAID, "store": False})).status_code == 200
        await _make_room(served)
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert "storage" not in ready.json()
        assert (await client.post(_PATH, json=_SAID)).status_code == 200


@pytest.mark.parametrize("together", [True, False])
async def test_over_the_websocket_the_event_is_answered_and_nobody_is_asked_to_connect_into_the_same_failure(
    served: Served, together: bool
) -> None:
    async with served.http() as client:
        assert (await client.post(_PATH, json=_SAID)).status_code == 200
        await _fill(served)
        await _until_full(served, client)
    events: list[dict[str, Any]] = []
    big = {**_ITEM, "content": [{"type": "input_text", "text": "x" * 90_000}]}
    async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket, asyncio.timeout(10):
        await socket.send(json.dumps({"type": "conversation.item.create", "event_id": "said", "item": big}))
        if together:
            await socket.send(json.dumps({"type": "response.create", "event_id": "asked"}))
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await _read_to_the_end(socket, events)
    errors = [event["error"] for event in events if event["type"] == "error"]
    assert {error["code"] for error in errors} == {"storage_full"}
    told = [error["event_id"] for error in errors]
    assert told == (["said", "asked", None] if together else ["said", None])
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013
    await _make_room(served)
    async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket, asyncio.timeout(10):
        await socket.send(json.dumps({"type": "conversation.item.create", "item": _ITEM}))
        await socket.send(json.dumps({"type": "response.create"}))
        while (event := json.loads(await socket.recv()))["type"] != "response.done":
            assert event["type"] != "error"
        assert event["response"]["status"] == "completed"


async def test_a_damaged_log_is_told_as_damage(served: Served) -> None:
    async with served.http() as client:
        session_id = (await client.post(_PATH, json=_SAID)).json()["baton"]["session"]
        session = await served.conductor.sessions.open("local", session_id)
        await session.close("server_stopped")
        with closing(sqlite3.connect(served.conductor.home.database)) as connection:
            connection.execute("UPDATE events SET body = substr(body, 1, 20)")
            connection.commit()
        answer = await client.get(f"/v1/sessions/{session_id}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "storage_corrupt")
        assert answer.headers["x-should-retry"] == "false"
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://{served.address}/v1/realtime?session={session_id}")
        assert b"storage_corrupt" in refused.value.response.body
