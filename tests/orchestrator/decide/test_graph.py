"""The decision graph: what it refuses, what it replays, what its checkpoints hold."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import Card, EngineSpec, Price
from models.content import AudioPart, BlobRef, Call, CallResult, ImagePart, Message, TextPart
from models.errors import BadInput, BatonError, LimitExceeded, NotFound
from models.placement.fleet import CardStatus, FixedCardView
from models.ports.generate import RegexConstraint, ToolConstraint, ToolSpec
from orchestrator.decide.decider import Decider
from orchestrator.decide.graph import DecisionGraph
from orchestrator.decide.inputs import decision_inputs
from orchestrator.events import Decision, TurnInput, canonical

BLOB = BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1)
PICTURE = ImagePart(blob=BLOB, width_px=1, height_px=1)

KEY = ("sess_1", "turn_1", 1)


@pytest.fixture
def decider(new_card: Callable[..., Card]) -> Decider:
    seeing = new_card("seeing", 2.0, frozenset({"text", "image"}))
    mute = replace(new_card("mute", 0.1), calls_tools=False)
    return Decider(FixedCardView((new_card("small", 1.0), seeing, mute)), max_characters=20)


@pytest.fixture
def graph() -> DecisionGraph:
    return DecisionGraph()


@pytest.fixture
def says(message: Callable[..., Message]) -> Callable[..., TurnInput]:
    return lambda text, **more: TurnInput(items=(message(text, "item_1"),), **more)


def shows(*parts: Any) -> TurnInput:
    return TurnInput(items=(Message(item_id="item_1", role="user", parts=parts),))


async def test_a_decision_names_agent_and_card_and_why_not_the_others(decider: Decider, says: Any) -> None:
    decision = await decider.decide(says("hello"), ())
    assert (decision.agent, decision.card) == ("writer", "mute")
    assert decision.reasons == ("the cheapest that can", "reads text")
    assert [(refused.card, refused.reason) for refused in decision.refused] == [
        ("seeing", "costs 0.000532, more than 2.66e-05"),
        ("small", "costs 0.000266, more than 2.66e-05"),
    ]


async def test_tools_pictures_and_names_each_change_the_card(decider: Decider, says: Any) -> None:
    tools = ToolConstraint(tools=(ToolSpec(name="add", description="", parameters="{}"),))
    assert (await decider.decide(says("hello", tools=tools), ())).card == "small"
    assert (await decider.decide(shows(PICTURE), ())).card == "seeing"
    assert (await decider.decide(says("hello", model="seeing"), ())).card == "seeing"


async def test_a_logged_decision_is_replayed_from_its_inputs(graph: DecisionGraph, decider: Decider, says: Any) -> None:
    history = (
        Call(item_id="item_2", call_id="call_1", name="add", arguments="{}"),
        CallResult(item_id="item_3", call_id="call_1", parts=(TextPart(text="4"), PICTURE)),
    )
    decision = await decider.decide(says("and now?", instructions="Brief."), history)
    # The graph knows of no cards and limits: what counts is what was logged.
    assert await graph.replay(("sess_2", "turn_9", 4), json.loads(decision.inputs)) == decision
    cheaper = json.loads(decision.inputs)
    cheaper["cards"][0] |= {"reads": ["image", "text"], "cost": 0.0}
    assert (await graph.replay(("sess_2", "turn_9", 5), cheaper)).card == "small"


_NAMES = ("a", "b", "c")
_STANDINGS = st.sampled_from(
    (
        CardStatus(state="ready"),
        CardStatus(state="fetching", done_bytes=1),
        CardStatus(state="failed", message="No network."),
    )
)
_PARTS = st.sampled_from(
    (TextPart(text="hi"), TextPart(text="word " * 9), PICTURE, AudioPart(blob=BLOB, rate_hz=16_000, samples=1))
)
_TOOLS = ToolConstraint(tools=(ToolSpec(name="add", description="", parameters="{}"),))


@st.composite
def _offers(draw: st.DrawFn) -> FixedCardView:
    cards = [
        Card(
            name=name,
            engine=EngineSpec(name="scripted"),
            reads=draw(st.sampled_from((frozenset({"text"}), frozenset({"text", "image"})))),
            writes=frozenset({"text"}),
            calls_tools=draw(st.booleans()),
            forms=draw(st.sampled_from((frozenset(), frozenset({"regex"})))),
            context_tokens=draw(st.sampled_from((20, 40, 1_000))),
            price=Price.flat(draw(st.sampled_from((0.0, 1.5)))),
        )
        for name in draw(st.sets(st.sampled_from(_NAMES)))
    ]
    offer = FixedCardView(cards, {card.name: draw(_STANDINGS) for card in cards})
    offer.aliases = {"default": cards[0].name} if cards else {}
    return offer


@st.composite
def _turns(draw: st.DrawFn) -> TurnInput:
    parts = tuple(draw(st.lists(_PARTS, max_size=3)))
    return TurnInput(
        items=(Message(item_id="item_1", role="user", parts=parts),),
        instructions=draw(st.sampled_from((None, "", "Be brief."))),
        model=draw(st.sampled_from((None, None, *_NAMES, "default", "nonesuch"))),
        tools=draw(st.sampled_from((None, None, _TOOLS))),
        form=draw(st.sampled_from((None, None, RegexConstraint(pattern="a+")))),
    )


async def outcome(deciding: Awaitable[Decision]) -> Decision | tuple[type, str, str, str | None]:
    try:
        return await deciding
    except BatonError as refused:
        return type(refused), refused.code, refused.message, refused.field


def test_a_live_decision_and_its_replay_are_the_same_whatever_there_is_to_decide(graph: DecisionGraph) -> None:
    async def check(decider: Decider, turn_input: TurnInput, history: tuple[Message, ...]) -> None:
        async def live() -> Decision:
            return await decider.decide(turn_input, history)

        inputs = json.loads(canonical(dict(decider.inputs(turn_input, history))))  # as a log would give them back
        decided = await outcome(live())
        assert await outcome(graph.replay(KEY, inputs)) == decided
        await graph.forget(KEY)
        if isinstance(decided, Decision):
            assert json.loads(decided.inputs) == inputs

    with asyncio.Runner() as runner:

        @settings(max_examples=100, derandomize=True)
        @given(_offers(), _turns(), st.lists(_PARTS, max_size=1), st.sampled_from((30, 10_000)))
        def anything(offer: FixedCardView, turn_input: TurnInput, before: list[Any], max_characters: int) -> None:
            history = tuple(Message(item_id="item_0", role="user", parts=(part,)) for part in before)
            runner.run(check(Decider(offer, max_characters=max_characters), turn_input, history))

        anything()


async def test_equal_inputs_are_logged_as_equal_text(decider: Decider, says: Any) -> None:
    one = await decider.decide(says("hello"), ())
    two = await decider.decide(says("olleh"), ())
    assert one.inputs == two.inputs


@pytest.mark.parametrize("key", [("sess_1", "turn_1", 2), ("sess_1", "turn_2", 1), ("sess_2", "turn_1", 1)])
async def test_a_checkpoint_has_its_own_key_and_its_loss_loses_nothing(
    graph: DecisionGraph, decider: Decider, says: Any, key: Any
) -> None:
    decision = await graph.replay(KEY, decider.inputs(says("hello"), ()))
    await graph.replay(key, decider.inputs(says("hello", model="seeing"), ()))
    checkpoint = await graph.checkpoint(KEY)
    assert checkpoint is not None
    assert checkpoint["route"]["card"] == "mute"
    await graph.forget(KEY)
    assert await graph.checkpoint(KEY) is None
    assert await graph.checkpoint(key) is not None
    assert await graph.replay(KEY, decider.inputs(says("hello"), ())) == decision


async def test_a_checkpoint_holds_json_primitives_and_nothing_else(
    graph: DecisionGraph, decider: Decider, says: Any
) -> None:
    await graph.replay(KEY, decider.inputs(says("hello"), ()))
    stored = graph._saver.storage["sess_1:turn_1:1"]
    blobs = [value for value in graph._saver.blobs.values() if value[0] != "empty"]
    assert stored
    assert blobs
    for kind, text in (*blobs, *(entry[0] for by_id in stored.values() for entry in by_id.values())):
        assert kind == "json"
        json.loads(text)
    with pytest.raises(TypeError):
        graph._saver.serde.dumps_typed(says("hello"))
    with pytest.raises(ValueError, match="JSON compliant"):
        graph._saver.serde.dumps_typed(float("nan"))


async def test_forgetting_leaves_no_trace_in_memory(graph: DecisionGraph, decider: Decider, says: Any) -> None:
    await graph.replay(KEY, decider.inputs(says("hello"), ()))
    await graph.forget(KEY)
    await graph.forget(KEY)
    assert not graph._saver.storage
    assert not graph._saver.blobs
    assert not graph._saver.writes


async def test_a_decision_that_is_cut_off_and_forgotten_leaves_nothing(
    graph: DecisionGraph, decider: Decider, says: Any
) -> None:
    for spins in range(60):
        deciding = asyncio.create_task(graph.replay(KEY, decider.inputs(says("hello"), ())))
        for _ in range(spins):
            await asyncio.sleep(0)
        deciding.cancel()
        await asyncio.gather(deciding, return_exceptions=True)
        await graph.forget(KEY)
        for _ in range(5):  # nothing is written later either
            await asyncio.sleep(0)
        assert await graph.checkpoint(KEY) is None
        assert not graph._saver.blobs


async def test_too_long_an_input_is_refused_with_its_length_and_the_limit(decider: Decider, says: Any) -> None:
    await decider.decide(says("x" * 12, instructions="y" * 8), ())
    with pytest.raises(LimitExceeded) as refused:
        await decider.decide(says("x" * 13, instructions="y" * 8), ())
    assert refused.value.field == "input"
    assert "21" in refused.value.message
    assert "20" in refused.value.message


async def test_an_unknown_model_is_refused_and_the_known_ones_are_named(decider: Decider, says: Any) -> None:
    with pytest.raises(NotFound) as refused:
        await decider.decide(says("hello", model="nonesuch"), ())
    assert (refused.value.code, refused.value.field) == ("model_not_found", "model")
    assert "mute, seeing, small" in refused.value.message


async def test_what_no_model_can_take_is_refused_with_every_reason(decider: Decider) -> None:
    sound = AudioPart(blob=BLOB, rate_hz=16_000, samples=1)
    with pytest.raises(BadInput) as refused:
        await decider.decide(shows(sound), ())
    assert refused.value.code == "no_capable_model"
    for name in ("mute", "seeing", "small"):
        assert f"{name}: cannot read audio" in refused.value.message


async def test_where_only_the_tools_are_too_much_to_ask_they_are_the_field_at_fault(new_card: Any, says: Any) -> None:
    decider = Decider(FixedCardView((replace(new_card("mute"), calls_tools=False),)), max_characters=20)
    with pytest.raises(BadInput, match="cannot call tools") as refused:
        await decider.decide(says("hello", tools=_TOOLS), ())
    assert (refused.value.code, refused.value.field) == ("no_capable_model", "tools")


async def test_where_only_the_form_is_too_much_to_ask_it_is_the_field_at_fault(new_card: Any, says: Any) -> None:
    decider = Decider(FixedCardView((new_card("free"),)), max_characters=20)
    with pytest.raises(BadInput, match="cannot hold an answer to a regular expression") as refused:
        await decider.decide(says("hello", form=RegexConstraint(pattern="a+")), ())
    assert (refused.value.code, refused.value.field) == ("no_capable_model", "form")


async def test_a_decision_that_was_logged_in_an_earlier_form_is_replayed_as_it_was_made(
    graph: DecisionGraph, decider: Decider, says: Any
) -> None:
    inputs = json.loads((await decider.decide(says("hello"), ())).inputs)
    del inputs["form"], inputs["earlier_kinds"]
    inputs["history_kinds"] = ["image"]  # a picture in the history was a need of each turn
    for card in inputs["cards"]:
        del card["forms"]
    assert (await graph.replay(("sess_2", "turn_9", 4), inputs)).card == "seeing"


def test_inputs_count_what_is_said_now_and_name_what_was_said_before(says: Any, new_card: Callable[..., Card]) -> None:
    history = (*shows(PICTURE).items, Message(item_id="item_2", role="assistant", parts=()))
    inputs = decision_inputs(says("héllo🎻", instructions="12"), history, FixedCardView((new_card(),)), 100)
    assert inputs["characters"] == 8
    assert (inputs["input_kinds"], inputs["earlier_kinds"], inputs["history_items"]) == (["text"], ["image"], 2)
    assert json.loads(json.dumps(inputs)) == inputs
