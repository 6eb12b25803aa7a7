"""What was decided about a turn and from what, over REST and on the command line; and what if it had been otherwise."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.app import Served, serving_app
from typer.testing import CliRunner

from models.content import Message, TextPart
from orchestrator.events import TurnInput
from streaming.cli import app
from streaming.limits import SurfaceLimits

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CATALOG = """
[cards.dear]
description = "Another one."
engine = "scripted"
context_tokens = 2048
cost_per_million_tokens = 5.0
calls_tools = true
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    catalog = folder / "catalog.toml"
    catalog.write_text(_CATALOG)
    rules = [{"pattern": "(?s)(.*)", "reply": r"you said \1"}]
    limits = SurfaceLimits(drain_s=1)
    async with serving_app(folder, limits=limits, rules=rules, catalog=catalog, models="scripted,dear") as running:
        yield running


async def _session(served: Served, *texts: str) -> str:
    """Return a session in which these were said, each in a turn of its own."""
    session = await served.conductor.sessions.create("local")
    for n, text in enumerate(texts):
        item = Message(item_id=f"item_{n}", role="user", parts=(TextPart(text=text),))
        turn_id = await session.respond(TurnInput(items=(item,)))
        async with aclosing(session.events(0)) as events:
            async for event in events:
                if event.kind == "committed" and event.event.kind == "turn_ended" and event.event.turn_id == turn_id:
                    break
    return session.session_id


async def test_a_turn_is_traced_by_its_place_its_id_or_its_responses(served: Served) -> None:
    session_id = await _session(served, "one", "two")
    async with served.http() as client:
        trace = (await client.get(f"/v1/sessions/{session_id}/turns/2/trace")).json()
        for name in (trace["turn_id"], trace["response_id"]):
            assert (await client.get(f"/v1/sessions/{session_id}/turns/{name}/trace")).json() == trace
    assert (trace["ordinal"], trace["state"]) == (2, "finished")
    assert trace["decision"]["model"] == "scripted"
    (refused,) = trace["decision"]["refused"]
    assert refused["model"] == "dear"
    assert re.fullmatch(r"costs 0\.00\d+, more than 0", refused["reason"])  # some hundred tokens at 5 dollars a million
    assert [card["name"] for card in trace["decision"]["inputs"]["cards"]] == ["scripted", "dear"]
    (task,) = trace["tasks"]
    assert (task["agent"], task["card"], task["state"]) == ("writer", "scripted", "finished")
    assert task["usage"]["output_tokens"] == trace["ended"]["usage"]["output_tokens"] == 3
    assert trace["ended"]["duration_ms"] >= task["ended_ms"] >= task["started_ms"] >= 0
    assert "two" not in json.dumps(trace)  # what was said is in the items


async def test_it_says_what_would_have_been_decided_otherwise(served: Served) -> None:
    session_id = await _session(served, "hello")
    url = f"/v1/sessions/{session_id}/turns/1/trace"
    async with served.http() as client:
        same = (await client.get(url, params={"what_if": ""})).json()["replay"]
        assert (same["same"], same["differences"]) == (True, [])
        other = (await client.get(url, params={"what_if": ["card.scripted=down"]})).json()["replay"]
        assert (other["same"], other["decision"]["model"]) == (False, "dear")
        none = {"what_if": ["card.scripted=down", "card.dear=gone"]}
        refused = (await client.get(url, params=none)).json()["replay"]
        assert (refused["decision"], refused["refused"]["code"]) == (None, "unavailable")
        for wrong, field in (
            ("card.nonesuch=down", "card.nonesuch"),
            ("nonsense", "what_if"),
            ("colour=red", "colour"),
        ):
            answer = await client.get(url, params={"what_if": wrong})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


async def test_what_is_not_there_is_not_found(served: Served) -> None:
    session_id = await _session(served, "hello")
    async with served.http() as client:
        for turn in ("2", "0", "turn_x", "resp_x", "x" * 500):
            answer = await client.get(f"/v1/sessions/{session_id}/turns/{turn}/trace")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "turn_not_found")
            assert len(answer.json()["error"]["message"]) < 300
        answer = await client.get("/v1/sessions/sess_nonesuch/turns/1/trace")
        assert answer.status_code == 404


async def test_the_command_shows_it_while_the_server_runs(served: Served) -> None:
    session_id = await _session(served, "one", "two")
    home = served.conductor.settings.home
    runner = CliRunner(env={"BATON_HOME": str(home), "COLUMNS": "200"})

    def run(*arguments: str) -> Any:
        return runner.invoke(app, ["replay", session_id, *arguments])

    shown = await asyncio.to_thread(run)
    assert shown.exit_code == 0, shown.output
    assert "Turn 2 of" in shown.output
    assert "writer on scripted: the cheapest that can, reads text" in shown.output
    assert re.search(r"dear costs 0\.00\d+, more than 0", " ".join(shown.output.split()))
    assert "Decided again: the same" in shown.output
    shown = await asyncio.to_thread(run, "1", "--what-if", "card.scripted=down")
    assert "With card.scripted=down: different" in shown.output
    assert "the model is dear, not scripted" in shown.output
    shown = await asyncio.to_thread(run, "1", "--what-if", "model=dear", "--json")
    printed = json.loads(shown.output)
    assert (printed["ordinal"], printed["replay"]["decision"]["model"]) == (1, "dear")
    for wrong in (("7",), ("1", "--what-if", "nonsense"), ("1", "--tenant", "somebody")):
        failed = await asyncio.to_thread(run, *wrong)
        assert failed.exit_code == 1
        assert failed.stderr.startswith("baton: ")


async def test_a_home_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    home = tmp_path / "nowhere"
    runner = CliRunner(env={"BATON_HOME": str(home)})
    failed = await asyncio.to_thread(runner.invoke, app, ["replay", "sess_x"])
    assert failed.exit_code == 1
    assert "nothing was ever served from it" in " ".join(failed.stderr.split())
    assert not home.exists()
