"""Sessions over the real database, graph, writer and engine, on a clock that stands still."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.writer import Writer
from memory import effects
from memory.database import Database
from models.clock import ManualClock, sleep_until
from models.content import Call, CallDelta, CallResult, Delta, FinishDelta, Message, TextDelta, TextPart, text_of
from models.errors import BadInput, Conflict, Internal, LimitExceeded, NotFound, Overloaded
from models.ports import GenerateRequest, ToolConstraint, ToolSpec
from orchestrator.events import ItemClosed, ItemDelta, ItemsAdded, ItemSnapshot, TurnAccepted, TurnEnded, TurnInput
from orchestrator.journal import Journal
from orchestrator.session import Session
from orchestrator.turn import messages

WEATHER = ToolConstraint(tools=(ToolSpec(name="weather", description="", parameters="{}"),))


class RecordingEngine:
    """Writes a word a second without end; notes the requests it got, the steps it made and which were closed."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.requests: list[GenerateRequest] = []
        self.steps = 0
        self.closed = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        try:
            while True:
                self.steps += 1
                yield TextDelta(text="word ")
                await sleep_until(self.clock, self.clock.now_s() + 1.0)
        finally:
            self.closed += 1

    async def aclose(self) -> None:
        pass


@pytest.fixture
def recording(clock: ManualClock) -> RecordingEngine:
    return RecordingEngine(clock)


@pytest.fixture
def peek(tmp_path: Path) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Return a function that reads the database through a connection of its own."""
    with closing(sqlite3.connect(tmp_path / "baton.db")) as connection:
        yield lambda sql, *values: connection.execute(sql, values).fetchall()


def kinds(rows: Any) -> list[str]:
    return [row.event.kind for row in rows]


def ending(rows: Any) -> TurnEnded:
    (ended,) = (row.event for row in rows if isinstance(row.event, TurnEnded))
    return ended


def reply_of(rows: Any) -> str:
    return "".join(text_of(row.event.item) for row in rows if isinstance(row.event, ItemClosed))


def refuse_rows(tmp_path: Path, kind: str) -> None:
    """Have the database refuse rows of one kind, as a full disk would."""
    with closing(sqlite3.connect(tmp_path / "baton.db")) as connection:
        connection.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.kind = '{kind}' "
            "BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
        connection.commit()


def accept_rows(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "baton.db")) as connection:
        connection.execute("DROP TRIGGER refuse")
        connection.commit()


class HeldJournal:
    """A journal whose transactions are held before they start, or after they are committed, until they are let go."""

    def __init__(self, session: Session) -> None:
        self._journal = session._journal
        self.before = asyncio.Event()
        self.after = asyncio.Event()
        self.before.set()
        self.after.set()
        session._journal = self  # type: ignore[assignment]  # it stands in for the journal that it wraps

    async def write(self, events: Any) -> Any:
        await self.before.wait()
        rows = await self._journal.write(events)
        await self.after.wait()
        return rows

    async def read(self, after: int, limit: int) -> Any:
        return await self._journal.read(after, limit)


# A turn


async def test_a_turn_is_answered_and_logged(open_house: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("hello"))
        transcript = await house.read_turn(session, turn_id)
        assert kinds(transcript.rows) == ["turn_accepted", "item_closed", "turn_ended"]
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
        with pytest.raises(Conflict) as refused:
            await session.propose(house.says("hello"))
        assert refused.value.code == "turn_active"
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


async def test_a_proposal_that_nobody_commits_is_held_up_within_its_bound(open_house: Any, clock: ManualClock) -> None:
    class Chatty(RecordingEngine):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
            for n in range(1_000):
                self.steps = n + 1
                yield TextDelta(text=f"{n} ")
            yield FinishDelta(reason="stop")

    engine = Chatty(clock)
    async with open_house({"writer": Writer({"scripted": engine})}) as house:
        session = await house.sessions.create("local")
        generation = await session.propose(house.says("hello"))
        await house.until(lambda: engine.steps > 200)
        await house.settle()
        assert engine.steps < 300
        transcript = await house.read_turn(session, await session.commit(generation))
        assert reply_of(transcript.rows) == "".join(f"{n} " for n in range(1_000))


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
                    with pytest.raises(Conflict) as refused:
                        await session.propose(house.says(text))
                    assert refused.value.code == "turn_active"
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
        assert kinds(transcript.rows) == ["turn_accepted", "item_closed", "turn_ended"]


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


# Readers


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
        with pytest.raises(Internal) as told:
            await reading
        assert told.value.code == "session_closed"
        with pytest.raises(Conflict) as refused:
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


# Recovery, tenants, memory


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
        assert tuple((await house.read(again, lambda transcript: transcript.seq == 3)).rows) == await house.rows(again)


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


# Items and tools


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
        assert (opened.key, opened.tool, opened.effect) == (call.call_id, "weather", "effectful")
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
    assert [item.item_id for item in shown] == ["item_2", "item_3", "item_said"]


@pytest.fixture
def house_input(message: Any) -> Callable[[str], Any]:
    return lambda text: TurnInput(items=(message(text, "item_said"),))


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
