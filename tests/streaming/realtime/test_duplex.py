"""Full duplex over the websocket: a response that interrupts another, and sound that was cut off."""

import asyncio
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets

from models.content import text_of
from orchestrator.sessions.playback import CUT_OFF

RULES = [
    {"pattern": "^slow$", "reply": "one two three four five six", "gap_s": 0.3},
    {"pattern": "^tell$", "reply": "one two three four five"},
    {"pattern": "(?s)(.*)", "reply": r"you said \1"},
]


class Client:
    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket
        self.session_id = socket.response.headers["x-baton-session"]  # type: ignore[union-attr]

    async def send(self, kind: str, **fields: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **fields}))

    async def ask(self, text: str, **response: Any) -> None:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        await self.send("conversation.item.create", item=item)
        await self.send("response.create", response=response)

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while not (told and holds(told[-1])):
                told.append(json.loads(await self._socket.recv()))
        return told

    async def until_told(self, kind: str) -> dict[str, Any]:
        return (await self.until(lambda event: event["type"] == kind))[-1]


@asynccontextmanager
async def connected(served: Any) -> Any:
    async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
        yield Client(socket)


async def test_a_response_interrupts_the_one_that_runs_only_where_that_is_asked_for(serve: Any) -> None:
    async with serve(rules=RULES) as served, connected(served) as client:
        await client.ask("slow")
        await client.until_told("response.output_text.delta")
        await client.ask("no")
        refused = await client.until_told("error")
        assert refused["error"]["code"] == "conversation_already_has_active_response"
        await client.ask("stop", baton={"interrupts": True})
        told = await client.until(
            lambda event: event["type"] == "response.done" and event["response"]["status"] == "completed"
        )
        kinds = [event["type"] for event in told if event["type"] in ("response.created", "response.done")]
        assert kinds == ["response.done", "response.created", "response.done"]
        old, _, new = (event["response"] for event in told if event["type"] in ("response.created", "response.done"))
        assert (old["status"], old["status_details"]["reason"]) == ("cancelled", "client_cancelled")
        assert new["output"][0]["content"][0]["text"] == "you said stop"
        said = [text_of(message) for message in served.engine.requests[-1].messages]
        assert said[0] == "slow"
        assert said[1].startswith("one"), "what was said by then is known to the one that interrupts"
        assert said[2:] == ["no", "stop"]


async def test_a_response_that_interrupts_where_none_runs_is_one_like_any_other(serve: Any) -> None:
    async with serve(rules=RULES) as served, connected(served) as client:
        await client.ask("hello", baton={"interrupts": True})
        assert (await client.until_told("response.done"))["response"]["status"] == "completed"
        await client.send("response.create", response={"conversation": "none", "baton": {"interrupts": True}})
        assert (await client.until_told("error"))["error"]["param"] == "response.baton.interrupts"


async def test_with_300_of_1000_ms_played_the_next_model_is_shown_those_words_and_that_it_was_cut_off(
    serve: Any,
) -> None:
    async with serve(rules=RULES) as served, connected(served) as client:
        await client.ask("tell")
        done = await client.until_told("response.done")
        item_id = done["response"]["output"][0]["id"]
        session = await served.conductor.sessions.open("local", client.session_id)
        await session.speak_marks(item_id, ((3, 150), (7, 300), (13, 600), (23, 1000)))
        await client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=1001)
        refused = (await client.until_told("error"))["error"]
        assert refused["param"] == "audio_end_ms"
        assert "1000 ms" in refused["message"]
        await client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=300)
        cut = await client.until_told("conversation.item.truncated")
        assert (cut["item_id"], cut["content_index"], cut["audio_end_ms"]) == (item_id, 0, 300)
        await client.ask("go on")
        await client.until_told("response.done")
        said = [text_of(message) for message in served.engine.requests[-1].messages]
        assert said == ["tell", "one two" + CUT_OFF, "go on"]
        again = f"ws://{served.address}/v1/realtime?session={client.session_id}&after=0"
        async with websockets.connect(again) as socket:  # told again, it is told the same
            told = [json.loads(await socket.recv())]
            while told[-1]["type"] != "conversation.item.truncated":
                told.append(json.loads(await socket.recv()))
        assert {**told[-1], "event_id": ""} == {**cut, "event_id": ""}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"content_index": 0, "audio_end_ms": 300}, "audio_end_ms"),  # what is written has no sound
        ({"content_index": 1, "audio_end_ms": 0}, "content_index"),
        ({"content_index": 0, "audio_end_ms": -1}, "audio_end_ms"),
        ({"content_index": 0}, "audio_end_ms"),
    ],
)
async def test_a_truncation_that_cannot_be_is_refused_by_the_field_and_changes_nothing(
    serve: Any, fields: dict[str, Any], param: str
) -> None:
    async with serve(rules=RULES) as served, connected(served) as client:
        await client.ask("tell")
        item_id = (await client.until_told("response.done"))["response"]["output"][0]["id"]
        await client.send("conversation.item.truncate", item_id=item_id, **fields)
        assert (await client.until_told("error"))["error"]["param"] == param
        await client.send("conversation.item.truncate", item_id="item_nonesuch", content_index=0, audio_end_ms=0)
        assert (await client.until_told("error"))["error"]["code"] == "item_not_found"
        await client.ask("go on")
        await client.until_told("response.done")
        assert text_of(served.engine.requests[-1].messages[1]) == "one two three four five"
