"""What does a long prompt cost those who are being answered?

SmolLM2-135M writes eight answers at a time; whoever has an answer asks for the next, so that the load stays what it is. Then
somebody comes with a prompt of 6,000 tokens. The gaps between two deltas of an answer are compared: while the prompt is read,
and before and after.
"""

import asyncio
import json as jsons
import os
import random
import time
from collections import deque
from itertools import count
from typing import cast

import typer

from benchmarks.report import Json, Quick, Row, quantile, report, row
from models.catalog import EngineSpec
from models.catalog_file import load_catalog
from models.clock import SystemClock
from models.content import Message, TextDelta, TextPart, UsageDelta
from models.placement.engines import build_engine
from models.ports.context import EngineContext
from models.ports.generate import Engine, GenerateRequest, Sampling
from models.supply.store import Store
from orchestrator.settings import Settings

_CARD = "smollm2-135m"
_STREAMS = 8
_ANSWER_TOKENS = 96
_LONG_WORDS = 5_960
"""About 6,000 tokens of them."""


def _asks(text: str, tokens: int, seed: int = 0) -> GenerateRequest:
    message = Message(item_id="item_0", role="user", parts=(TextPart(text=text),))
    sampling = Sampling(max_output_tokens=tokens, temperature=0.8, seed=seed)
    return GenerateRequest(messages=(message,), sampling=sampling, tenant="bench")


async def _write(engine: Engine, stream: int, gaps: list[tuple[float, float]]) -> None:
    """Ask for answer after answer; note when each delta came, and how long after the one before."""
    for number in count(stream, _STREAMS):
        last_s: float | None = None
        async for delta in engine.generate(_asks(f"Write a story about the number {number}.", _ANSWER_TOKENS, number)):
            now_s = time.perf_counter()
            if isinstance(delta, TextDelta):
                if last_s is not None:
                    gaps.append((now_s, (now_s - last_s) * 1000))
                last_s = now_s


async def _measure(engine: Engine, alone_s: float) -> list[Row]:
    gaps: list[tuple[float, float]] = []
    writers = [asyncio.create_task(_write(engine, stream, gaps)) for stream in range(_STREAMS)]
    await asyncio.sleep(alone_s / 2)  # until all write
    began_s = time.perf_counter()
    await asyncio.sleep(alone_s)
    words = random.Random(0).choices(
        ["the", "old", "sea", "town", "keeps", "its", "red", "boats", "near", "a", "wall", "of", "grey", "stone"],
        k=_LONG_WORDS,
    )
    came_s = time.perf_counter()
    read = 0
    async for delta in engine.generate(_asks(" ".join(words), 1)):
        if isinstance(delta, UsageDelta):
            read = read or delta.input_tokens
    read_s = time.perf_counter()
    await asyncio.sleep(alone_s)
    for writer in writers:
        writer.cancel()
    await asyncio.wait(writers)
    alone = [ms for at_s, ms in gaps if began_s < at_s <= came_s or at_s > read_s + 1]
    beside = [ms for at_s, ms in gaps if came_s < at_s <= read_s]
    p99 = quantile(alone, 0.99), quantile(beside, 0.99)
    return [
        row("gap_p50_ms", "ms", alone, system="baton", streams=_STREAMS, beside="nothing"),
        row("gap_p50_ms", "ms", beside, system="baton", streams=_STREAMS, beside=f"{read} tokens"),
        row("gap_p99_ms", "ms", [p99[0]], system="baton", streams=_STREAMS, beside="nothing"),
        row("gap_p99_ms", "ms", [p99[1]], system="baton", streams=_STREAMS, beside=f"{read} tokens"),
        row("gap_p99_ratio", "", [p99[1] / p99[0]], system="baton", streams=_STREAMS),
        row("prompt_s", "s", [read_s - came_s], system="baton", tokens=read),
    ]


async def _run(alone_s: float) -> list[Row]:
    card, store = load_catalog().card(_CARD), Store(Settings().cache)
    deque(store.pull(card), maxlen=0)
    folder = store.folder(card)
    options = jsons.dumps({**jsons.loads(card.engine.options), "threads": 2})
    spec = EngineSpec(name=card.engine.name, options=options, folder=str(folder))
    engine = cast("Engine", await asyncio.to_thread(build_engine, spec, EngineContext(clock=SystemClock())))
    try:
        return await _measure(engine, alone_s)
    finally:
        await engine.aclose()


def main(quick: Quick = False, json: Json = None) -> None:
    """Measure the gaps between the tokens of eight answers, alone and beside a long prompt."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the server's worker process (models/placement/child.py)
    report(asyncio.run(_run(6.0 if quick else 20.0)), json)


if __name__ == "__main__":
    typer.run(main)
