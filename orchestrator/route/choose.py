"""Which card takes a task: first what can do it, then the cheapest of those. Pure, on JSON primitives.

Calibrated estimates of quality come between the two once there are several models to choose from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from models.catalog import Card
from models.placement.fleet import CardStatus


class CardFacts(TypedDict):
    """What the router knows of a card, as JSON primitives."""

    name: str
    reads: list[str]
    calls_tools: bool
    forms: list[str]
    context_tokens: int
    cost: float  # in US dollars, estimated for this turn; of cards alone, before there were prices
    state: str
    trouble: str | None
    prompt_tokens: int


class Needs(TypedDict):
    """What a task asks of a card, as JSON primitives."""

    model: str | None
    reads: list[str]
    tools: bool
    form: str | None


class Route(TypedDict):
    """The card chosen (None if none can), why, and why not the others."""

    card: str | None
    reasons: list[str]
    refused: dict[str, str]


_FORMS = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedLoad:
    """What a turn will probably ask of whatever card takes it, for the price: the same for all, so that prices are compared.

    Attributes:
        input_tokens: of the prompt.
        output_tokens: of the answer.
        seconds: of sound and moving pictures that are read.
        images: pictures that are read.
    """

    input_tokens: int
    output_tokens: int
    seconds: float = 0.0
    images: int = 0


def card_facts(card: Card, standing: CardStatus, prompt_tokens: int, load: ExpectedLoad) -> CardFacts:
    """Return what routing needs of `card`; `prompt_tokens` is what must be shown to it, in its own tokens.

    If they are more than its window holds, there may be still more of them: they are counted no further.
    """
    cost = card.price.of(
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        seconds=load.seconds,
        images=load.images,
    )
    return CardFacts(
        name=card.name,
        reads=sorted(card.reads),
        calls_tools=card.calls_tools,
        forms=sorted(card.forms),
        context_tokens=card.context_tokens,
        cost=cost,
        state=standing.state,
        trouble=standing.message,
        prompt_tokens=prompt_tokens,
    )


def choose(cards: Sequence[CardFacts], needs: Needs) -> Route:
    """Return the route: of the cards that can, the ready before those that are coming up, then the cheapest.

    Equal costs go by name, so that equal inputs give equal routes.
    """
    refused: dict[str, str] = {}
    able: list[CardFacts] = []
    for card in cards:
        reason = _unfit(card, needs)
        if reason is None:
            able.append(card)
        else:
            refused[card["name"]] = reason
    if not able:
        return Route(card=None, reasons=[], refused=refused)
    best, *others = sorted(able, key=lambda card: (card["state"] != "ready", card["cost"], card["name"]))
    refused |= {card["name"]: _second_to(best, card) for card in others}
    why = "asked for by name" if needs["model"] else "the cheapest that can" if others else "the only one that can"
    reasons = [why, f"reads {' and '.join(needs['reads']) or 'no input'}"]
    if best["state"] != "ready":
        reasons.append(f"is {best['state']}")
    return Route(card=best["name"], reasons=reasons, refused=refused)


def _second_to(best: CardFacts, card: CardFacts) -> str:
    if card["state"] != best["state"] == "ready":
        return f"is {card['state']}"
    if card["cost"] == best["cost"]:
        return f"costs the same as {best['name']}"
    return f"costs {card['cost']:.3g}, more than {best['cost']:.3g}"


def _unfit(card: CardFacts, needs: Needs) -> str | None:
    if needs["model"] is not None and card["name"] != needs["model"]:
        return f"{needs['model']} was asked for"
    if missing := sorted(set(needs["reads"]) - set(card["reads"])):
        return f"cannot read {' and '.join(missing)}"
    if needs["tools"] and not card["calls_tools"]:
        return "cannot call tools"
    if needs["form"] is not None and needs["form"] not in card["forms"]:
        return f"cannot hold an answer to a {_FORMS[needs['form']]}"
    if card["prompt_tokens"] >= card["context_tokens"]:
        return f"its window has {card['context_tokens']} tokens; this is {card['prompt_tokens']} or more"
    if card["state"] == "failed":
        return f"is not up: {card['trouble']}"
    return None


def as_if_up(cards: Sequence[CardFacts]) -> list[CardFacts]:
    """Return what is known of the cards if all were up: what cannot take a turn then never can."""
    return [{**card, "state": "ready"} for card in cards]


def explain(refused: Mapping[str, str]) -> str:
    """Return why no card will do, in words."""
    return "; ".join(f"{card}: {reason}" for card, reason in sorted(refused.items()))
