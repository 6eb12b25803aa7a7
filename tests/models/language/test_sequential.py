"""The steps of the engine that runs transformers' own code; what it writes is in `test_transformers_engine`."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import pytest
import torch
from support.asking import LONG, asks, collect
from support.sequential import build_sequential
from transformers import DynamicCache

from models.catalog import EngineSpec
from models.clock import ManualClock
from models.content import TextDelta
from models.language.sequential import SequentialEngine
from models.ports.context import EngineContext

Building = Callable[..., AbstractAsyncContextManager[SequentialEngine]]


@pytest.fixture
def building(tiny_llama: Path) -> Building:
    @asynccontextmanager
    async def run(**options: object) -> AsyncIterator[SequentialEngine]:
        spec = EngineSpec(name="transformers", options=json.dumps(options), folder=str(tiny_llama))
        engine = build_sequential(spec, EngineContext(clock=ManualClock()))
        try:
            yield engine
        finally:
            await engine.aclose()

    return run


def _steps(engine: SequentialEngine) -> list[int]:
    """Return a list that grows by the number of tokens read, with each step of the engine from now on."""
    steps: list[int] = []
    model = engine._causal.model

    def note(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        steps.append(kwargs["input_ids"].shape[1])

    model.register_forward_pre_hook(note, with_kwargs=True)
    return steps


async def test_a_prompt_is_read_in_steps_of_the_size_that_was_set(building):
    async with building(prefill_tokens=50) as engine:
        steps = _steps(engine)
        usage = (await collect(engine, asks(LONG, limit=3)))[0]
    full, rest = divmod(usage.input_tokens, 50)
    assert steps == [50] * full + [rest] * (rest > 0) + [1, 1]


async def test_an_answer_that_is_cancelled_stops_within_one_step_and_frees_its_cache(building):
    async with building(prefill_tokens=1) as engine:
        steps = _steps(engine)
        loop, reading = asyncio.get_running_loop(), asyncio.Event()
        engine._causal.model.register_forward_pre_hook(lambda *_: loop.call_soon_threadsafe(reading.set))
        answer = asyncio.create_task(collect(engine, asks(LONG)))
        await reading.wait()
        answer.cancel()
        at_cancel = len(steps)
        await asyncio.wait([answer])
        del answer  # its traceback holds what it was doing
        # What is in the thread now ends before this.
        await loop.run_in_executor(engine._thread, gc.collect)
        assert len(steps) <= at_cancel + 1
        assert not any(type(thing) is DynamicCache for thing in gc.get_objects())


async def test_an_answer_that_is_closed_asks_for_no_further_step(building):
    async with building() as engine:
        steps = _steps(engine)
        async with aclosing(engine.generate(asks())) as deltas:
            async for delta in deltas:
                if isinstance(delta, TextDelta):
                    break
        await asyncio.get_running_loop().run_in_executor(engine._thread, gc.collect)
        assert len(steps) == 1


async def test_answers_written_at_the_same_time_advance_together(building):
    order: list[str] = []

    async def follow(engine: SequentialEngine, name: str) -> None:
        async for delta in engine.generate(asks(name)):
            if isinstance(delta, TextDelta):
                order.append(name)

    async with building() as engine:
        await asyncio.gather(follow(engine, "a"), follow(engine, "b"), follow(engine, "c"))
    for at in range(0, len(order), 3):
        assert sorted(order[at : at + 3]) == ["a", "b", "c"]


async def test_the_more_urgent_answer_is_written_first(building):
    ended: list[str] = []

    async def follow(engine: SequentialEngine, priority: str) -> None:
        await collect(engine, asks(priority=priority))
        ended.append(priority)

    async with building() as engine:
        await asyncio.gather(*(follow(engine, priority) for priority in ("batch", "normal", "interactive")))
    assert ended == ["interactive", "normal", "batch"]
