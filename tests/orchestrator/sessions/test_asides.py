"""Responses beside a conversation, without a wire: told as a turn is, counted as one, and gone."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from support.sessions import RecordingEngine, kinds

from agents.writer import Writer
from models.clock import ManualClock
from models.errors import Conflict, NotFound
from orchestrator.act.completions import Completions
from orchestrator.events import Committed, ItemClosed, ItemSnapshot, TaskEnded, TurnEnded, TurnInput
from orchestrator.limits import SessionLimits
from orchestrator.meters import Meters
from orchestrator.sessions.asides import Aside


@asynccontextmanager
async def _aside(house: Any, clock: ManualClock, *history: Any) -> AsyncIterator[tuple[Aside, CollectorRegistry]]:
    registry = CollectorRegistry()
    completions = Completions(house.executor, Meters(registry), SessionLimits())
    turn_input = TurnInput(metadata={"a": "b"})
    async with completions.begin("local", turn_input, history) as completion:
        yield Aside(completion, turn_input, clock), registry


@pytest.mark.parametrize(("said", "state"), [("hello", "finished"), ("weather", "finished"), ("break", "failed")])
async def test_it_is_told_as_a_turn_is(
    open_house: Any, clock: ManualClock, new_transcript: Any, message: Any, said: str, state: str
) -> None:
    async with open_house() as house, _aside(house, clock, message(said, "item_1")) as (aside, registry):
        transcript = new_transcript(0)
        assert house.executor.admission.turns == 1
        async for event in aside.events():
            transcript.take(event)
        assert [event.kind for event in transcript.log] == ["turn_accepted", "item_closed", "task_ended", "turn_ended"]
        assert transcript.log[0].input.metadata == {"a": "b"}
        assert transcript.log[-1].state == state
        assert aside.cancel("client_cancelled") == []
    assert house.executor.admission.turns == 0
    assert (
        sum(sample.value for metric in registry.collect() for sample in metric.samples if "turns_total" in sample.name)
        == 1
    )


async def test_one_that_is_stopped_closes_what_it_had_and_its_engine_stops(
    open_house: Any, clock: ManualClock, recording: RecordingEngine, message: Any
) -> None:
    async with (
        open_house({"writer": Writer({"scripted": recording})}) as house,
        _aside(house, clock, message("hello", "item_1")) as (aside, _),
    ):
        async with aclosing(aside.events()) as events:
            async for event in events:
                if isinstance(event, ItemSnapshot):
                    break
        closed, task, ended = [
            event.event for event in aside.cancel("client_cancelled") if isinstance(event, Committed)
        ]
        assert isinstance(closed, ItemClosed)
        assert isinstance(task, TaskEnded)
        assert task.state == "cancelled"
        assert isinstance(ended, TurnEnded)
        assert (ended.state, ended.reason) == ("interrupted", "client_cancelled")
        assert recording.closed == 1


async def test_a_turns_own_context_is_shown_instead_of_the_conversation_and_not_kept(
    open_house: Any, message: Any, item_texts: Any
) -> None:
    async with open_house() as house:
        session = await house.sessions.create("local")
        await session.add((message("first", "item_1"), message("second", "item_2")))
        context = await session.context((message("new", "item_new"), "item_1"))
        assert item_texts(context) == ["new", "first"]
        turn_id = await session.respond(TurnInput(), context)
        await house.read_turn(session, turn_id)
        assert item_texts(session.items) == ["first", "second", "you said first 🎻"]
        assert kinds(await house.rows(session)) == [
            "items_added",
            "turn_accepted",
            "item_closed",
            "task_ended",
            "turn_ended",
        ]
        with pytest.raises(NotFound):
            await session.context(("item_nowhere",))
        with pytest.raises(Conflict):
            await session.context(("item_1", "item_1"))
