"""Tenants that queue for one thing are let in by turns."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from models.rounds import Rounds


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20))
async def test_one_is_in_at_a_time_and_none_waits_for_more_than_one_of_each_other_tenant(asked) -> None:
    rounds, came, inside = Rounds(), [], 0

    async def enter(tenant: str) -> None:
        nonlocal inside
        async with rounds.held(tenant):
            inside += 1
            assert inside == 1
            came.append(tenant)
            await asyncio.sleep(0)
            inside -= 1

    async with rounds.held("first"):
        tasks = [(asyncio.create_task(enter(tenant)), leaves) for tenant, leaves in asked]
        await asyncio.sleep(0)
        for task, leaves in tasks:
            if leaves:
                task.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
    stay = [tenant for tenant, leaves in asked if not leaves]
    assert sorted(came) == sorted(stay)
    for tenant in set(stay):
        first = came.index(tenant)
        assert len(set(came[:first])) == first  # nobody was twice before it
    async with asyncio.timeout(1), rounds.held("last"):
        pass


async def test_one_that_leaves_as_its_turn_comes_hands_it_on() -> None:
    rounds = Rounds()

    async def enter() -> None:
        async with rounds.held("a"):
            pass

    async with rounds.held("first"):
        leaving, staying = asyncio.create_task(enter()), asyncio.create_task(enter())
        await asyncio.sleep(0)
    leaving.cancel()
    async with asyncio.timeout(1):
        await asyncio.gather(leaving, staying, return_exceptions=True)
    assert leaving.cancelled()
    assert not staying.cancelled()
