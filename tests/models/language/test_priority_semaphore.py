"""Who goes first when there is not room for all."""

import asyncio

import pytest

from models.language.priority_semaphore import PrioritySemaphore
from models.ports.generate import Priority


async def _queue(turns: PrioritySemaphore, *names: tuple[str, Priority]) -> tuple[list[str], list[asyncio.Task[None]]]:
    """Let each ask for a place in this order; return the order in which they get one, as it grows."""
    served: list[str] = []

    async def ask(name: str, priority: Priority) -> None:
        await turns.take(priority)
        served.append(name)

    tasks = [asyncio.create_task(ask(*name)) for name in names]
    await asyncio.sleep(0)
    return served, tasks


async def test_nobody_waits_while_there_are_places():
    turns = PrioritySemaphore(2)
    await turns.take("batch")
    await turns.take("normal")


async def test_the_most_urgent_goes_first_and_equals_in_the_order_in_which_they_came():
    turns = PrioritySemaphore(1)
    await turns.take("normal")
    served, tasks = await _queue(
        turns, ("b1", "batch"), ("n1", "normal"), ("i1", "interactive"), ("n2", "normal"), ("i2", "interactive")
    )
    assert served == []
    for _ in tasks:
        turns.give()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert served == ["i1", "i2", "n1", "n2", "b1"]


async def test_a_place_that_is_given_back_goes_to_one_only():
    turns = PrioritySemaphore(1)
    await turns.take("normal")
    served, tasks = await _queue(turns, ("a", "normal"), ("b", "normal"))
    turns.give()
    await asyncio.sleep(0)
    assert served == ["a"]
    tasks[1].cancel()
    await asyncio.wait(tasks)


async def test_one_who_leaves_while_waiting_is_passed_over():
    turns = PrioritySemaphore(1)
    await turns.take("normal")
    served, (first, second) = await _queue(turns, ("a", "normal"), ("b", "normal"))
    first.cancel()
    await asyncio.wait([first])
    turns.give()
    await second
    assert served == ["b"]


async def test_one_who_leaves_at_the_moment_of_being_called_passes_the_place_on():
    turns = PrioritySemaphore(1)
    await turns.take("normal")
    served, (first, second) = await _queue(turns, ("a", "normal"), ("b", "normal"))
    turns.give()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert served == ["b"]
    turns.give()
    await turns.take("normal")
