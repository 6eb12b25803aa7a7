"""How soon does a turn's first word come over the websocket, and how evenly the rest, with 1 to 200 people chatting?

The scripted engine writes a token every 50 ms, so whatever comes later than that is Baton's. Its peer is the engine
alone: `floor` rows are what the same script takes with nothing around it.
"""

import asyncio
import itertools
import json as jsonlib
import os
import sys
import tempfile
import time
from pathlib import Path

import typer
import websockets

from benchmarks.report import Json, Quick, Row, quantile, report, row
from models.clock import SystemClock
from models.content import Message, TextPart
from models.language.scripted import Rule, ScriptedEngine, ScriptedOptions
from models.ports.context import EngineContext
from models.ports.generate import GenerateRequest

_GAP_S = 0.05
_TOKENS = 20
_SCRIPT = {"rules": [{"pattern": "(?s).*", "reply": "{n} ", "times": str(_TOKENS), "gap_s": _GAP_S}]}


class _Times:
    """First words and gaps, in milliseconds."""

    def __init__(self) -> None:
        self.first_ms: list[float] = []
        self.gap_ms: list[float] = []

    def note(self, asked_s: float, words_s: list[float]) -> None:
        self.first_ms.append((words_s[0] - asked_s) * 1000)
        self.gap_ms += [(after - before) * 1000 for before, after in itertools.pairwise(words_s)]

    def rows(self, **labels: object) -> list[Row]:
        return [
            row("first_word_ms", "ms", self.first_ms, **labels),
            row("gap_ms", "ms", self.gap_ms, **labels),
            row("gap_p99_ms", "ms", [quantile(self.gap_ms, 0.99)], **labels),
        ]


async def _chat(url: str, turns: int, times: _Times) -> None:
    async with websockets.connect(url, open_timeout=60) as socket:
        for _ in range(turns):
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]}
            await socket.send(jsonlib.dumps({"type": "conversation.item.create", "item": item}))
            asked_s = time.perf_counter()
            await socket.send(jsonlib.dumps({"type": "response.create"}))
            words_s: list[float] = []
            while (kind := jsonlib.loads(await socket.recv())["type"]) != "response.done":
                if kind == "response.output_text.delta":
                    words_s.append(time.perf_counter())
            times.note(asked_s, words_s)


async def _floor(turns: int) -> _Times:
    rule = Rule(pattern="(?s).*", reply="{n} ", times=str(_TOKENS), gap_s=_GAP_S)
    engine = ScriptedEngine(ScriptedOptions(rules=(rule,)), EngineContext(clock=SystemClock()))
    request = GenerateRequest(
        messages=(Message(item_id="a", role="user", parts=(TextPart(text="go"),)),), tenant="local"
    )
    times = _Times()
    for _ in range(turns):
        asked_s = time.perf_counter()
        times.note(asked_s, [time.perf_counter() async for delta in engine.generate(request) if delta.kind == "text"])
    return times


async def _measure(turns: int, home: Path) -> list[Row]:
    script = home / "script.json"
    script.write_text(jsonlib.dumps(_SCRIPT))
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streaming", "serve", "--port", "0"),
        env={**os.environ, "BATON_HOME": str(home / "home"), "BATON_SCRIPT": str(script), "BATON_MODELS": "scripted"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None  # it was asked for above
    try:
        address = (await server.stdout.readline()).decode().split()[-1]
        url = address.replace("http", "ws") + "v1/realtime"
        await _chat(url, 2, _Times())
        rows = (await _floor(turns)).rows(system="floor", sessions=1)
        for sessions in (1, 10, 50, 200):
            times = _Times()
            await asyncio.gather(*(_chat(url, turns, times) for _ in range(sessions)))
            rows += times.rows(system="baton", sessions=sessions)
        return rows
    finally:
        server.terminate()
        await server.wait()


def main(quick: Quick = False, json: Json = None) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        report(asyncio.run(_measure(3 if quick else 20, Path(folder))), json)


if __name__ == "__main__":
    typer.run(main)
