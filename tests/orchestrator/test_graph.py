"""The decision graph: what it refuses, what it replays, what its checkpoints hold."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from models.catalog import Card
from models.content import AudioPart, BlobRef, Call, CallResult, ImagePart, Message, TextPart
from models.errors import BadInput, LimitExceeded, NotFound
from models.ports import ToolConstraint, ToolSpec
from orchestrator.events import TurnInput
from orchestrator.graph import DecisionGraph, decision_inputs

BLOB = BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1)
PICTURE = ImagePart(blob=BLOB, width_px=1, height_px=1)

KEY = ("sess_1", "turn_1", 1)


@pytest.fixture
def graph(new_card: Callable[..., Card]) -> DecisionGraph:
    seeing = new_card("seeing", 2.0, frozenset({"text", "image"}))
    mute = replace(new_card("mute", 0.1), calls_tools=False)
    return DecisionGraph((new_card("small", 1.0), seeing, mute), max_characters=20)


@pytest.fixture
def says(message: Callable[..., Message]) -> Callable[..., TurnInput]:
    return lambda text, **more: TurnInput(items=(message(text, "item_1"),), **more)


def shows(*parts: Any) -> TurnInput:
    return TurnInput(items=(Message(item_id="item_1", role="user", parts=parts),))


async def test_a_decision_names_agent_and_card_and_why_not_the_others(graph: DecisionGraph, says: Any) -> None:
    decision = await graph.decide(KEY, says("hello"), ())
    assert (decision.agent, decision.card) == ("writer", "mute")
    assert decision.reasons == ("the cheapest that can", "reads text")
    assert [(refused.card, refused.reason) for refused in decision.refused] == [
        ("seeing", "costs 2.0, more than 0.1"),
        ("small", "costs 1.0, more than 0.1"),
    ]


async def test_tools_pictures_and_names_each_change_the_card(graph: DecisionGraph, says: Any) -> None:
    tools = ToolConstraint(tools=(ToolSpec(name="add", description="", parameters="{}"),))
    assert (await graph.decide(KEY, says("hello", tools=tools), ())).card == "small"
    assert (await graph.decide(("s", "t", 2), shows(PICTURE), ())).card == "seeing"
    assert (await graph.decide(("s", "t", 3), says("so?"), shows(PICTURE).items)).card == "seeing"
    assert (await graph.decide(("s", "t", 4), says("hello", model="seeing"), ())).card == "seeing"


async def test_a_logged_decision_is_replayed_from_its_inputs(
    graph: DecisionGraph, says: Any, new_card: Callable[..., Card]
) -> None:
    history = (
        Call(item_id="item_2", call_id="call_1", name="add", arguments="{}"),
        CallResult(item_id="item_3", call_id="call_1", parts=(TextPart(text="4"), PICTURE)),
    )
    decision = await graph.decide(KEY, says("and now?", instructions="Brief."), history)
    await graph.forget(KEY)
    # Another graph, with other cards and limits: what counts is what was logged.
    other = DecisionGraph((new_card("other"),), max_characters=1)
    assert await other.decide_from(("sess_2", "turn_9", 4), json.loads(decision.inputs)) == decision
    cheaper = json.loads(decision.inputs)
    cheaper["cards"][0] |= {"reads": ["image", "text"], "cost": 0.0}
    assert (await other.decide_from(("sess_2", "turn_9", 5), cheaper)).card == "small"


async def test_equal_inputs_are_logged_as_equal_text(graph: DecisionGraph, says: Any) -> None:
    one = await graph.decide(KEY, says("hello"), ())
    two = await graph.decide(("sess_2", "turn_2", 1), says("olleh"), ())
    assert one.inputs == two.inputs


@pytest.mark.parametrize("key", [("sess_1", "turn_1", 2), ("sess_1", "turn_2", 1), ("sess_2", "turn_1", 1)])
async def test_a_checkpoint_has_its_own_key_and_its_loss_loses_nothing(
    graph: DecisionGraph, says: Any, key: Any
) -> None:
    decision = await graph.decide(KEY, says("hello"), ())
    await graph.decide(key, says("hello", model="seeing"), ())
    checkpoint = await graph.checkpoint(KEY)
    assert checkpoint is not None
    assert checkpoint["route"]["card"] == "mute"
    await graph.forget(KEY)
    assert await graph.checkpoint(KEY) is None
    assert await graph.checkpoint(key) is not None
    assert await graph.decide(KEY, says("hello"), ()) == decision


async def test_a_checkpoint_holds_json_primitives_and_nothing_else(graph: DecisionGraph, says: Any) -> None:
    await graph.decide(KEY, says("hello"), ())
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


async def test_forgetting_leaves_no_trace_in_memory(graph: DecisionGraph, says: Any) -> None:
    await graph.decide(KEY, says("hello"), ())
    await graph.forget(KEY)
    await graph.forget(KEY)
    assert not graph._saver.storage
    assert not graph._saver.blobs
    assert not graph._saver.writes


async def test_a_decision_that_is_cut_off_and_forgotten_leaves_nothing(graph: DecisionGraph, says: Any) -> None:
    for spins in range(60):
        deciding = asyncio.create_task(graph.decide(KEY, says("hello"), ()))
        for _ in range(spins):
            await asyncio.sleep(0)
        deciding.cancel()
        await asyncio.gather(deciding, return_exceptions=True)
        await graph.forget(KEY)
        for _ in range(5):  # nothing is written later either
            await asyncio.sleep(0)
        assert await graph.checkpoint(KEY) is None
        assert not graph._saver.blobs


async def test_too_long_an_input_is_refused_with_its_length_and_the_limit(graph: DecisionGraph, says: Any) -> None:
    await graph.decide(KEY, says("x" * 12, instructions="y" * 8), ())
    with pytest.raises(LimitExceeded) as refused:
        await graph.decide(("s", "t", 2), says("x" * 13, instructions="y" * 8), ())
    assert refused.value.field == "input"
    assert "21" in refused.value.message
    assert "20" in refused.value.message


async def test_an_unknown_model_is_refused_and_the_known_ones_are_named(graph: DecisionGraph, says: Any) -> None:
    with pytest.raises(NotFound) as refused:
        await graph.decide(KEY, says("hello", model="nonesuch"), ())
    assert (refused.value.code, refused.value.field) == ("model_not_found", "model")
    assert "mute, seeing, small" in refused.value.message


async def test_what_no_model_can_take_is_refused_with_every_reason(graph: DecisionGraph) -> None:
    sound = AudioPart(blob=BLOB, rate_hz=16_000, samples=1)
    with pytest.raises(BadInput) as refused:
        await graph.decide(KEY, shows(sound), ())
    assert refused.value.code == "no_capable_model"
    for name in ("mute", "seeing", "small"):
        assert f"{name}: cannot read audio" in refused.value.message


def test_inputs_count_what_is_said_now_and_name_what_was_said_before(says: Any, new_card: Callable[..., Card]) -> None:
    history = (CallResult(item_id="item_3", call_id="call_1", parts=(PICTURE,)),)
    inputs = decision_inputs(says("héllo🎻", instructions="12"), history, (new_card(),), 100)
    assert inputs["characters"] == 8
    assert (inputs["input_kinds"], inputs["history_kinds"], inputs["history_items"]) == (["text"], ["image"], 1)
    assert json.loads(json.dumps(inputs)) == inputs
