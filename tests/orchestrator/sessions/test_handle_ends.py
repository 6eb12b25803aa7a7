"""How turns are ended from outside, and what a transaction that fails leaves behind."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.sessions import HeldJournal, accept_rows, ending, refuse_rows, reply_of

from agents.writer import Writer
from models.clock import ManualClock
from models.errors import Conflict, Internal, Unavailable

# Interruptions


async def test_cancel_stops_the_engine_within_one_step(open_house: Any, recording: Any, clock: ManualClock) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}) as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("hello"))
        await house.until(lambda: recording.steps == 1)
        clock.advance(1.0)
        await house.until(lambda: recording.steps == 2)
        await session.cancel(turn_id, "barge_in")
        await house.until(lambda: recording.closed == 1)
        clock.advance(10.0)
        await house.settle()
        assert recording.steps == 2
        ended = ending(await house.rows(session))
        assert (ended.state, ended.reason, ended.generation) == ("interrupted", "barge_in", 2)
        assert reply_of(await house.rows(session)) == "word word "
        with pytest.raises(Conflict) as refused:
            await session.cancel(turn_id, "barge_in")
        assert refused.value.code == "turn_not_active"


@pytest.mark.parametrize("spins", range(0, 12))
async def test_finish_and_cancel_may_race_and_the_turn_ends_once(open_house: Any, spins: int) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        generation = await session.propose(house.says("hello"))
        await house.settle()  # the whole answer waits for the commit
        turn_id = await session.commit(generation)
        for _ in range(spins):
            await asyncio.sleep(0)
        refused = None
        try:
            await session.cancel(turn_id, "client_cancelled")
        except Conflict as exc:
            refused = exc
        transcript = await house.read_turn(session, turn_id)
        await house.settle()
        assert tuple(transcript.rows) == await house.rows(session)
        assert (ending(transcript.rows).state == "finished") == (refused is not None)


async def test_a_caller_cancelled_in_the_middle_of_commit_leaves_the_session_whole(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        journal = HeldJournal(session)
        generation = await session.propose(house.says("hello"))
        await house.settle()
        journal.before.clear()
        committing = asyncio.create_task(session.commit(generation))
        await house.settle()
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        journal.before.set()
        transcript = await house.read(session, lambda transcript: bool(transcript.ended))
        assert reply_of(transcript.rows) == "you said hello 🎻"
        transcript = await house.read_turn(session, await session.respond(house.says("again")), after=session.last_seq)
        assert reply_of(transcript.rows) == "you said again 🎻"


async def test_a_turn_runs_on_for_the_grace_time_after_its_last_reader_left(
    open_house: Any, recording: Any, clock: ManualClock
) -> None:
    agents = {"writer": Writer({"scripted": recording})}
    async with open_house(agents, detach_grace_s=60.0, turn_timeout_s=1_000.0) as house:
        session = await house.sessions.create("local")
        stays, leaves = session.events(0), session.events(0)
        turn_id = await session.respond(house.says("hello"))
        await anext(stays)
        await anext(leaves)
        await leaves.aclose()
        clock.advance(100.0)
        await house.settle()
        assert session.running_turn == turn_id
        await stays.aclose()
        clock.advance(59.0)
        await house.settle()
        assert session.running_turn == turn_id
        clock.advance(1.0)
        await house.until(lambda: session.running_turn is None)
        ended = ending(await house.rows(session))
        assert (ended.state, ended.reason) == ("interrupted", "client_detached")
        await house.until(lambda: recording.closed == 1)


async def test_the_grace_time_of_a_turn_begins_with_it_at_the_earliest(open_house: Any, clock: ManualClock) -> None:
    async with open_house(detach_grace_s=60.0, idle_s=300.0) as house:
        session = await house.sessions.create("local")
        clock.advance(100.0)  # quiet for longer than the grace time, not yet idle
        turn_id = await session.respond(house.says("wait"))
        await house.settle()
        assert session.running_turn == turn_id


async def test_a_reader_that_comes_back_in_time_saves_the_turn(open_house: Any, clock: ManualClock) -> None:
    async with open_house(detach_grace_s=60.0) as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        for _ in range(3):
            async with aclosing(session.events(0)) as events:
                await anext(events)
            clock.advance(30.0)
            await house.settle()
            assert session.running_turn == turn_id  # 90 seconds in all, never 60 without a reader


# Failing transactions


async def test_a_failed_transaction_closes_the_session_and_opening_it_folds_the_log(
    open_house: Any, tmp_path: Path
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await house.read_turn(session, await session.respond(house.says("one")))
        refuse_rows(tmp_path, "turn_accepted")
        reading = asyncio.create_task(house.read(session, lambda _: False))
        await house.settle()
        with pytest.raises(Internal) as failed:
            await session.respond(house.says("two"))
        assert "no room" not in failed.value.message
        with pytest.raises(Unavailable) as told:
            await reading
        assert told.value.code == "session_closed"
        with pytest.raises(Unavailable) as refused:
            await session.propose(house.says("three"))
        assert refused.value.code == "session_closed"
        assert session.closed
        accept_rows(tmp_path)
        again = await house.sessions.open("local", session.session_id)
        assert again is not session
        transcript = await house.read_turn(again, await again.respond(house.says("four")))
        assert reply_of(transcript.rows) == "you said one 🎻you said four 🎻"


@pytest.mark.parametrize("settled", [True, False])
async def test_a_turn_whose_end_could_not_be_logged_is_reported_when_the_session_is_opened(
    open_house: Any, peek: Any, tmp_path: Path, settled: bool
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        generation = await session.propose(house.says("hello"))
        refuse_rows(tmp_path, "turn_ended")
        turn_id = await session.commit(generation)
        for _ in range(100_000):  # step by step, to catch it before it has left memory
            if session.closed:
                break
            await asyncio.sleep(0)
        if settled:  # the closed session has left memory; else it is still there
            await house.settle()
            assert session.session_id not in house.sessions._open
        accept_rows(tmp_path)
        again = await house.sessions.open("local", session.session_id)
        assert again.running_turn is None
        ended = ending((await house.read_turn(again, turn_id)).rows)
        assert (ended.turn_id, ended.state) == (turn_id, "interrupted")
        assert peek("SELECT state FROM turns") == [("interrupted",)]
        transcript = await house.read_turn(again, await again.respond(house.says("more")), after=again.last_seq)
        assert reply_of(transcript.rows) == "you said more 🎻"
