"""A turn and its proposals, over the real database, graph, writer and engine, on a clock that stands still."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from support.sessions import HeldJournal, RecordingEngine, ending, kinds, reply_of

from agents.writer import Writer
from models.clock import ManualClock
from models.content import AudioDelta, Delta, FinishDelta, TextDelta, text_of
from models.errors import Conflict, LimitExceeded, NotFound
from models.ports.generate import GenerateRequest
from orchestrator.events import ItemClosed, TurnAccepted

# A turn


async def test_a_turn_is_answered_and_logged(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("hello"))
        transcript = await house.read_turn(session, turn_id)
        assert kinds(transcript.rows) == ["turn_accepted", "item_closed", "task_ended", "turn_ended"]
        assert reply_of(transcript.rows) == "you said hello 🎻"
        assert ending(transcript.rows).state == "finished"
        assert ending(transcript.rows).reason == "stop"
        assert ending(transcript.rows).usage.output_tokens == 4
        assert tuple(transcript.rows) == await house.rows(session)
        assert session.running_turn is None


async def test_a_turn_is_in_the_log_when_commit_returns(open_house: Any, peek: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        generation = await session.propose(house.says("wait"))
        assert peek("SELECT * FROM events") == []
        turn_id = await session.commit(generation)
        assert peek("SELECT kind, turn_id FROM events") == [("turn_accepted", turn_id)]
        assert peek("SELECT id, state FROM turns") == [(turn_id, "accepted")]
        assert session.running_turn == turn_id


async def test_the_decision_and_the_input_are_in_the_row_that_accepts(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_input = replace(house.says("hello"), metadata={"ticket": "7"}, instructions="Be brief.")
        await session.respond(turn_input)
        accepted = (await house.rows(session))[0].event
        assert isinstance(accepted, TurnAccepted)
        assert accepted.input == turn_input
        assert (accepted.decision.agent, accepted.decision.card) == ("writer", "scripted")


async def test_a_second_turn_is_refused_while_one_runs(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        for how in (
            session.respond(house.says("hello")),
            session.respond(house.says("hello"), interrupts="turn_other"),
        ):
            with pytest.raises(Conflict) as refused:
                await how
            assert refused.value.code == "turn_active"
        assert session._state.proposal is None, "what was refused is worked on all the same"
        await session.cancel(turn_id, "client_cancelled")
        await session.respond(house.says("hello"))


async def test_an_engines_error_ends_the_turn_and_keeps_what_was_written(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        transcript = await house.read_turn(session, await session.respond(house.says("break")))
        ended = ending(transcript.rows)
        assert (ended.state, ended.fault.code, ended.fault.retryable) == ("failed", "internal", True)
        assert reply_of(transcript.rows) == "this far and"
        assert transcript.log[1].item.status == "incomplete"


async def test_a_defect_of_an_agent_fails_its_turn_and_hides_its_cause(open_house: Any) -> None:
    class Broken:
        async def run(self, task: Any) -> AsyncGenerator[Any, None]:
            raise ZeroDivisionError("a secret path")
            yield

    async with open_house({"writer": Broken()}) as house:
        session = await house.sessions.create("local")
        ended = ending((await house.read_turn(session, await session.respond(house.says("hello")))).rows)
        assert (ended.state, ended.fault.code) == ("failed", "internal")
        assert "secret" not in ended.fault.message


async def test_the_deadline_of_a_turn_fails_it(open_house: Any, recording: Any, clock: ManualClock) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}, turn_timeout_s=3.5) as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("hello"))
        for _ in range(5):
            await house.until(lambda: recording.steps > 0)
            clock.advance(1.0)
            await house.settle()
        ended = ending((await house.read_turn(session, turn_id)).rows)
        assert (ended.state, ended.fault.code, ended.fault.retryable) == ("failed", "deadline_exceeded", True)
        assert recording.closed == 1


async def test_the_scripted_engines_own_deadline_says_the_same(open_house: Any, clock: ManualClock) -> None:
    async with open_house(turn_timeout_s=7.0) as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("wait"))
        for _ in range(3):
            await house.settle()
            clock.advance(4.0)
        ended = ending((await house.read_turn(session, turn_id)).rows)
        assert (ended.state, ended.fault.code) == ("failed", "deadline_exceeded")


async def test_a_refused_input_raises_on_commit_and_the_next_turn_works(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        with pytest.raises(LimitExceeded) as too_long:
            await session.respond(house.says("x" * 1_001))
        assert too_long.value.field == "input"
        with pytest.raises(NotFound) as unknown:
            await session.respond(replace(house.says("hello"), model="nonesuch"))
        assert (unknown.value.code, unknown.value.field) == ("model_not_found", "model")
        assert await house.rows(session) == ()
        transcript = await house.read_turn(session, await session.respond(house.says("hello")))
        assert reply_of(transcript.rows) == "you said hello 🎻"


# Proposals


async def test_a_proposal_writes_no_row_and_is_dropped_after_its_time(
    open_house: Any, recording: Any, clock: ManualClock
) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}, proposal_s=30.0) as house:
        session = await house.sessions.create("local")
        generation = await session.propose(house.says("hello"))
        await house.until(lambda: recording.steps == 1)
        clock.advance(29.0)
        await house.settle()
        assert recording.closed == 0
        clock.advance(1.0)
        await house.until(lambda: recording.closed == 1)
        with pytest.raises(Conflict) as refused:
            await session.commit(generation)
        assert refused.value.code == "not_proposed"
        assert await house.rows(session) == ()


async def test_of_several_proposals_only_the_committed_one_speaks(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        generations = [await session.propose(house.says(text)) for text in ("one", "two", "three")]
        await house.settle()  # all three have written by now
        turn_id = await session.commit(generations[1])
        transcript = await house.read_turn(session, turn_id)
        await house.settle()
        assert reply_of(await house.rows(session)) == reply_of(transcript.rows) == "you said two 🎻"
        for generation in generations:
            with pytest.raises(Conflict):
                await session.commit(generation)


async def test_the_oldest_of_too_many_proposals_is_dropped(open_house: Any) -> None:
    async with open_house(candidates=2) as house:
        session = await house.sessions.create("local")
        generations = [await session.propose(house.says(text)) for text in ("one", "two", "three")]
        with pytest.raises(Conflict):
            await session.commit(generations[0])
        transcript = await house.read_turn(session, await session.commit(generations[2]))
        assert reply_of(transcript.rows) == "you said three 🎻"


@pytest.mark.parametrize(
    ("sound", "most"),
    [(b"", 256 * 1024 // 256), (b"\0" * 4_800, 60), (b"\0" * 300_000, 2)],
    ids=["words", "sound", "sound in large pieces"],
)
async def test_a_proposal_that_nobody_commits_is_held_up_by_how_much_it_says(
    open_house: Any, clock: ManualClock, sound: bytes, most: int
) -> None:
    class Chatty(RecordingEngine):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
            for n in range(2_000):
                self.steps = n + 1
                yield AudioDelta(pcm=sound, rate_hz=24_000) if sound else TextDelta(text=f"{n} ")
            yield FinishDelta(reason="stop")

    engine = Chatty(clock)
    async with open_house({"writer": Writer({"scripted": engine})}) as house:
        session = await house.sessions.create("local")
        generation = await session.propose(house.says("hello"))
        await house.until(lambda: engine.steps > most // 2)
        before = -1
        while engine.steps != before:
            before = engine.steps
            await house.settle()
        assert engine.steps <= most + 2
        transcript = await house.read_turn(session, await session.commit(generation))
        (closed,) = (row.event for row in transcript.rows if isinstance(row.event, ItemClosed))
        assert text_of(closed.item) == ("" if sound else "".join(f"{n} " for n in range(2_000)))
        assert closed.audio_ms == 2_000 * len(sound) // 48


async def test_cancelling_a_proposal_drops_it(open_house: Any, recording: Any) -> None:
    async with open_house({"writer": Writer({"scripted": recording})}) as house:
        session = await house.sessions.create("local")
        generation = await session.propose(house.says("hello"))
        await house.until(lambda: recording.steps == 1)
        await session.cancel(session._state.proposal.turn_id, "client_cancelled")
        await house.until(lambda: recording.closed == 1)
        with pytest.raises(Conflict):
            await session.commit(generation)


async def test_a_commit_that_lost_its_proposal_leaves_the_next_one_alone(open_house: Any) -> None:
    # The generation counts from 1 in each turn: the late failure must not take the new turn's first one with it.
    async with open_house() as house:
        session = await house.sessions.create("local")
        first = await session.propose(house.says("one"))
        committing = asyncio.create_task(session.commit(first))
        await asyncio.sleep(0)  # it waits for the decision now
        await session.cancel(session._state.proposal.turn_id, "client_cancelled")
        second = await session.propose(house.says("two"))
        assert second == first
        with pytest.raises(Conflict) as refused:
            await committing
        assert refused.value.code == "not_proposed"
        transcript = await house.read_turn(session, await session.commit(second))
        assert reply_of(transcript.rows) == "you said two 🎻"


@pytest.mark.parametrize("how", ["expiry", "cancel", "revisions"])
async def test_a_turn_whose_acceptance_is_being_written_cannot_lose_its_work(
    open_house: Any, clock: ManualClock, how: str
) -> None:
    async with open_house(candidates=2, proposal_s=30.0) as house:
        session = await house.sessions.create("local")
        journal = HeldJournal(session)
        generation = await session.propose(house.says("hello"))
        await house.settle()
        journal.after.clear()
        committing = asyncio.create_task(session.commit(generation))
        await house.settle()
        meanwhile: asyncio.Task[Any] | None = None
        match how:
            case "expiry":
                clock.advance(31.0)
            case "cancel":
                accepting = session._state.proposal or session._state._accepting
                meanwhile = asyncio.create_task(session.cancel(accepting.turn_id, "client_cancelled"))
            case "revisions":
                for text in ("two", "three", "four"):
                    await session.propose(house.says(text))  # of the turn after it
        await house.settle()
        journal.after.set()
        turn_id = await committing
        ended = ending((await house.read_turn(session, turn_id)).rows)
        if meanwhile is None:
            assert ended.state == "finished"
        else:
            await meanwhile
            assert (ended.state, ended.reason) == ("interrupted", "client_cancelled")


async def test_of_two_commits_of_one_proposal_one_wins(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        generation = await session.propose(house.says("hello"))
        results = await asyncio.gather(session.commit(generation), session.commit(generation), return_exceptions=True)
        turn_id, refused = results
        assert isinstance(refused, Conflict)
        transcript = await house.read_turn(session, turn_id)
        assert kinds(transcript.rows) == ["turn_accepted", "item_closed", "task_ended", "turn_ended"]
