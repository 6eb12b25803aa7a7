"""What the openai engine bounds: how long it waits for a server, and how many requests run at a time."""

import asyncio

import pytest
from support.openai_engine import asks, collect, fails, until
from support.openai_server import hang, says, sse, stream

from models.content import FinishDelta, TextDelta
from models.errors import BatonError, DeadlineExceeded, Overloaded


async def test_an_answer_ends_at_its_deadline(engine, server, clock):
    server.replies += [hang, stream(sse(says("I ")), then="hang")]
    for said in ([], [TextDelta(text="I ")]):
        deltas = engine.generate(asks(deadline=clock.now_s() + 5))
        assert [await anext(deltas) for _ in said] == said
        more = asyncio.ensure_future(anext(deltas))
        await until(lambda: server.open == 1 and clock._armed)
        clock.advance(4.9)
        await asyncio.sleep(0.01)
        assert not more.done()
        clock.advance(0.1)
        with pytest.raises(DeadlineExceeded):
            await more
        await until(lambda: server.open == 0)


async def test_a_deadline_that_has_passed_is_refused_at_once(engine, clock):
    assert isinstance(await fails(engine, asks(deadline=clock.now_s() - 1)), DeadlineExceeded)


async def test_a_server_that_falls_silent_is_given_up_on(make, server, clock):
    server.replies += [hang, stream(sse(says("I ")), then="hang")]
    for said in ([], [TextDelta(text="I ")]):
        deltas = make(read_timeout_s=3).generate(asks())
        assert [await anext(deltas) for _ in said] == said
        more = asyncio.ensure_future(anext(deltas))
        await until(lambda: server.open == 1 and clock._armed)
        clock.advance(3)
        with pytest.raises(DeadlineExceeded, match="3 s") as caught:
            await more
        assert caught.value.code == "upstream_timeout"
        await until(lambda: server.open == 0)
    assert len(server.exchanges) == 2


async def test_a_connection_that_is_not_made_in_time_is_given_up_on(make):
    # 192.0.2.0/24 is for documentation: nobody is there.
    engine = make(base_url="http://192.0.2.1/v1", connect_timeout_s=0.05, max_retries=0)
    error = await fails(engine)
    assert error.code == "upstream_unavailable"
    assert "192.0.2.1" in error.message


async def test_no_more_requests_run_than_may_and_the_most_urgent_is_next(make, server):
    engine = make(max_requests=1)
    held = engine.generate(asks())
    await anext(held)
    order: list[str] = []

    async def ask(priority: str) -> None:
        await collect(engine, asks(priority=priority))
        order.append(priority)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for priority in ("batch", "normal", "interactive"):
            tasks.create_task(ask(priority))
        await asyncio.sleep(0)
        await held.aclose()
    assert order == ["interactive", "normal", "batch"]


async def test_who_finds_no_place_is_refused(make, clock):
    engine = make(max_requests=1, max_waiting=1, wait_timeout_s=2)
    held = engine.generate(asks())
    await anext(held)
    for deadline_s, kind in ((None, Overloaded), (clock.now_s() + 3, DeadlineExceeded)):
        waiting = asyncio.create_task(fails(engine, asks(deadline=deadline_s)))
        await until(lambda: clock._armed)
        assert isinstance(await fails(engine), Overloaded)
        clock.advance(2)
        assert isinstance(await waiting, kind)
    await held.aclose()
    assert (await collect(engine))[-1] == FinishDelta(reason="stop")


async def test_a_place_is_passed_on_by_those_who_are_cancelled_while_they_wait(make):
    engine = make(max_requests=1)
    held = engine.generate(asks())
    await anext(held)
    waiting = [asyncio.create_task(collect(engine)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    closing = asyncio.create_task(held.aclose())
    await asyncio.sleep(0)
    waiting[0].cancel()
    await closing
    assert (await waiting[2])[-1] == FinishDelta(reason="stop")
    assert (await collect(engine))[-1] == FinishDelta(reason="stop")


async def test_an_engine_that_is_closed_fails_what_runs_and_takes_nothing_more(engine, server):
    server.replies.append(stream(sse(says("I ")), then="hang"))
    deltas = engine.generate(asks())
    await anext(deltas)
    await engine.aclose()
    await engine.aclose()
    with pytest.raises(BatonError):
        await anext(deltas)
    assert (await fails(engine)).code == "server_stopping"
    await until(lambda: server.open == 0)
