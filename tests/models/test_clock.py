"""Clocks: deadlines fire when their time has come, on the clock they were made for."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.clock import ManualClock, SystemClock, sleep_until, wait_for_event

_SECONDS = st.integers(min_value=0, max_value=20)


async def _settle() -> None:
    """Let every task run that can: a timeout needs a few turns of the loop to be thrown and caught."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_both_times_of_a_manual_clock_advance_together():
    clock = ManualClock(now_s=5.0, wall_s=1_000.0)
    clock.advance(2.5)
    assert (clock.now_s(), clock.wall_s()) == (7.5, 1_002.5)


async def test_a_manual_timeout_fires_when_the_clock_reaches_its_deadline_and_not_before():
    clock = ManualClock(now_s=0)
    async with asyncio.TaskGroup() as tasks:
        sleeper = tasks.create_task(sleep_until(clock, 10))
        await _settle()
        clock.advance(9.75)
        await _settle()
        assert not sleeper.done()
        clock.advance(0.25)
        await _settle()
        assert sleeper.done()


async def test_a_deadline_that_has_passed_fires_at_the_first_wait():
    clock = ManualClock(now_s=10)
    with pytest.raises(TimeoutError):
        async with clock.timeout_at(10):
            await asyncio.get_running_loop().create_future()


async def test_no_deadline_never_fires():
    clock = ManualClock()
    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        waiter = tasks.create_task(wait_for_event(clock, done, None))
        await _settle()
        clock.advance(1e9)
        await _settle()
        assert not waiter.done()
        done.set()
    assert waiter.result() is True


async def test_a_body_that_ends_in_time_is_not_timed_out_later():
    clock = ManualClock(now_s=0)
    async with clock.timeout_at(10):
        pass
    clock.advance(20)
    await _settle()  # a timeout that were still armed would cancel this very task


async def test_cancelling_a_sleeper_is_a_cancellation_and_not_a_wake_up():
    clock = ManualClock(now_s=0)
    sleeper = asyncio.create_task(sleep_until(clock, 10))
    await _settle()
    sleeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeper


async def test_waiting_for_an_event_ends_with_it():
    clock = ManualClock(now_s=0)
    event = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        waiter = tasks.create_task(wait_for_event(clock, event, 10))
        await _settle()
        event.set()
    assert waiter.result() is True


async def test_waiting_for_an_event_ends_with_the_deadline():
    clock = ManualClock(now_s=0)
    async with asyncio.TaskGroup() as tasks:
        waiter = tasks.create_task(wait_for_event(clock, asyncio.Event(), 10))
        await _settle()
        clock.advance(10)
    assert waiter.result() is False


async def test_an_event_that_is_set_already_counts_even_after_the_deadline():
    event = asyncio.Event()
    event.set()
    assert await wait_for_event(ManualClock(now_s=10), event, 5) is True


@given(deadlines=st.lists(_SECONDS, max_size=6), steps=st.lists(_SECONDS, max_size=6))
async def test_at_any_time_exactly_those_sleepers_are_awake_whose_deadline_was_reached(deadlines, steps):
    clock = ManualClock(now_s=0)
    sleepers = [asyncio.create_task(sleep_until(clock, deadline)) for deadline in deadlines]
    await _settle()
    for step in steps:
        clock.advance(step)
        await _settle()
        assert [sleeper.done() for sleeper in sleepers] == [deadline <= clock.now_s() for deadline in deadlines]
    clock.advance(20)
    await asyncio.gather(*sleepers)


def test_the_system_clock_is_the_hosts_monotonic_one_so_that_deadlines_cross_processes():
    before_s = time.monotonic()
    now_s = SystemClock().now_s()
    assert before_s <= now_s <= time.monotonic()


async def test_the_system_clock_times_out_what_is_late():
    clock = SystemClock()
    with pytest.raises(TimeoutError):
        async with clock.timeout_at(clock.now_s()):
            await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("ahead_s", [None, 3600.0])
async def test_the_system_clock_leaves_alone_what_is_in_time(ahead_s):
    clock = SystemClock()
    deadline_s = None if ahead_s is None else clock.now_s() + ahead_s
    async with clock.timeout_at(deadline_s):
        await asyncio.sleep(0)
