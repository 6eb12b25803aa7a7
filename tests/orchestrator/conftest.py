"""What the conductor's tests share: a checking reader, a house of sessions on a clock that stands still."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from support.sessions import RecordingEngine, Steps

from agents.port import Agent
from agents.tools.python import Tools
from agents.writer import Writer
from memory.database import Database
from models.catalog import Card, EngineSpec, Price
from models.clock import ManualClock
from models.content import Item, Message, Part, TextPart, parts_of, text_of
from models.language.scripted import ScriptedEngine, build
from models.placement.fleet import FixedCardView
from models.ports.context import EngineContext
from orchestrator.act.execute import Executor, TurnLimits
from orchestrator.decide.decider import Decider
from orchestrator.events import (
    AnswerControl,
    AudioChunk,
    Committed,
    Decision,
    ItemClosed,
    ItemDelta,
    ItemSnapshot,
    LogEvent,
    PartAdded,
    SessionEvent,
    SingleRoute,
    TaskEnded,
    TurnAccepted,
    TurnEnded,
    TurnInput,
)
from orchestrator.limits import SessionLimits
from orchestrator.meters import Meters
from orchestrator.sessions.handle import Session
from orchestrator.sessions.registry import Sessions
from orchestrator.sessions.tombstones import redacted

RULES = (
    {"pattern": r"^count to (\d{1,5})$", "reply": "{n} ", "times": r"\1"},
    {"pattern": r"^wait$", "reply": "slowly, word by word, it comes", "gap_s": 5.0},
    {"pattern": r"^weather$", "reply": '{"city": "Łódź 🌧"}', "call": "weather"},
    {"pattern": r"^break$", "reply": "this far and", "fault": "error"},
    {"pattern": r"(?s)(.*)", "reply": r"you said \1 🎻"},
)


def user(text: str, item_id: str) -> Message:
    return Message(item_id=item_id, role="user", parts=(TextPart(text=text),))


def grow(pieces: list[str | Part], more: str | Part) -> None:
    """Add to what an item consists of: words that follow words are one piece."""
    if isinstance(more, str) and pieces and isinstance(pieces[-1], str):
        pieces[-1] += more
    elif more != "":
        pieces.append(more)


def pieces_of(item: Item) -> list[str | Part]:
    """Return what an item consists of."""
    pieces: list[str | Part] = []
    for part in parts_of(item) or (TextPart(text=text_of(item)),):
        grow(pieces, part.text if isinstance(part, TextPart) else part)
    return pieces


class Transcript:
    """What one reader was given, checked as it arrives against what every reader is promised.

    Rows come without a gap. Of each item the reader gets one snapshot, then words and parts that go on exactly where it
    stands, then the closing row, which agrees with what was put together. Nothing of a task comes after its end, and nothing
    of a turn after its own; each task that began has ended by then.
    """

    def __init__(self, after: int) -> None:
        self.seq = after
        self.rows: list[Committed] = []
        self.partial: dict[str, list[str | Part]] = {}
        self.ended: set[str] = set()
        self.sound: dict[str, list[tuple[int, bytes]]] = {}  # of each item, what was given, and behind how many samples
        self.missed = 0
        self._closed: set[str] = set()
        self._owner: dict[str, tuple[str, str]] = {}
        self._ended_tasks: set[tuple[str, str]] = set()

    @property
    def log(self) -> list[LogEvent]:
        return [row.event for row in self.rows]

    def take(self, event: SessionEvent) -> None:
        match event:
            case Committed():
                assert event.seq == self.seq + 1, f"row {event.seq} after row {self.seq}"
                self.seq = event.seq
                self.rows.append(event)
                self._take_row(event.event)
            case ItemSnapshot():
                item_id = event.item.item_id
                assert item_id not in self.partial, f"a second snapshot of {item_id}"
                assert item_id not in self._closed, f"a snapshot of {item_id}, which is closed"
                assert event.turn_id not in self.ended, f"a snapshot of {event.turn_id}, which has ended"
                owner = (event.turn_id, event.task_id)
                assert owner not in self._ended_tasks, f"a snapshot of {owner}, which has ended"
                self.partial[item_id] = pieces_of(event.item)
                self.sound[item_id] = []
                self._owner[item_id] = owner
            case AudioChunk():
                assert event.item_id in self.partial, f"sound of {event.item_id}, which is not open"
                assert event.pcm, "no sound"
                given = self.sound[event.item_id]
                behind = given[-1][0] + len(given[-1][1]) // 2 if given else 0
                assert event.missed >= 0, "sound is repeated"
                assert event.offset == behind + event.missed, "sound is lost, and it is not said"
                given.append((event.offset, event.pcm))
                self.missed += event.missed
            case ItemDelta() | PartAdded():
                assert event.turn_id not in self.ended, f"a delta of {event.turn_id}, which has ended"
                assert event.item_id in self.partial, f"a delta of {event.item_id}, which is not open"
                assert self._owner[event.item_id] not in self._ended_tasks, "a delta of a task that has ended"
                known = self.partial[event.item_id]
                assert event.offset == sum(len(piece) for piece in known if isinstance(piece, str)), (
                    "characters are lost"
                )
                if isinstance(event, PartAdded):
                    assert event.number == sum(not isinstance(piece, str) for piece in known), (
                        "parts are lost or repeated"
                    )
                    grow(known, event.part)
                else:
                    assert event.text, "a delta without text"
                    grow(known, event.text)

    def _take_row(self, event: LogEvent) -> None:
        match event:
            case ItemClosed():
                item_id = event.item.item_id
                said = self.partial.pop(item_id, None)
                # What has been taken out meanwhile is in no row any more.
                is_whole = said == pieces_of(event.item) or event.item == redacted(event.item)
                assert is_whole, f"{item_id} differs from its row"
                self._closed.add(item_id)
            case TaskEnded():
                owner = (event.turn_id, event.task_id)
                assert event.turn_id not in self.ended, f"{owner} ended after its turn"
                assert owner not in self._ended_tasks, f"{owner} ended twice"
                assert owner not in {self._owner[item_id] for item_id in self.partial}, "an item was left open"
                self._ended_tasks.add(owner)
            case TurnAccepted():
                assert event.turn_id not in self.ended, f"{event.turn_id} begins after its end"
            case TurnEnded():
                assert event.turn_id not in self.ended, f"{event.turn_id} ended twice"
                assert event.turn_id not in {self._owner[item_id][0] for item_id in self.partial}, (
                    "an item was left open"
                )
                self.ended.add(event.turn_id)
            case _:
                pass


class House:
    """Sessions over a real database, graph, writer and scripted engine, on a clock that only a test advances."""

    def __init__(
        self,
        database: Database,
        clock: ManualClock,
        agents: dict[str, Agent],
        limits: SessionLimits,
        *,
        turn_timeout_s: float = 120.0,
        max_output_tokens: int = 1024,
        max_open: int = 100,
        tools: Tools | None = None,
        **turn_limits: int,
    ) -> None:
        self.database = database
        self.clock = clock
        self.registry = CollectorRegistry()
        offer = FixedCardView((scripted_card(),))
        self.decider = Decider(offer, max_characters=1_000)
        bounds = TurnLimits(turn_timeout_s=turn_timeout_s, max_output_tokens=max_output_tokens, **turn_limits)
        self.executor = Executor(self.decider, offer, agents, clock, bounds, tools)
        self.sessions = Sessions(
            database, self.executor, clock, Meters(self.registry), limits, max_open=max_open, max_tenant_open=max_open
        )
        self._ids = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["House"]:
        started = asyncio.Event()
        task = asyncio.create_task(self.sessions.run(started))
        await started.wait()
        try:
            yield self
        finally:
            await self.sessions.stop()
            await task

    def says(self, text: str, **more: object) -> TurnInput:
        self._ids += 1
        return TurnInput(items=(user(text, f"item_said_{self._ids}"),), **more)  # type: ignore[arg-type]

    async def settle(self) -> None:
        """Let the loop and the database's threads do what they can do without the clock."""
        for _ in range(3):
            for _ in range(10):
                await asyncio.sleep(0)
            await self.database.write(lambda _: None)
            await self.database.read(lambda _: None)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Let everything run until `holds`; the bound is far more than any of it needs."""
        for _ in range(500):
            if holds():
                return
            await self.settle()
        raise AssertionError("it did not come to hold")

    async def read(self, session: Session, done: Callable[[Transcript], bool], after: int = 0) -> Transcript:
        """Read a session, checking what comes, until `done`."""
        transcript = Transcript(after)
        async with asyncio.timeout(20), aclosing(session.events(after)) as events:  # a hang is a failure, not a wait
            async for event in events:
                transcript.take(event)
                if done(transcript):
                    break
        return transcript

    async def read_turn(self, session: Session, turn_id: str, after: int = 0) -> Transcript:
        return await self.read(session, lambda transcript: turn_id in transcript.ended, after)

    async def rows(self, session: Session) -> tuple[Committed, ...]:
        """Return every row of the log, as the database has them."""
        return await session._journal.read(0, 100_000)


def scripted_card(name: str = "scripted", cost: float = 0.0, reads: frozenset[str] = frozenset({"text"})) -> Card:
    return Card(
        name=name,
        engine=EngineSpec(name="scripted"),
        reads=reads,  # type: ignore[arg-type]
        writes=frozenset({"text"}),
        calls_tools=True,
        context_tokens=32_768,
        price=Price.flat(cost),
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "baton.db")
    yield database
    database.close()


@pytest.fixture
def engine(clock: ManualClock) -> ScriptedEngine:
    """The scripted engine, which answers at once, except to "wait"."""
    return build(EngineSpec(name="scripted", options=json.dumps({"rules": RULES})), EngineContext(clock=clock))


@pytest.fixture
def pieces() -> tuple[Callable[..., None], Callable[[Item], list[str | Part]]]:
    """Return `grow` and `pieces_of`."""
    return grow, pieces_of


@pytest.fixture
def new_transcript() -> type[Transcript]:
    return Transcript


@pytest.fixture
def new_house() -> type[House]:
    return House


@pytest.fixture
def open_house(database: Database, clock: ManualClock, engine: ScriptedEngine):
    """Return what gives a running house to `async with`; its arguments are the limits of its sessions."""

    def start(
        agents: dict[str, Agent] | None = None,
        *,
        max_open: int = 100,
        turn_timeout_s: float = 120.0,
        tools: Tools | None = None,
        **limits: float,
    ):
        return House(
            database,
            clock,
            agents or {"writer": Writer({"scripted": engine})},
            SessionLimits(**limits),  # type: ignore[arg-type]
            turn_timeout_s=turn_timeout_s,
            max_open=max_open,
            tools=tools,
        ).running()

    return start


@pytest.fixture
def new_card() -> Callable[..., Card]:
    return scripted_card


@pytest.fixture
def message() -> Callable[..., Message]:
    """Return what makes a message of the user from a text and an item's id."""
    return user


@pytest.fixture
def decision() -> Decision:
    return Decision(
        control=AnswerControl(),
        route=SingleRoute(card="scripted"),
        reasons=("the only one that can",),
        refused=(),
        inputs="{}",
    )


@pytest.fixture
def item_texts() -> Callable[[tuple[Item, ...]], list[str]]:
    return lambda items: [text_of(item) for item in items]


@pytest.fixture
def recording(clock: ManualClock) -> RecordingEngine:
    return RecordingEngine(clock)


@pytest.fixture
def peek(tmp_path: Path) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Return a function that reads the database through a connection of its own."""
    with closing(sqlite3.connect(tmp_path / "baton.db")) as connection:
        yield lambda sql, *values: connection.execute(sql, values).fetchall()


@pytest.fixture
def house_input(message: Any) -> Callable[[str], Any]:
    return lambda text: TurnInput(items=(message(text, "item_said"),))


@pytest.fixture
def steps(decision: Decision) -> Steps:
    return Steps(decision)


@pytest.fixture
def new_steps(decision: Decision) -> Callable[..., Steps]:
    return lambda **limits: Steps(decision, **limits)
