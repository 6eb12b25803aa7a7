"""The cards that are served: fetched, loaded, and asked for; and how each stands.

`run` brings them up one after another, those that answer before the senses: weights from the store (fetched if they are not
there), then an engine in its place. What needs neither is ready at once. A card that cannot be brought up says why, holds up no other, and is tried again,
for ever and ever more seldom; but not what was configured wrongly, which no waiting puts right.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, cast

from models.catalog import Card, unknown_model, with_adapters
from models.clock import Clock, sleep_until
from models.errors import BadInput, BatonError, Internal, NotFound, Unavailable
from models.language.tokens import EstimatedTokens, TokenCounter, counter
from models.placement.doors import Door
from models.placement.engines import Place, Port, build_engine, place_of, port_of
from models.placement.port import Keeper, Placement
from models.ports.activity import ActivityDetector
from models.ports.context import EngineContext
from models.ports.embed import Embedder
from models.ports.generate import Engine
from models.supply.store import Store

_log = logging.getLogger(__name__)

_ESTIMATED = EstimatedTokens()

_MIN_PAUSE_S = 5.0
_MAX_PAUSE_S = 60.0

CardState = Literal["waiting", "fetching", "converting", "loading", "ready", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardStatus:
    """How a card stands.

    Attributes:
        state: where it is on its way.
        done_bytes: fetched so far.
        total_bytes: to be fetched; None if that is not known.
        message: why it failed, and what to do, also while it is tried again; None if it has not.
    """

    state: CardState
    done_bytes: int = 0
    total_bytes: int | None = None
    message: str | None = None


class CardView(Protocol):
    """What there is to choose from."""

    @property
    def cards(self) -> Sequence[Card]:
        """The cards that are served."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of them."""
        ...

    def standing(self, card: str) -> CardStatus:
        """Return how a card stands."""
        ...

    def counter(self, card: str) -> TokenCounter:
        """Return what counts a card's tokens."""
        ...


class FixedCardView:
    """Cards that are not brought up but stand as they are said to: for replays of decisions, and for trying them out."""

    def __init__(self, cards: Sequence[Card], standings: Mapping[str, CardStatus] | None = None) -> None:
        """Offer the cards; one without a standing is ready."""
        self.cards = tuple(cards)
        self.aliases: Mapping[str, str] = {}
        self._standings = standings or {}

    def standing(self, card: str) -> CardStatus:
        """Return how a card stands."""
        return self._standings.get(card, CardStatus(state="ready"))

    def counter(self, card: str) -> TokenCounter:
        """Return an estimate of a card's tokens."""
        return _ESTIMATED


class Served(Placement, Keeper, Protocol):
    """What a fleet is given of each place."""


class ServedCards:
    """The served cards. `run` brings them up, and has to run for them to stand anywhere but where they began.

    As an `CardView` it is of the cards that answer, which turns are routed to; `others` are asked for by name.
    """

    def __init__(
        self,
        cards: Sequence[Card],
        aliases: Mapping[str, str],
        store: Store,
        places: Mapping[Place, Served],
        clock: Clock,
    ) -> None:
        """Serve `cards`, each in the place of `places` that its engine runs in."""
        self._all = {card.name: card for card in cards}
        self._cards = {name: card for name, card in self._all.items() if _port(card) == "generate"}
        self._aliases = {name: card for name, card in with_adapters(cards, aliases).items() if card in self._all}
        self._store = store
        self._places = places
        self._context = EngineContext(clock=clock)
        self._clock = clock
        self._standings = {name: CardStatus(state="waiting") for name in self._all}
        self._engines: dict[str, Engine] = {}
        self._senses: dict[str, Door] = {}
        self._counters: dict[str, TokenCounter] = {}

    @property
    def cards(self) -> Sequence[Card]:
        """The cards that answer."""
        return tuple(self._cards.values())

    @property
    def others(self) -> Sequence[Card]:
        """The cards that are served through other ports."""
        return tuple(card for name, card in self._all.items() if name not in self._cards)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of the cards that answer."""
        return {name: card for name, card in self._aliases.items() if card in self._cards}

    @property
    def all_aliases(self) -> Mapping[str, str]:
        """Further names of all cards."""
        return self._aliases

    @property
    def names(self) -> frozenset[str]:
        """Every name that a card that answers is served under."""
        return frozenset((*self._cards, *self.aliases))

    def names_of(self, port: Port) -> Mapping[str, str]:
        """Return every name that a card of `port` is served under, and the card's own."""
        own = {name: name for name, card in self._all.items() if _port(card) == port}
        return own | {alias: card for alias, card in self._aliases.items() if card in own}

    @property
    def engines(self) -> Mapping[str, Engine]:
        """An engine for each card that answers; one that is not up yet makes its requests wait until their deadline."""
        return self._engines

    def embedder(self, name: str) -> Embedder:
        """Return what embeds, by the name of a card or an alias.

        Raises:
            NotFound: there is none of that name; the message lists those there are.
        """
        return self._sense(name, "embed")

    def detector(self, name: str) -> ActivityDetector:
        """Return what hears whether somebody speaks, by the name of a card or an alias; raises as `embedder` does."""
        return self._sense(name, "activity")

    async def forget(self, tenant: str, subject: str | None = None) -> None:
        """Have every place let go of what it keeps of a tenant, or of one subject of it. Returns once nothing is kept."""
        async with asyncio.TaskGroup() as tasks:
            for place in self._places.values():
                tasks.create_task(place.forget(tenant, subject))

    def _sense(self, name: str, port: Port) -> Door:
        names = self.names_of(port)
        if name not in names:
            raise unknown_model(name, names)
        return self._senses[names[name]]

    def standing(self, card: str) -> CardStatus:
        """Return how a card stands."""
        standing = self._standings[card]
        place = place_of(self._all[card].engine.name)
        if place is None or standing.state == "failed":
            return standing
        status = self._places[place].status(card)
        if standing.state == "ready":  # which it was; its process may have been restarted since, and may hang
            return standing if status.state == "ready" else CardStatus(state=status.state, message=status.message)
        return standing if standing.message is not None else replace(standing, message=status.message)

    def counter(self, card: str) -> TokenCounter:
        """Return what counts a card's tokens."""
        return self._counters.get(card, _ESTIMATED)

    def build(self) -> None:
        """Build the engines that run in this process, and the doors to those that run elsewhere.

        Raises:
            BadInput: an engine's options do not fit.
        """
        for name, card in self._all.items():
            if (place := place_of(card.engine.name)) is None:
                self._engines[name] = cast("Engine", build_engine(card.engine, self._context))
                self._standings[name] = CardStatus(state="ready")
            elif _port(card) == "generate":
                self._engines[name] = self._places[place].door(name)
            else:
                self._senses[name] = self._places[place].door(name)

    async def run(self) -> None:
        """Bring every card up that is not, one after another: they share the disk, the network and the processors."""
        pause_s = _MIN_PAUSE_S
        order = (*self.cards, *self.others)
        waiting = [card for card in order if self._standings[card.name].state != "ready"]
        while True:
            waiting = [card for card in waiting if not await self._is_done_with(card)]
            if not waiting:
                return
            await sleep_until(self._clock, self._clock.now_s() + pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _is_done_with(self, card: Card) -> bool:
        """Bring a card up; return whether it came up, or cannot ever."""
        try:
            await self._bring_up(card)
        except BatonError as exc:
            await self._fail(card, exc)
            return isinstance(exc, BadInput | NotFound)
        except Exception:  # noqa: BLE001  # a defect in bringing one up must not keep the others down
            _log.exception("the model %s could not be brought up", card.name)
            await self._fail(card, Internal(f"{card.name} could not be brought up. The server's log has the cause."))
            return False
        return True

    async def aclose(self) -> None:
        """Close the engines of this process; those of the worker end with it."""
        for engine in self._engines.values():
            await engine.aclose()

    async def _bring_up(self, card: Card) -> None:
        folder = await self._weights(card) if card.sources else None
        self._standings[card.name] = CardStatus(state="loading")
        if card.name in self._cards:
            self._counters[card.name] = await asyncio.to_thread(counter, folder)
        spec = card.engine if folder is None else replace(card.engine, folder=str(folder))
        with suppress(Unavailable):  # it is its place's from here on, which tries it again; `standing` says so
            await self._place(card).settle(card.name, spec)
        self._standings[card.name] = CardStatus(state="ready")

    def _place(self, card: Card) -> Served:
        place = place_of(card.engine.name)
        if place is None:
            raise Internal(f"{card.name} runs in no place.")
        return self._places[place]

    async def _weights(self, card: Card) -> Path:
        """Return where the weights of `card` lie, having fetched them if need be."""
        if (folder := self._store.folder(card)) is not None:
            return folder
        stop = threading.Event()
        try:
            return await asyncio.to_thread(self._pull, card, stop)
        finally:
            stop.set()  # if cancelled: a thread cannot be, but it looks here after each step

    def _pull(self, card: Card, stop: threading.Event) -> Path:
        with closing(self._store.pull(card)) as progress:
            for step in progress:
                self._standings[card.name] = CardStatus(
                    state="converting" if step.stage == "converting" else "fetching",
                    done_bytes=step.done_bytes,
                    total_bytes=step.total_bytes,
                )
                if stop.is_set():
                    break
        folder = self._store.folder(card)
        if folder is None:
            raise Internal(f"Fetching {card.name} was stopped. It begins anew when the server does.")
        return folder

    async def _fail(self, card: Card, error: BatonError) -> None:
        _log.error("the model %s is not served: %s", card.name, error.message)
        # Whatever it is, it is ours: no caller can do anything about it but wait.
        down = error if isinstance(error, Unavailable) else Unavailable(error.message)
        await self._place(card).settle(card.name, down)
        self._standings[card.name] = CardStatus(state="failed", message=error.message)


def _port(card: Card) -> Port:
    return port_of(card.engine.name)
