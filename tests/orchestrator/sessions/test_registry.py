"""All sessions together: recovery, tenants, and what stays in memory."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sessions import HeldJournal, accept_rows, ending

from memory.database import Database
from memory.log import Lease
from models.clock import ManualClock
from models.errors import Internal, NotFound, Overloaded, Unavailable
from orchestrator.events import ItemsAdded, TurnAccepted
from orchestrator.sessions.journal import Journal


async def test_recovery_reports_each_open_turn_once(
    open_house: Any, database: Database, clock: ManualClock, message: Any, decision: Any
) -> None:
    async with open_house() as house:
        assert await house.sessions.recover() == 0
    journals = [Journal(database, clock, tenant, f"sess_{tenant}", new=True) for tenant in ("one", "two")]
    for n, journal in enumerate(journals):
        turn_input = house.says("hello")
        await journal.write((TurnAccepted(turn_id=f"turn_{n}", generation=3, input=turn_input, decision=decision),))
    async with open_house() as house:
        assert await house.sessions.recover() == 2
        assert await house.sessions.recover() == 0
        for n, journal in enumerate(journals):
            ended = ending(await journal.read(0, 10))
            assert (ended.turn_id, ended.generation) == (f"turn_{n}", 4)
            assert (ended.state, ended.reason, ended.duration_ms) == ("interrupted", "server_restarted", None)


async def test_recovery_finds_a_turn_that_began_long_before_the_end_of_its_log(
    open_house: Any, database: Database, clock: ManualClock, message: Any, decision: Any
) -> None:
    journal = Journal(database, clock, "local", "sess_long", new=True)
    async with open_house(items=4) as house:
        await journal.write(
            (TurnAccepted(turn_id="turn_1", generation=1, input=house.says("hello"), decision=decision),)
        )
        for n in range(20):
            await journal.write((ItemsAdded(items=(message(str(n), f"item_{n}"),)),))
        assert await house.sessions.recover() == 1
        assert ending(await journal.read(0, 100)).turn_id == "turn_1"
        assert await house.sessions.recover() == 0


async def test_a_long_log_folds_to_the_conversation_that_was_lived(
    open_house: Any, clock: ManualClock, message: Any
) -> None:
    async with open_house(items=6, idle_s=10.0, detach_grace_s=1_000.0) as house:
        session = await house.sessions.create("local")
        for n in range(4):
            turn_id = await session.respond(house.says("wait"))
            for m in range(3):
                await session.add((message("meanwhile", f"item_{n}_{m}"),))
            await session.cancel(turn_id, "client_cancelled")
            # Turns without a word of their own: many rows, few items.
            for _ in range(3):
                turn_id = await session.respond(replace(house.says(""), items=()))
                await house.until(lambda: session.running_turn is None)
        lived = list(session._state.items)
        await house.settle()
        clock.advance(10.0)
        await house.until(lambda: session.closed)
        again = await house.sessions.open("local", session.session_id)
        assert again._state.items == lived
        assert again.last_seq == session.last_seq


async def test_another_tenants_session_is_not_found(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        with pytest.raises(NotFound):
            await house.sessions.open("somebody", session.session_id)
        with pytest.raises(NotFound):
            await house.sessions.open("local", "sess_nonesuch")
        assert await house.sessions.open("local", session.session_id) is session


async def test_an_idle_session_leaves_memory_and_can_be_opened_again(open_house: Any, clock: ManualClock) -> None:
    async with open_house(idle_s=300.0) as house:
        session = await house.sessions.create("local")
        await house.read_turn(session, await session.respond(house.says("hello")))
        await house.settle()
        clock.advance(299.0)
        await house.settle()
        assert await house.sessions.open("local", session.session_id) is session
        clock.advance(299.0)
        await house.settle()
        assert not session.closed
        clock.advance(1.0)
        await house.until(lambda: not house.sessions._open)
        assert session.closed
        again = await house.sessions.open("local", session.session_id)
        assert tuple((await house.read(again, lambda transcript: transcript.seq == 4)).rows) == await house.rows(again)


async def test_a_session_does_not_go_idle_while_it_writes(open_house: Any, clock: ManualClock, message: Any) -> None:
    # Else the row would appear behind the back of the handle that is opened meanwhile.
    async with open_house(idle_s=300.0) as house:
        session = await house.sessions.create("local")
        journal = HeldJournal(session)
        journal.before.clear()
        adding = asyncio.create_task(session.add((message("hello", "item_1"),)))
        await house.settle()
        clock.advance(400.0)
        await house.settle()
        again = await house.sessions.open("local", session.session_id)
        journal.before.set()
        await adding
        await again.add((message("again", "item_2"),))
        assert [item.item_id for item in again._state.items] == ["item_1", "item_2"]
        transcript = await house.read(again, lambda transcript: transcript.seq == 2)
        assert tuple(transcript.rows) == await house.rows(again)


async def test_a_reader_keeps_a_session_in_memory(open_house: Any, clock: ManualClock) -> None:
    async with open_house(idle_s=300.0) as house:
        session = await house.sessions.create("local")
        reading = asyncio.create_task(house.read(session, lambda transcript: transcript.seq == 1))
        await house.settle()
        clock.advance(3_000.0)
        await house.settle()
        assert not session.closed
        await session.respond(house.says("hello"))
        await reading


async def test_too_many_sessions_are_refused(open_house: Any) -> None:
    async with open_house(max_open=2) as house:
        first = await house.sessions.create("local")
        await house.sessions.create("local")
        with pytest.raises(Overloaded):
            await house.sessions.create("local")
        assert await house.sessions.open("local", first.session_id) is first


async def test_an_empty_session_leaves_nothing_behind(open_house: Any, tmp_path: Path) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        assert await house.sessions.open("local", session.session_id) is session
        with closing(sqlite3.connect(tmp_path / "baton.db")) as connection:
            assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
        await session.add((house.says("hello").items[0],))
        with closing(sqlite3.connect(tmp_path / "baton.db")) as connection:
            assert connection.execute("SELECT id, last_seq FROM sessions").fetchall() == [(session.session_id, 1)]


async def test_a_session_that_cannot_be_begun_is_not_kept(open_house: Any, tmp_path: Path) -> None:
    async with open_house() as house:
        with closing(sqlite3.connect(tmp_path / "baton.db")) as connection:
            connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON sessions BEGIN SELECT RAISE(ABORT, 'full'); END")
            connection.commit()
        session = await house.sessions.create("local")
        with pytest.raises(Internal):
            await session.respond(house.says("hello"))
        await house.until(lambda: not house.sessions._open)
        accept_rows(tmp_path)
        session = await house.sessions.create("local")
        await session.respond(house.says("hello"))


async def test_stopping_interrupts_what_runs_and_takes_nothing_new(
    database: Database, clock: ManualClock, open_house: Any
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        reading = asyncio.create_task(house.read_turn(session, turn_id))
        await house.settle()
        await house.sessions.stop()
        with pytest.raises(Overloaded) as refused:
            await house.sessions.create("local")
        assert refused.value.code == "server_stopping"
        ended = ending((await reading).rows)
        assert (ended.state, ended.reason) == ("interrupted", "server_stopped")
        assert await house.sessions.recover() == 0


async def test_a_turn_accepted_while_the_server_stops_is_ended_in_the_log(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        journal = HeldJournal(session)
        generation = await session.propose(house.says("wait"))
        await house.settle()
        journal.before.clear()
        committing = asyncio.create_task(session.commit(generation))
        await house.settle()
        stopping = asyncio.create_task(house.sessions.stop())
        await house.settle()
        journal.before.set()
        await stopping
        assert ending(await house.rows(session)).turn_id == await committing


# Servers that share what they keep


async def test_a_turn_that_another_server_may_be_running_is_left_alone_until_its_lease_is_over(
    open_house: Any, database: Database, clock: ManualClock, decision: Any
) -> None:
    async with open_house() as house:
        for owner in ("here", "there"):
            lease = Lease(owner=owner, length_ms=60_000)
            journal = Journal(database, clock, "local", f"sess_{owner}", new=True, lease=lease)
            said = house.says("hello")
            await journal.write((TurnAccepted(turn_id=f"turn_{owner}", generation=1, input=said, decision=decision),))
        house.sessions._lease = Lease(owner="here", length_ms=60_000)
        assert await house.sessions.recover() == 1  # its own, at once: nobody else has its home
        assert (await house.sessions.open("local", "sess_here")).running_turn is None
        with pytest.raises(Unavailable) as refused:
            await house.sessions.open("local", "sess_there")
        assert refused.value.code == "session_elsewhere"
        assert refused.value.retry_after_s == 60.0
        clock.advance(60.0)
        assert await house.sessions.recover() == 1
        there = await house.sessions.open("local", "sess_there")
        assert ending(await house.rows(there)).reason == "server_restarted"
        assert (await house.sessions.record("local", "sess_there")).owner == "here"
