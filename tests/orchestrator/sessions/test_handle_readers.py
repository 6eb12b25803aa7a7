"""What a session's readers get, come and go as they may."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from support.sessions import HeldJournal, reply_of

from agents.writer import Writer
from models.clock import ManualClock
from models.content import text_of
from models.errors import BadInput
from orchestrator.events import ItemSnapshot


async def test_readers_that_come_late_or_again_get_every_character_once(open_house: Any, clock: ManualClock) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        whole = asyncio.create_task(house.read_turn(session, turn_id))
        seen: list[Any] = []
        for _ in range(6):
            await house.settle()
            clock.advance(5.0)
            await house.settle()
            # A reader of its own each time, that leaves after what there is.
            async with aclosing(session.events(0)) as events:
                seen.append(await anext(events))
                if session.running_turn:
                    snapshot = await anext(events)
                    assert isinstance(snapshot, ItemSnapshot)
                    assert "slowly, word by word, it comes".startswith(text_of(snapshot.item))
        assert reply_of((await whole).rows) == "slowly, word by word, it comes"
        assert {event.seq for event in seen} == {1}


async def test_a_slow_reader_gets_fewer_and_longer_deltas(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        async with aclosing(session.events(0)) as events:
            turn_id = await session.respond(house.says("count to 200"))
            await house.until(lambda: session.running_turn is None)
            given = [await anext(events) for _ in range(4)]
        assert [event.kind for event in given] == ["committed", "item_snapshot", "committed", "committed"]
        assert turn_id in {event.event.turn_id for event in given if event.kind == "committed"}


async def test_a_reader_may_begin_only_where_the_session_has_been(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        for after in (-1, 1):
            with pytest.raises(BadInput) as refused:
                await anext(session.events(after))
            assert (refused.value.code, refused.value.field) == ("sequence_gap", "after")


async def test_a_reader_far_behind_reads_the_log(open_house: Any, message: Any) -> None:
    async with open_house(rows=2) as house:
        session = await house.sessions.create("local")
        for n in range(20):
            await session.add((message(str(n), f"item_{n}"),))
        transcript = await house.read(session, lambda transcript: transcript.seq == 20, after=3)
        assert tuple(transcript.rows) == (await house.rows(session))[3:]


async def test_no_reader_is_given_an_item_again_after_its_closing_row(
    open_house: Any, message: Any, recording: Any, new_transcript: Any
) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}, rows=2) as house:
        session = await house.sessions.create("local")
        for n in range(5):  # more than the rows in memory, so that the reader goes to the database
            await session.add((message(str(n), f"item_{n}"),))
        turn_id = await session.respond(house.says("hello"))
        await house.until(lambda: recording.steps == 1)
        journal = HeldJournal(session)
        journal.after.clear()  # the rows of the end are committed there, and not yet applied here
        cancelling = asyncio.create_task(session.cancel(turn_id, "client_cancelled"))
        await house.settle()
        transcript = new_transcript(0)

        async def pump() -> None:
            async with aclosing(session.events(0)) as events:
                async for event in events:
                    transcript.take(event)

        pumping = asyncio.create_task(pump())
        await house.settle()
        journal.after.set()
        await cancelling
        await house.until(lambda: turn_id in transcript.ended or pumping.done())
        await house.settle()
        assert not pumping.done(), "the reader was given what it must not get"
        pumping.cancel()
