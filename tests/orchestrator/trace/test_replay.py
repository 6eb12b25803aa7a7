"""Decisions once more: the same from the same inputs, and what they would have been from others."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from models.catalog import Card
from models.errors import BadInput
from models.placement.fleet import FixedCardView
from orchestrator.decide.decider import Decider
from orchestrator.events import Decision, SingleRoute, TurnInput
from orchestrator.trace.replay import changed, replay


@pytest.fixture
async def logged(new_card: Callable[..., Card], message: Any) -> Decision:
    seeing = new_card("dear.1", 9.0, frozenset({"text", "image"}))
    decider = Decider(FixedCardView((new_card("cheap", 0.1), seeing)), max_characters=20)
    return await decider.decide(TurnInput(items=(message("hello", "item_1"),)), ())


async def test_from_its_own_inputs_a_decision_is_the_same(logged: Decision) -> None:
    again = await replay(logged)
    assert (again.decision, again.refused, again.differences) == (logged, None, ())


async def test_a_decision_that_is_not_what_its_inputs_say_is_found_out(logged: Decision) -> None:
    again = await replay(replace(logged, route=SingleRoute(card="dear.1")))
    assert again.differences == ("the model is cheap, not dear.1",)


@pytest.mark.parametrize(
    ("key", "value", "card", "told"),
    [
        ("card.cheap", "down", "dear.1", "the model is dear.1, not cheap"),
        ("card.cheap", "gone", "dear.1", "the model is dear.1, not cheap"),
        ("card.cheap.state", "loading", "dear.1", "cheap: is loading; was not refused"),
        ("card.dear.1", "down", "cheap", "dear.1: is not up: as was asked for; was costs 0.00239, more than 2.66e-05"),
        ("card.cheap.cost", "10", "dear.1", "cheap: costs 10, more than 0.00239; was not refused"),
        ("card.cheap.context_tokens", "3", "dear.1", "the model is dear.1, not cheap"),
        ("card.cheap.calls_tools", "false", "cheap", None),
        ("model", "dear.1", "dear.1", "cheap: dear.1 was asked for; was not refused"),
        ("input_kinds", "text, image", "dear.1", "cheap: cannot read image; was not refused"),
    ],
)
async def test_it_says_what_would_have_been_decided_from_other_inputs(
    logged: Decision, key: str, value: str, card: str, told: str | None
) -> None:
    again = await replay(logged, {key: value})
    assert again.decision is not None
    assert again.decision.card == card
    if told is None:
        assert again.differences == ()
    else:
        assert told in again.differences


async def test_it_says_why_the_turn_would_have_been_refused(logged: Decision) -> None:
    again = await replay(logged, {"card.cheap": "down", "card.dear.1": "gone"})
    assert again.decision is None
    assert again.refused is not None
    assert again.refused.retryable
    assert again.differences[0].startswith("the turn is refused: No model that can take this turn is up")
    again = await replay(logged, {"max_characters": "3"})
    assert "the maximum here is 3" in again.differences[0]


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("moodel", "x", "There is no 'moodel' to change. There are model, form"),
        ("card.nonesuch", "down", "no card 'nonesuch', only cheap, dear.1"),
        ("card.cheap.name", "x", "no 'name' to change"),
        ("card.cheap.colour", "x", "no 'colour' to change, only calls_tools"),
        ("card.cheap", "sideways", "'down', 'ready' or 'gone', not 'sideways'"),
        ("card.cheap.cost", "much", "'much' does not fit"),
        ("card.cheap.calls_tools", "maybe", "'maybe' does not fit"),
        ("tools", "1.5", "'1.5' does not fit"),
    ],
)
def test_what_cannot_be_changed_is_refused_by_name(logged: Decision, key: str, value: str, match: str) -> None:
    with pytest.raises(BadInput, match=match) as refused:
        changed(json.loads(logged.inputs), {key: value})
    assert refused.value.field == key


def test_a_change_leaves_what_was_logged_as_it_was(logged: Decision) -> None:
    inputs = json.loads(logged.inputs)
    changed(inputs, {"card.cheap": "gone", "model": "dear.1", "card.dear.1.cost": "1"})
    assert inputs == json.loads(logged.inputs)
