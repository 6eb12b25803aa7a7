"""`/v1/sessions`: what is kept, and for whom."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
import websockets
from support.app import Served, serving_app
from support.rules import RULES
from support.server import count, say, until, words

from memory.keys import RequestDefaults
from models.content import text_of
from streaming.limits import SurfaceLimits

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SESSION = {"id", "object", "subject", "title", "instructions", "model", "created_at", "updated_at", "last_seq"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    async with serving_app(folder, limits=SurfaceLimits(drain_s=1), rules=RULES) as running:
        # A first key closes the door, so that each test may have a tenant of its own.
        await running.key("nobody")
        yield running


_tenants = iter(range(1_000))


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has nothing yet."""
    async with served.http(await served.key(f"tenant{next(_tenants)}")) as client:
        yield client


def _connect(client: httpx.AsyncClient, query: str = "") -> websockets.connect:
    key = client.headers["authorization"]
    address = str(client.base_url).replace("http", "ws")
    return websockets.connect(f"{address}/v1/realtime{query}", additional_headers={"authorization": key})


async def _made(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/sessions", json=fields)
    assert answer.status_code == 201, answer.text
    session: dict[str, Any] = answer.json()
    assert set(session) == _SESSION
    assert session["object"] == "session"
    return session


async def _talk(client: httpx.AsyncClient, session_id: str, *texts: str) -> None:
    async with _connect(client, f"?session={session_id}") as socket:
        for text in texts:
            await say(socket, text)
            assert (await until(socket, "response.done"))[-1]["response"]["status"] == "completed"


async def _refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    return error


# Make, read, change


async def test_a_session_is_made_read_and_changed(client: httpx.AsyncClient) -> None:
    made = await _made(client, title="  A talk ", instructions="Be kind.", model="scripted")
    assert (made["title"], made["instructions"], made["model"]) == ("A talk", "Be kind.", "scripted")
    assert made["id"].startswith("sess_")
    path = f"/v1/sessions/{made['id']}"
    assert (await client.get(path)).json() == {**made, "items": [], "turns": []}
    changed = (await client.patch(path, json={"title": "Another"})).json()
    assert changed == {
        **made,
        "title": "Another",
        "last_seq": made["last_seq"] + 1,
        "updated_at": changed["updated_at"],
    }
    cleared = (await client.patch(path, json={"instructions": None, "model": None})).json()
    assert (cleared["title"], cleared["instructions"], cleared["model"]) == ("Another", None, None)
    assert (await client.patch(path, json={})).json() == cleared
    assert (await client.patch(path, json={"title": "Another"})).json() == cleared, "nothing has changed"


async def test_an_empty_session_is_kept_too(client: httpx.AsyncClient) -> None:
    made = await _made(client)
    assert [session["id"] for session in (await client.get("/v1/sessions")).json()["data"]] == [made["id"]]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "nonesuch"}, 404, "model_not_found", "model"),
        ({"colour": "red"}, 400, "unknown_parameter", "colour"),
        ({"title": ""}, 400, "invalid_input", "title"),
        ({"title": "   "}, 400, "invalid_input", "title"),
        ({"title": "x" * 201}, 400, "invalid_input", "title"),
        ({"instructions": "x" * 100_001}, 400, "context_length_exceeded", "instructions"),
        ({"title": 5}, 400, "invalid_input", "title"),
    ],
    ids=str,
)
async def test_what_cannot_be_set_is_refused_and_changes_nothing(
    client: httpx.AsyncClient, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    await _refused(await client.post("/v1/sessions", json=fields), status, code, param)
    assert (await client.get("/v1/sessions")).json()["data"] == []
    made = await _made(client, title="A talk")
    path = f"/v1/sessions/{made['id']}"
    await _refused(await client.patch(path, json={"instructions": "Be kind.", **fields}), status, code, param)
    assert (await client.get(path)).json() == {**made, "items": [], "turns": []}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("GET", "/export"),
        ("GET", "/export?format=markdown"),
        ("GET", "/events"),
    ],
)
async def test_what_is_anothers_is_not_found_and_neither_is_what_is_not_there(
    served: Served, client: httpx.AsyncClient, method: str, path: str
) -> None:
    made = await _made(client, title="Mine")
    body = {"title": "Theirs"} if method == "PATCH" else None
    async with served.http(await served.key("another")) as another:
        for session_id in (made["id"], "sess_nonesuch", "%00", "a%2F..%2Fb"):
            answer = await another.request(method, f"/v1/sessions/{session_id}{path}", json=body)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] in {"session_not_found", "not_found"}
        await _refused(await another.get(f"/v1/sessions?before={made['id']}"), 404, "session_not_found")
        assert made["id"] not in (await another.get("/v1/sessions")).text
    assert (await client.get(f"/v1/sessions/{made['id']}")).json()["title"] == "Mine"


# List


async def test_the_list_is_paged_by_what_was_active_last(client: httpx.AsyncClient) -> None:
    made = [(await _made(client, title=str(n)))["id"] for n in range(5)]
    await _talk(client, made[1], "count to 2")

    async def page(**query: Any) -> tuple[list[str], bool]:
        sent = (await client.get("/v1/sessions", params=query)).json()
        assert sent["object"] == "list"
        assert all(set(session) == _SESSION for session in sent["data"])
        return [session["title"] for session in sent["data"]], sent["has_more"]

    assert await page() == (["1", "4", "3", "2", "0"], False)
    assert await page(limit=2) == (["1", "4"], True)
    assert await page(limit=2, before=made[4]) == (["3", "2"], True)
    assert await page(limit=2, before=made[2]) == (["0"], False)
    assert await page(limit=1, before=made[0]) == ([], False)
    assert await page(limit=5) == (["1", "4", "3", "2", "0"], False)


@pytest.mark.parametrize("limit", ["0", "-1", "201", "many", "1.5"])
async def test_a_page_that_cannot_be_is_refused(client: httpx.AsyncClient, limit: str) -> None:
    await _refused(await client.get(f"/v1/sessions?limit={limit}"), 400, "invalid_input", "limit")


# Titles


async def test_a_session_is_called_after_its_first_message_until_somebody_names_it(client: httpx.AsyncClient) -> None:
    session_id = (await _made(client))["id"]
    path = f"/v1/sessions/{session_id}"
    assert (await client.get(path)).json()["title"] is None
    await _talk(client, session_id, "count to 2\n\nand   on", "count to 3")
    assert (await client.get(path)).json()["title"] == "count to 2 and on"
    assert (await client.patch(path, json={"title": "Numbers"})).json()["title"] == "Numbers"
    await _talk(client, session_id, "count to 4")
    assert (await client.get(path)).json()["title"] == "Numbers"
    assert (await client.patch(path, json={"title": None})).json()["title"] is None
    await _talk(client, session_id, "count to 5")
    assert (await client.get(path)).json()["title"] == "count to 5"


async def test_a_long_first_message_makes_a_short_title(client: httpx.AsyncClient) -> None:
    session_id = (await _made(client))["id"]
    await _talk(client, session_id, "word " * 50)
    title = (await client.get(f"/v1/sessions/{session_id}")).json()["title"]
    assert len(title) <= 60
    assert title.endswith("word…")


# The system prompt


async def _system(served: Served, client: httpx.AsyncClient, query: str, *events: dict[str, Any]) -> str | None:
    """Send events and ask for a response; return the system message that the engine was shown."""
    async with _connect(client, query) as socket:
        for event in events:
            await socket.send(json.dumps(event))
        if not any(event["type"] == "response.create" for event in events):
            await socket.send('{"type": "response.create"}')
        (done,) = [e for e in await until(socket, "response.done") if e["type"] == "response.done"]
        assert done["response"]["status"] == "completed"
    first, *_ = served.engine.requests[-1].messages or (None,)
    return None if first is None or getattr(first, "role", "") != "system" else text_of(first)


async def test_instructions_go_response_before_connection_before_session_before_key(served: Served) -> None:
    defaults = RequestDefaults(instructions="of the key")
    async with served.http(await served.key("prompted", defaults=defaults)) as client:
        session_id = (await _made(client))["id"]
        query, path = f"?session={session_id}", f"/v1/sessions/{session_id}"
        update = {"type": "session.update", "session": {"type": "realtime", "instructions": "of the connection"}}
        create = {"type": "response.create", "response": {"instructions": "of the response"}}
        assert await _system(served, client, query) == "of the key"
        await client.patch(path, json={"instructions": "of the session"})
        assert await _system(served, client, query) == "of the session"
        assert await _system(served, client, query, update) == "of the connection"
        assert await _system(served, client, query, update, create) == "of the response"
        assert await _system(served, client, query, create) == "of the response"
        await client.patch(path, json={"instructions": None})
        assert await _system(served, client, query) == "of the key"


async def test_instructions_that_are_set_while_somebody_is_connected_hold_for_the_next_turn(
    served: Served, client: httpx.AsyncClient
) -> None:
    session_id = (await _made(client))["id"]
    async with _connect(client, f"?session={session_id}&after=0&baton=events") as socket:
        await until(socket, "baton.session.updated")
        await client.patch(f"/v1/sessions/{session_id}", json={"instructions": "Be kind."})
        await say(socket, "count to 2")
        events = await until(socket, "response.done")
    assert text_of(served.engine.requests[-1].messages[0]) == "Be kind."
    assert "Be kind." in [e["instructions"] for e in events if e["type"] == "baton.session.updated"]


async def test_a_sessions_model_is_the_one_of_its_turns(served: Served, client: httpx.AsyncClient) -> None:
    session_id = (await _made(client, model="scripted"))["id"]
    async with _connect(client, f"?session={session_id}&baton=events") as socket:
        await say(socket, "count to 2")
        (routed,) = [e for e in await until(socket, "response.done") if e["type"] == "baton.turn.routed"]
    assert (routed["model"], routed["reasons"][0]) == ("scripted", "asked for by name")


# Delete


async def test_a_deleted_session_is_gone_with_all_that_was_in_it(served: Served, client: httpx.AsyncClient) -> None:
    session_id = (await _made(client))["id"]
    await _talk(client, session_id, "count to 2")
    answer = await client.delete(f"/v1/sessions/{session_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    await _refused(await client.get(f"/v1/sessions/{session_id}"), 404, "session_not_found")
    await _refused(await client.delete(f"/v1/sessions/{session_id}"), 404, "session_not_found")
    assert (await client.get("/v1/sessions")).json()["data"] == []

    def left(connection: Any) -> int:
        tables = ("events", "turns", "effects")
        query = " UNION ALL ".join(f"SELECT 1 FROM {table} WHERE session_id = ?" for table in tables)
        return len(connection.exec_driver_sql(query, (session_id,) * len(tables)).fetchall())

    assert await served.conductor.database.read(left) == 0


async def test_deleting_a_session_stops_its_turn_and_tells_who_is_connected(
    served: Served, client: httpx.AsyncClient
) -> None:
    session_id = (await _made(client))["id"]
    path = f"/v1/sessions/{session_id}"
    async with (
        _connect(client, f"?session={session_id}") as speaker,
        _connect(client, f"?session={session_id}") as listener,
        client.stream("GET", f"{path}/events?after=0") as follower,
    ):
        await say(speaker, "slowly count to 1000")
        await until(speaker, "response.output_text.delta")
        assert (await client.delete(path)).status_code == 204
        for socket in (speaker, listener):
            events: list[dict[str, Any]] = []
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                await _read_to_the_end(socket, events)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
            (done,) = [e for e in events if e["type"] == "response.done"]
            assert done["response"]["status"] in {"cancelled", "failed"}
            assert (events[-1]["type"], events[-1]["error"]["code"]) == ("error", "session_closed")
        told = (await follower.aread()).decode()
        assert json.loads(told.rstrip().rsplit("data: ", 1)[1])["error"]["code"] == "session_closed"
    await served.until(lambda: served.engine.running == 0)
    await _refused(await client.get(path), 404, "session_not_found")
    with pytest.raises(websockets.InvalidStatus) as refused:
        await _connect(client, f"?session={session_id}")
    assert refused.value.response.status_code == 404


async def _read_to_the_end(socket: websockets.ClientConnection, events: list[dict[str, Any]]) -> None:
    while True:
        events.append(json.loads(await socket.recv()))


async def test_many_who_delete_at_once_delete_once(client: httpx.AsyncClient) -> None:
    session_id = (await _made(client))["id"]
    answers = await asyncio.gather(*(client.delete(f"/v1/sessions/{session_id}") for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [204, 404, 404, 404, 404]


# Export


async def test_a_conversation_is_exported_whole_even_beyond_what_a_model_is_shown(serve: Any) -> None:
    async with serve(rules=RULES, history_items=4) as served, served.http() as client:
        session_id = (await _made(client, title="A talk"))["id"]
        async with websockets.connect(f"ws://{served.address}/v1/realtime?session={session_id}") as socket:
            for n in range(1, 6):
                await say(socket, f"count to {n}")
                assert words(await until(socket, "response.done")) == count(n)
        assert len(served.engine.requests[-1].messages) <= 5
        answer = await client.get(f"/v1/sessions/{session_id}/export")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-disposition"] == f'attachment; filename="{session_id}.json"'
        exported = answer.json()
        shown = (await client.get(f"/v1/sessions/{session_id}")).json()
        assert exported == shown
        assert [turn["state"] for turn in exported["turns"]] == ["finished"] * 5
        assert [turn["after"] for turn in exported["turns"]] == [item["id"] for item in exported["items"][1::2]]
        texts = [item["content"][0]["text"] for item in exported["items"]]
        assert texts == [text for n in range(1, 6) for text in (f"count to {n}", count(n))]
        answer = await client.get(f"/v1/sessions/{session_id}/export?format=markdown")
        assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
        assert answer.headers["content-disposition"] == f'attachment; filename="{session_id}.md"'
        assert answer.text.startswith("# A talk\n\n**User**\n\n> count to 1\n\n**Assistant**\n\n> 1\n")
        refused = await client.get(f"/v1/sessions/{session_id}/export?format=pdf")
        await _refused(refused, 400, "invalid_input", "format")


async def test_what_was_taken_out_of_a_conversation_is_not_exported(client: httpx.AsyncClient) -> None:
    session_id = (await _made(client))["id"]
    await _talk(client, session_id, "count to 2", "count to 3")
    items = (await client.get(f"/v1/sessions/{session_id}")).json()["items"]
    async with _connect(client, f"?session={session_id}") as socket:
        await socket.send(json.dumps({"type": "conversation.item.delete", "item_id": items[0]["id"]}))
        await until(socket, "conversation.item.deleted")
    assert (await client.get(f"/v1/sessions/{session_id}/export")).json()["items"] == items[1:]
