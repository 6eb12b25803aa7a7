"""What the pure play of `test_state_properties` cannot show: the real session, its tasks, its database and its engine.

Operations come in any order, most of them in tasks of their own, so that they overlap in the database's threads; the
readers check what they are given as it comes, and in the end the log has to tell the same.
"""

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from support.many_tasks import run_three_at_once
from support.sessions import bare

from agents.writer import Writer
from memory import effects
from memory.database import Database
from models.catalog import EngineSpec
from models.clock import ManualClock
from models.content import Call, CallResult, TextPart, text_of
from models.errors import BatonError, NotFound
from models.language.scripted import build
from models.ports.context import EngineContext
from models.ports.generate import ToolConstraint, ToolSpec
from orchestrator.events import ItemClosed, PlanMade, TaskEnded, TurnAccepted, TurnEnded, items_of
from orchestrator.limits import SessionLimits
from orchestrator.sessions.registry import settings_of
from orchestrator.sessions.tombstones import redacted

LIMITS = SessionLimits(candidates=2, items=12, rows=4, detach_grace_s=40.0, proposal_s=30.0, idle_s=10_000.0)

SCRIPT = json.dumps(
    {
        "rules": [
            {"pattern": "^quick (.*)", "reply": r"\1 tells 🎻👩‍🎤 \1 ends"},
            {"pattern": "^slow (.*)", "reply": r"\1 tells slowly, word by word, é \1", "gap_s": 2.0},
            {"pattern": "^call (.*)", "reply": r'{"of": "\1 "}', "call": "tool"},
            {"pattern": "^think (.*)", "thought": r"of \1? ", "reply": r"\1 it is", "gap_s": 1.0},
            {"pattern": "^break (.*)", "reply": r"\1 tells this far", "fault": "error"},
        ]
    }
)

TOOLS = ToolConstraint(tools=(ToolSpec(name="tool", description="", parameters="{}"),))


class Reader:
    """A reader in a task of its own, which can be told to stop taking events for a while."""

    def __init__(self, session: Any, transcript: Any) -> None:
        self.transcript = transcript
        self.taking = asyncio.Event()
        self.taking.set()
        self.task = asyncio.create_task(self._read(session))

    async def _read(self, session: Any) -> None:
        async with aclosing(session.events(self.transcript.seq)) as events:
            async for event in events:
                self.transcript.take(event)
                await self.taking.wait()

    async def leave(self) -> None:
        self.task.cancel()
        # What it raised of its own is a broken promise; that it was cancelled is not.
        (result,) = await asyncio.gather(self.task, return_exceptions=True)
        if not isinstance(result, asyncio.CancelledError | None):
            raise result
        self.transcript.partial.clear()


class Play:
    def __init__(self, house: Any, clock: ManualClock, session: Any, new_transcript: Callable[[int], Any]) -> None:
        self.house = house
        self.clock = clock
        self.session = session
        self.new_transcript = new_transcript
        self.readers: list[Reader] = []
        self.left: list[Any] = []
        self.doing: list[asyncio.Task[Any]] = []
        self.proposed: dict[str, str] = {}  # of each input's word, what will be said
        self.words = 0

    async def step(self, chance: random.Random) -> None:
        steps: dict[str, int] = {
            "propose": 6,
            "commit": 8,
            "cancel": 2,
            "add": 2,
            "answer": 3,
            "remove": 2,
            "change": 1,
            "advance": 4,
            "spin": 8,
            "settle": 4,
            "attach": 3 if len(self.readers) < 4 else 0,
            "leave": 1 if self.readers else 0,
            "resume": 2 if self.left else 0,
            "hold": 2 if self.readers else 0,
        }
        (name,) = chance.choices(list(steps), list(steps.values()))
        note(name)
        await getattr(self, name)(chance)

    def do(self, work: Any) -> None:
        self.doing.append(asyncio.create_task(self._do(work)))

    async def _do(self, work: Any) -> None:
        try:
            await work
        except BatonError as refused:
            # Most operations meet the wrong moment; what may not happen is that the session is lost over one.
            if refused.code == "internal":
                raise

    async def propose(self, chance: random.Random) -> None:
        self.words += 1
        how = chance.choice(("quick", "quick", "slow", "call", "break", "think"))
        turn_input = self.house.says(f"{how} w{self.words}w", tools=TOOLS)
        self.do(self.session.propose(turn_input))

    async def commit(self, chance: random.Random) -> None:
        proposal = self.session._state.proposal
        last = 1 if proposal is None else proposal.last_generation
        interrupts = chance.choice((None, self.session.running_turn))
        self.do(self.session.commit(chance.choice((last, last, last, chance.randint(1, last))), interrupts=interrupts))

    async def cancel(self, chance: random.Random) -> None:
        proposal = self.session._state.proposal
        turn_id = self.session.running_turn or (proposal.turn_id if proposal else "turn_none")
        self.do(self.session.cancel(turn_id, "client_cancelled"))

    async def add(self, chance: random.Random) -> None:
        self.do(self.session.add(self.house.says("added").items))

    async def answer(self, chance: random.Random) -> None:
        if calls := [item.call_id for item in self.session._state.items if isinstance(item, Call)]:
            part = TextPart(text="done", source="tool")
            self.do(self.session.tool_result(chance.choice(calls), (part,)))

    async def remove(self, chance: random.Random) -> None:
        if items := self.session._state.items:
            self.do(self.session.remove((chance.choice(items).item_id,)))

    async def change(self, chance: random.Random) -> None:
        changes = {"title": ("one", "two", None), "instructions": ("Brief.", None), "model": ("scripted", None)}
        field = chance.choice(list(changes))
        self.do(self.session.change({field: chance.choice(changes[field])}, keep=chance.random() < 0.2))

    async def advance(self, chance: random.Random) -> None:
        self.clock.advance(chance.choice((2.0, 2.0, 2.0, 35.0)))

    async def spin(self, chance: random.Random) -> None:
        for _ in range(chance.choice((1, 2, 3, 7, 30))):
            await asyncio.sleep(0)

    async def settle(self, _: random.Random) -> None:
        await self.house.settle()

    async def attach(self, chance: random.Random) -> None:
        last = self.session.last_seq
        self.readers.append(
            Reader(self.session, self.new_transcript(chance.choice((0, last, chance.randint(0, last)))))
        )

    async def leave(self, chance: random.Random) -> None:
        reader = self.readers.pop(chance.randrange(len(self.readers)))
        await reader.leave()
        self.left.append(reader.transcript)

    async def resume(self, chance: random.Random) -> None:
        self.readers.append(Reader(self.session, self.left.pop(chance.randrange(len(self.left)))))

    async def hold(self, chance: random.Random) -> None:
        reader = chance.choice(self.readers)
        if reader.taking.is_set():
            reader.taking.clear()
        else:
            reader.taking.set()

    async def finish(self) -> None:
        """Let the last turn end, give every reader what it lacks, and hold all of it against the log."""
        await asyncio.gather(*self.doing)
        if self.session.running_turn is not None:
            self.do(self.session.cancel(self.session.running_turn, "client_cancelled"))
            await asyncio.gather(*self.doing)
        self.readers += [Reader(self.session, transcript) for transcript in (*self.left, self.new_transcript(0))]
        for reader in self.readers:
            reader.taking.set()
        rows = list(await self.house.rows(self.session))
        await self.house.until(
            lambda: all(reader.task.done() or reader.transcript.seq == len(rows) for reader in self.readers)
        )
        await self.house.settle()
        for reader in self.readers:
            assert not reader.transcript.partial
            await reader.leave()
            given = reader.transcript.rows
            assert bare(given, rows) == bare(rows[len(rows) - len(given) :], rows)
        self.every_turn_is_whole([row.event for row in rows])
        self.every_task_ends_once([row.event for row in rows])
        await self.the_ledger_is_complete([row.event for row in rows])
        assert not self.session.closed
        assert len(self.session._generations) == len(
            self.session._state.proposal.candidates if self.session._state.proposal else ()
        )
        await self.the_database_agrees(rows)

    async def the_database_agrees(self, rows: list[Any]) -> None:
        sessions, session_id = self.house.sessions, self.session.session_id
        if not rows:
            with pytest.raises(NotFound):  # a session is begun by its first row
                await sessions.record("local", session_id)
            return
        folded = await sessions._fold(self.session._journal)
        assert folded.items == self.session._state.items
        assert folded.settings == self.session.settings
        assert folded.last_seq == self.session.last_seq
        assert folded.turn is None
        record = await sessions.record("local", session_id)
        assert settings_of(record) == self.session.settings
        assert (record.last_seq, record.updated_ms) == (rows[-1].seq, rows[-1].at_ms)
        whole, kept = (await sessions.transcript("local", session_id)).items, self.session.items
        assert whole[len(whole) - len(kept) :] == kept

    def every_task_ends_once(self, log: list[Any]) -> None:
        ended: set[str] = set()
        open_turn: str | None = None
        for event in log:
            match event:
                case TurnAccepted():
                    open_turn = event.turn_id
                case ItemClosed() | TaskEnded():
                    assert event.turn_id == open_turn, "a task goes on after its turn"
                    assert event.task_id not in ended, "a task goes on after its end"
                    if isinstance(event, TaskEnded):
                        ended.add(event.task_id)
                case PlanMade():
                    assert event.turn_id == open_turn
                case TurnEnded():
                    open_turn = None
        assert {event.task_id for event in log if isinstance(event, ItemClosed)} <= ended

    async def the_ledger_is_complete(self, log: list[Any]) -> None:
        """Every whole call has its row, under the key of its turn, task and ordinal; a result from whoever ran it completes it."""
        calls: dict[str, Any] = {}
        for event in log:
            if isinstance(event, ItemClosed) and isinstance(event.item, Call):
                assert (event.effect is not None) == (event.item.status == "completed")
                if event.effect is not None:
                    assert event.effect.key not in {effect.key for effect in calls.values()}
                    calls[event.item.call_id] = event.effect
            for item in items_of(event):
                if isinstance(item, CallResult):
                    calls.pop(item.call_id, None)
        opened = await self.house.database.read(
            lambda c: effects.open_effects(c, "local", self.session.session_id) if log else ()
        )
        assert {effect.key for effect in opened} == {effect.key for effect in calls.values()}

    def every_turn_is_whole(self, log: list[Any]) -> None:
        accepted = [event for event in log if isinstance(event, TurnAccepted)]
        ended = [event for event in log if isinstance(event, TurnEnded)]
        assert [event.turn_id for event in accepted] == [event.turn_id for event in ended]
        for begin, end in zip(accepted, ended, strict=True):
            (said,) = begin.input.items
            if said == redacted(said):
                continue
            word = text_of(said).split()[-1]
            reply = "".join(
                text_of(event.item) for event in log if isinstance(event, ItemClosed) and event.turn_id == begin.turn_id
            )
            # Every reply says its own word and nobody else's.
            others = {f"w{n}w" for n in range(self.words + 1)} - {word}
            assert not any(other in reply for other in others), f"{word} is answered by {reply!r}"
            if end.state == "finished" and reply.strip("{}"):  # else it was taken out
                assert word in reply


@pytest.mark.parametrize("tasks", [1, 3])
def test_every_reader_gets_every_character_once_from_the_real_session(
    tmp_path: Path, new_house: Callable[..., Any], new_transcript: Callable[[int], Any], tasks: int
) -> None:
    async def play(database: Database, steps: list[int]) -> None:
        clock = ManualClock()
        agents = {
            "writer": Writer(
                {"scripted": build(EngineSpec(name="scripted", options=SCRIPT), EngineContext(clock=clock))}
            )
        }
        async with new_house(database, clock, agents, LIMITS).running() as house:
            if tasks == 3:
                run_three_at_once(house.executor)
            play = Play(house, clock, await house.sessions.create("local"), new_transcript)
            for number in steps:
                await play.step(random.Random(number))
            await play.finish()
            await play.session.close("server_stopped")
            await house.until(lambda: not house.sessions._open)
            before = await house.rows(play.session)
            if not before:
                return  # a session without a row leaves nothing to open
            again = await house.sessions.open("local", play.session.session_id)
            after = await house.read(again, lambda transcript: transcript.seq == again.last_seq)
            assert before == tuple(after.rows)

    with asyncio.Runner() as runner:
        database = Database(tmp_path / "baton.db")

        @settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(st.lists(st.integers(0, 65_535), min_size=40, max_size=160))
        def every_interleaving(steps: list[int]) -> None:
            runner.run(play(database, steps))

        try:
            every_interleaving()
        finally:
            database.close()
