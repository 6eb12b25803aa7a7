"""What a session has read between two turns: the beginning of prompts that are going to be another one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agents.writer import Writer
from models.clock import ManualClock, sleep_until
from models.content import Delta, FinishDelta, Message, Role, TextDelta, TextPart, UsageDelta
from models.errors import Overloaded, Unsupported
from models.ports.generate import GenerateRequest


class AheadEngine:
    """Answers at once, and takes ten seconds to read ahead; notes what it was asked, and what was read to its end."""

    def __init__(self, clock: ManualClock, error: Exception | None = None) -> None:
        self.clock = clock
        self.error = error
        self.asked: list[GenerateRequest] = []
        self.ahead: list[GenerateRequest] = []
        self.read = 0
        self.stopped = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        if not request.reads_ahead:
            self.asked.append(request)
            yield TextDelta(text="yes")
            yield FinishDelta(reason="stop")
            return
        self.ahead.append(request)
        if self.error is not None:
            raise self.error
        yield UsageDelta(input_tokens=64, output_tokens=0)
        try:
            await sleep_until(self.clock, self.clock.now_s() + 10)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        self.read += 1
        yield UsageDelta(input_tokens=736, output_tokens=0)
        yield FinishDelta(reason="stop")

    async def aclose(self) -> None:
        pass


def long(n: int, role: Role = "user") -> Message:
    """An item of 8,000 tokens, by the estimate; the window has 32,768."""
    return Message(item_id=f"item_{n}", role=role, parts=(TextPart(text=f"{n} " + "x" * 23_950),))


@pytest.fixture
def talking(open_house: Any, clock: ManualClock):
    @asynccontextmanager
    async def start(error: Exception | None = None, items: int = 3, **limits: Any):
        engine = AheadEngine(clock, error)
        async with open_house({"writer": Writer({"scripted": engine})}, **limits) as house:
            session = await house.sessions.create("local")
            for n in range(items):
                await session.add((long(n),))
            await house.read_turn(session, await session.respond(house.says("hello", instructions="Be brief.")))
            await house.settle()
            yield house, session, engine

    return start


async def rest(house: Any, seconds: float) -> None:
    house.clock.advance(seconds)
    await house.settle()


def read_ahead(house: Any) -> float:
    return house.registry.get_sample_value("baton_read_ahead_tokens_total", {"tenant": "local"}) or 0.0


async def test_before_a_window_is_cut_what_will_be_kept_of_it_is_read(talking: Any) -> None:
    async with talking() as (house, session, engine):
        await rest(house, 0.2)
        assert not engine.ahead, "it begins at once, in the way of whoever asks at once"
        await rest(house, 0.1)
        (request,) = engine.ahead
        assert (request.priority, request.tenant) == ("batch", "local")
        await rest(house, 10)
        assert engine.read == 1
        assert read_ahead(house) == 800
        # What was read is what the prompt begins with once the window is cut.
        await session.add((long(3),))
        await house.read_turn(
            session, await session.respond(house.says("more", instructions="Be brief.")), session.last_seq
        )
        begun = [(item.role, item.parts) for item in engine.asked[-1].messages]
        ahead = [(item.role, item.parts) for item in request.messages]
        assert begun[: len(ahead)] == ahead
        assert len(ahead) > 1


async def test_what_is_read_ahead_is_in_no_turns_usage(talking: Any) -> None:
    async with talking() as (house, session, _):
        await rest(house, 0.3)
        await rest(house, 10)
        transcript = await house.read_turn(session, await session.respond(house.says("more")), session.last_seq)
        assert transcript.log[-1].usage.input_tokens == 0


async def test_where_there_is_room_nothing_is_read_ahead(talking: Any) -> None:
    async with talking(items=1) as (house, _, engine):
        await rest(house, 1)
        assert not engine.ahead


async def test_a_turn_that_comes_stops_it_and_after_the_turn_it_begins_again(talking: Any) -> None:
    async with talking() as (house, session, engine):
        await rest(house, 0.3)
        await house.read_turn(session, await session.respond(house.says("more")), session.last_seq)
        assert (engine.stopped, engine.read) == (1, 0)
        assert read_ahead(house) == 64, "what was read before it was stopped is not counted"
        await rest(house, 0.3)
        assert len(engine.ahead) == 2


async def test_a_session_that_is_put_away_or_closed_stops_it(talking: Any) -> None:
    async with talking(idle_s=5.0) as (house, session, engine):
        await rest(house, 0.3)
        await rest(house, 5)
        assert session.closed
        assert engine.stopped == 1
    async with talking() as (house, session, engine):
        await rest(house, 0.3)
        await house.sessions.stop()
        assert engine.stopped == 1


async def test_an_engine_that_cannot_is_asked_once(talking: Any) -> None:
    async with talking(Unsupported("No.", field="reads_ahead")) as (house, session, engine):
        for _ in range(3):
            await rest(house, 0.3)
            await house.read_turn(session, await session.respond(house.says("more")), session.last_seq)
        assert len(engine.ahead) == 1


@pytest.mark.parametrize("error", [Overloaded("Full."), ZeroDivisionError()])
async def test_whatever_goes_wrong_in_it_is_no_turns_and_it_is_tried_again(talking: Any, error: Exception) -> None:
    async with talking(error) as (house, session, engine):
        for _ in range(2):
            await rest(house, 0.3)
            transcript = await house.read_turn(session, await session.respond(house.says("more")), session.last_seq)
            assert transcript.log[-1].state == "finished"
        assert len(engine.ahead) == 2
        assert not session.closed


@pytest.mark.parametrize(("others", "own", "is_read"), [(16, 0, False), (15, 0, True), (0, 14, False), (2, 13, True)])
async def test_so_many_are_read_at_a_time_and_others_are_passed_over_and_no_tenant_has_all(
    talking: Any, others: int, own: int, is_read: bool
) -> None:
    async with talking() as (house, session, engine):
        house.executor._ahead.update({"other": others, session.tenant: own})
        await rest(house, 0.3)
        assert bool(engine.ahead) is is_read
