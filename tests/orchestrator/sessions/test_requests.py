"""What is said and asked for without waiting: kept in one transaction if it came together, and never lost."""

import asyncio
from typing import Any

import pytest
from support.sessions import HeldJournal, kinds, reply_of

from models.errors import BatonError, Conflict, LimitExceeded, NotFound
from orchestrator.events import TurnInput


async def test_what_was_said_is_taken_along_by_the_request_that_came_with_it(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        saying = await session.say((message("hello", "item_1"),))
        request = await session.request(TurnInput())
        assert session.requested_turn == request.turn_id
        await request.done()
        await saying.done()
        transcript = await house.read_turn(session, request.turn_id)
        assert kinds(transcript.rows) == ["turn_accepted", "item_closed", "task_ended", "turn_ended"]
        assert reply_of(transcript.rows) == "you said hello 🎻"
        assert session.requested_turn is None


async def test_a_request_that_was_taken_back_accepts_nobody_elses_guess(open_house: Any) -> None:
    # The generation counts from 1 in each turn: what is proposed next has the number of what was asked for.
    async with open_house() as house:
        session = await house.sessions.create("local")
        request = await session.request(house.says("one"))
        await session.cancel(request.turn_id, "client_cancelled")
        guess = await session.propose(house.says("two"))
        assert guess == request.generation
        with pytest.raises(Conflict) as refused:
            await request.done()
        assert refused.value.code == "turn_cancelled"
        await house.settle()
        assert (session.running_turn, await house.rows(session)) == (None, ())
        await house.read_turn(session, await session.commit(guess))


async def test_a_request_whose_acceptance_is_being_written_is_not_said_to_be_taken_back(
    open_house: Any, message: Any
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        journal = HeldJournal(session)
        journal.after.clear()
        request = await session.request(house.says("wait"))
        await house.settle()
        await session.propose(house.says("a guess at what comes after it"))
        cancelling = asyncio.create_task(session.cancel(request.turn_id, "client_cancelled"))
        await house.settle()
        journal.after.set()
        await request.done()
        await cancelling
        assert "turn_ended" in kinds(await house.rows(session))
        assert session.running_turn is None


async def test_what_nobody_asks_about_is_kept_alone(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        first = await session.say((message("one", "item_1"),))
        second = await session.say((message("two", "item_2"),))
        await asyncio.gather(first.done(), second.done())
        assert kinds(await house.rows(session)) == ["items_added", "items_added"]
        item, is_open = await session.find("item_2")
        assert (item.item_id, is_open) == ("item_2", False)


async def test_whatever_becomes_of_the_request_what_was_said_is_kept(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        saying = await session.say((message("hello", "item_1"),))
        request = await session.request(TurnInput(model="nonesuch"))
        with pytest.raises(NotFound):
            await request.done()
        await saying.done()
        saying = await session.say((message("wait", "item_2"),))
        request = await session.request(TurnInput())
        await request.done()
        late = await session.say((message("and?", "item_3"),))
        with pytest.raises(Conflict) as refused:
            await session.request(TurnInput())
        assert refused.value.code == "turn_active"
        await late.done()
        assert [item.item_id for item in session.items][:2] == ["item_1", "item_2"]
        assert "item_3" in [item.item_id for item in session.items]
        await session.cancel(request.turn_id, "client_cancelled")


async def test_a_request_is_taken_back_before_it_is_decided_and_what_was_said_stays(
    open_house: Any, message: Any
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        held = asyncio.Event()

        async def decide(*_: Any, **__: Any) -> Any:
            await held.wait()
            raise AssertionError

        house.executor._decider.decide = decide
        saying = await session.say((message("hello", "item_1"),))
        request = await session.request(TurnInput())
        with pytest.raises(Conflict, match="is being decided"):
            await session.request(TurnInput())
        await session.cancel(request.turn_id, "client_cancelled")
        with pytest.raises(Conflict) as cancelled:
            await request.done()
        assert cancelled.value.code == "turn_cancelled"
        await saying.done()
        assert kinds(await house.rows(session)) == ["items_added"]
        del house.executor._decider.decide
        turn_id = await session.respond(TurnInput())
        assert reply_of((await house.read_turn(session, turn_id)).rows) == "you said hello 🎻"


async def test_what_cannot_be_said_is_refused_at_once(open_house: Any, message: Any) -> None:
    async with open_house(item_characters=5) as house:
        session = await house.sessions.create("local")
        with pytest.raises(LimitExceeded):
            await session.say((message("too long", "item_1"),))
        await (await session.say((message("short", "item_1"),))).done()
        with pytest.raises(Conflict):
            await session.say((message("again", "item_1"),))


async def test_a_session_that_is_closed_meanwhile_leaves_nobody_waiting(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        held = asyncio.Event()

        async def decide(*_: Any, **__: Any) -> Any:
            await held.wait()

        house.executor._decider.decide = decide
        saying = await session.say((message("hello", "item_1"),))
        request = await session.request(TurnInput())
        await session.close("server_stopped")
        async with asyncio.timeout(10):
            for pending in (request, saying):
                with pytest.raises(BatonError):
                    await pending.done()


@pytest.mark.parametrize("stopped", ["_keep", "_accept"])
async def test_what_is_stopped_before_it_is_written_is_never_said_to_be_kept(
    stopped: str, open_house: Any, message: Any
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        journal = HeldJournal(session)
        journal.before.clear()
        pending = await session.say((message("one", "item_1"),))
        if stopped == "_accept":
            pending = await session.request(TurnInput())
        await house.settle()
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "__name__", "") == stopped:
                task.cancel()
        with pytest.raises(BatonError) as cut_off:
            await pending.done()
        assert cut_off.value.code == "session_closed"
        journal.before.set()
