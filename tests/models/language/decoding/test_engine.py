"""The engine from outside: requests that come, wait, are read slowly, and go, while its thread works for all of them."""

import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from support.asking import asks, collect, says, text_of

from models.catalog import EngineSpec
from models.clock import ManualClock
from models.content import Delta, FinishDelta, TextDelta, UsageDelta
from models.errors import BadInput, DeadlineExceeded, Internal, NotFound
from models.language.decoding.engine import DecodingEngine
from models.language.decoding.loop import Loop
from models.language.transformers import build
from models.ports.context import EngineContext
from models.ports.generate import (
    Constraint,
    Draft,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
)

_T = TypeVar("_T")

Building = Callable[..., AbstractAsyncContextManager[DecodingEngine]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def building(tiny_llama: Path, clock: ManualClock) -> Building:
    @asynccontextmanager
    async def run(**options: object) -> AsyncIterator[DecodingEngine]:
        told = json.dumps({"threads": 1, "cache_tokens": 4096, **options})
        engine = build(
            EngineSpec(name="transformers", options=told, folder=str(tiny_llama)), EngineContext(clock=clock)
        )
        assert isinstance(engine, DecodingEngine)
        try:
            yield engine
        finally:
            await engine.aclose()

    return run


@pytest.fixture
async def engine(building: Building) -> AsyncIterator[DecodingEngine]:
    async with building() as engine:
        yield engine


async def _in_thread(engine: DecodingEngine, function: Callable[[Loop], _T]) -> _T:
    """Have the engine's thread call `function` between two steps."""
    loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    engine._inbox.put(lambda: loop.call_soon_threadsafe(answer.set_result, function(engine._loop)))
    return await answer


async def _leased(engine: DecodingEngine) -> tuple[int, int, int]:
    """Return how many requests run and wait, and how many blocks they hold."""
    return await _in_thread(engine, lambda loop: (loop.running, loop.waiting, loop._cache.leased_blocks))


async def _somebody_waits(engine: DecodingEngine) -> None:
    while not (await _leased(engine))[1]:
        pass  # it takes a step at least


# Reading ahead


async def test_what_was_read_ahead_is_found_by_the_conversation_that_goes_on(engine: DecodingEngine) -> None:
    said = [says("Hello there, how are you?"), says("Very well, thank you.", "assistant")]
    *used, end = await collect(engine, asks(*said, reads_ahead=True, priority="batch"))
    assert end == FinishDelta(reason="stop")
    read = sum(delta.input_tokens for delta in used if isinstance(delta, UsageDelta))
    first = (await collect(engine, asks(*said, says("And you?"), limit=2)))[0]
    assert isinstance(first, UsageDelta)
    assert first.cached_tokens == read > 0


# Deadlines


async def test_a_deadline_that_passes_while_it_is_written_ends_a_request_and_frees_its_room(
    engine: DecodingEngine, clock: ManualClock
) -> None:
    deltas = engine.generate(asks(limit=400, deadline=clock.now_s() + 5))
    async for delta in deltas:
        if isinstance(delta, TextDelta):
            break
    clock.advance(6)
    with pytest.raises(DeadlineExceeded):
        await anext(deltas)  # whatever was written in time and not read
    assert await _leased(engine) == (0, 0, 0)


async def test_a_deadline_that_passes_while_it_waits_for_room_ends_a_request(
    building: Building, clock: ManualClock
) -> None:
    async with building(max_requests=1) as engine:
        first = engine.generate(asks(limit=400))
        await anext(first)
        second = asyncio.create_task(collect(engine, asks(deadline=clock.now_s() + 5)))
        await _somebody_waits(engine)
        clock.advance(6)
        with pytest.raises(DeadlineExceeded):
            await second
        assert (await _leased(engine))[1] == 0
        await first.aclose()


async def test_a_deadline_that_passes_while_its_prompt_is_prepared_ends_a_request(
    engine: DecodingEngine, clock: ManualClock
) -> None:
    held = threading.Event()
    engine._words.submit(held.wait)
    try:
        answer = asyncio.create_task(collect(engine, asks(deadline=clock.now_s() + 5)))
        await asyncio.sleep(0)
        clock.advance(6)
        with pytest.raises(DeadlineExceeded):
            await answer
    finally:
        held.set()


async def test_of_a_thousand_requests_every_deadline_is_kept_or_reported_and_nothing_is_left_of_the_late(
    building: Building, clock: ManualClock
) -> None:
    chance = random.Random(0)
    ends: list[str] = []

    async def ask(engine: DecodingEngine, number: int) -> None:
        deadline = clock.now_s() + chance.randint(1, 300)
        request = asks(f"Tell {number}", limit=chance.randint(1, 40), deadline=deadline, seed=number, temperature=1.0)
        deltas: list[Delta] = []
        try:
            async for delta in engine.generate(request):
                deltas.append(delta)
                clock.advance(0.02)  # time passes as words are written
        except DeadlineExceeded:
            assert clock.now_s() >= deadline
            ends.append("late")
        else:
            assert isinstance(deltas[-1], FinishDelta)
            ends.append("kept")
        if cancelled and cancelled[-1] is not asyncio.current_task():
            cancelled.pop().cancel()

    async with building(max_requests=4, cache_tokens=512) as engine:
        answers = [asyncio.create_task(ask(engine, number)) for number in range(1000)]
        cancelled = chance.sample(answers, 150)
        await asyncio.wait(answers)
        assert await _leased(engine) == (0, 0, 0)
    gone = sum(answer.cancelled() for answer in answers)
    assert gone > 0
    assert Counter(ends).total() == 1000 - gone
    assert set(ends) == {"late", "kept"}


# Readers


async def test_a_reader_who_stops_holds_up_nobody_and_misses_nothing(engine: DecodingEngine) -> None:
    request = asks(limit=300, temperature=1.0, seed=1)
    # Somebody else's: its own earlier answer would be the draft of all of it, and few deltas.
    whole = text_of(await collect(engine, replace(request, tenant="other")))
    slow = engine.generate(request)
    said = [await anext(slow)]
    for seed in range(3):
        await collect(engine, asks(limit=100, seed=seed))
    running, _, _ = await _leased(engine)
    assert running == 1
    [stream] = engine._streams
    assert stream.given < 100
    said += [delta async for delta in slow]
    assert text_of(said) == whole


async def test_a_reader_who_is_behind_all_the_time_gets_everything(engine: DecodingEngine) -> None:
    request = asks(limit=400, temperature=1.0, seed=2)
    whole = text_of(await collect(engine, request))
    said: list[Delta] = []
    async for delta in engine.generate(request):
        said.append(delta)
        if len(said) % 40 == 0:  # let it run into its bound
            await asyncio.to_thread(lambda: None)
            await _leased(engine)
    assert text_of(said) == whole


async def test_who_leaves_frees_his_room(engine: DecodingEngine) -> None:
    async with aclosing(engine.generate(asks(limit=400))) as deltas:
        await anext(deltas)
        assert (await _leased(engine))[0] == 1
    assert await _leased(engine) == (0, 0, 0)


async def test_who_leaves_before_his_prompt_is_prepared_was_never_there(engine: DecodingEngine) -> None:
    held = threading.Event()
    engine._words.submit(held.wait)
    answer = asyncio.create_task(collect(engine, asks()))
    await asyncio.sleep(0)
    answer.cancel()
    await asyncio.wait([answer])
    held.set()
    assert await asyncio.get_running_loop().run_in_executor(engine._words, lambda: True)
    assert await _leased(engine) == (0, 0, 0)
    assert text_of(await collect(engine, asks())) != ""


# What is reused


async def test_the_next_turn_is_read_from_where_the_last_one_ended_but_by_nobody_else(
    engine: DecodingEngine,
) -> None:
    first = await collect(engine, asks("Hello there, who are you?", tenant="ada", subject="eve"))
    turn = ("Hello there, who are you?", says(text_of(first), "assistant"), "And who am I?")
    for tenant, subject, known in (
        ("bob", "eve", False),
        ("ada", "fay", False),
        ("ada", None, False),
        ("ada", "eve", True),
        ("bob", "eve", True),
        ("ada", "fay", True),
    ):
        usage = (await collect(engine, asks(*turn, tenant=tenant, subject=subject)))[0]
        assert isinstance(usage, UsageDelta)
        assert (usage.cached_tokens > usage.input_tokens // 3) == known


async def test_what_is_forgotten_of_an_owner_is_read_anew_and_what_is_anothers_is_not(engine: DecodingEngine) -> None:
    said = "Hello there, who are you, and who are all of these?"
    owners = (("ada", "eve"), ("ada", "fay"), ("bob", "eve"))

    async def cached() -> list[bool]:
        usages = [(await collect(engine, asks(said, tenant=t, subject=s, limit=2)))[0] for t, s in owners]
        return [isinstance(usage, UsageDelta) and usage.cached_tokens > 0 for usage in usages]

    await cached()
    assert await cached() == [True, True, True]
    await engine.forget("ada", "eve")
    assert await cached() == [False, True, True]
    await engine.forget("ada", None)
    assert await cached() == [False, False, True]


async def test_of_what_is_written_while_it_is_forgotten_nothing_is_kept(engine: DecodingEngine) -> None:
    said = "Hello there, who are you, and who are all of these?"
    async with aclosing(engine.generate(asks(said, tenant="ada", limit=60))) as deltas:
        async for delta in deltas:
            if isinstance(delta, TextDelta):
                break
        await engine.forget("ada", None)
        async for _ in deltas:
            pass
    usage = (await collect(engine, asks(said, tenant="ada", limit=2)))[0]
    assert isinstance(usage, UsageDelta)
    assert usage.cached_tokens == 0
    kept = await _in_thread(engine, lambda loop: [each.scope.owner.tenant for each in loop._cache._prefixes])
    assert kept.count("ada") == 1  # of the request after it


async def test_an_engine_that_is_closed_has_nothing_to_forget(building: Building) -> None:
    async with building() as engine:
        await engine.aclose()
        with pytest.raises(Internal):
            await engine.forget("ada", None)


async def test_guesses_change_nothing_but_time(building: Building) -> None:
    requests = [
        asks(f"one two three {seed}", limit=60, temperature=temperature, seed=seed)
        for seed in range(3)
        for temperature in (0.0, 0.4)
    ]
    async with building(speculation="off") as engine:
        plain = [text_of(await collect(engine, request)) for request in requests]
    async with building(speculation="suffix") as engine:
        together = await asyncio.gather(*(collect(engine, request) for request in requests))
        again = [await collect(engine, request) for request in requests]
    assert [text_of(deltas) for deltas in together] == plain
    assert [text_of(deltas) for deltas in again] == plain


async def test_an_answer_begun_by_another_is_gone_on_with(engine: DecodingEngine) -> None:
    plain = text_of(await collect(engine, asks(limit=30)))
    deltas = await collect(engine, asks(limit=30, draft=Draft(text=plain)))
    assert text_of(deltas) == plain
    usage = deltas[-2]
    assert isinstance(usage, UsageDelta)
    [draft] = [draft for draft in usage.drafts if draft.drafter == "hint"]
    assert draft.accepted > 0


async def test_a_tolerant_request_keeps_of_its_own_draft_what_the_model_would_not_have_written(
    engine: DecodingEngine,
) -> None:
    plain = text_of(await collect(engine, asks(limit=30)))
    other = text_of(await collect(engine, asks("Something else altogether", limit=30)))
    assert other != plain
    exact = text_of(await collect(engine, asks(limit=30, draft=Draft(text=other))))
    tolerant = text_of(await collect(engine, asks(limit=30, draft=Draft(text=other, tolerance_nats=1_000))))
    assert exact == plain
    assert tolerant[: len(other) // 2] == other[: len(other) // 2] != plain[: len(other) // 2]
    # And nobody else's answer is any different for it.
    assert text_of(await collect(engine, asks(limit=30))) == plain


# Forms


@pytest.mark.parametrize(
    ("constraint", "fits"),
    [
        (RegexConstraint(pattern="[a-c]{5} [0-9]{2}"), "[a-c]{5} [0-9]{2}"),
        (GrammarConstraint(grammar='start: "yes" | "no"'), "yes|no"),
        (
            JsonSchemaConstraint(
                schema='{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false}'
            ),
            r'\{"a": ?[12]\}',
        ),
    ],
    ids=["expression", "grammar", "schema"],
)
async def test_an_answer_keeps_to_its_form(engine: DecodingEngine, constraint: Constraint, fits: str) -> None:
    for temperature in (0.0, 5.0):
        deltas = await collect(engine, asks(limit=64, temperature=temperature, seed=1, constraint=constraint))
        assert re.fullmatch(fits, text_of(deltas))
        assert deltas[-1] == FinishDelta(reason="stop")


@pytest.mark.parametrize("speculation", ["auto", "off", "suffix"])
async def test_what_goes_on_keeps_to_its_form_together_with_what_it_goes_on_from(
    building: Building, speculation: str
) -> None:
    constraint = RegexConstraint(pattern="(abc ){12}[0-9]{2}")
    answers: list[str] = []
    async with building(speculation=speculation) as engine:
        for begun in ("abc ", "abc abc ab", "abc " * 12 + "1", "abc " * 12 + "12"):
            for temperature in (0.0, 5.0):
                asked = asks(
                    says("Hello"), says(begun, "assistant"), continues=True, limit=64, temperature=temperature, seed=1
                )
                deltas = await collect(engine, replace(asked, constraint=constraint))
                answers.append(begun + text_of(deltas))
                assert re.fullmatch(constraint.pattern, answers[-1])
                assert deltas[-1] == FinishDelta(reason="stop")
        with pytest.raises(BadInput, match="after 4 characters"):
            await collect(
                engine, replace(asks(says("Hi"), says("abc x", "assistant"), continues=True), constraint=constraint)
            )
    if speculation != "off":
        async with building(speculation="off") as engine:
            for begun, expected in zip(("abc ", "abc abc ab"), answers[1:4:2], strict=True):
                asked = asks(says("Hello"), says(begun, "assistant"), continues=True, limit=64, temperature=5.0, seed=1)
                assert begun + text_of(await collect(engine, replace(asked, constraint=constraint))) == expected


async def test_what_cannot_be_served_is_said_before_anything_runs(engine: DecodingEngine) -> None:
    with pytest.raises(BadInput, match="regular expression"):
        await collect(engine, asks(constraint=RegexConstraint(pattern="(")))
    with pytest.raises(NotFound, match="no adapter 'french'"):
        await collect(engine, asks(adapter="french"))
    assert await _leased(engine) == (0, 0, 0)


# The end


async def test_closing_fails_what_is_written_what_waits_and_what_comes_later(building: Building) -> None:
    async with building(max_requests=1) as engine:
        running = engine.generate(asks(limit=400))
        await anext(running)
        waiting = asyncio.create_task(collect(engine, asks()))
        await _somebody_waits(engine)
        held = threading.Event()
        engine._words.submit(held.wait)
        preparing = asyncio.create_task(collect(engine, asks()))
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.aclose())
        await asyncio.sleep(0)
        held.set()
        for failing in (preparing, waiting):
            with pytest.raises(Internal, match="closed"):
                await failing
        with pytest.raises(Internal, match="closed"):
            async for _ in running:
                pass
        await closing
        await engine.aclose()
        assert not engine._thread.is_alive()
        with pytest.raises(Internal, match="closed"):
            await collect(engine, asks())


async def test_an_engine_that_cannot_be_built_says_why(clock: ManualClock) -> None:
    def fails() -> tuple[Loop, object]:
        raise BadInput("There is no such model.")

    with pytest.raises(BadInput, match="no such model"):
        DecodingEngine(fails, clock)  # type: ignore[arg-type]


async def test_a_thread_that_dies_leaves_nobody_waiting(
    engine: DecodingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = engine.generate(asks(limit=400))
    await anext(answer)

    def dies() -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(engine._loop, "step", dies)
    with pytest.raises(Internal, match="closed"):
        async for _ in answer:
            pass
    with pytest.raises(Internal, match="closed"):
        await collect(engine, asks())
