"""Tools of the server within a turn: run, allowed, refused; and what a model, the log and the ledger are told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.sessions import kinds

from agents.events import TaskFinished, TaskProgress, TaskStarted
from agents.tools.python import ToolCall, Tools
from agents.writer import Writer
from models.catalog import EngineSpec
from models.clock import ManualClock
from models.content import (
    ApprovalRequest,
    ApprovalResponse,
    Call,
    CallDelta,
    CallResult,
    Message,
    TextDelta,
    TextPart,
    text_of,
)
from models.errors import Conflict, NotFound
from models.language.scripted import ScriptedEngine, build
from models.ports.context import EngineContext
from models.ports.generate import ToolConstraint, ToolSpec
from orchestrator.act.execute import MAX_ROUNDS
from orchestrator.events import ItemClosed, ItemsAdded, TaskEnded, TurnEnded

RULES = (
    {"pattern": r"^add$", "reply": '{"a": 2, "b": 3}', "call": "add"},
    {"pattern": r"^add wrongly$", "reply": '{"a": "two"}', "call": "add"},
    {"pattern": r"^send$", "reply": '{"to": "Ada"}', "call": "send"},
    {"pattern": r"^note$", "reply": '{"text": "x"}', "call": "note"},
    {"pattern": r"^fail$", "reply": "{}", "call": "fail"},
    {"pattern": r"^theirs$", "reply": "{}", "call": "theirs"},
    {"pattern": r"^on and on", "reply": "{}", "call": "again"},
    {"pattern": r"(?s)(.*)", "reply": r"it said: \1"},
)
THEIRS = ToolSpec(name="theirs", description="", parameters="{}")


class Watched:
    """The tools, and what was done by them."""

    def __init__(self) -> None:
        self.tools = Tools()
        self.done: list[tuple[str, str]] = []

        @self.tools.register(effect="pure")
        def add(a: int, b: int) -> int:
            """Add."""
            self.done.append(("add", ""))
            return a + b

        @self.tools.register(effect="effectful")
        async def send(to: str, call: ToolCall) -> str:
            """Send."""
            self.done.append((f"send to {to}", call.key))
            return f"sent to {to}"

        @self.tools.register(effect="idempotent")
        async def note(text: str, call: ToolCall) -> str:
            """Note."""
            self.done.append((f"note {text}", call.key))
            return "noted"

        @self.tools.register(effect="pure")
        def fail() -> None:
            """Fail."""
            raise NotFound("There is no customer 7.")

        @self.tools.register(effect="pure")
        def again() -> str:
            """Again."""
            return "on and on"

    def offered(self, *more: ToolSpec) -> ToolConstraint:
        return ToolConstraint(tools=(*(tool.spec for tool in self.tools), *more))


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.tools.close()


@pytest.fixture
def engine(clock: ManualClock) -> ScriptedEngine:
    return build(EngineSpec(name="scripted", options=json.dumps({"rules": RULES})), EngineContext(clock=clock))


@pytest.fixture
def open_tools(open_house: Callable[..., Any], watched: Watched, engine: ScriptedEngine) -> Callable[..., Any]:
    @asynccontextmanager
    async def opened(**more: Any) -> AsyncIterator[Any]:
        async with open_house({"writer": Writer({"scripted": engine})}, tools=watched.tools, **more) as house:
            yield house

    return opened


def requests(transcript: Any) -> list[ApprovalRequest]:
    return [item for item in items(transcript) if isinstance(item, ApprovalRequest)]


def items(transcript: Any) -> list[Any]:
    out: list[Any] = []
    for row in transcript.rows:
        if isinstance(row.event, ItemClosed):
            out.append(row.event.item)
        elif isinstance(row.event, ItemsAdded):
            out += row.event.items
    return out


def reply(transcript: Any) -> str:
    return next(text_of(item) for item in reversed(items(transcript)) if isinstance(item, Message))


def result(transcript: Any) -> str:
    return next(text_of(item) for item in reversed(items(transcript)) if isinstance(item, CallResult))


async def ask(house: Any, watched: Watched, text: str, *more: ToolSpec) -> Any:
    session = await house.sessions.create("local")
    turn_id = await session.respond(house.says(text, tools=watched.offered(*more)))
    return session, turn_id


async def wait_for_request(house: Any, session: Any, after: int = 0) -> tuple[Any, ApprovalRequest]:
    transcript = await house.read(session, lambda told: bool(requests(told)), after)
    return transcript, requests(transcript)[-1]


def allow(request: ApprovalRequest, *, approve: bool = True, reason: str | None = None, n: int = 1) -> ApprovalResponse:
    return ApprovalResponse(item_id=f"item_said_so_{n}", request_id=request.item_id, approve=approve, reason=reason)


async def test_a_pure_tool_runs_unasked_and_the_model_goes_on_with_its_result(
    open_tools: Any, watched: Watched
) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "add")
        transcript = await house.read_turn(session, turn_id)
        assert reply(transcript) == "it said: 5"
        assert watched.done == [("add", "")]
        assert [item.kind for item in items(transcript)] == ["call", "call_result", "message"]
        ended = transcript.log[-1]
        assert isinstance(ended, TurnEnded)
        assert (ended.state, ended.reason) == ("finished", "stop")
        tasks = [event for event in transcript.log if isinstance(event, TaskEnded)]
        assert [(task.agent, task.task_id.rpartition(".")[2]) for task in tasks] == [
            ("writer", "1"),
            ("tools", "2"),
            ("writer", "3"),
        ]


async def test_what_does_something_waits_until_somebody_allows_it_and_happens_once(
    open_tools: Any, watched: Watched, peek: Any
) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "send")
        _, request = await wait_for_request(house, session)
        assert (request.name, request.arguments) == ("send", '{"to": "Ada"}')
        await house.settle()
        assert watched.done == []
        assert session.running_turn == turn_id
        assert house.executor.admission.turns == 0  # it waits without a seat
        ((key, outcome),) = peek("SELECT key, result FROM effects")
        assert outcome is None
        await session.add((allow(request),))
        transcript = await house.read_turn(session, turn_id)
        assert watched.done == [("send to Ada", f"{turn_id}/1/0")]
        assert reply(transcript) == "it said: sent to Ada"
        assert [item.kind for item in items(transcript)] == [
            *("call", "approval_request", "approval_response", "call_result", "message")
        ]
        ((key, outcome),) = peek("SELECT key, result FROM effects")
        assert (key, json.loads(outcome)[0]["text"]) == (f"{turn_id}/1/0", "sent to Ada")


@pytest.mark.parametrize("reason", [None, "Not today."])
async def test_what_is_not_allowed_does_not_happen_and_the_model_is_told_why(
    open_tools: Any, watched: Watched, reason: str | None
) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "send")
        _, request = await wait_for_request(house, session)
        await session.add((allow(request, approve=False, reason=reason),))
        transcript = await house.read_turn(session, turn_id)
        assert watched.done == []
        assert reply(transcript) == f"it said: This call was not made. {reason or 'It was not allowed.'}"


async def test_nobody_answers_for_so_long_that_it_is_not_made(
    open_tools: Any, watched: Watched, clock: ManualClock
) -> None:
    async with open_tools(detach_grace_s=5.0) as house:
        session, turn_id = await ask(house, watched, "send")
        _, request = await wait_for_request(house, session)
        assert request.expires_ms == int((clock.wall_s() + 3600) * 1000)
        await house.settle()
        for _ in range(4):
            clock.advance(899.0)  # neither the turn's own time passes meanwhile, nor its grace
            await house.settle()
            assert session.running_turn == turn_id
        clock.advance(5.0)
        transcript = await house.read_turn(session, turn_id)
        assert watched.done == []
        assert "Nobody has allowed it in time." in reply(transcript)
        assert [item.approve for item in items(transcript) if isinstance(item, ApprovalResponse)] == [False]
        with pytest.raises(NotFound):
            await session.add((allow(request),))


async def test_an_answer_is_taken_once_and_only_for_what_is_asked(open_tools: Any, watched: Watched) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "send")
        _, request = await wait_for_request(house, session)
        with pytest.raises(NotFound, match="nonesuch") as refused:
            await session.add((ApprovalResponse(item_id="item_x", request_id="nonesuch", approve=True),))
        assert refused.value.code == "approval_not_found"
        answers = await asyncio.gather(
            session.add((allow(request, n=1),)), session.add((allow(request, n=2),)), return_exceptions=True
        )
        assert [type(answer) for answer in answers].count(NotFound) == 1
        await house.read_turn(session, turn_id)
        assert len(watched.done) == 1
        with pytest.raises(NotFound):
            await session.add((allow(request, n=3),))


async def test_a_client_does_not_answer_for_a_tool_of_the_servers(open_tools: Any, watched: Watched) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "send")
        _, request = await wait_for_request(house, session)
        with pytest.raises(Conflict, match="is run by the server"):
            await session.tool_result(request.call_id, (TextPart(text="sent, I swear", source="tool"),))
        await session.cancel(turn_id, "client_cancelled")


async def test_a_turn_that_waits_can_be_stopped_and_asks_nothing_more(open_tools: Any, watched: Watched) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "send")
        _, request = await wait_for_request(house, session)
        await session.cancel(turn_id, "client_cancelled")
        transcript = await house.read_turn(session, turn_id)
        assert transcript.log[-1].state == "interrupted"
        with pytest.raises(NotFound):
            await session.add((allow(request),))
        assert watched.done == []
        turn_id = await session.respond(house.says("hello"))
        await house.read_turn(session, turn_id)


async def test_a_turn_that_waits_survives_a_restart_and_goes_on(open_tools: Any, watched: Watched, peek: Any) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "send")
        _, request = await wait_for_request(house, session)
        session_id = session.session_id
    async with open_tools() as house:
        assert await house.sessions.recover() == 0
        session = await house.sessions.open("local", session_id)
        assert session.running_turn == turn_id
        await house.settle()
        assert watched.done == []
        await session.add((allow(request),))
        transcript = await house.read_turn(session, turn_id)
        assert watched.done == [("send to Ada", f"{turn_id}/1/0")]
        assert reply(transcript) == "it said: sent to Ada"
        assert peek("SELECT count(*) FROM effects WHERE result IS NULL") == [(0,)]
        assert [item.kind for item in items(transcript)] == [
            *("call", "approval_request", "approval_response", "call_result", "message")
        ]
        house.says("of before")  # it had this id
        turn_id = await session.respond(house.says("hello"))
        assert reply(await house.read_turn(session, turn_id)) == "it said: hello"


class TwoCalls:
    """An agent that calls two tools at once, and then says what it was told of them."""

    def __init__(self, *calls: tuple[str, str]) -> None:
        self.calls = calls

    async def run(self, task: Any) -> Any:
        yield TaskStarted(origin=task.origin, card=task.card)
        results = [text_of(item) for item in task.messages if isinstance(item, CallResult)]
        if results:
            yield TaskProgress(origin=task.origin, delta=TextDelta(text=" / ".join(results)))
            yield TaskFinished(origin=task.origin, reason="stop")
            return
        for n, (name, arguments) in enumerate(self.calls):
            yield TaskProgress(origin=task.origin, delta=CallDelta(call_id=f"call_{n}", name=name, arguments=arguments))
        yield TaskFinished(origin=task.origin, reason="calls")


@pytest.mark.parametrize("effect", ["effectful", "idempotent"])
async def test_what_ran_when_the_server_went_is_run_again_only_if_that_makes_no_difference(
    open_house: Any, effect: Any
) -> None:
    tools, held, keys = Tools(), asyncio.Event(), []

    @tools.register(effect=effect, needs_approval=True, timeout_s=1_000.0)
    async def slow(call: ToolCall) -> str:
        """Slow."""
        keys.append(call.key)
        await held.wait()
        return "done"

    @tools.register(effect="effectful")
    async def other() -> str:
        """Other."""
        return "other done"

    offered = ToolConstraint(tools=tuple(tool.spec for tool in tools))
    agents = {"writer": TwoCalls(("slow", "{}"), ("other", "{}"))}
    async with open_house(agents, tools=tools) as house:
        session = await house.sessions.create("local")
        turn_id = await session.respond(house.says("go", tools=offered))
        transcript = await house.read(session, lambda told: len(requests(told)) == 2)
        slow_request, other_request = requests(transcript)
        await session.add((allow(slow_request),))
        await house.until(lambda: len(keys) == 1)
        session_id = session.session_id
    held.set()
    async with open_house(agents, tools=tools) as house:
        assert await house.sessions.recover() == 0
        session = await house.sessions.open(session.owner, session_id)
        await session.add((allow(other_request, n=2),))
        transcript = await house.read_turn(session, turn_id)
        if effect == "effectful":
            assert reply(transcript).startswith("The server was restarted while this ran: its outcome is unknown.")
            assert len(keys) == 1
        else:
            assert reply(transcript).startswith("done / ")
            assert keys == [f"{turn_id}/1/0"] * 2
        assert reply(transcript).endswith("other done")


async def test_requests_are_answered_in_any_order(open_house: Any, watched: Watched) -> None:
    agents = {"writer": TwoCalls(("send", '{"to": "Ada"}'), ("send", '{"to": "Bob"}'))}
    async with open_house(agents, tools=watched.tools) as house:
        session, turn_id = await ask(house, watched, "go")
        transcript = await house.read(session, lambda told: len(requests(told)) == 2)
        first, second = requests(transcript)
        await session.add((allow(second, n=2),))
        await house.until(lambda: len(watched.done) == 1)
        await session.add((allow(first, approve=False),))
        transcript = await house.read_turn(session, turn_id)
        assert watched.done == [("send to Bob", f"{turn_id}/1/1")]
        assert reply(transcript) == "sent to Bob / This call was not made. It was not allowed."


async def test_one_that_expired_while_the_server_was_away_is_not_made(
    open_tools: Any, watched: Watched, clock: ManualClock
) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "send")
        await wait_for_request(house, session)
    clock.advance(4_000.0)
    async with open_tools() as house:
        assert await house.sessions.recover() == 0
        session = await house.sessions.open("local", session.session_id)
        transcript = await house.read_turn(session, turn_id)
        assert "Nobody has allowed it in time." in reply(transcript)
        assert watched.done == []


async def test_a_key_says_which_call_of_which_task_of_which_turn_it_is(open_tools: Any, watched: Watched) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "note")
        transcript = await house.read_turn(session, turn_id)
        assert watched.done == [("note x", f"{turn_id}/1/0")]
        assert reply(transcript) == "it said: noted"


async def test_a_guess_runs_what_is_pure_and_nothing_else(open_tools: Any, watched: Watched) -> None:
    async with open_tools() as house:
        session = await house.sessions.create("local")
        for text, done in (("add", 1), ("note", 0), ("send", 0)):
            watched.done.clear()
            generation = await session.propose(house.says(text, tools=watched.offered()))
            await house.settle()
            assert len(watched.done) == done, text
        turn_id = await session.commit(generation)
        _, request = await wait_for_request(house, session)
        await session.add((allow(request),))
        await house.read_turn(session, turn_id)
        assert [what for what, _ in watched.done] == ["send to Ada"]


@pytest.mark.parametrize(
    ("said", "told"),
    [("add wrongly", "a: Input should be a valid integer"), ("fail", "Error: There is no customer 7.")],
)
async def test_what_goes_wrong_is_told_to_the_model_which_goes_on(
    open_tools: Any, watched: Watched, said: str, told: str
) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, said)
        transcript = await house.read_turn(session, turn_id)
        assert told in result(transcript)
        assert told in reply(transcript)
        assert transcript.log[-1].state == "finished"


async def test_a_model_that_calls_on_and_on_has_to_answer_in_the_end(open_tools: Any, watched: Watched) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "on and on")
        transcript = await house.read_turn(session, turn_id)
        assert sum(isinstance(item, Call) for item in items(transcript)) == MAX_ROUNDS
        assert reply(transcript) == "it said: on and on"


async def test_a_function_of_the_clients_ends_the_turn_as_ever(open_tools: Any, watched: Watched) -> None:
    async with open_tools() as house:
        session, turn_id = await ask(house, watched, "theirs", THEIRS)
        transcript = await house.read_turn(session, turn_id)
        assert kinds(transcript.rows)[-2:] == ["task_ended", "turn_ended"]
        assert transcript.log[-1].reason == "calls"
        (call,) = [item for item in items(transcript) if isinstance(item, Call)]
        await session.tool_result(call.call_id, (TextPart(text="4", source="tool"),))


async def test_a_tool_that_hangs_takes_no_longer_than_the_turn_may(
    open_house: Any, clock: ManualClock, engine: ScriptedEngine
) -> None:
    tools = Tools()

    @tools.register(effect="pure", timeout_s=1_000.0)
    async def add(a: int, b: int) -> int:
        """Add."""
        await asyncio.Event().wait()
        raise AssertionError

    async with open_house({"writer": Writer({"scripted": engine})}, tools=tools, turn_timeout_s=30.0) as house:
        session = await house.sessions.create("local")
        offered = ToolConstraint(tools=tuple(tool.spec for tool in tools))
        turn_id = await session.respond(house.says("add", tools=offered))
        await house.settle()
        clock.advance(31.0)
        transcript = await house.read_turn(session, turn_id)
        assert transcript.log[-1].state == "failed"
        assert transcript.log[-1].fault.code == "deadline_exceeded"
