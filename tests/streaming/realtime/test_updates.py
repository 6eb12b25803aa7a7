"""What can never be is refused when it is set, by its place, and no response fails for it later."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
import websockets
from support.app import Served, serving_app
from support.rules import RULES

from streaming.limits import SurfaceLimits

pytestmark = pytest.mark.asyncio(loop_scope="module")

_GOOD = {"type": "object", "properties": {"a": {"type": "string"}}}
_BAD: dict[str, tuple[dict[str, Any], bool]] = {
    "no type": ({"properties": {"a": {"type": "objekt"}}}, False),
    "a reference to nothing": ({"properties": {"a": {"$ref": "#/$defs/nowhere"}}}, False),
    "no expression": ({"properties": {"a": {"type": "string", "pattern": "(("}}}, False),
    "a bound that is none": ({"properties": {"a": {"type": "integer", "minimum": "a"}}}, False),
    "no list": ({"properties": {"a": {"enum": 3}}}, False),
    "nothing fits": (
        {"properties": {"a": {"type": "integer", "minimum": 2, "maximum": 1}}, "required": ["a"]},
        True,
    ),
}
_LONG = "語" * 99_000
"""Within the most characters, and beyond the window of 32,768 tokens."""

_HALF = "語" * 30_000
"""Once it fits, twice it does not."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving_app(tmp_path_factory.mktemp("u"), limits=SurfaceLimits(drain_s=1), rules=RULES) as running:
        yield running


def _function(name: str, schema: dict[str, Any], *, strict: bool = False, said: str = "") -> dict[str, Any]:
    return {"type": "function", "name": name, "description": said, "parameters": schema, "strict": strict}


class _Client:
    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket

    async def ask(self, kind: str, *ends: str, **fields: Any) -> list[dict[str, Any]]:
        await self._socket.send(json.dumps({"type": kind, "event_id": "mine", **fields}))
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["type"] not in ends:
            seen.append(json.loads(await self._socket.recv()))
        return seen

    async def update(self, **session: Any) -> tuple[list[tuple[str, str]], dict[str, Any]]:
        """Return the codes and places of errors, and the session as it is told."""
        seen = await self.ask("session.update", "session.updated", session={"type": "realtime", **session})
        errors = [each["error"] for each in seen if each["type"] == "error"]
        assert all(error["event_id"] == "mine" for error in errors)
        return [(error["code"], error["param"]) for error in errors], seen[-1]["session"]

    async def respond(self, **response: Any) -> dict[str, Any]:
        """Return the error, or the response once it is done."""
        await self.ask(
            "conversation.item.create",
            "conversation.item.done",
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        )
        seen = await self.ask("response.create", "response.done", "error", response=response)
        return seen[-1]["error"] if seen[-1]["type"] == "error" else seen[-1]["response"]


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: Served) -> AsyncIterator[_Client]:
    async with websockets.connect(f"ws://{served.address}/v1/realtime", max_size=None) as socket:
        await socket.recv()
        yield _Client(socket)


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("name", _BAD)
async def test_a_schema_that_is_wrong_further_in_is_refused_at_its_place_and_the_others_are_kept(
    client: _Client, name: str, before: int
) -> None:
    schema, strict = _BAD[name]
    good = [_function(f"f{n}", _GOOD) for n in range(before)]
    errors, session = await client.update(
        tools=[{"type": "mcp"}, *good, _function("bad", schema, strict=strict), _function("last", _GOOD)]
    )

    assert [param for _, param in errors] == ["session.tools[0].type", f"session.tools[{before + 1}].parameters"]
    assert [tool["name"] for tool in session["tools"]] == [*(f"f{n}" for n in range(before)), "last"]
    assert (await client.respond())["status"] == "completed"


@pytest.mark.parametrize("name", _BAD)
async def test_a_response_with_such_a_function_is_refused_at_its_place(client: _Client, name: str) -> None:
    schema, strict = _BAD[name]
    error = await client.respond(tools=[_function("good", _GOOD), _function("bad", schema, strict=strict)])

    assert error["param"] == "response.tools[1].parameters"
    assert error["event_id"] == "mine"


async def test_instructions_that_no_window_holds_are_refused_and_those_before_them_hold(client: _Client) -> None:
    assert (await client.update(instructions="Be brief."))[0] == []
    errors, session = await client.update(instructions=_LONG, temperature=0.5)

    assert errors == [("context_length_exceeded", "session.instructions")]
    assert session["instructions"] == "Be brief."
    assert (await client.respond())["status"] == "completed"


@pytest.mark.parametrize("first", ["instructions", "tools", "both"])
async def test_of_what_is_too_much_only_together_what_was_said_last_is_refused(client: _Client, first: str) -> None:
    fields = {"instructions": _HALF, "tools": [_function("f", _GOOD, said=_HALF)]}
    if first == "both":
        errors, session = await client.update(**fields)
        refused = "tools"
    else:
        assert (await client.update(**{first: fields[first]}))[0] == []
        (refused,) = fields.keys() - {first}
        errors, session = await client.update(**{refused: fields[refused]})

    assert errors == [("context_length_exceeded", f"session.{refused}")]
    assert bool(session["instructions"]) == (refused != "instructions")
    assert bool(session["tools"]) == (refused != "tools")
    assert (await client.respond())["status"] == "completed"


async def test_what_makes_room_is_taken_with_what_needs_it(client: _Client) -> None:
    await client.update(tools=[_function("f", _GOOD, said=_HALF)])
    errors, session = await client.update(instructions=_HALF, tools=[])

    assert errors == []
    assert session["instructions"] == _HALF


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"instructions": _LONG}, "response.instructions"),
        ({"tools": [_function("f", _GOOD, said=_LONG)]}, "response.tools"),
        ({"instructions": _HALF, "tools": [_function("f", _GOOD, said=_HALF)]}, "response.tools"),
    ],
)
@pytest.mark.parametrize("aside", [{}, {"conversation": "none"}])
async def test_a_response_that_no_window_holds_is_refused_by_what_is_too_long(
    client: _Client, response: dict[str, Any], param: str, aside: dict[str, Any]
) -> None:
    error = await client.respond(**response, **aside)

    assert (error["code"], error["param"]) == ("context_length_exceeded", param)


async def test_a_sessions_instructions_that_no_window_holds_are_not_kept(served: Served) -> None:
    async with served.http() as http:
        made = await http.post("/v1/sessions", json={"instructions": _LONG})
        session_id = (await http.post("/v1/sessions", json={"instructions": "Be brief."})).json()["id"]
        changed = await http.patch(f"/v1/sessions/{session_id}", json={"instructions": _LONG, "title": "Long"})
        kept = (await http.get(f"/v1/sessions/{session_id}")).json()

    for refused in (made, changed):
        assert _told(refused) == (400, "context_length_exceeded", "instructions")
    assert (kept["instructions"], kept["title"]) == ("Be brief.", None)


def _told(refused: httpx.Response) -> tuple[int, str, str]:
    error = refused.json()["error"]
    return refused.status_code, error["code"], error["param"]
