"""What tests of sessions share: an engine that is watched, a log that is held or refused, and what rows say."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.events import Origin, TaskFinished, TaskProgress
from models.clock import ManualClock, sleep_until
from models.content import Delta, Item, TextDelta, text_of
from models.ports.generate import GenerateRequest, ToolConstraint, ToolSpec
from orchestrator.events import (
    Committed,
    Decision,
    ItemClosed,
    ItemsRedacted,
    ItemsRemoved,
    LogEvent,
    SessionSettings,
    SettingsChanged,
    TurnEnded,
    TurnInput,
    done_with,
)
from orchestrator.limits import SessionLimits
from orchestrator.sessions.handle import Session
from orchestrator.sessions.state import SessionState
from orchestrator.sessions.tombstones import without

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


class Steps:
    """A state whose transactions succeed at once."""

    def __init__(self, decision: Decision, **limits: float) -> None:
        self.state = SessionState(SessionLimits(**limits))  # type: ignore[arg-type]
        self.decision = decision
        self.now_s = 100.0

    def write(self, events: tuple[LogEvent, ...]) -> tuple[LogEvent, ...]:
        numbered = enumerate(events, start=self.state.last_seq + 1)
        self.state.apply([Committed(seq=seq, at_ms=0, event=event) for seq, event in numbered], self.now_s)
        return events

    def add(self, *items: Item) -> None:
        self.write(self.state.plan_add(items))

    def propose(self, *items: Item, turn_id: str = "turn_1") -> int:
        return self.state.propose(turn_id, TurnInput(items=items), self.now_s)[0]

    def accept(self, *items: Item, turn_id: str = "turn_1") -> None:
        generation = self.propose(*items, turn_id=turn_id)
        self.write(self.state.plan_accept(turn_id, generation, self.decision, asked_s=self.now_s))

    def take(self, delta: Delta, item_id: str = "item_reply") -> bool:
        return self.state.take(self.progress(delta), item_id, self.now_s)

    def progress(self, delta: Delta, generation: int = 1) -> TaskProgress:
        return TaskProgress(origin=self.origin(generation), delta=delta)

    def origin(self, generation: int = 1) -> Origin:
        turn_id = self.state.turn.turn_id if self.state.turn else "turn_none"
        return Origin(agent="writer", task_id="t", turn_id=turn_id, generation=generation)

    def change(self, **settings: str | None) -> None:
        self.write(self.state.plan_change(SessionSettings(**settings)))

    def end(self, reason: Any = "stop") -> tuple[LogEvent, ...]:
        """End the only task, and the turn with it."""
        done = done_with(TaskFinished(origin=self.origin(), reason=reason))
        return self.write(self.state.plan(done, "item_unused", self.now_s))


def bare(rows: Any, log: Any) -> list[Committed]:
    """Return rows without the content that `log` says was taken out, and then without titles, which may be made of it.

    They may have been read before it was.
    """
    gone: set[str] = set()
    for row in log:
        match row.event:
            case ItemsRemoved():
                gone.update(row.event.redacted)
            case ItemsRedacted():
                gone.update(row.event.item_ids)
            case _:
                pass
    return [replace(row, event=_untitled(without(row.event, gone)) if gone else row.event) for row in rows]


def _untitled(event: LogEvent) -> LogEvent:
    if isinstance(event, SettingsChanged):
        return replace(event, settings=replace(event.settings, title=None))
    return event


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
