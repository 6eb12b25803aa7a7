"""Tools that the server runs, over the wire: asked for by name, allowed over the websocket or REST, also after a kill."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from support.app import Served, serving_app
from support.server import Server
from typer.testing import CliRunner

from models.errors import BadInput
from streaming.cli import app
from streaming.limits import SurfaceLimits

TOOLS = """
from pathlib import Path

from agents.tools.python import ToolCall, Tools

tools = Tools()


@tools.register(effect="pure")
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b


@tools.register(effect="effectful")
def send(to: str, call: ToolCall) -> str:
    "Send a greeting."
    with Path(__file__).with_name("sent").open("a") as file:
        file.write(f"{to} {call.key}\\n")
    return f"sent to {to}"
"""

RULES: list[dict[str, Any]] = [
    {"pattern": "^add$", "reply": '{"a": 2, "b": 3}', "call": "add"},
    {"pattern": "^send$", "reply": '{"to": "Ada"}', "call": "send"},
    {"pattern": "(?s)(.*)", "reply": r"it said: \1"},
]

OFFER = [{"type": "server", "name": "add"}, {"type": "server", "name": "send"}]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.py"
    path.write_text(TOOLS)
    return path


@pytest.fixture
def sent(tmp_path: Path) -> Callable[[], list[str]]:
    """Return what was sent so far."""
    path = tmp_path / "sent"
    return lambda: path.read_text().splitlines() if path.exists() else []


@asynccontextmanager
async def serving(tmp_path: Path, tools: Path) -> AsyncIterator[Served]:
    async with serving_app(tmp_path, limits=SurfaceLimits(drain_s=1), rules=RULES, tools=tools) as served:
        yield served


async def ask(socket: Any, text: str) -> None:
    session = {"type": "realtime", "tools": OFFER}
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    for event in (
        {"type": "session.update", "session": session},
        {"type": "conversation.item.create", "item": item},
        {"type": "response.create"},
    ):
        await socket.send(json.dumps(event))


async def until(socket: Any, holds: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Return what is received, up to and with the first event that `holds`."""
    told: list[dict[str, Any]] = []
    while not told or not holds(told[-1]):
        told.append(json.loads(await socket.recv()))
        assert told[-1]["type"] != "error", told[-1]
    return told


def is_request(event: dict[str, Any]) -> bool:
    return event["type"] == "conversation.item.done" and event["item"]["type"] == "mcp_approval_request"


def is_done(event: dict[str, Any]) -> bool:
    return bool(event["type"] == "response.done")


def output_of(told: list[dict[str, Any]]) -> list[str]:
    return [item["type"] for item in told[-1]["response"]["output"]]


async def test_a_pure_tool_is_run_and_the_answer_comes_in_the_same_response(tmp_path: Path, tools: Path) -> None:
    async with serving(tmp_path, tools) as served, websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
        await ask(socket, "add")
        told = await until(socket, is_done)
        (updated,) = [event for event in told if event["type"] == "session.updated"]
        assert updated["session"]["tools"] == OFFER
        assert output_of(told) == ["function_call", "function_call_output", "message"]
        assert told[-1]["response"]["output"][-1]["content"][0]["text"] == "it said: 5"
        assert sum(event["type"] == "response.created" for event in told) == 1
        # What a tool returned is no text of the answer's.
        assert "".join(e["delta"] for e in told if e["type"] == "response.output_text.delta") == "it said: 5"


@pytest.mark.parametrize("way", ["websocket", "rest"])
async def test_a_call_is_allowed_over_either_surface(tmp_path: Path, tools: Path, sent: Any, way: str) -> None:
    async with serving(tmp_path, tools) as served, websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
        session_id = socket.response.headers["x-baton-session"]  # type: ignore[union-attr]
        await ask(socket, "send")
        request = (await until(socket, is_request))[-1]["item"]
        assert (request["name"], request["arguments"]) == ("send", '{"to": "Ada"}')
        assert request["expires_at"] > 1e9
        assert sent() == []
        async with served.http() as client:
            trace = (await client.get(f"/v1/sessions/{session_id}/turns/1/trace")).json()
            assert (trace["state"], trace["calls"][0]["approval"]) == ("waiting", "asked")
            shown = (await client.get(f"/v1/sessions/{session_id}")).json()
            assert [turn["state"] for turn in shown["turns"]] == ["waiting"]
            answer = {"approval_request_id": request["id"], "approve": True}
            if way == "websocket":
                item = {"type": "mcp_approval_response", **answer}
                await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
            else:
                created = await client.post(f"/v1/sessions/{session_id}/approvals", json=answer)
                assert (created.status_code, created.json()["approve"]) == (201, True)
            told = await until(socket, is_done)
            assert told[-1]["response"]["output"][-1]["content"][0]["text"] == "it said: sent to Ada"
            (line,) = sent()
            assert line.startswith("Ada turn_")
            again = await client.post(f"/v1/sessions/{session_id}/approvals", json=answer)
            assert (again.status_code, again.json()["error"]["code"]) == (404, "approval_not_found")
            trace = (await client.get(f"/v1/sessions/{session_id}/turns/1/trace")).json()
            (call,) = trace["calls"]
            assert (call["runner"], call["effect"], call["approval"]) == ("server", "effectful", "given")
            assert call["key"] == line.split()[1]


async def test_a_tool_that_the_server_does_not_run_is_refused_by_name(tmp_path: Path, tools: Path) -> None:
    async with serving(tmp_path, tools) as served, websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
        offered = [{"type": "server", "name": "nonesuch"}, {"type": "server", "name": "add"}]
        await socket.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "tools": offered}}))
        told = [json.loads(await socket.recv()) for _ in range(3)]
        assert told[1]["error"]["code"] == "unknown_tool"
        assert told[1]["error"]["param"] == "session.tools[0].name"
        assert "It runs add, send." in told[1]["error"]["message"]
        assert told[2]["session"]["tools"] == [{"type": "server", "name": "add"}]


async def test_what_is_beside_the_conversation_does_nothing_to_the_world(
    tmp_path: Path, tools: Path, sent: Any
) -> None:
    async with serving(tmp_path, tools) as served, websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "send"}]}
        response = {"conversation": "none", "input": [item], "tools": OFFER}
        await socket.send(json.dumps({"type": "response.create", "response": response}))
        told = await until(socket, is_done)
        assert "this response is not kept" in told[-1]["response"]["output"][-1]["content"][0]["text"]
        assert sent() == []


async def test_a_call_that_waits_survives_a_kill_of_the_server(tmp_path: Path, tools: Path, sent: Any) -> None:
    server = Server(tmp_path / "home", rules=RULES, environment={"BATON_TOOLS": str(tools)})
    await server.start()
    async with websockets.connect(f"{server.address.replace('http', 'ws')}/v1/realtime") as socket:
        session_id = socket.response.headers["x-baton-session"]  # type: ignore[union-attr]
        await ask(socket, "send")
        request = (await until(socket, is_request))[-1]["item"]
        await server.kill()
    await server.start()
    try:
        url = f"{server.address.replace('http', 'ws')}/v1/realtime?session={session_id}"
        async with websockets.connect(url) as socket:
            await until(socket, is_request)  # told from the turn's beginning
            item = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
            await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
            told = await until(socket, is_done)
            assert told[-1]["response"]["output"][-1]["content"][0]["text"] == "it said: sent to Ada"
        (line,) = sent()
        assert line.startswith("Ada turn_")
        # While the server runs, and by its own log alone.
        runner = CliRunner(env={"BATON_HOME": str(server.home), "COLUMNS": "200"})
        shown = await asyncio.to_thread(runner.invoke, app, ["replay", session_id])
        assert shown.exit_code == 0, shown.output
        assert "Turn 1 of" in shown.output
        assert "call of send: run by the server, effectful, was allowed, has its result" in shown.output
        assert "Decided again: the same" in shown.output
    finally:
        await server.stop()


async def test_tools_that_cannot_be_loaded_keep_the_server_from_starting_and_say_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("tools = None\n")
    with pytest.raises(BadInput, match="has no 'tools'"):
        async with serving(tmp_path, path):
            pass
