"""Turns without a session: answered and counted, and nothing of them is left."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from agents.events import AgentEvent, TaskProgress, TaskStarted
from agents.port import Task
from agents.writer import Writer
from models.catalog import Card
from models.clock import ManualClock, sleep_until
from models.content import Delta, FinishDelta, Message, TextDelta, TextPart, UsageDelta, text_of
from models.errors import LimitExceeded, NotFound, Overloaded
from models.placement.fleet import FixedCardView
from models.ports.generate import GenerateRequest
from orchestrator.act.completions import Completion, Completions
from orchestrator.act.execute import Executor, TurnLimits
from orchestrator.decide.decider import Decider
from orchestrator.events import TurnDone, TurnInput, Usage
from orchestrator.limits import SessionLimits
from orchestrator.meters import Meters


class House:
    """What completions need, and what was counted."""

    def __init__(self, clock: ManualClock, card: Card, agent: Any, **limits: Any) -> None:
        offer = FixedCardView((card,))
        self.registry = CollectorRegistry()
        decider = Decider(offer, max_characters=100)
        self.executor = Executor(decider, offer, {"writer": agent}, clock, TurnLimits(**limits))
        self.completions = Completions(
            self.executor, Meters(self.registry), SessionLimits(item_characters=50, history_characters=120)
        )

    def begin(self, text: str = "hello", tenant: str = "local", **more: Any) -> Any:
        return self.completions.begin(tenant, TurnInput(items=(said(text),), **more), ())

    def count(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"tenant": "local", **labels})


class TimedEngine:
    """Writes what it is given, each delta after as many seconds."""

    def __init__(self, clock: ManualClock, *deltas: tuple[float, Delta | Exception]) -> None:
        self.clock = clock
        self.deltas = deltas

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        for after_s, delta in self.deltas:
            self.clock.advance(after_s)
            if isinstance(delta, Exception):
                raise delta
            yield delta

    async def aclose(self) -> None:
        pass


def said(text: str) -> Message:
    return Message(item_id="item_1", role="user", parts=(TextPart(text=text),))


@pytest.fixture
def new_house(clock: ManualClock, new_card: Callable[..., Card]) -> Callable[..., House]:
    return lambda agent, **limits: House(clock, new_card(), agent, **limits)


@pytest.fixture
def timed(clock: ManualClock, new_house: Any) -> Callable[..., House]:
    return lambda *deltas: new_house(Writer({"scripted": TimedEngine(clock, *deltas)}))


async def play(completion: Completion) -> list[AgentEvent]:
    return [event async for event in completion.events()]


async def test_a_completion_is_decided_at_once_and_answered_when_it_is_asked(new_house: Any, engine: Any) -> None:
    house = new_house(Writer({"scripted": engine}))
    async with house.begin() as completion:
        assert completion.decision.card == "scripted"
        assert re.fullmatch("turn_[0-9A-Z]{26}", completion.turn_id)
        started, *events, finished = await play(completion)
    assert isinstance(started, TaskStarted)
    assert started.origin.turn_id == completion.turn_id
    assert isinstance(finished, TurnDone)
    text = "".join(event.delta.text for event in events if isinstance(event.delta, TextDelta))
    assert text == "you said hello 🎻"


async def test_the_history_is_shown_before_what_is_said_now(new_house: Any, recording: Any) -> None:
    house = new_house(Writer({"scripted": recording}))
    history = (Message(item_id="item_0", role="assistant", parts=said("Hi.").parts),)
    turn_input = TurnInput(items=(said("hello"),), instructions="Be brief.")
    async with (
        house.completions.begin("local", turn_input, history) as completion,
        aclosing(completion.events()) as events,
    ):
        await anext(events)
        await anext(events)
    (request,) = recording.requests
    assert [text_of(item) for item in request.messages] == ["Be brief.", "Hi.", "hello"]
    assert request.tenant == "local"


async def test_its_end_says_what_was_spent_and_how_long_it_took(timed: Any, clock: ManualClock) -> None:
    house = timed(
        (0.0, UsageDelta(input_tokens=7, output_tokens=0)),
        (0.5, TextDelta(text="one ")),
        (0.25, TextDelta(text="two")),
        (0.125, UsageDelta(input_tokens=0, output_tokens=2)),
        (0.125, FinishDelta(reason="length")),
    )
    async with house.begin() as completion:
        clock.advance(1.0)
        await play(completion)
        ended = completion.ended()
    assert (ended.turn_id, ended.generation) == (completion.turn_id, 1)
    assert (ended.state, ended.reason, ended.fault) == ("finished", "length", None)
    assert ended.usage == Usage(input_tokens=7, output_tokens=2)
    assert (ended.decided_ms, ended.first_delta_ms, ended.duration_ms) == (0, 1_500, 2_000)


async def test_it_is_counted_once_it_is_over(timed: Any, clock: ManualClock) -> None:
    house = timed(
        (0.0, UsageDelta(input_tokens=7, output_tokens=0)),
        (0.5, TextDelta(text="one ")),
        (0.25, TextDelta(text="two ")),
        (0.25, TextDelta(text="three")),
        (0.0, UsageDelta(input_tokens=0, output_tokens=3)),
        (0.0, FinishDelta(reason="stop")),
    )
    async with house.begin() as completion:
        await play(completion)
        assert house.count("baton_turns_total", state="finished") is None
    assert house.count("baton_turns_total", state="finished") == 1
    assert house.count("baton_tokens_total", direction="in") == 7
    assert house.count("baton_tokens_total", direction="out") == 3
    assert house.count("baton_first_delta_seconds_sum") == 0.5
    assert house.count("baton_turn_seconds_sum") == 1.0
    # Three deltas have two gaps between them; tokens that are only counted are no delta.
    assert (house.count("baton_delta_gap_seconds_count"), house.count("baton_delta_gap_seconds_sum")) == (2, 0.5)


async def test_gaps_are_within_one_answer_and_not_between_two(timed: Any) -> None:
    house = timed((9.0, TextDelta(text="one ")), (0.5, TextDelta(text="two")), (0.0, FinishDelta(reason="stop")))
    for _ in range(3):
        async with house.begin() as completion:
            await play(completion)
    assert (house.count("baton_delta_gap_seconds_count"), house.count("baton_delta_gap_seconds_sum")) == (3, 1.5)


async def test_closing_it_stops_the_engine_within_one_step(new_house: Any, recording: Any, clock: ManualClock) -> None:
    house = new_house(Writer({"scripted": recording}))
    async with house.begin() as completion:
        async with aclosing(completion.events()) as events:
            for _ in range(2):
                await anext(events)
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            assert (recording.steps, recording.closed) == (1, 0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert (recording.steps, recording.closed) == (1, 1)
    clock.advance(10.0)
    await asyncio.sleep(0)
    assert recording.steps == 1
    assert house.count("baton_turns_total", state="interrupted") == 1


async def test_one_that_nobody_plays_counts_as_interrupted(new_house: Any, recording: Any) -> None:
    house = new_house(Writer({"scripted": recording}))
    async with house.begin() as completion:
        ended = completion.ended()
    assert (ended.state, ended.reason, ended.first_delta_ms) == ("interrupted", "client_gone", None)
    assert house.count("baton_turns_total", state="interrupted") == 1
    assert recording.requests == []


async def test_an_error_of_the_engine_is_its_last_event_and_is_counted_by_its_code(timed: Any) -> None:
    house = timed((0.0, TextDelta(text="this far ")), (0.0, Overloaded("No room.")))
    async with house.begin() as completion:
        *_, progress, failed = await play(completion)
    assert isinstance(progress, TaskProgress)
    assert isinstance(failed, TurnDone)
    assert (failed.fault.code, failed.fault.message, failed.fault.retryable) == ("overloaded", "No room.", True)
    assert completion.ended().fault == failed.fault
    assert house.count("baton_turns_total", state="failed") == 1
    assert house.count("baton_turn_faults_total", code="overloaded") == 1


async def test_a_defect_fails_the_turn_and_hides_its_cause(timed: Any, caplog: pytest.LogCaptureFixture) -> None:
    house = timed((0.0, TextDelta(text="this far ")), (0.0, ZeroDivisionError("a secret path")))
    async with house.begin() as completion:
        *_, failed = await play(completion)
    assert isinstance(failed, TurnDone)
    assert (failed.fault.code, failed.fault.retryable) == ("internal", True)
    assert "secret" not in failed.fault.message
    assert "secret" in caplog.text
    assert house.count("baton_turn_faults_total", code="internal") == 1


async def test_an_agent_that_stops_without_an_end_has_failed(new_house: Any) -> None:
    class Silent:
        async def run(self, task: Task) -> AsyncGenerator[AgentEvent, None]:
            return
            yield

    house = new_house(Silent())
    async with house.begin() as completion:
        (failed,) = await play(completion)
    assert isinstance(failed, TurnDone)
    assert completion.ended().state == "failed"


async def test_a_turn_that_is_refused_takes_no_seat_and_is_not_counted(new_house: Any, engine: Any) -> None:
    house = new_house(Writer({"scripted": engine}), turns=1)
    for _ in range(2):
        with pytest.raises(NotFound):
            async with house.begin(model="nonesuch"):
                pass
    assert house.executor.admission.turns == 0
    assert b'state="' not in generate_latest(house.registry)


async def test_a_turn_has_its_seat_from_its_decision_to_the_end_of_its_block(new_house: Any, engine: Any) -> None:
    house = new_house(Writer({"scripted": engine}), turns=1)
    async with house.begin() as completion:
        with pytest.raises(Overloaded):
            async with house.begin():
                pass
        await play(completion)
        with pytest.raises(Overloaded):
            async with house.begin(tenant="somebody"):
                pass
    async with house.begin():
        assert house.executor.admission.turns == 1


async def test_what_goes_wrong_around_it_is_not_swallowed_and_ends_it(new_house: Any, recording: Any) -> None:
    house = new_house(Writer({"scripted": recording}))

    async def send_to_somebody_who_is_gone() -> None:
        async with house.begin() as completion, aclosing(completion.events()) as events:
            await anext(events)
            await anext(events)
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await send_to_somebody_who_is_gone()
    assert (recording.closed, house.executor.admission.turns) == (1, 0)
    assert house.count("baton_turns_total", state="interrupted") == 1


async def test_two_at_once_are_timed_apart(new_house: Any, clock: ManualClock) -> None:
    class Slow(TimedEngine):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
            for _ in range(2):
                await sleep_until(clock, clock.now_s() + 1.0)
                yield TextDelta(text="word ")
            yield FinishDelta(reason="stop")

    house = new_house(Writer({"scripted": Slow(clock)}))
    async with house.begin() as first:
        first_play = asyncio.create_task(play(first))
        await asyncio.sleep(0)
        clock.advance(0.5)
        async with house.begin() as second:
            second_play = asyncio.create_task(play(second))
            for _ in range(6):
                for _ in range(10):
                    await asyncio.sleep(0)
                clock.advance(0.5)
            await asyncio.gather(first_play, second_play)
            assert first.ended().first_delta_ms == second.ended().first_delta_ms == 1_000
    assert house.count("baton_delta_gap_seconds_sum") == 2.0


@pytest.mark.parametrize(
    ("history", "match"),
    [
        ([said("x" * 51)], "an item has 51 characters, and the maximum here is 50"),
        ([said("x" * 41)] * 3, "123 characters, and the maximum here is 120"),
    ],
)
async def test_a_history_longer_than_a_sessions_is_refused(timed: Any, history: list[Message], match: str) -> None:
    with pytest.raises(LimitExceeded, match=match):
        async with timed().completions.begin("local", TurnInput(items=(said("hello"),)), history):
            pass


async def test_a_history_within_its_limits_is_taken(timed: Any) -> None:
    async with timed().completions.begin("local", TurnInput(items=(said("hello"),)), [said("x" * 40)] * 3):
        pass
