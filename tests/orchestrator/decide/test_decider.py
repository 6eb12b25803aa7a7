"""Decisions that wait: for a search, a controller, somebody's approval; and what they are if what was waited for changes."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import Card
from models.errors import Unavailable
from models.placement.fleet import CardStatus, FixedCardView
from orchestrator.decide.decider import Decider
from orchestrator.decide.decision import EDGES, END, MAX_REPAIRS, START, STEPS, decision_of, in_line
from orchestrator.decide.graph import DecisionGraph
from orchestrator.decide.inputs import Approval, CallFacts, Controlled, Inputs, Recalled
from orchestrator.decide.ports import Asked, Ports
from orchestrator.events import Decision, TurnInput

KEY = ("turn_1", 1)


class ScriptedController:
    """Wants one thing after another; the last one again and again."""

    def __init__(self, *wants: Controlled | Exception) -> None:
        self.wants = list(wants)
        self.faults: list[str | None] = []

    async def control(self, asked: Asked, inputs: Inputs, fault: str | None) -> Controlled:
        self.faults.append(fault)
        await asyncio.sleep(0)
        want = self.wants[min(len(self.faults), len(self.wants)) - 1]
        if isinstance(want, Exception):
            raise want
        return want


class ScriptedSearch:
    def __init__(self, *found: str | Exception) -> None:
        self.found = found

    async def search(self, asked: Asked, inputs: Inputs) -> Sequence[Recalled]:
        await asyncio.sleep(0)
        for each in self.found:
            if isinstance(each, Exception):
                raise each
        return [Recalled(record=str(each), score=0.5) for each in self.found]


def wants(agent: str = "writer", card: str | None = None) -> Controlled:
    return Controlled(agent=agent, card=card, reason="it said so")


@pytest.fixture
def offer(new_card: Callable[..., Card]) -> FixedCardView:
    cards = (new_card("cheap", 0.1), new_card("dear", 9.0), new_card("down", 0.2))
    return FixedCardView(cards, {"down": CardStatus(state="failed", message="No network.")})


@pytest.fixture
def decide(offer: FixedCardView, message: Any) -> Callable[..., Any]:
    async def decided(controller: Any = None, search: Any = None, **more: Any) -> Decision:
        decider = Decider(
            offer,
            max_characters=20,
            agents=("writer", "painter"),
            ports=Ports(search=search, controller=controller),
        )
        return await decider.decide(TurnInput(items=(message("hello", "item_1"),), **more), (), key=KEY)

    return decided


async def test_a_controller_says_who_does_it_and_the_decision_says_why(decide: Any) -> None:
    decision = await decide(ScriptedController(wants("painter", "dear")))
    assert (decision.agent, decision.card, decision.reasons[0]) == ("painter", "dear", "it said so")
    assert json.loads(decision.inputs)["controlled"] == [wants("painter", "dear")]
    decision = await decide(ScriptedController(wants("painter")))
    assert (decision.agent, decision.card) == ("painter", "cheap")


async def test_who_names_a_model_has_decided_and_no_controller_is_asked(decide: Any) -> None:
    controller = ScriptedController(wants("painter", "cheap"))
    assert (await decide(controller, model="dear")).card == "dear"
    assert (await decide(controller, ScriptedSearch("rec_1"), model="dear")).agent == "writer"
    assert controller.faults == []


@pytest.mark.parametrize(
    ("want", "fault"),
    [
        (wants("sculptor"), "there is no agent 'sculptor', only painter, writer"),
        (wants(card="nonesuch"), "nonesuch was asked for"),
        (wants(card="down"), "is not up: No network."),
    ],
)
async def test_what_cannot_be_done_is_told_to_the_controller_which_may_want_something_else(
    decide: Any, want: Controlled, fault: str
) -> None:
    controller = ScriptedController(want, wants("painter", "dear"))
    decision = await decide(controller)
    assert (decision.agent, decision.card) == ("painter", "dear")
    assert controller.faults[0] is None
    assert fault in str(controller.faults[1])
    assert len(controller.faults) == 2


async def test_a_controller_that_never_wants_what_can_be_done_is_not_asked_for_ever(decide: Any) -> None:
    controller = ScriptedController(wants("sculptor"))
    decision = await decide(controller)
    assert (decision.agent, decision.card) == ("writer", "cheap")
    assert "what the controller wanted cannot be done: there is no agent 'sculptor'" in decision.reasons[-1]
    assert len(controller.faults) == 1 + MAX_REPAIRS


async def test_what_cannot_be_asked_fails_no_turn(decide: Any) -> None:
    away = Unavailable("It is away.")
    decision = await decide(ScriptedController(away), ScriptedSearch(away))
    assert (decision.agent, decision.card) == ("writer", "cheap")
    assert decision.reasons[-1] == "the controller could not be asked: It is away."
    assert json.loads(decision.inputs)["recalled"] == []


async def test_what_was_recalled_is_logged_by_its_ids(decide: Any) -> None:
    decision = await decide(search=ScriptedSearch("rec_1", "rec_2"))
    assert json.loads(decision.inputs)["recalled"] == [
        {"record": "rec_1", "score": 0.5},
        {"record": "rec_2", "score": 0.5},
    ]


async def test_nothing_is_left_of_a_decision_however_it_ends(offer: FixedCardView, message: Any) -> None:
    class Never(ScriptedController):
        async def control(self, asked: Asked, inputs: Inputs, fault: str | None) -> Controlled:
            await asyncio.Event().wait()
            raise AssertionError

    turn_input = TurnInput(items=(message("hello", "item_1"),))
    for controller in (ScriptedController(wants()), Never()):
        decider = Decider(offer, max_characters=20, ports=Ports(controller=controller))
        deciding = asyncio.create_task(decider.decide(turn_input, (), key=KEY))
        graph = await decider.graph()
        for _ in range(50):
            await asyncio.sleep(0)
        deciding.cancel()
        await asyncio.gather(deciding, return_exceptions=True)
        assert await graph.checkpoint(KEY) is None
        assert not graph._saver.blobs


def test_every_step_can_be_reached_and_every_edge_leads_to_a_step() -> None:
    reached, left = {END}, [START]
    while left:
        step = left.pop()
        reached.add(step)
        left += [to for to in EDGES[step][1] if to not in reached]
    assert reached == {START, END, *STEPS}


_WANTED = st.builds(
    lambda agent, card, fault: {**wants(agent, card), **({"fault": "away"} if fault else {})},
    st.sampled_from(("writer", "painter", "sculptor")),
    st.sampled_from((None, "cheap", "dear", "down", "nonesuch")),
    st.booleans(),
)


def test_in_a_line_or_as_a_graph_the_same_steps_decide_the_same(offer: FixedCardView, message: Any) -> None:
    with asyncio.Runner() as runner:
        graph = runner.run(_graph())
        decider = Decider(offer, max_characters=20, agents=("writer", "painter"))
        inputs = decider.inputs(TurnInput(items=(message("hello", "item_1"),)), ())

        @settings(max_examples=60, derandomize=True, deadline=None)
        @given(st.lists(_WANTED, max_size=4), st.sampled_from((None, "dear")))
        def anything(controlled: list[Any], model: str | None) -> None:
            given = {**inputs, "controlled": controlled, "model": model}
            assert runner.run(graph.replay(KEY, given)) == decision_of(in_line({"inputs": given}))  # type: ignore[typeddict-item]

        anything()


async def _graph() -> DecisionGraph:
    return DecisionGraph()


# Calls

CALL = CallFacts(tool="send", effect="effectful", needs_approval=True, fault=None, approval=None)
CALL_KEY = ("turn_1", 1, 0, "call_1")


@pytest.fixture
def decider(offer: FixedCardView) -> Decider:
    return Decider(offer, max_characters=20)


@pytest.mark.parametrize(
    ("change", "verdict", "why"),
    [
        ({"needs_approval": False}, "run", None),
        ({"needs_approval": False, "effect": "pure"}, "run", None),
        ({"effect": None}, "denied", "There is no tool 'send' here."),
        ({"fault": "'to' is missing."}, "denied", "'to' is missing."),
        ({}, "ask", None),
    ],
)
async def test_a_call_is_checked_before_anybody_is_asked(decider: Decider, change: Any, verdict: str, why: Any) -> None:
    assert await decider.judge({**CALL, **change}, key=CALL_KEY) == (verdict, why)


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize(
    ("approval", "verdict", "why"),
    [
        (Approval(approve=True, reason=None), "run", None),
        (Approval(approve=False, reason="Not today."), "denied", "Not today."),
        (Approval(approve=False, reason=None), "denied", "It was not allowed."),
    ],
)
async def test_an_approval_means_the_same_with_its_checkpoint_and_without(
    decider: Decider, approval: Approval, verdict: str, why: str | None, is_kept: bool
) -> None:
    assert await decider.judge(CALL, key=CALL_KEY) == ("ask", None)
    if not is_kept:
        await decider.forget(CALL_KEY)
    assert await decider.answered(CALL, approval, key=CALL_KEY) == (verdict, why)
    graph = await decider.graph()
    assert await graph.checkpoint(CALL_KEY) is None
    assert not graph._saver.blobs
    # As a replay has it, which knows the answer.
    assert await decider.judge({**CALL, "approval": approval}, key=CALL_KEY) == (verdict, why)


async def test_calls_that_wait_at_the_same_time_are_told_apart(decider: Decider) -> None:
    keys = [("turn_1", 1, revision, call) for revision in range(2) for call in ("call_1", "call_2")]
    for key in keys:
        assert await decider.judge(CALL, key=key) == ("ask", None)
    for n, key in enumerate(keys):
        said = Approval(approve=n % 2 == 0, reason=f"{n}")
        assert await decider.answered(CALL, said, key=key) == ("run" if n % 2 == 0 else "denied", f"{n}")
