"""Cards: what the conductor knows of each model before it runs one, and the catalog that they are kept in.

The catalog is data: `models/catalog.toml` and the user's own files of the same form, read by `models.catalog_file`.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from models.content import Modality
from models.errors import NotFound, quoted
from models.ports.generate import FormKind
from models.sources import Source

EMBEDDED = "embedded"
"""The profile that needs nothing but the package index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What a process needs to build an engine; small and plain, because it crosses to a worker.

    Attributes:
        name: a name in the registry.
        options: JSON text, whose fields are the engine's own.
        folder: where the card's weights lie; None if it needs none.
    """

    name: str
    options: str = "{}"
    folder: str | None = None


CURRENCY: Final = "USD"
"""Of every price: US dollars."""

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a card costs, in `CURRENCY`.

    Attributes:
        input: for a million tokens of a prompt.
        cached_input: for a million of those that are found in a cache.
        output: for a million tokens of an answer.
        per_second: for a second of sound or moving pictures that is read or made.
        per_image: for a picture that is read or made.
    """

    input: float
    cached_input: float
    output: float
    per_second: float = 0.0
    per_image: float = 0.0

    @classmethod
    def flat(cls, per_million_tokens: float) -> "Price":
        """Return the price of a card whose tokens all cost the same."""
        return cls(input=per_million_tokens, cached_input=per_million_tokens, output=per_million_tokens)

    def of(
        self,
        *,
        input_tokens: int = 0,
        cached_tokens: int = 0,
        output_tokens: int = 0,
        seconds: float = 0.0,
        images: int = 0,
    ) -> float:
        """Return what so much costs; `cached_tokens` are those of the `input_tokens` that were found in a cache."""
        tokens = (
            (input_tokens - cached_tokens) * self.input
            + cached_tokens * self.cached_input
            + output_tokens * self.output
        )
        return tokens / _MILLION + seconds * self.per_second + images * self.per_image


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A catalog entry.

    Attributes:
        name: what callers ask for.
        engine: what runs it; its `folder` is only known once the weights have been fetched.
        reads: modalities that it takes in.
        writes: modalities that it gives out.
        calls_tools: whether it can be offered tools.
        forms: what its answers can be held to: a JSON schema, a regular expression, a grammar.
        context_tokens: the window; 0 if it has none.
        price: what it costs; what "cheapest" is measured by.
        temperature: of requests that name none; 0 is greedy.
        top_p: likewise.
        adapters: the LoRA adapters that it can answer with; one is asked for as `NAME:ADAPTER`.
        adapter: the one that it answers with where none is asked for.
        description: a sentence for people who choose.
        parameters: how many it has; None if nobody says.
        licence: of the weights, as SPDX writes it; None if nobody says.
        sources: where its weights come from; empty if it needs none.
    """

    name: str
    engine: EngineSpec
    reads: frozenset[Modality]
    writes: frozenset[Modality]
    calls_tools: bool
    context_tokens: int
    price: Price
    forms: frozenset[FormKind] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    adapters: tuple[str, ...] = ()
    adapter: str | None = None
    description: str = ""
    parameters: int | None = None
    licence: str | None = None
    sources: tuple[Source, ...] = ()

    def adapter_for(self, asked: str | None, aliases: Mapping[str, str]) -> str | None:
        """Return the adapter that a request which names its model as `asked` is answered with.

        Args:
            asked: a name of the card, of an alias, or `NAME:ADAPTER` as `with_adapters` lists it; None if it names none.
            aliases: further names of cards, those among them.
        """
        if asked is not None and aliases.get(asked) == self.name:
            for adapter in self.adapters:
                if asked.endswith(f":{adapter}"):
                    return adapter
        return self.adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All cards there are, whether fetched and served or not.

    Attributes:
        cards: by name.
        aliases: further names of cards.
        profiles: lists of cards that are served together, by name.
        own: names of the cards that come from the user's own files.
    """

    cards: Mapping[str, Card]
    aliases: Mapping[str, str]
    profiles: Mapping[str, tuple[str, ...]]
    own: tuple[str, ...] = ()

    def card(self, name: str) -> Card:
        """Return the card of that name or alias.

        Raises:
            NotFound: there is none; the message lists those there are.
        """
        try:
            return self.cards[self.aliases.get(name, name)]
        except KeyError:
            raise unknown_model(name, [*self.cards, *self.aliases]) from None

    def select(self, names: Iterable[str] | None = None) -> tuple[Card, ...]:
        """Return the cards of `names`, each once, in their order.

        Args:
            names: of profiles, cards or aliases. None takes the embedded profile and all of the user's own cards.

        Raises:
            NotFound: nothing has one of the names; the message lists those there are.
        """
        chosen: dict[str, Card] = {}
        for name in [EMBEDDED, *self.own] if names is None else names:
            if name not in self.profiles and name not in self.cards and name not in self.aliases:
                raise unknown_model(name, [*self.cards, *self.aliases, *self.profiles])
            for card in map(self.card, self.profiles.get(name, (name,))):
                chosen[card.name] = card
        return tuple(chosen.values())


def with_adapters(cards: Iterable[Card], aliases: Mapping[str, str]) -> dict[str, str]:
    """Return `aliases`, and beside each name of a card one for each of its adapters, `NAME:ADAPTER`; a name that is taken stays what it is."""
    known = {card.name: card for card in cards}
    names = {name: name for name in known} | {name: card for name, card in aliases.items() if card in known}
    made = {f"{name}:{adapter}": card for name, card in names.items() for adapter in known[card].adapters}
    return {**{name: card for name, card in made.items() if name not in known}, **aliases}


def unknown_model(name: str, known: Iterable[str]) -> NotFound:
    """Return the error for a name that no model has. It lists `known`, and the one that may have been meant."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return NotFound(
        f"There is no model {quoted(name)}.{guess} Known models: {', '.join(names)}.",
        code="model_not_found",
        field="model",
    )
