"""Items that are added, calls and their answers, and what a model is shown of them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from support.sessions import WEATHER, RecordingEngine, ending, kinds, reply_of

from agents.writer import Writer
from memory import effects
from memory.database import Database
from models.clock import ManualClock, sleep_until
from models.content import Call, CallDelta, CallResult, Delta, FinishDelta, Message, TextPart, text_of
from models.errors import Conflict, LimitExceeded, NotFound, Overloaded
from models.ports.generate import GenerateRequest
from orchestrator.act.context import messages
from orchestrator.events import ItemDelta, ItemSnapshot, TurnInput


async def test_items_added_while_a_turn_runs_come_after_its_reply(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        await session.add((message("meanwhile", "item_meanwhile"),))
        await session.cancel(turn_id, "client_cancelled")
        await session.add((message("after", "item_after"),))
        texts = [text_of(item) for item in session._state.items]
        assert texts[0] == "wait"
        assert texts[-2:] == ["meanwhile", "after"]


async def test_what_breaks_the_conversation_is_refused_and_the_session_goes_on(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await session.add((message("hello", "item_1"),))
        with pytest.raises(Conflict) as taken:
            await session.add((message("hello again", "item_1"),))
        assert taken.value.code == "item_exists"
        with pytest.raises(NotFound) as unknown:
            await session.tool_result("call_nonesuch", (TextPart(text="4"),))
        assert unknown.value.field == "call_id"
        with pytest.raises(NotFound):
            await session.heard("item_nonesuch", 0)
        with pytest.raises(LimitExceeded):
            await session.heard("item_1", 1)
        await session.heard("item_1", 0)
        await session.respond(house.says("hello"))
        assert kinds(await house.rows(session))[:3] == ["items_added", "playback_heard", "turn_accepted"]


async def test_a_call_is_in_the_ledger_until_its_one_result_comes(open_house: Any, database: Database) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(replace(house.says("weather"), tools=WEATHER))
        transcript = await house.read_turn(session, turn_id)
        call = transcript.log[1].item
        assert isinstance(call, Call)
        assert (call.name, call.arguments, call.status) == ("weather", '{"city": "Łódź 🌧"}', "completed")
        assert ending(transcript.rows).reason == "calls"
        (opened,) = await database.read(lambda c: effects.open_effects(c, "local", session.session_id))
        assert (opened.key, opened.call_id) == (f"{turn_id}/1/0", call.call_id)  # the same if the task is done again
        assert (opened.tool, opened.effect) == ("weather", "effectful")
        await session.tool_result(call.call_id, (TextPart(text="rain", source="tool"),))
        assert await database.read(lambda c: effects.open_effects(c, "local", session.session_id)) == ()
        with pytest.raises(Conflict) as refused:
            await session.tool_result(call.call_id, (TextPart(text="sun", source="tool"),))
        assert refused.value.code == "call_answered"
        assert not session.closed


async def test_a_result_may_come_with_the_next_input(open_house: Any, database: Database) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        transcript = await house.read_turn(
            session, await session.respond(replace(house.says("weather"), tools=WEATHER))
        )
        call_id = transcript.log[1].item.call_id
        result = CallResult(item_id="item_result", call_id=call_id, parts=(TextPart(text="rain", source="tool"),))
        said = house.says("so?")
        transcript = await house.read_turn(
            session, await session.respond(replace(said, items=(result, *said.items))), after=transcript.seq
        )
        assert ending(transcript.rows).state == "finished"
        assert await database.read(lambda c: effects.open_effects(c, "local", session.session_id)) == ()


async def test_a_client_may_bring_a_past_call_with_its_result(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        call = Call(item_id="item_call", call_id="call_past", name="weather", arguments="{}")
        result = CallResult(item_id="item_result", call_id="call_past", parts=(TextPart(text="rain", source="tool"),))
        said = house.says("so?")
        turn_input = replace(said, items=(message("weather?", "item_0"), call, result, *said.items))
        transcript = await house.read_turn(session, await session.respond(turn_input))
        assert ending(transcript.rows).state == "finished"
        await session.add((replace(call, item_id="item_call2", call_id="call_2"),))
        await session.tool_result("call_2", (TextPart(text="sun", source="tool"),))
        assert not session.closed


async def test_an_interrupted_call_is_incomplete_and_opens_no_effect(
    open_house: Any, database: Database, clock: ManualClock
) -> None:
    class Calling(RecordingEngine):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
            yield CallDelta(call_id="call_1", name="weather", arguments='{"ci')
            self.steps += 1
            await sleep_until(self.clock, self.clock.now_s() + 1.0)
            yield FinishDelta(reason="calls")

    engine = Calling(clock)
    async with open_house({"writer": Writer({"scripted": engine})}) as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("weather"))
        await house.until(lambda: engine.steps == 1)
        await session.cancel(turn_id, "client_cancelled")
        closed = (await house.rows(session))[1].event
        assert (closed.item.status, closed.item.arguments) == ("incomplete", '{"ci')
        assert await database.read(lambda c: effects.open_effects(c, "local", session.session_id)) == ()
        with pytest.raises(NotFound):
            await session.tool_result("call_1", (TextPart(text="rain"),))


async def test_the_model_is_told_that_the_outcome_of_an_unanswered_call_is_unknown(
    open_house: Any, recording: Any, message: Any
) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}) as house:
        session = await house.sessions.create("local")
        await session.add((Call(item_id="item_call", call_id="call_1", name="pay", arguments="{}"),))
        await session.respond(replace(house.says("did it work?"), instructions="Be careful."))
        await house.until(lambda: bool(recording.requests))
        system, call, unknown, said = recording.requests[0].messages
        assert isinstance(system, Message)
        assert (system.role, text_of(system)) == ("system", "Be careful.")
        assert call.item_id == "item_call"
        assert isinstance(unknown, CallResult)
        assert unknown.call_id == "call_1"
        assert "unknown" in text_of(unknown)
        assert text_of(said) == "did it work?"


async def test_a_call_that_was_cut_short_is_not_shown_and_an_answered_one_is_shown_once(house_input: Any) -> None:
    cut = Call(item_id="item_1", call_id="call_1", name="pay", arguments="{", status="incomplete")
    whole = Call(item_id="item_2", call_id="call_2", name="pay", arguments="{}")
    result = CallResult(item_id="item_3", call_id="call_2", parts=(TextPart(text="paid"),))
    shown = messages(house_input("so?"), (cut, whole, result))
    assert [item.item_id for item in shown] == ["item_2", "item_3"]


async def test_deltas_arrive_while_the_item_is_open(open_house: Any, clock: ManualClock) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        async with asyncio.timeout(20), aclosing(session.events(0)) as events:
            await session.respond(house.says("wait"))
            given = [await anext(events)]
            for _ in range(4):
                await house.settle()
                clock.advance(5.0)
                given.append(await anext(events))
        snapshot, *deltas = given[1:]
        assert isinstance(snapshot, ItemSnapshot)
        assert all(isinstance(delta, ItemDelta) for delta in deltas)
        assert [delta.text for delta in deltas] == ["word ", "by ", "word, "]


async def test_sessions_that_nobody_uses_make_room_for_new_ones_and_those_in_use_do_not(open_house: Any) -> None:
    async with open_house() as house:
        house.sessions._max_open = 2
        used, unused = await house.sessions.create("local"), await house.sessions.create("local")
        reading = used.events()
        waiting = asyncio.ensure_future(anext(reading))
        await house.settle()
        third = await house.sessions.create("local")
        assert (used.closed, unused.closed, third.closed) == (False, True, False)
        await third.respond(house.says("wait"))
        with pytest.raises(Overloaded):
            await house.sessions.create("local")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def test_a_result_whose_call_has_left_the_history_is_not_shown() -> None:
    result = CallResult(item_id="item_1", call_id="call_gone", parts=(TextPart(text="paid"),))
    assert messages(TurnInput(), (result,)) == ()


async def test_a_long_conversation_is_shown_from_where_it_fits_and_goes_on(open_house: Any) -> None:
    async with open_house(history_characters=2_000) as house:
        session = await house.sessions.create("local")
        for n in range(10):
            await session.add((Message(item_id=f"item_{n}", role="user", parts=(TextPart(text="x" * 400),)),))
        assert [item.item_id for item in session._state.items] == [f"item_{n}" for n in range(5, 10)]
        transcript = await house.read_turn(session, await session.respond(house.says("hello")))
        assert reply_of(transcript.rows) == "you said hello 🎻"
