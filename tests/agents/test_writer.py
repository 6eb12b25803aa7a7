"""The writer wraps what its engine yields, and nothing gets lost at its edges."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from agents.events import AgentEvent, Fault, Origin, TaskFailed, TaskFinished, TaskProgress, TaskStarted
from agents.port import Budget, Task
from agents.writer import Writer
from models.catalog import EngineSpec
from models.clock import ManualClock
from models.content import Delta, FinishDelta, Message, TextDelta, TextPart, UsageDelta, text_of
from models.errors import BatonError, DeadlineExceeded, Overloaded, Unsupported, WorkerDied
from models.language.scripted import build
from models.owner import Owner
from models.ports.context import EngineContext
from models.ports.generate import GenerateRequest, Sampling, ToolConstraint, ToolSpec

ORIGIN = Origin(agent="writer", task_id="turn_1.1", turn_id="turn_1", generation=1)


class Engine:
    """Yields what it is given, then raises what it is given; notes its request and how it was closed."""

    def __init__(self, deltas: Sequence[Delta], error: Exception | None = None) -> None:
        self.deltas = deltas
        self.error = error
        self.request: GenerateRequest | None = None
        self.yielded = 0
        self.closed = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.request = request
        try:
            for delta in self.deltas:
                self.yielded += 1
                yield delta
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True

    async def aclose(self) -> None:
        pass


@pytest.fixture
def task() -> Task:
    return Task(
        origin=ORIGIN,
        owner=Owner("local", "ada"),
        card="scripted",
        messages=(Message(item_id="item_1", role="user", parts=(TextPart(text="hello"),)),),
        constraint=None,
        sampling=Sampling(temperature=0.7, top_p=0.8, seed=5, stop=("END",), max_output_tokens=9),
        budget=Budget(deadline_s=7.0, output_tokens=3),
    )


@pytest.fixture
def play(task: Task) -> Callable[[Engine], AsyncGenerator[AgentEvent, None]]:
    return lambda engine: Writer({"scripted": engine}).run(task)


async def test_a_reply_is_wrapped_delta_by_delta(task: Task) -> None:
    engine = build(
        EngineSpec(name="scripted", options='{"rules": [{"pattern": "hello", "reply": "hi there"}]}'),
        EngineContext(clock=ManualClock(0.0)),
    )
    events = [event async for event in Writer({"scripted": engine}).run(task)]
    assert events == [
        TaskStarted(origin=ORIGIN, card="scripted"),
        TaskProgress(origin=ORIGIN, delta=UsageDelta(input_tokens=1, output_tokens=0)),
        TaskProgress(origin=ORIGIN, delta=TextDelta(text="hi ")),
        TaskProgress(origin=ORIGIN, delta=TextDelta(text="there")),
        TaskProgress(origin=ORIGIN, delta=UsageDelta(input_tokens=0, output_tokens=2)),
        TaskFinished(origin=ORIGIN, reason="stop"),
    ]


async def test_the_engine_is_asked_within_the_tasks_budget(task: Task) -> None:
    engine = Engine((FinishDelta(reason="stop"),))
    tools = ToolConstraint(tools=(ToolSpec(name="add", description="", parameters="{}"),))
    assert [event async for event in Writer({"scripted": engine}).run(replace(task, constraint=tools))]
    request = engine.request
    assert request is not None
    assert (request.owner, request.deadline, request.priority) == (Owner("local", "ada"), 7.0, "interactive")
    assert (request.messages, request.constraint) == (task.messages, tools)
    assert request.sampling == replace(task.sampling, max_output_tokens=3)


async def test_an_answer_is_as_short_as_its_sampling_says_where_the_budget_allows_more(task: Task) -> None:
    engine = Engine((FinishDelta(reason="stop"),))
    rich = replace(task, budget=replace(task.budget, output_tokens=100))
    assert [event async for event in Writer({"scripted": engine}).run(rich)]
    assert engine.request is not None
    assert engine.request.sampling == task.sampling


@pytest.mark.parametrize(
    "error",
    [
        DeadlineExceeded("Too late."),
        Overloaded("Too many."),
        Unsupported("No such thing.", field="adapter"),
        WorkerDied("It died."),
    ],
    ids=lambda error: error.code,
)
async def test_an_error_of_the_engine_becomes_the_tasks_failure_after_what_was_written(
    play: Callable[[Engine], AsyncGenerator[AgentEvent, None]], error: BatonError
) -> None:
    engine = Engine((TextDelta(text="half "),), error)
    started, progress, failed = [event async for event in play(engine)]
    assert isinstance(started, TaskStarted)
    assert isinstance(progress, TaskProgress)
    assert failed == TaskFailed(origin=ORIGIN, fault=Fault.of(error))
    again = failed.fault.error()
    assert (type(again), again.code, again.message, again.field) == (
        *(type(error), error.code, error.message, error.field),
    )
    assert engine.closed


async def test_a_defect_of_the_engine_is_raised(play: Callable[[Engine], AsyncGenerator[AgentEvent, None]]) -> None:
    with pytest.raises(ZeroDivisionError):
        assert [event async for event in play(Engine((), ZeroDivisionError()))]


async def test_an_answer_that_breaks_off_is_a_failure(
    play: Callable[[Engine], AsyncGenerator[AgentEvent, None]],
) -> None:
    *_, failed = [event async for event in play(Engine((TextDelta(text="half"),)))]
    assert isinstance(failed, TaskFailed)
    assert (failed.fault.code, failed.fault.retryable) == ("internal", True)


async def test_a_card_without_an_engine_is_a_failure(task: Task) -> None:
    started, failed = [event async for event in Writer({}).run(task)]
    assert isinstance(started, TaskStarted)
    assert isinstance(failed, TaskFailed)
    assert failed.fault.code == "not_found"


@pytest.mark.parametrize("taken", [1, 2, 3])
async def test_closing_the_writer_closes_its_engine_within_one_step(
    play: Callable[[Engine], AsyncGenerator[AgentEvent, None]], taken: int
) -> None:
    engine = Engine([TextDelta(text="word ")] * 10)
    async with aclosing(play(engine)) as events:
        for _ in range(taken):
            await anext(events)
    assert engine.yielded == taken - 1  # the first event is the start
    assert engine.closed == (taken > 1)


async def test_nothing_is_taken_from_the_engine_after_its_end(
    play: Callable[[Engine], AsyncGenerator[AgentEvent, None]],
) -> None:
    engine = Engine((FinishDelta(reason="length"), TextDelta(text="late")))
    assert [event async for event in play(engine)][-1] == TaskFinished(origin=ORIGIN, reason="length")
    assert engine.yielded == 1
    assert engine.closed


async def test_what_a_task_works_from_is_shown_under_its_names_with_what_is_asked(task: Task) -> None:
    inputs = {
        "sum": (TextPart(text="40", source="tool"),),
        "seen": (TextPart(text="a cat", source="seen"), TextPart(text=" asleep", source="seen")),
    }
    engine = Engine([FinishDelta(reason="stop")])
    async for _ in Writer({"scripted": engine}).run(replace(task, inputs=inputs)):
        pass
    assert engine.request is not None
    (message,) = engine.request.messages
    assert text_of(message) == "hello\n\nsum:\n40\n\nseen:\na cat asleep"
    # What was not typed stays data.
    assert [part.source for part in message.parts] == ["typed", "generated", "tool", "generated", "seen", "seen"]


async def test_a_task_says_what_its_output_is_called_and_what_it_is_to_the_turn(task: Task) -> None:
    engine = Engine([TextDelta(text="40"), FinishDelta(reason="stop")])
    work = replace(task, output="sum", origin=replace(task.origin, role="work"))
    events = [event async for event in Writer({"scripted": engine}).run(work)]
    assert events[0] == TaskStarted(origin=work.origin, card="scripted", output="sum")
    assert all(event.origin.role == "work" for event in events)
