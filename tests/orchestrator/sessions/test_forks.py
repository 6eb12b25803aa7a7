"""Forks, removals, redactions and deletions in any order: every conversation is what it should be, in memory and on disk.

The test keeps books of its own: which items each conversation has, and whether their words are still somebody's. Words
that are nobody's any more are in no file.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from agents.writer import Writer
from memory.database import Database
from models.clock import ManualClock
from models.content import Message, TextPart, text_of
from models.errors import NotFound
from orchestrator.events import TurnAccepted, TurnEnded
from orchestrator.limits import SessionLimits

LIMITS = SessionLimits(items=6, rows=4)


class Play:
    def __init__(self, house: Any, folder: Path) -> None:
        self.house = house
        self.folder = folder
        self.items: dict[str, list[str]] = {}  # of each session, the ids of its items
        self.words: dict[str, str | None] = {}  # of each item; None once they are taken out
        self.gone: set[str] = set()
        self.made = 0

    async def open(self, session_id: str) -> Any:
        return await self.house.sessions.open("local", session_id)

    async def step(self, chance: random.Random) -> None:
        steps = {"make": 1, "add": 8, "fork": 3, "remove": 3, "redact": 2, "delete": 1, "rename": 1}
        (name,) = chance.choices(list(steps), list(steps.values()))
        if name != "make" and not self.items:
            return
        note(name)
        await getattr(self, name)(chance)

    async def make(self, _: random.Random) -> None:
        session = await self.house.sessions.create("local")
        await session.change({"model": "scripted"}, keep=True)
        self.items[session.session_id] = []

    async def add(self, chance: random.Random) -> None:
        session_id = self.any(chance)
        messages = []
        for _ in range(chance.randint(1, 3)):
            self.made += 1
            item_id, words = f"item_{self.made}", f"·words {self.made}· " * chance.choice((1, 5, 400))
            messages.append(Message(item_id=item_id, role="user", parts=(TextPart(text=words),)))
            self.items[session_id].append(item_id)
            self.words[item_id] = words
        await (await self.open(session_id)).add(tuple(messages))

    async def rename(self, chance: random.Random) -> None:
        session = await self.open(self.any(chance))
        await session.change({"model": chance.choice(("scripted", None))})  # a row with its title in it

    async def fork(self, chance: random.Random) -> None:
        session_id = self.any(chance)
        branch_id = await self.house.sessions.fork("local", session_id)
        self.items[branch_id] = list(self.items[session_id])

    async def remove(self, chance: random.Random) -> None:
        session_id = self.any(chance)
        if items := self.items[session_id]:
            item_id = chance.choice(items)
            await (await self.open(session_id)).remove((item_id,))
            items.remove(item_id)
            self.let_go(item_id)

    async def redact(self, chance: random.Random) -> None:
        session_id = self.any(chance)
        if items := self.items[session_id]:
            item_id = chance.choice(items)
            await self.house.sessions.redact("local", session_id, (item_id,))
            self.take_out(item_id)

    async def delete(self, chance: random.Random) -> None:
        session_id = self.any(chance)
        await self.house.sessions.delete("local", session_id)
        for item_id in self.items.pop(session_id):
            self.let_go(item_id)
        with pytest.raises(NotFound):
            await self.open(session_id)

    def any(self, chance: random.Random) -> str:
        return chance.choice(list(self.items))

    def let_go(self, item_id: str) -> None:
        if not any(item_id in items for items in self.items.values()):
            self.take_out(item_id)

    def take_out(self, item_id: str) -> None:
        if (words := self.words[item_id]) is not None:
            self.gone.add(words.split("· ")[0] + "·")
        self.words[item_id] = None

    async def check(self) -> None:
        listed = await self.house.sessions.records("local", limit=100)
        assert {one.session_id for one in listed} == set(self.items)
        for session_id, item_ids in self.items.items():
            expected = [(item_id, self.words[item_id] or "") for item_id in item_ids]
            session = await self.open(session_id)
            history = (await self.house.sessions.transcript("local", session_id)).items
            assert [(item.item_id, text_of(item)) for item in history] == expected
            kept = len(session.items)
            assert [(item.item_id, text_of(item)) for item in session.items] == expected[len(expected) - kept :]
            folded = await self.house.sessions._fold(session._journal)
            assert (folded.items, folded.settings) == (session._state.items, session.settings)
        held = b"".join(path.read_bytes() for path in self.folder.iterdir() if path.is_file())
        assert not {words for words in self.gone if words.encode() in held}


def test_conversations_and_files_are_what_they_should_be_whatever_is_forked_and_taken_out(
    tmp_path: Path, new_house: Any
) -> None:
    with asyncio.Runner() as runner:

        async def play(steps: list[int], folder: Path) -> None:
            database = Database(folder / "baton.db")
            try:
                async with new_house(database, ManualClock(), {"writer": Writer({})}, LIMITS).running() as house:
                    play = Play(house, folder)
                    await play.make(random.Random(0))
                    for number in steps:
                        await play.step(random.Random(number))
                    await play.check()
            finally:
                database.close()

        count = iter(range(10_000))

        @settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(st.lists(st.integers(0, 65_535), min_size=10, max_size=50))
        def every_order(steps: list[int]) -> None:
            folder = tmp_path / str(next(count))
            folder.mkdir()
            runner.run(play(steps, folder))

        every_order()


async def test_a_fork_is_of_what_was_said_up_to_the_end_of_a_turn(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        turns = []
        for n in range(3):
            turns.append(await session.respond(house.says(f"count to {n + 1}")))
            await house.read_turn(session, turns[-1], after=session.last_seq - 1)
            await session.add((message(f"after {n}", f"item_after_{n}"),))
        for n, turn_id in enumerate(turns):
            branch = await house.sessions.open("local", await house.sessions.fork("local", session.session_id, turn_id))
            rows = await house.rows(branch)
            assert rows == (await house.rows(session))[: len(rows)]
            assert isinstance(rows[-1].event, TurnEnded)
            assert rows[-1].event.turn_id == turn_id
            assert len(branch.items) == 3 * n + 2
        with pytest.raises(NotFound):
            await house.sessions.fork("local", session.session_id, "turn_none")
        with pytest.raises(NotFound):
            await house.sessions.fork("somebody", session.session_id, turns[0])


async def test_what_is_running_is_not_forked_but_what_was_before_it_is(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        first = await session.respond(house.says("count to 3"))
        await house.read_turn(session, first)
        running = await session.respond(house.says("wait"))
        for turn in (None, running):
            with pytest.raises(Exception, match="is running") as refused:
                await house.sessions.fork("local", session.session_id, turn)
            assert getattr(refused.value, "code", None) == "turn_active"
        branch = await house.sessions.open("local", await house.sessions.fork("local", session.session_id, first))
        assert branch.running_turn is None
        await session.cancel(running, "client_cancelled")


async def test_a_decision_says_which_history_it_saw(open_house: Any, message: Any) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await session.add((message("before", "item_1"),))
        generation = await session.propose(house.says("count to 1"))
        seen = session.last_seq
        await session.add((message("meanwhile", "item_2"),))
        await house.read_turn(session, await session.commit(generation), after=session.last_seq)
        accepted = next(row.event for row in await house.rows(session) if isinstance(row.event, TurnAccepted))
        assert accepted.decision.history_seq == seen == 1
        digest = accepted.decision.as_of_cards
        assert digest is not None
        assert len(digest) == 64
        after = session.last_seq
        await house.read_turn(session, await session.respond(house.says("count to 9"), context=()), after=after)
        beside = [row.event for row in await house.rows(session) if isinstance(row.event, TurnAccepted)][-1]
        assert beside.decision.history_seq is None  # of another conversation
        assert beside.decision.as_of_cards == digest  # the same cards, whatever the turn is
