"""What a decision is made from, as JSON primitives: it is logged with the decision, and holds no contents."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NotRequired, TypedDict, cast

from models.catalog import Card
from models.content import AudioPart, EvidencePart, ImagePart, Item, VideoPart, parts_of, text_of
from models.language.tokens import BYTES_PER_TOKEN
from models.placement.fleet import CardView
from orchestrator.events import TurnInput, canonical
from orchestrator.route.choose import CardFacts, ExpectedLoad, card_facts
from orchestrator.window import (
    count_tokens,
    fixed,
    items_words,
    media_of,
    most_tokens,
    paired,
    places_now,
    places_since,
)

_OUTPUT_TOKENS = 256
"""Of an answer of which nobody knows how long it will be."""


class Recalled(TypedDict):
    """Something that a search of memory has found: by its id, since decisions hold no contents."""

    record: str
    score: float


class Controlled(TypedDict):
    """What a controller wants: an agent, and a card if it minds which; or why it could not be asked."""

    agent: str
    card: str | None
    reason: str
    fault: NotRequired[str]


class Approval(TypedDict):
    """What somebody said to a call that waited."""

    approve: bool
    reason: str | None


class CallFacts(TypedDict):
    """What is known of a call that a model has written.

    Attributes:
        tool: the name it calls.
        effect: what a call of it does to the world; None if there is no such tool.
        needs_approval: whether somebody has to allow it.
        fault: what is wrong with its arguments.
        approval: what was said to it, once that is known.
    """

    tool: str
    effect: str | None
    needs_approval: bool
    fault: str | None
    approval: Approval | None


class Inputs(TypedDict):
    """What a decision is made from.

    Attributes:
        recalled: what a search of memory has found; not there if none was asked for.
        controlled: what a controller wanted, and then each time that it was asked again; likewise.
        agents: those that there are.
    """

    characters: int
    max_characters: int
    input_kinds: list[str]
    earlier_kinds: list[str]
    history_items: int
    tools: int
    form: str | None
    model: str | None
    aliases: dict[str, str]
    cards: list[CardFacts]
    agents: list[str]
    recalled: NotRequired[list[Recalled]]
    controlled: NotRequired[list[Controlled]]


def decision_inputs(
    turn_input: TurnInput,
    history: Sequence[Item],
    offer: CardView,
    max_characters: int,
    agents: Iterable[str] = ("writer",),
) -> Inputs:
    """Return what there is to decide from."""
    items = paired((*history, *turn_input.items))
    said = places_now(items)
    texts = [*fixed(turn_input), *items_words(items, said)]
    most = most_tokens(texts)
    now = places_since(items, said)
    characters = characters_of(turn_input)
    load = _load(turn_input, most)
    is_counted = characters <= max_characters  # else the gate refuses it, whatever its tokens
    return Inputs(
        characters=characters,
        max_characters=max_characters,
        input_kinds=_kinds(items[at] for at in now),
        earlier_kinds=_kinds(item for at, item in enumerate(items) if at not in now),
        history_items=len(history),
        tools=len(turn_input.tools.tools) if turn_input.tools else 0,
        form=turn_input.form.kind if turn_input.form else None,
        model=turn_input.model,
        aliases=dict(offer.aliases),
        cards=[
            _facts(card, offer, texts, most, load, [items[at] for at in now], is_counted=is_counted)
            for card in offer.cards
        ],
        agents=sorted(agents),
    )


def characters_of(turn_input: TurnInput) -> int:
    """Return how long an input is."""
    return len(turn_input.instructions or "") + sum(len(text_of(item)) for item in turn_input.items)


def _load(turn_input: TurnInput, most_tokens: int) -> ExpectedLoad:
    """Return what a turn will probably ask of a card."""
    parts = [part for item in turn_input.items for part in parts_of(item)]
    sound_s = sum(part.samples / part.rate_hz for part in parts if isinstance(part, AudioPart))
    video_s = sum(part.duration_ms / 1000 for part in parts if isinstance(part, VideoPart))
    asked = turn_input.max_output_tokens
    return ExpectedLoad(
        input_tokens=-(-most_tokens // BYTES_PER_TOKEN),
        output_tokens=_OUTPUT_TOKENS if asked is None else min(asked, _OUTPUT_TOKENS),
        seconds=sound_s + video_s,
        images=sum(isinstance(part, ImagePart) for part in parts),
    )


def _facts(
    card: Card,
    offer: CardView,
    texts: Sequence[str],
    most: int,
    load: ExpectedLoad,
    said: Sequence[Item],
    *,
    is_counted: bool,
) -> CardFacts:
    # Counted only where it matters, and no further than it does.
    tokens = most
    if is_counted and most >= card.context_tokens:
        tokens = count_tokens(texts, offer.counter(card.name), enough=card.context_tokens)
    tokens += media_of(said, lambda: offer.counter(card.name))
    return card_facts(card, offer.standing(card.name), tokens, load)


def cards_digest(inputs: Inputs) -> str:
    """Return the sha-256 of the cards that there were, and how they stood: not of what this turn is for them."""
    cards = [
        {name: fact for name, fact in card.items() if name not in {"prompt_tokens", "cost"}} for card in inputs["cards"]
    ]
    return sha256(canonical({"cards": cards, "aliases": inputs["aliases"]}).encode()).hexdigest()


def lifted(inputs: Mapping[str, Any]) -> Inputs:
    """Return logged inputs as they would be logged now.

    Turns that were logged before there were forms have none. Before the needs of a turn were those of what is said now, every
    kind in sight was one.
    """
    now = {"form": None, "agents": ["writer"], **inputs}
    if "history_kinds" in now:
        earlier = now.pop("history_kinds")
        now |= {"input_kinds": sorted({*now["input_kinds"], *earlier}), "earlier_kinds": earlier}
    now["cards"] = [{"forms": [], **card} for card in now["cards"]]
    return cast("Inputs", now)


def _kinds(items: Iterable[Item]) -> list[str]:
    return sorted({part.kind for item in items for part in parts_of(item) if not isinstance(part, EvidencePart)})
