"""What a session that is longer than its memory shows a model, and what it still knows of what has left."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.clock import ManualClock
from models.content import Call, CallResult, Item, Message, TextPart
from models.errors import Conflict, NotFound
from models.ports.generate import ToolConstraint, ToolSpec
from orchestrator.events import TurnInput
from orchestrator.sessions.conversation import Conversation


def said(item_id: str, role: Any = "user", text: str = "hello") -> Message:
    return Message(item_id=item_id, role=role, parts=(TextPart(text=text),))


def call(n: int) -> Call:
    return Call(item_id=f"item_c{n}", call_id=f"call_{n}", name="look", arguments="{}")


def result(n: int) -> CallResult:
    return CallResult(item_id=f"item_r{n}", call_id=f"call_{n}", parts=(TextPart(text=str(n)),))


def ids(items: Any) -> list[str]:
    return [item.item_id for item in items]


def grow(conversation: Conversation, *items: Item) -> None:
    conversation.add(items)
    conversation.trim()


@pytest.mark.parametrize(("length", "characters"), [(5, 400_000), (900, 36_000)], ids=["by number", "by length"])
def test_a_conversation_longer_than_memory_begins_with_the_same_item_for_many_turns(
    length: int, characters: int
) -> None:
    conversation = Conversation(items=256, characters=characters, item_characters=1_000)
    beginnings: list[str] = []
    for n in range(1_000):
        grow(conversation, said(f"item_{n}", text="x" * length), said(f"answer_{n}", "assistant", "x" * length))
        context = conversation.context
        beginnings.append(context[0].item_id)
        # The end of the conversation, and not less than half of what there is place for.
        assert ids(context) == ids(conversation.items)[-len(context) :]
        kept = min(len(conversation.items), 128) if length == 5 else min(len(conversation.items), 20)
        assert len(context) >= kept - 2
    runs = [len(list(run)) for _, run in itertools.groupby(beginnings)]
    full = 128 if length == 5 else 20
    assert len(runs) < (1_000 - full) / (full / 8)


@settings(max_examples=150, derandomize=True)
@given(st.integers(0, 2**32), st.integers(4, 12))
def test_whatever_is_said_the_question_is_shown_and_calls_and_results_stay_together(seed: int, most: int) -> None:
    chance = random.Random(seed)
    conversation = Conversation(items=most, characters=10_000, item_characters=1_000)
    every: list[Item] = []
    waiting: list[int] = []
    for n in range(80):
        match chance.choice(("user", "assistant", "call", "call", "result", "result")):
            case "call":
                new: Item = call(n)
                waiting.append(n)
            case "result" if waiting:
                new = result(waiting.pop(chance.randrange(len(waiting))))
                if all(item.item_id != f"item_c{new.call_id[5:]}" for item in conversation.items):
                    made = next(item for item in every if isinstance(item, Call) and item.call_id == new.call_id)
                    conversation.recall((made,))
            case role:
                new = said(f"item_{n}", "user" if role == "user" else "assistant")
        every.append(new)
        grow(conversation, new)
        context = conversation.context
        spoken = [item for item in context if not isinstance(item, Call)]
        assert spoken == [item for item in every if item in spoken]
        last = next((item for item in reversed(every) if isinstance(item, Message) and item.role == "user"), None)
        assert last is None or last in context
        called = {item.call_id for item in context if isinstance(item, Call)}
        assert {item.call_id for item in context if isinstance(item, CallResult)} <= called or not conversation.full
        # What has just come back is shown, with its call.
        if isinstance(new, CallResult):
            assert new in context


@pytest.mark.parametrize("most", [8, 20, 64])
def test_what_will_be_shown_next_is_known_before(most: int) -> None:
    conversation = Conversation(items=most, characters=100_000, item_characters=1_000)
    foreseen: dict[int, str] = {}
    changes = 0
    for n in range(5 * most):
        before = conversation.context[0].item_id if conversation.items else None
        grow(conversation, said(f"item_{n}"))
        first = conversation.context[0].item_id
        if before is not None and first != before:
            changes += 1
            assert foreseen[n] == first
        if (coming := conversation.next_context(most // 2)) is not None:
            foreseen[n + coming[0]] = coming[1][0].item_id
    assert changes > 3


# Over a session's whole life


async def test_an_id_is_taken_however_long_ago_until_its_item_is_removed(open_house: Any, message: Any) -> None:
    async with open_house(items=4) as house:
        session = await house.sessions.create("local")
        for n in range(10):
            await session.add((message(str(n), f"item_{n}"),))
        for add in (session.add, lambda items: session.respond(TurnInput(items=items))):
            with pytest.raises(Conflict) as refused:
                await add((message("again", "item_0"),))
            assert refused.value.code == "item_exists"
        await session.remove(("item_0",))
        await session.add((message("again", "item_0"),))


@pytest.mark.parametrize("reopened", [False, True])
async def test_a_result_that_comes_late_answers_its_call_and_both_are_shown(
    open_house: Any, recording: Any, clock: ManualClock, peek: Any, reopened: bool
) -> None:
    async with open_house(items=6, idle_s=10.0) as house:
        session = await house.sessions.create("local")
        tools = ToolConstraint(tools=(ToolSpec(name="weather", description="", parameters="{}"),))
        transcript = await house.read_turn(session, await session.respond(house.says("weather", tools=tools)))
        made = next(row.event.item for row in transcript.rows if row.event.kind == "item_closed")
        for n in range(20):
            await session.add((said(f"item_{n}"),))
        if reopened:
            await house.settle()
            clock.advance(10.0)
            await house.until(lambda: session.closed)
            session = await house.sessions.open("local", session.session_id)
        assert made not in session.items
        await session.tool_result(made.call_id, (TextPart(text="sunny"),))
        context = session._state.context
        assert context[-1].call_id == made.call_id
        assert made in context
        assert peek("SELECT state FROM effects") == [("completed",)]
        with pytest.raises(Conflict) as refused:
            await session.tool_result(made.call_id, (TextPart(text="rain"),))
        assert refused.value.code == "call_answered"
        for n in range(20, 40):
            await session.add((said(f"item_{n}"),))
        with pytest.raises(Conflict) as refused:
            await session.tool_result(made.call_id, (TextPart(text="rain"),))
        assert refused.value.code == "call_answered"
        with pytest.raises(NotFound):
            await session.tool_result("call_nonesuch", (TextPart(text="rain"),))


async def test_a_session_that_is_opened_again_shows_what_it_would_have_shown(
    open_house: Any, clock: ManualClock
) -> None:
    chance = random.Random(7)
    async with open_house(items=8, idle_s=10.0) as house:
        session = await house.sessions.create("local")
        await session.add((said("question"),))
        waiting: list[int] = []
        for n in range(120):
            if waiting and chance.random() < 0.5:
                new: Item = result(waiting.pop(chance.randrange(len(waiting))))
            elif n in (50, 51):
                new = said(f"item_{n}")
            else:
                new = call(n)
                waiting.append(n)
            await session.add((new,))
            folded = await house.sessions._fold(session._journal)
            assert folded.items == list(session.items)
            assert list(folded.context) == list(session._state.context)
            assert any(isinstance(item, Message) for item in folded.context)
