"""Do the senses hear in time while answers are written, and do answers come in time whatever becomes of the senses?

First, streams of sound are fed to Silero VAD as they would be spoken, a window each 32 ms, alone and beside eight answers that
SmolLM2-135M writes: how long after its last sample is the verdict there? Then one answer after another is written, alternately with
the senses at rest and with their process busy in bulk (MiniLM over long texts), killed again and again, or stopped: how much longer does an
answer take? Everything goes through worker processes, as in the server.
"""

import asyncio
import os
import random
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from itertools import count

import typer

from benchmarks.report import Json, Quick, Row, quantile, report, row
from models.catalog import EngineSpec
from models.catalog_file import load_catalog
from models.clock import SystemClock
from models.content import Message, TextDelta, TextPart
from models.errors import BatonError
from models.placement.budget import available_threads, shares
from models.placement.client import Worker
from models.ports.activity import RATE_HZ, WINDOW_SAMPLES, ActivityDetector, ActivityRequest
from models.ports.embed import Embedder, EmbedRequest
from models.ports.generate import Engine, GenerateRequest, Sampling
from models.ports.streams import SoundInput
from models.supply.store import Store
from orchestrator.settings import Settings

_WRITER, _EMBEDDER, _DETECTOR = "smollm2-135m", "all-minilm-l6-v2", "silero-vad"
_ANSWERS = 8
_SOUNDS = 4
_WINDOW_S = WINDOW_SAMPLES / RATE_HZ
_ANSWER_TOKENS = 32
_KILL_EVERY_S = 2.0


def _spec(name: str) -> EngineSpec:
    card, store = load_catalog().card(name), Store(Settings().cache)
    deque(store.pull(card), maxlen=0)
    return EngineSpec(name=card.engine.name, options=card.engine.options, folder=str(store.folder(card)))


@asynccontextmanager
async def _running(*workers: Worker) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _write(engine: Engine, number: int) -> float:
    """Have one answer written; return how long each token took, the first left out, in seconds."""
    message = Message(
        item_id="item_0", role="user", parts=(TextPart(text=f"Write a story about the number {number}."),)
    )
    sampling = Sampling(max_output_tokens=_ANSWER_TOKENS, temperature=0.8, seed=number)
    first_s, tokens = 0.0, 0
    async for delta in engine.generate(GenerateRequest(messages=(message,), sampling=sampling, tenant="bench")):
        if isinstance(delta, TextDelta):
            first_s = first_s or time.perf_counter()
            tokens = delta.written
    return (time.perf_counter() - first_s) / max(1, tokens - 1)


@asynccontextmanager
async def _eight_answers(engine: Engine) -> AsyncIterator[None]:
    """Have eight answers written at any time; whoever has one asks for the next."""

    async def go_on(stream: int) -> None:
        for number in count(stream, _ANSWERS):
            await _write(engine, number)

    writers = [asyncio.create_task(go_on(stream)) for stream in range(_ANSWERS)]
    try:
        await asyncio.sleep(3)  # until all write
        yield
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)


async def _hear(detector: ActivityDetector, seconds: float) -> list[float]:
    """Feed one stream as it would be spoken; return how late each verdict was, in milliseconds after its last sample."""
    stream = detector.open(ActivityRequest(tenant="bench"))
    chance = random.Random(0)
    begun_s: deque[float] = deque()
    late_ms: list[float] = []

    async def speak() -> None:
        due_s = time.perf_counter()
        for _ in range(round(seconds / _WINDOW_S)):
            due_s += _WINDOW_S
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            begun_s.append(time.perf_counter())
            await stream.push(SoundInput(pcm=chance.randbytes(2 * WINDOW_SAMPLES)))
        await stream.end()

    speaking = asyncio.create_task(speak())
    async with aclosing(stream.outputs()) as verdicts:
        async for _ in verdicts:
            late_ms.append((time.perf_counter() - begun_s.popleft()) * 1000)
    await speaking
    return late_ms


async def _heard(detector: ActivityDetector, seconds: float, beside: str) -> list[Row]:
    streams = [asyncio.create_task(_hear(detector, seconds)) for _ in range(_SOUNDS)]
    late_ms = [each for stream in streams for each in await stream]
    labels = {"system": "baton", "streams": _SOUNDS, "beside": beside}
    p99_ms = quantile(late_ms, 0.99)
    return [
        row("verdict_late_ms", "ms", late_ms, **labels),
        row("verdict_late_p99_ms", "ms", [p99_ms], **labels),
        row("verdict_late_most_ms", "ms", [max(late_ms)], **labels),
    ]


@asynccontextmanager
async def _at_rest(_senses: Worker) -> AsyncGenerator[None, None]:
    yield


@asynccontextmanager
async def _busy(senses: Worker) -> AsyncGenerator[None, None]:
    embedder: Embedder = senses.door(_EMBEDDER)

    async def embed() -> None:
        while True:
            await embedder.embed(EmbedRequest(texts=("word " * 200,) * 16, tenant="bench"))

    working = [asyncio.create_task(embed()) for _ in range(2)]
    try:
        yield
    finally:
        for task in working:
            task.cancel()
        await asyncio.wait(working)


@asynccontextmanager
async def _killed(senses: Worker) -> AsyncGenerator[None, None]:
    async def kill() -> None:
        while True:
            if senses.pid is not None:
                os.kill(senses.pid, signal.SIGKILL)
            await asyncio.sleep(_KILL_EVERY_S)

    killing = asyncio.create_task(kill())
    try:
        yield
    finally:
        killing.cancel()
        await asyncio.wait((killing,))
        for card in (_EMBEDDER, _DETECTOR):
            with suppress(BatonError):
                await senses.until_settled(card)


@asynccontextmanager
async def _stopped(senses: Worker) -> AsyncGenerator[None, None]:
    pid = senses.pid
    if pid is not None:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if pid is not None:
            with suppress(ProcessLookupError):  # it was silent for so long that it was replaced
                os.kill(pid, signal.SIGCONT)


_STATES: Mapping[str, Callable[[Worker], AbstractAsyncContextManager[None]]] = {
    "busy": _busy,
    "killed": _killed,
    "stopped": _stopped,
}


async def _delayed(writer: Engine, senses: Worker, rounds: int) -> list[Row]:
    rows = []
    for state, being in _STATES.items():
        times: dict[str, list[float]] = {"at rest": [], state: []}
        for number in range(rounds):
            for label, held in (("at rest", _at_rest), (state, being)):
                async with held(senses):
                    times[label].append(await _write(writer, number) * 1000)
        for label, each in times.items():
            rows.append(row("token_ms", "ms", each, system="baton", senses=label, tried=state))
        ratio = quantile(times[state], 0.5) / quantile(times["at rest"], 0.5)
        rows.append(row("token_ratio", "", [ratio], system="baton", senses=state))
    return rows


async def _run(seconds: float, rounds: int) -> list[Row]:
    split = shares(available_threads(), frozenset({"decoding", "senses"}))
    clock = SystemClock()
    decoding = Worker({_WRITER: _spec(_WRITER)}, clock, place="decoding", threads=split["decoding"])
    senses = Worker(
        {name: _spec(name) for name in (_DETECTOR, _EMBEDDER)}, clock, place="senses", threads=split["senses"]
    )
    async with _running(decoding, senses):
        for worker, name in ((decoding, _WRITER), (senses, _DETECTOR), (senses, _EMBEDDER)):
            await worker.until_settled(name)
        writer, detector = decoding.door(_WRITER), senses.door(_DETECTOR)
        await _write(writer, 0)
        rows = await _heard(detector, seconds / 2, "nothing")
        async with _eight_answers(writer):
            rows += await _heard(detector, seconds, "eight answers")
        return rows + await _delayed(writer, senses, rounds)


def main(*, quick: Quick = False, json: Json = None) -> None:
    """Measure."""
    report(asyncio.run(_run(seconds=10 if quick else 60, rounds=2 if quick else 12)), json)


if __name__ == "__main__":
    typer.run(main)
