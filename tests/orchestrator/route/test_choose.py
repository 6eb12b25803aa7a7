"""Which card takes a task, and why the others do not."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import Card, Price
from models.placement.fleet import CardState, CardStatus
from orchestrator.route.choose import CardFacts, ExpectedLoad, Needs, card_facts, choose, explain


def facts(
    name: str,
    cost: float = 1.0,
    reads: tuple[str, ...] = ("text",),
    calls_tools: bool = True,
    forms: tuple[str, ...] = (),
    state: CardState = "ready",
    prompt_tokens: int = 10,
) -> CardFacts:
    return CardFacts(
        name=name,
        reads=list(reads),
        calls_tools=calls_tools,
        forms=list(forms),
        context_tokens=1_000,
        cost=cost,
        state=state,
        trouble="it is ill" if state == "failed" else None,
        prompt_tokens=prompt_tokens,
    )


def needs(*reads: str, model: str | None = None, tools: bool = False, form: str | None = None) -> Needs:
    return Needs(model=model, reads=list(reads), tools=tools, form=form)


def test_the_cheapest_card_that_can_is_chosen() -> None:
    cards = [facts("large", 9.0), facts("blind", 0.1), facts("seeing", 2.0, ("image", "text"))]
    route = choose(cards, needs("text"))
    assert route["card"] == "blind"
    assert route["refused"] == {"large": "costs 9, more than 0.1", "seeing": "costs 2, more than 0.1"}
    route = choose(cards, needs("image", "text"))
    assert route["card"] == "seeing"
    assert route["reasons"] == ["the only one that can", "reads image and text"]
    assert route["refused"] == {"large": "cannot read image", "blind": "cannot read image"}


def test_a_card_that_is_asked_for_by_name_is_taken_although_it_costs_more() -> None:
    route = choose([facts("cheap", 0.1), facts("dear", 9.0)], needs("text", model="dear"))
    assert route["card"] == "dear"
    assert route["reasons"][0] == "asked for by name"
    assert route["refused"] == {"cheap": "dear was asked for"}


def test_a_card_that_cannot_is_not_taken_even_by_name() -> None:
    route = choose([facts("mute", calls_tools=False)], needs("text", model="mute", tools=True))
    assert route["card"] is None
    assert route["refused"] == {"mute": "cannot call tools"}


def test_a_card_that_cannot_hold_its_answer_to_the_form_is_not_taken() -> None:
    cards = [facts("free", 0.1), facts("strict", 9.0, forms=("json_schema", "regex"))]
    route = choose(cards, needs("text", form="regex"))
    assert route["card"] == "strict"
    assert route["refused"] == {"free": "cannot hold an answer to a regular expression"}
    assert choose(cards, needs("text", form="grammar"))["card"] is None


def test_without_cards_there_is_no_route() -> None:
    assert choose([], needs("text"))["card"] is None


def test_equal_costs_go_by_name() -> None:
    assert choose([facts("b"), facts("a")], needs("text"))["card"] == "a"


@settings(deadline=None, derandomize=True)
@given(
    st.lists(
        st.builds(
            facts,
            st.text("abcdef", min_size=1, max_size=3),
            st.sampled_from((0.0, 1.0, 2.0)),
            st.sampled_from((("text",), ("image", "text"), ())),
            st.booleans(),
            st.sampled_from(((), ("json_schema",))),
            st.sampled_from(get_args(CardState)),
            st.sampled_from((10, 999, 1_000)),
        ),
        max_size=6,
        unique_by=lambda card: card["name"],
    ),
    st.builds(
        needs, st.sampled_from(("text", "image")), tools=st.booleans(), form=st.sampled_from((None, "json_schema"))
    ),
    st.randoms(use_true_random=False),
)
def test_a_route_is_able_ready_cheapest_and_whole_in_any_order_of_the_cards(
    cards: list[CardFacts], asked: Needs, chance: random.Random
) -> None:
    route = choose(cards, asked)
    able = [
        card
        for card in cards
        if set(asked["reads"]) <= set(card["reads"])
        and (card["calls_tools"] or not asked["tools"])
        and asked["form"] in {None, *card["forms"]}
        and card["prompt_tokens"] < 1_000
        and card["state"] != "failed"
    ]
    ready = [card for card in able if card["state"] == "ready"]
    names = {card["name"] for card in cards}
    if route["card"] is None:
        assert not able
        assert set(route["refused"]) == names
    else:
        (taken,) = (card for card in able if card["name"] == route["card"])
        assert taken["cost"] == min(card["cost"] for card in ready or able)
        assert (taken["state"] == "ready") == bool(ready)
        assert set(route["refused"]) == names - {route["card"]}
    shuffled = list(cards)
    chance.shuffle(shuffled)
    assert choose(shuffled, asked)["card"] == route["card"]


def test_facts_of_a_card_are_json_and_in_order(new_card: Callable[..., Card]) -> None:
    standing = CardStatus(state="failed", message="The disk is full.", done_bytes=7)
    load = ExpectedLoad(input_tokens=400, output_tokens=100)
    assert card_facts(new_card("seeing", 2.0, frozenset({"text", "image"})), standing, 12, load) == {
        "name": "seeing",
        "reads": ["image", "text"],
        "calls_tools": True,
        "forms": [],
        "context_tokens": 32_768,
        "cost": pytest.approx(0.001),  # 500 tokens at 2 dollars a million
        "state": "failed",
        "trouble": "The disk is full.",
        "prompt_tokens": 12,
    }


@pytest.mark.parametrize(
    ("refused", "words"), [({}, ""), ({"b": "is ill", "a": "cannot read image"}, "a: cannot read image; b: is ill")]
)
def test_refusals_are_explained_in_words(refused: dict[str, str], words: str) -> None:
    assert explain(refused) == words


def test_what_is_estimated_is_what_the_turn_will_ask_at_each_cards_prices(new_card: Callable[..., Card]) -> None:
    """A card that reads cheaply and writes dearly is for long prompts, one the other way round for long answers."""
    reader = replace(new_card("reader"), price=Price(input=1, cached_input=1, output=20, per_image=0.5))
    writer = replace(new_card("writer"), price=Price(input=5, cached_input=5, output=2, per_second=0.1))
    up = CardStatus(state="ready")
    needs = Needs(model=None, reads=["text"], tools=False, form=None)

    def taken(**load: Any) -> str | None:
        return choose([card_facts(card, up, 10, ExpectedLoad(**load)) for card in (reader, writer)], needs)["card"]

    assert taken(input_tokens=9_000, output_tokens=100) == "reader"
    assert taken(input_tokens=100, output_tokens=900) == "writer"
    assert taken(input_tokens=9_000, output_tokens=100, images=1) == "writer"
    assert taken(input_tokens=100, output_tokens=900, seconds=60) == "reader"
