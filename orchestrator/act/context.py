"""What a model is shown: as much of the conversation as its window holds, and words for what it cannot read; and how it answers.

Counting tokens holds the loop up, and long conversations take it hundreds of milliseconds. What is long is counted ahead, and
others work after each piece; counters remember pieces. Short conversations are left alone.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.catalog import Card
from models.content import Call, CallResult, Item, Message, Said, TextPart
from models.ids import new_id
from models.placement.fleet import CardView
from models.ports.generate import Constraint, Sampling
from orchestrator.events import TurnInput
from orchestrator.window import (
    ITEM_TOKENS,
    UNKNOWN_OUTCOME,
    costs_of,
    fixed,
    foreseen,
    items_words,
    media_of,
    most_tokens,
    paired,
    pieces,
    places_now,
    readable,
    said_now,
    shown,
    unanswered,
    window_of,
)

_LIGHT_TOKENS = 16_000
"""What is surely no more than this is counted in a few milliseconds, so without a pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownContext:
    """What fits a card's window.

    Attributes:
        items: of the conversation.
        output_tokens: that are left for the answer, of those that it wants.
        note: what people should know of what was left out; None if nothing was.
    """

    items: Sequence[Item]
    output_tokens: int
    note: str | None


class Contexts:
    """Makes them; one for all sessions."""

    def __init__(self, offer: CardView, *, max_output_tokens: int) -> None:
        """Show the cards of `offer` what they have room for, and let them write at most so many tokens."""
        self._offer = offer
        self._cards = {card.name: card for card in offer.cards}
        self._max_output_tokens = max_output_tokens

    def output_tokens(self, turn_input: TurnInput) -> int:
        """Return how many tokens an answer wants."""
        asked, most = turn_input.max_output_tokens, self._max_output_tokens
        return most if asked is None else min(asked, most)

    async def count_ahead(self, turn_input: TurnInput, history: Sequence[Item]) -> None:
        """Count what a decision is going to count, if that is long."""
        if most_tokens(_words(turn_input, paired((*history, *turn_input.items)))) <= _LIGHT_TOKENS:
            return
        now = said_now(turn_input, history)
        for card in self._cards.values():
            if most_tokens(now) >= card.context_tokens:
                await self._count(card, now, card.context_tokens)

    async def fit(self, name: str, turn_input: TurnInput, items: Sequence[Item]) -> ShownContext:
        """Return what of `items`, what is said now among them, a card is shown."""
        card, asked = self._cards[name], self.output_tokens(turn_input)
        items = readable(paired(items), card.reads)
        words = _words(turn_input, items)
        most = most_tokens(words) + media_of(items, lambda: self._offer.counter(name))
        if most + asked <= card.context_tokens:
            return ShownContext(items=items, output_tokens=asked, note=None)
        if most > _LIGHT_TOKENS:
            await self._count_each(card, words)
        counter = self._offer.counter(name)
        window = window_of(card.context_tokens, turn_input, asked, counter)
        # What is said now comes first, then an answer: as much as was asked for, but not more than half of what is left;
        # then the history; and what the history does not fill is the answer's again.
        fitting = shown(items, window, counter)
        left = card.context_tokens - window.fixed_tokens - sum(costs_of(fitting, window, counter))
        return ShownContext(items=fitting, output_tokens=max(min(asked, left), 1), note=_left_out(fitting, items))

    async def foreseen(
        self, name: str, turn_input: TurnInput, history: Sequence[Item], coming: int | None
    ) -> Sequence[Item]:
        """Return what a card is going to be shown first in coming turns; see `window.foreseen`."""
        card = self._cards[name]
        items = readable(paired(history), card.reads)
        words = _words(turn_input, items)
        if most_tokens(words) > _LIGHT_TOKENS:
            await self._count_each(card, words)
        counter = self._offer.counter(name)
        window = window_of(card.context_tokens, turn_input, self.output_tokens(turn_input), counter)
        return foreseen(items, window, counter, coming=coming)

    def adapter(self, name: str, turn_input: TurnInput) -> str | None:
        """Return the adapter that a card answers with: the one asked for with its name, else the card's own, if it has one."""
        return self._cards[name].adapter_for(turn_input.model, self._offer.aliases)

    def sampling(self, name: str, turn_input: TurnInput, output_tokens: int) -> Sampling:
        """Return how a card's tokens are chosen: as the turn says, and as the card does where it says nothing."""
        card, asked = self._cards[name], turn_input.sampling
        return Sampling(
            temperature=card.temperature if asked.temperature is None else asked.temperature,
            top_p=card.top_p if asked.top_p is None else asked.top_p,
            seed=asked.seed,
            stop=asked.stop,
            max_output_tokens=output_tokens,
            logit_bias=asked.logit_bias,
            repetition_penalty=asked.repetition_penalty,
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            top_k=asked.top_k,
            min_p=asked.min_p,
        )

    async def _count_each(self, card: Card, texts: Sequence[str]) -> None:
        for text in texts:
            await self._count(card, [text], card.context_tokens)

    async def _count(self, card: Card, texts: Sequence[str], enough: int) -> None:
        counter = self._offer.counter(card.name)
        for text in texts:
            enough -= ITEM_TOKENS
            for piece in pieces(text):
                enough -= counter.count(piece)
                if enough < 0:
                    return
                await asyncio.sleep(0)


def constraint(turn_input: TurnInput) -> Constraint | None:
    """Return what an engine is held to: calls of the functions on offer, or the form, or either."""
    tools, form = turn_input.tools, turn_input.form
    if tools is None or tools.choice == "none" or not tools.tools:
        return form or tools
    return replace(tools, form=form)


def messages(turn_input: TurnInput, items: Sequence[Item]) -> tuple[Said, ...]:
    """Return what a model is shown: the instructions, and of `items` what it may be shown.

    A call whose outcome is not known is said to be so, since it may have happened.
    """
    told: list[Said] = []
    if turn_input.instructions:
        told.append(Message(item_id=new_id("item"), role="system", parts=(TextPart(text=turn_input.instructions),)))
    said = paired(items)
    open_calls = unanswered(said)
    for at, item in enumerate(said):
        told.append(item)
        if isinstance(item, Call) and at in open_calls:
            unknown = TextPart(text=UNKNOWN_OUTCOME, source="tool")
            told.append(CallResult(item_id=new_id("item"), call_id=item.call_id, parts=(unknown,)))
    return tuple(told)


def _words(turn_input: TurnInput, items: Sequence[Item]) -> list[str]:
    return [*fixed(turn_input), *items_words(items, range(len(items)))]


def _left_out(shown_items: Sequence[Item], items: Sequence[Item]) -> str | None:
    """Return what a decision says of items that the window has no room for; None if all have."""
    if len(shown_items) == len(items):
        return None
    earlier = len(items) - len(places_now(items))
    kept = len(shown_items) - len(places_now(shown_items))
    return f"is shown {kept} of {earlier} earlier items: its window holds no more"
