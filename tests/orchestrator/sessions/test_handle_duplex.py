"""A handle for full duplex: what is proposed while a turn runs, what interrupts it, and what a model is then shown of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.sessions import HeldJournal, RecordingEngine, ending, kinds, reply_of

from agents.writer import Writer
from models.clock import ManualClock
from models.content import Message, TextPart, text_of
from models.errors import BadInput, Conflict, LimitExceeded, NotFound, Overloaded
from orchestrator.events import ItemClosed, PlaybackHeard, TurnEnded
from orchestrator.limits import SessionLimits
from orchestrator.sessions.playback import CUT_OFF


async def test_a_turn_interrupts_the_one_that_runs_in_one_transaction(
    open_house: Any, clock: ManualClock, peek: Callable[..., Any]
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        old = await session.respond(house.says("wait"))
        clock.advance(5.0)
        await house.settle()
        generation = await session.propose(house.says("hello"))
        await house.settle()
        before = session.last_seq
        assert session.running_turn == old, "a proposal interrupts nothing"
        journal = HeldJournal(session)
        journal.before.clear()
        committing = asyncio.create_task(session.commit(generation, interrupts=old))
        await house.settle()
        clock.advance(5.0)  # what the old one says now is stale
        await house.settle()
        journal.before.set()
        new = await committing
        rows = (await house.read_turn(session, new)).rows
        first = next(row.seq for row in rows if row.event.kind == "turn_accepted" and row.seq > before)
        assert kinds(rows)[before:first] == ["item_closed", "task_ended", "turn_ended", "turn_accepted"]
        assert reply_of(rows) == "slowly, you said hello 🎻"
        assert peek("SELECT id, state FROM turns ORDER BY rowid") == [(old, "interrupted"), (new, "finished")]


async def test_a_proposal_is_worked_on_while_a_turn_runs_and_comes_after_it(
    open_house: Any, clock: ManualClock
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        old = await session.respond(house.says("wait"))
        generation = await session.propose(house.says("hello"))
        await house.settle()
        with pytest.raises(Conflict) as refused:
            await session.commit(generation)
        assert refused.value.code == "turn_active"
        for _ in range(8):
            clock.advance(5.0)
            await house.settle()
        assert session.running_turn is None
        new = await session.commit(generation)  # it is proposed still
        rows = (await house.read_turn(session, new)).rows
        assert [row.event.turn_id for row in rows if isinstance(row.event, TurnEnded)] == [old, new]
        assert reply_of(rows) == "slowly, word by word, it comesyou said hello 🎻"


async def test_what_is_dropped_of_a_proposal_leaves_the_turn_that_runs_alone(
    open_house: Any, clock: ManualClock
) -> None:
    async with open_house(proposal_s=30.0) as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        await session.propose(house.says("hello"))
        proposed = session._state.proposal.turn_id
        await session.cancel(proposed, "client_cancelled")
        assert (session._state.proposal, session.running_turn) == (None, turn_id)
        await session.propose(house.says("hello"))
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(house.read_turn(session, turn_id))
            for _ in range(8):
                clock.advance(5.0)
                await house.settle()
            rows = (await reading).rows
        assert session._state.proposal is None  # it is overdue
        assert ending(rows).state == "finished"
        assert reply_of(rows) == "slowly, word by word, it comes"


async def test_a_turn_whose_asker_is_cancelled_before_it_is_accepted_is_not_worked_on(
    open_house: Any, recording: RecordingEngine
) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}) as house:
        session = await house.sessions.create("local")
        journal = HeldJournal(session)
        journal.before.clear()
        adding = asyncio.create_task(session.add(house.says("a").items))  # which has the lock
        await house.settle()
        asking = asyncio.create_task(session.respond(house.says("b")))
        await house.settle()
        asking.cancel()
        await house.settle()
        assert (session._state.proposal, session._generations) == (None, {})
        journal.before.set()
        await adding
        await house.settle()
        assert (session.running_turn, recording.closed) == (None, recording.steps)


# Slots


async def test_guesses_take_none_of_a_tenants_turns_and_have_slots_of_their_own(
    database: Any, clock: ManualClock, recording: RecordingEngine, new_house: Any
) -> None:
    agents = {"writer": Writer({"scripted": recording})}
    limits = SessionLimits()
    async with new_house(database, clock, agents, limits, turns=2, tenant_turns=1, guesses=2).running() as house:
        sessions = [await house.sessions.create("local") for _ in range(3)]
        others = [await house.sessions.create("other") for _ in range(2)]
        guess = await sessions[0].propose(house.says("a"))
        turn_id = await sessions[1].respond(house.says("b"))  # the tenant's one turn
        admission = house.executor.admission
        assert (admission.turns, admission.guesses) == (1, 1)
        with pytest.raises(Overloaded) as refused:
            await sessions[2].propose(house.says("c"))  # another guess of the same tenant's, which would take all slots
        assert refused.value.code == "too_many_guesses"
        assert sessions[2]._state.proposal is None
        await others[0].propose(house.says("d"))
        with pytest.raises(Overloaded):
            await others[1].propose(house.says("e"))
        with pytest.raises(Overloaded) as refused:
            await sessions[0].commit(guess)  # a guess becomes a turn only where there is a seat
        assert refused.value.code == "too_many_turns"
        with pytest.raises(Overloaded):
            await sessions[2].respond(house.says("f"))
        new = await sessions[1].respond(
            house.says("g"), interrupts=turn_id
        )  # which needs no more seats than there were
        await house.settle()
        assert (admission.turns, admission.guesses) == (1, 2)
        await sessions[1].cancel(new, "client_cancelled")
        await house.settle()
        await sessions[0].commit(guess)  # it is proposed still
        assert (admission.turns, admission.guesses) == (1, 1)
        proposal = others[0]._state.proposal
        await others[0].cancel(proposal.turn_id, "client_cancelled")
        assert (admission.turns, admission.guesses) == (1, 0)


@pytest.mark.parametrize("spins", range(6))
async def test_a_generation_gives_back_what_it_holds_however_early_it_is_dropped(open_house: Any, spins: int) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await session.propose(house.says("hello"))
        asking = asyncio.create_task(session.respond(house.says("hello")))
        for _ in range(spins):
            await asyncio.sleep(0)
        asking.cancel()
        await session.close("server_stopped")
        await house.settle()
        assert (house.executor.admission.turns, house.executor.admission.guesses) == (0, 0)


# Playback


async def spoken(house: Any, clock: ManualClock, session: Any) -> tuple[str, str]:
    """Have "word word word word " said, 250 ms a word; return the turn, which runs on, and the item."""
    turn_id = await session.respond(house.says("tell"))
    await house.settle()
    for _ in range(3):
        clock.advance(1.0)
        await house.settle()
    (item,) = session._state.turn.open.values()
    await session.speak_marks(item.item_id, ((4, 250), (9, 500)))
    await session.speak_marks(item.item_id, ((14, 750), (19, 1000)))
    return turn_id, item.item_id


@pytest.mark.parametrize("when", ["proposed", "cancelled", "reopened"])
async def test_with_300_of_1000_ms_heard_the_next_model_is_shown_the_words_of_those_and_that_it_was_cut_off(
    open_house: Any, clock: ManualClock, recording: RecordingEngine, when: str
) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}) as house:
        session = await house.sessions.create("local")
        turn_id, item_id = await spoken(house, clock, session)
        await session.heard(item_id, 300)
        if when == "proposed":
            new = await session.commit(await session.propose(house.says("stop")), interrupts=turn_id)
        else:
            await session.cancel(turn_id, "barge_in")
            if when == "reopened":
                await session.close("server_stopped")
                await house.settle()
                session = await house.sessions.open("local", session.session_id)
            new = await session.respond(house.says("stop"))
        await house.settle()
        asked, said, stop = recording.requests[-1].messages
        assert [text_of(item) for item in (asked, said, stop)] == ["tell", "word" + CUT_OFF, "stop"]
        assert isinstance(said, Message)
        assert [part.source for part in said.parts if isinstance(part, TextPart)] == ["generated", "tool"]
        (heard,) = [row.event for row in await house.rows(session) if isinstance(row.event, PlaybackHeard)]
        assert heard == PlaybackHeard(item_id=item_id, heard_ms=300, heard_characters=4)
        (closed,) = [row.event for row in await house.rows(session) if isinstance(row.event, ItemClosed)]
        assert text_of(closed.item) == "word word word word ", "people are shown what was said"
        await session.cancel(new, "client_cancelled")


async def test_the_interruption_of_a_voice_whose_turn_has_ended_is_logged_at_once(
    open_house: Any, recording: RecordingEngine
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        rows = (await house.read_turn(session, await session.respond(house.says("hello")))).rows
        item_id = next(row.event.item.item_id for row in rows if isinstance(row.event, ItemClosed))
        await session.speak_marks(item_id, ((8, 400), (14, 800), (16, 1000)))  # "you said", "hello", the violin
        await session.heard(item_id, 900)
        await session.heard(item_id, 400, is_over=True)  # nothing that was buffered was heard
        stopped = (await house.rows(session))[-1].event
        assert stopped == PlaybackHeard(item_id=item_id, heard_ms=400, heard_characters=8, is_over=True)
        await session.heard(item_id, 1000)  # what comes late changes nothing
        assert text_of(session._state.context[-1]) == "you said" + CUT_OFF
        (shown,) = await session.context([item_id])
        assert text_of(shown) == "you said" + CUT_OFF


async def test_what_was_heard_to_its_end_is_shown_as_it_was_said(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await house.read_turn(session, await session.respond(house.says("hello")))
        item = session.items[-1]
        await session.speak_marks(item.item_id, ((14, 800),))  # nobody says the violin
        await session.heard(item.item_id, 800, is_over=True)
        assert session._state.context[-1] == item


async def test_marks_and_playback_that_cannot_be_are_refused(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await house.read_turn(session, await session.respond(house.says("hello")))
        item_id = session.items[-1].item_id
        await session.speak_marks(item_id, ((8, 400),))
        for marks in (((7, 500),), ((9, 400),), ((17, 500),), ((9, 500), (8, 600)), ((-1, 500),)):
            with pytest.raises(BadInput):
                await session.speak_marks(item_id, marks)
        for is_over in (False, True):
            for ms in (-1, 401):
                with pytest.raises(LimitExceeded):
                    await session.heard(item_id, ms, is_over=is_over)
            with pytest.raises(NotFound):
                await session.heard("item_nonesuch", 0, is_over=is_over)
        with pytest.raises(NotFound):
            await session.speak_marks("item_nonesuch", ())
        assert not [row for row in await house.rows(session) if isinstance(row.event, PlaybackHeard)]
