"""What was delivered of an answer that was cut off is counted: on the websocket, over REST, in the metrics and in the log."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets
from support.app import Served
from support.rules import RULES

from models.language.scripted import _TOKEN
from orchestrator.events import Committed, TurnEnded


@pytest.fixture
async def served(serve: Any) -> AsyncIterator[Served]:
    async with serve(rules=RULES) as running:
        yield running


def _tokens(served: Served) -> float:
    return served.sample("baton_tokens_total", tenant="local", direction="out")


async def _ended(served: Served, session_id: str) -> TurnEnded:
    session = await served.conductor.sessions.open("local", session_id)
    async for event in session.events(0):
        if isinstance(event, Committed) and isinstance(event.event, TurnEnded):
            return event.event
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    ("text", "status"), [("slowly count to 1000", "cancelled"), ("fail", "failed"), ("count to 3", "completed")]
)
async def test_a_response_reports_the_tokens_that_were_delivered(served: Served, text: str, status: str) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket, asyncio.timeout(10):
        assert socket.response is not None
        await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        await socket.send(json.dumps({"type": "response.create"}))
        said = ""
        while (event := json.loads(await socket.recv()))["type"] != "response.done":
            said += event["delta"] if event["type"] == "response.output_text.delta" else ""
            if status == "cancelled" and len(_TOKEN.findall(said)) == 3:
                await socket.send(json.dumps({"type": "response.cancel"}))
    response = event["response"]
    assert response["status"] == status
    (item,) = response["output"]
    assert item["content"][0]["text"] == said
    delivered = len(_TOKEN.findall(said))
    assert delivered >= 3
    assert response["usage"]["output_tokens"] == delivered
    assert response["usage"]["input_tokens"] > 0
    assert (await _ended(served, socket.response.headers["x-baton-session"])).usage.output_tokens == delivered
    assert _tokens(served) == delivered


async def test_an_answer_whose_reader_has_gone_is_counted_as_far_as_it_came(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "slowly count to 1000"}], "stream": True}
    async with served.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.aiter_lines()
        for _ in range(6):
            await anext(chunks)
        await chunks.aclose()
    await served.until(lambda: served.engine.running == 0)
    await served.until(lambda: served.sample("baton_turns_total", tenant="local", state="interrupted") == 1)
    assert 3 <= _tokens(served) < 1000
