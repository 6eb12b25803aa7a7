"""Sessions as they are kept: their settings, their titles, their lists, their transcripts, and their end."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sessions import WEATHER, HeldJournal, ending, kinds

from agents.writer import Writer
from memory.database import Database
from models.clock import ManualClock
from models.content import Call, text_of
from models.errors import BatonError, Conflict, NotFound, Unavailable
from orchestrator.events import Committed, ItemsAdded, ItemsRemoved, SessionSettings, TurnAccepted
from orchestrator.sessions.journal import Journal


async def put_away(house: Any, clock: ManualClock, session: Any) -> None:
    """Let a session leave memory as one that nobody uses."""
    await house.settle()
    clock.advance(house.sessions._limits.idle_s)
    await house.until(lambda: session.session_id not in house.sessions._open)


# Settings


async def test_what_a_session_is_set_to_holds_for_turns_that_say_nothing_themselves(
    open_house: Any, recording: Any
) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}) as house:
        session = await house.sessions.create("local")
        await session.change({"instructions": "Be brief.", "model": "scripted"})
        turn_id = await session.respond(house.says("hello"))
        accepted = (await house.rows(session))[-1].event
        assert isinstance(accepted, TurnAccepted)
        assert (accepted.input.instructions, accepted.input.model) == ("Be brief.", "scripted")
        assert accepted.decision.reasons[0] == "asked for by name"
        await house.until(lambda: len(recording.requests) == 1)
        await session.cancel(turn_id, "client_cancelled")
        await session.respond(replace(house.says("hello"), instructions=""))
        await house.until(lambda: len(recording.requests) == 2)
        first, second = ([text_of(item) for item in request.messages] for request in recording.requests)
        assert first[0] == "Be brief."
        assert "Be brief." not in second  # that there shall be none was said


async def test_one_change_leaves_the_other_settings_as_they_are(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await asyncio.gather(session.change({"title": "Plans"}), session.change({"model": "scripted"}))
        await session.change({"instructions": "Be brief."})
        await session.change({"model": None})
        expected = SessionSettings(title="Plans", instructions="Be brief.")
        assert session.settings == expected
        record = await house.sessions.record("local", session.session_id)
        assert (record.title, record.instructions, record.model) == ("Plans", "Be brief.", None)
        assert kinds(await house.rows(session)) == ["settings_changed"] * 4


async def test_a_change_of_nothing_writes_nothing_unless_the_session_is_to_be_kept(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await session.change({"title": None})
        with pytest.raises(NotFound):
            await house.sessions.record("local", session.session_id)
        await session.change({}, keep=True)
        assert (await house.sessions.record("local", session.session_id)).title is None
        assert await house.sessions.open("local", session.session_id) is session


async def test_settings_are_there_when_the_session_is_opened_again_however_long_ago_they_were_set(
    open_house: Any, clock: ManualClock, message: Any
) -> None:
    # Longer than what is folded of a log: what was said and set at its beginning is not read again.
    async with open_house(items=2, idle_s=10.0) as house:
        session = await house.sessions.create("local")
        await session.change({"instructions": "Be brief.", "model": "scripted"})
        await house.read_turn(session, await session.respond(house.says("The first words")))
        for n in range(12):
            await house.read_turn(session, await session.respond(house.says(f"and {n}")), after=session.last_seq)
        await put_away(house, clock, session)
        again = await house.sessions.open("local", session.session_id)
        assert again is not session
        assert again.settings == SessionSettings(title="The first words", instructions="Be brief.", model="scripted")
        assert again.settings == session.settings
        await again.add((message("no new title", "item_last"),))
        assert again.settings.title == "The first words"
        assert (await house.sessions.record("local", session.session_id)).title == "The first words"


async def test_readers_see_a_change_and_a_removal_as_rows(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        reading = asyncio.create_task(house.read(session, lambda transcript: transcript.seq == 3))
        await session.add((message("hello", "item_1"),))
        await session.change({"title": "Plans"})
        await session.remove(("item_1",))
        transcript = await reading
        assert kinds(transcript.rows) == ["items_added", "settings_changed", "items_removed"]
        assert all(isinstance(row, Committed) for row in transcript.rows)


# Removing


async def test_a_model_is_not_shown_what_was_removed_also_after_the_session_was_opened_again(
    open_house: Any, recording: Any, clock: ManualClock, message: Any
) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}, idle_s=10.0) as house:
        session = await house.sessions.create("local")
        await session.add(tuple(message(text, text) for text in ("a", "b", "c")))
        await session.remove(("b",))
        await put_away(house, clock, session)
        again = await house.sessions.open("local", session.session_id)
        assert [item.item_id for item in again.items] == ["a", "c"]
        await again.respond(house.says("d"))
        await house.until(lambda: bool(recording.requests))
        assert [text_of(item) for item in recording.requests[0].messages] == ["a", "c", "d"]


async def test_an_answer_is_removed_and_asked_for_again(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        transcript = await house.read_turn(session, await session.respond(house.says("hello")))
        reply = transcript.log[1].item
        await session.remove((reply.item_id,))
        await house.read_turn(session, await session.respond(replace(house.says(""), items=())), session.last_seq)
        first, second = session.items
        assert (text_of(first), text_of(second)) == ("hello", "you said hello 🎻")
        assert second.item_id != reply.item_id


async def test_nothing_is_removed_while_a_turn_runs(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await session.add((message("hello", "item_1"),))
        turn_id = await session.respond(house.says("wait"))
        with pytest.raises(Conflict) as refused:
            await session.remove(("item_1",))
        assert refused.value.code == "turn_active"
        await session.cancel(turn_id, "client_cancelled")
        await session.remove(("item_1",))
        assert isinstance((await house.rows(session))[-1].event, ItemsRemoved)


@pytest.mark.parametrize("spins", range(0, 12, 2))
async def test_a_removal_and_a_turn_may_race_and_one_waits_for_the_other(
    open_house: Any, message: Any, spins: int
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await session.add((message("hello", "item_1"),))
        turn = asyncio.create_task(session.respond(house.says("quick")))
        for _ in range(spins):
            await asyncio.sleep(0)
        with suppress(Conflict):
            await session.remove(("item_1",))
        await house.read_turn(session, await turn)
        rows = await house.rows(session)
        if "items_removed" in (said := kinds(rows)):
            assert not said.index("turn_accepted") < said.index("items_removed") < said.index("turn_ended")
        folded = await house.sessions._fold(session._journal)
        assert tuple(folded.items) == session.items


# Lists and transcripts


async def test_sessions_are_listed_for_their_own_tenant_the_last_active_first(
    open_house: Any, clock: ManualClock, message: Any
) -> None:
    async with open_house() as house:
        made = [await house.sessions.create(tenant) for tenant in ("local", "local", "local", "somebody")]
        for n, session in enumerate(made):
            await session.add((message(f"I am {n}", "item_1"),))
            clock.advance(1.0)
        await made[0].add((message("again", "item_2"),))
        records = await house.sessions.records("local", limit=2)
        assert [record.title for record in records] == ["I am 0", "I am 2"]
        (last,) = await house.sessions.records("local", limit=2, before=records[-1].session_id)
        assert last.session_id == made[1].session_id


async def test_a_transcript_is_the_whole_conversation_but_for_what_was_removed(
    open_house: Any, database: Database, clock: ManualClock, message: Any
) -> None:
    journal = Journal(database, clock, "local", "sess_long", new=True)
    await journal.write(tuple(ItemsAdded(items=(message(str(n), f"item_{n}"),)) for n in range(600)))
    async with open_house(items=2) as house:
        session = await house.sessions.open("local", "sess_long")
        await session.remove(("item_599",))
        assert len(session.items) == 1
        items = (await house.sessions.transcript("local", session.session_id)).items
        assert [text_of(item) for item in items] == [str(n) for n in range(599)]  # more than a page of the log


async def test_a_transcript_has_its_items_in_the_order_of_the_conversation(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        await session.add((message("meanwhile", "item_meanwhile"),))
        await session.cancel(turn_id, "client_cancelled")
        assert (await house.sessions.transcript("local", session.session_id)).items == session.items


@pytest.mark.parametrize("tenant", ["somebody", "local"])
async def test_what_is_not_the_tenants_is_not_found_whatever_is_asked(
    open_house: Any, message: Any, tenant: str
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await session.add((message("hello", "item_1"),))
        session_id = session.session_id if tenant == "somebody" else "sess_nonesuch"
        for ask in (house.sessions.record, house.sessions.transcript, house.sessions.delete, house.sessions.open):
            with pytest.raises(NotFound):
                await ask(tenant, session_id)
        assert not session.closed
        assert await house.sessions.records("somebody", limit=10) == ()


# Deleting


async def test_a_deleted_session_is_gone_and_its_readers_are_told(open_house: Any, message: Any, peek: Any) -> None:
    async with open_house() as house:
        kept = await house.sessions.create("local")
        await kept.add((message("hello", "item_1"),))
        session = await house.sessions.create("local")
        transcript = await house.read_turn(
            session, await session.respond(replace(house.says("weather"), tools=WEATHER))
        )
        assert isinstance(transcript.log[1].item, Call)  # which is in the ledger
        reading = asyncio.create_task(house.read(session, lambda _: False))
        await house.settle()
        await house.sessions.delete("local", session.session_id)
        with pytest.raises(Unavailable) as told:
            await reading
        assert told.value.code == "session_closed"
        for table in ("events", "turns", "effects"):
            assert peek(f"SELECT * FROM {table} WHERE session_id = ?", session.session_id) == []
        assert peek("SELECT id FROM sessions") == [(kept.session_id,)]
        with pytest.raises(NotFound):
            await house.sessions.open("local", session.session_id)
        with pytest.raises(Unavailable):
            await session.add((message("more", "item_2"),))
        assert not kept.closed


async def test_deleting_a_session_stops_what_runs_in_it(open_house: Any, recording: Any, peek: Any) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}) as house:
        session = await house.sessions.create("local")
        await session.respond(house.says("hello"))
        await house.until(lambda: recording.steps == 1)
        await house.sessions.delete("local", session.session_id)
        await house.until(lambda: recording.closed == 1)
        assert house.executor.admission.turns == 0
        assert peek("SELECT * FROM turns") == []
        assert await house.sessions.recover() == 0


async def test_a_session_that_is_not_in_memory_is_deleted_too(
    open_house: Any, clock: ManualClock, message: Any
) -> None:
    async with open_house(idle_s=10.0) as house:
        session = await house.sessions.create("local")
        await session.add((message("hello", "item_1"),))
        await put_away(house, clock, session)
        await house.sessions.delete("local", session.session_id)
        assert await house.sessions.records("local", limit=10) == ()


async def test_a_session_that_was_never_written_is_not_found_and_not_disturbed(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        with pytest.raises(NotFound):
            await house.sessions.delete("local", session.session_id)
        await session.add((message("hello", "item_1"),))
        await house.sessions.delete("local", session.session_id)


@pytest.mark.parametrize("spins", range(0, 24, 3))
async def test_nothing_is_left_of_a_session_that_is_written_to_while_it_is_deleted(
    open_house: Any, message: Any, peek: Any, spins: int
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await session.add((message("hello", "item_0"),))
        deleting = asyncio.create_task(house.sessions.delete("local", session.session_id))
        for n in range(spins):
            await asyncio.sleep(0)
            if n % 3 == 0:
                with suppress(BatonError):
                    handle = await house.sessions.open("local", session.session_id)
                    await handle.add((message("more", f"item_more_{n}"),))
        await deleting
        await house.settle()
        assert peek("SELECT * FROM sessions") == peek("SELECT * FROM events") == []


# Waiting for what runs


async def test_waiting_ends_when_every_turn_has_ended(open_house: Any, clock: ManualClock) -> None:
    async with open_house() as house:
        sessions = [await house.sessions.create("local") for _ in range(3)]
        running = [await session.respond(house.says("wait")) for session in sessions[1:]]
        waiting = asyncio.create_task(house.sessions.until_free(clock.now_s() + 100.0))
        for session, turn_id in zip(sessions[1:], running, strict=True):
            await house.settle()
            assert not waiting.done()
            await session.cancel(turn_id, "client_cancelled")
        await waiting


async def test_waiting_ends_at_its_deadline_and_leaves_the_turn_alone(open_house: Any, clock: ManualClock) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        waiting = asyncio.create_task(house.sessions.until_free(clock.now_s() + 3.0))
        await house.settle()
        clock.advance(3.0)
        await waiting
        assert session.running_turn == turn_id


async def test_a_turn_that_is_being_accepted_is_waited_for(open_house: Any, clock: ManualClock) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        journal = HeldJournal(session)
        generation = await session.propose(house.says("hello"))
        await house.settle()
        journal.before.clear()
        committing = asyncio.create_task(session.commit(generation))
        await house.settle()
        waiting = asyncio.create_task(house.sessions.until_free(clock.now_s() + 100.0))
        await house.settle()
        assert not waiting.done()
        journal.before.set()
        await committing
        await waiting
        assert ending(await house.rows(session)).state == "finished"


async def test_a_band_that_drains_refuses_the_turn_and_the_session_stays_whole(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await house.executor.admission.drain(house.clock.now_s())
        with pytest.raises(BatonError) as refused:
            await session.respond(house.says("hello"))
        assert (refused.value.code, refused.value.retryable) == ("server_stopping", True)
        assert not session.closed
        assert await house.rows(session) == ()


async def test_turns_of_sessions_take_seats_and_give_them_back(open_house: Any, database: Database) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        assert house.executor.admission.turns == 1
        await session.cancel(turn_id, "client_cancelled")
        await house.until(lambda: house.executor.admission.turns == 0)
        await session.propose(house.says("wait"))
        await house.settle()
        assert (house.executor.admission.turns, house.executor.admission.guesses) == (
            0,
            1,
        )  # a guess takes no turn's seat
        await session.close("server_stopped")
        await house.until(lambda: house.executor.admission.guesses == 0)


async def test_an_error_that_an_agent_should_have_told_ends_its_turn_all_the_same(
    open_house: Any, tmp_path: Path
) -> None:
    class Raising:
        async def run(self, task: Any) -> Any:
            raise Conflict("Not now.", code="not_now")
            yield

    async with open_house({"writer": Raising()}) as house:
        session = await house.sessions.create("local")
        ended = ending((await house.read_turn(session, await session.respond(house.says("hello")))).rows)
        assert (ended.state, ended.fault.code) == ("failed", "not_now")


async def test_items_that_have_left_memory_are_removed_from_the_log_once(open_house: Any, message: Any) -> None:
    async with open_house(items=2) as house:
        session = await house.sessions.create("local")
        for n in range(5):
            # One item quotes the id of another, as the log would have it.
            await session.add((message(f'"item_{n + 10}"', f"item_{n}"),))
        await session.remove(("item_0", "item_4"))
        told = await house.sessions.transcript("local", session.session_id)
        assert [item.item_id for item in told.items] == ["item_1", "item_2", "item_3"]
        for gone in ("item_0", "item_4", "item_10", "nonesuch"):
            with pytest.raises(NotFound) as refused:
                await session.remove((gone,))
            assert refused.value.code == "item_not_found"
        await session.remove(("item_1",))
        assert (await house.sessions._fold(session._journal)).items == list(session.items)


async def test_a_transcript_tells_how_its_turns_ended_and_after_which_item(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        answered = await session.respond(house.says("hello"))
        await house.read_turn(session, answered)
        stopped = await session.respond(house.says("wait"))
        told = await house.sessions.transcript("local", session.session_id)
        assert [(turn.turn_id, turn.state) for turn in told.turns] == [(answered, "finished"), (stopped, "running")]
        await session.cancel(stopped, "client_cancelled")
        told = await house.sessions.transcript("local", session.session_id)
        assert (told.turns[1].state, told.turns[1].reason) == ("interrupted", "client_cancelled")
        assert [turn.after for turn in told.turns] == [told.items[1].item_id, told.items[-1].item_id]
        await session.remove((told.turns[1].after,))
        told = await house.sessions.transcript("local", session.session_id)
        assert [turn.turn_id for turn in told.turns] == [answered]
