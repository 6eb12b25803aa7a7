"""The cards that are served: fetched, loaded, and asked for; and how each stands.

`run` brings them up one after another: weights from the store (fetched if they are not there), then an engine in the
worker. What needs neither is ready at once. A card that cannot be brought up says why, holds up no other, and is tried again,
for ever and ever more seldom; but not what was configured wrongly, which no waiting puts right.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from models.catalog import Card
from models.clock import Clock, sleep_until
from models.errors import BadInput, BatonError, Internal, NotFound, Unavailable
from models.language.tokens import EstimatedTokens, TokenCounter, counter
from models.placement.client import Worker
from models.placement.engines import build_engine, runs_in_worker
from models.placement.heartbeat import UNSURE_S
from models.ports.generate import Engine
from models.supply.store import Store

_log = logging.getLogger(__name__)

_ESTIMATED = EstimatedTokens()

_MIN_PAUSE_S = 5.0
_MAX_PAUSE_S = 60.0

CardState = Literal["waiting", "fetching", "converting", "loading", "ready", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
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


class Offer(Protocol):
    """What there is to choose from."""

    @property
    def cards(self) -> Sequence[Card]:
        """The cards that are served."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of them."""
        ...

    def standing(self, card: str) -> Standing:
        """Return how a card stands."""
        ...

    def counter(self, card: str) -> TokenCounter:
        """Return what counts a card's tokens."""
        ...


class FixedOffer:
    """Cards that are not brought up but stand as they are said to: for replays of decisions, and for trying them out."""

    def __init__(self, cards: Sequence[Card], standings: Mapping[str, Standing] | None = None) -> None:
        """Offer the cards; one without a standing is ready."""
        self.cards = tuple(cards)
        self.aliases: Mapping[str, str] = {}
        self._standings = standings or {}

    def standing(self, card: str) -> Standing:
        """Return how a card stands."""
        return self._standings.get(card, Standing(state="ready"))

    def counter(self, card: str) -> TokenCounter:
        """Return an estimate of a card's tokens."""
        return _ESTIMATED


class Fleet:
    """The served cards. `run` brings them up, and has to run for them to stand anywhere but where they began."""

    def __init__(
        self, cards: Sequence[Card], aliases: Mapping[str, str], store: Store, worker: Worker, clock: Clock
    ) -> None:
        self._cards = {card.name: card for card in cards}
        self._aliases = {name: card for name, card in aliases.items() if card in self._cards}
        self._store = store
        self._worker = worker
        self._clock = clock
        self._standings = {name: Standing(state="waiting") for name in self._cards}
        self._engines: dict[str, Engine] = {}
        self._counters: dict[str, TokenCounter] = {}

    @property
    def cards(self) -> Sequence[Card]:
        """The cards that are served."""
        return tuple(self._cards.values())

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of them."""
        return self._aliases

    @property
    def names(self) -> frozenset[str]:
        """Every name that a card is served under."""
        return frozenset((*self._cards, *self._aliases))

    @property
    def engines(self) -> Mapping[str, Engine]:
        """An engine for each card; one that is not up yet makes its requests wait until their deadline."""
        return self._engines

    def standing(self, card: str) -> Standing:
        """Return how a card stands."""
        standing = self._stands(card)
        if standing.state in {"ready", "failed"} or standing.message is not None:
            return standing
        return replace(standing, message=self._worker.trouble(card))

    def _stands(self, card: str) -> Standing:
        standing = self._standings[card]
        if standing.state == "ready" and runs_in_worker(self._cards[card].engine.name):
            # The worker may have been restarted since, and may hang.
            if (failure := self._worker.failure(card)) is not None:
                return Standing(state="failed", message=failure.message)
            if self._worker.silent_s >= UNSURE_S:
                return Standing(
                    state="loading", message="Its process does not answer. It is replaced if it goes on so."
                )
            return standing if self._worker.loaded(card) else Standing(state="loading")
        return standing

    def counter(self, card: str) -> TokenCounter:
        """Return what counts a card's tokens."""
        return self._counters.get(card, _ESTIMATED)

    def build(self) -> None:
        """Build the engines that run in this process, and the doors to those that run in the worker.

        Raises:
            BadInput: an engine's options do not fit.
        """
        for name, card in self._cards.items():
            if runs_in_worker(card.engine.name):
                self._worker.expect(name)
                self._engines[name] = self._worker.engine(name)
            else:
                self._engines[name] = build_engine(card.engine, self._clock)
                self._standings[name] = Standing(state="ready")

    async def run(self) -> None:
        """Bring every card up that is not, one after another: they share the disk, the network and the processors."""
        pause_s = _MIN_PAUSE_S
        waiting = [card for card in self._cards.values() if self._standings[card.name].state != "ready"]
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
            self._fail(card.name, exc)
            return isinstance(exc, BadInput | NotFound)
        except Exception:  # noqa: BLE001  # a defect in bringing one up must not keep the others down
            _log.exception("the model %s could not be brought up", card.name)
            self._fail(card.name, Internal(f"{card.name} could not be brought up. The server's log has the cause."))
            return False
        return True

    async def aclose(self) -> None:
        """Close the engines of this process; those of the worker end with it."""
        for engine in self._engines.values():
            await engine.aclose()

    async def _bring_up(self, card: Card) -> None:
        folder = await self._weights(card) if card.sources else None
        self._standings[card.name] = Standing(state="loading")
        self._counters[card.name] = await asyncio.to_thread(counter, folder)
        spec = card.engine if folder is None else replace(card.engine, folder=str(folder))
        self._worker.load(card.name, spec)
        with suppress(Unavailable):  # it is the worker's from here on, which tries it again; `standing` says so
            await self._worker.until_settled(card.name)
        self._standings[card.name] = Standing(state="ready")

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
                self._standings[card.name] = Standing(
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

    def _fail(self, card: str, error: BatonError) -> None:
        _log.error("the model %s is not served: %s", card, error.message)
        # Whatever it is, it is ours: no caller can do anything about it but wait.
        down = error if isinstance(error, Unavailable) else Unavailable(error.message)
        self._worker.refuse(card, down)
        self._standings[card] = Standing(state="failed", message=error.message)
