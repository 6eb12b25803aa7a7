"""The cards of a worker: what builds the engine of each, how it stands, and when it is tried again."""

import asyncio

from models.catalog import EngineSpec
from models.errors import BadInput, BatonError, NotFound, Unavailable

_MAX_DEATHS = 3
"""Processes that may end before they have loaded a card, until it rests."""

_MIN_REST_S = 5.0
_MAX_REST_S = 60.0
_MAX_REST_BESIDE_S = 600.0
"""How long it rests at most while others are served, whose answers it takes with it if it ends the process again."""


class WorkerCard:
    """One card. It is tried for ever: what ends the process or fails on this side rests in between, for longer each time.

    Attributes:
        spec: what builds its engine; None while there is nothing to build from, or it was refused for good.
        failure: why its requests fail, if they do.
        trouble: why it failed last, until it is built.
        settled: set while it is known how the engine stands: built, or failed with `failure`.
        retry_at_s: when it is to be tried again, if it rests.
    """

    def __init__(self, spec: EngineSpec | None) -> None:
        self.spec = spec
        self.failure: BatonError | None = None
        self.trouble: str | None = None
        self.settled = asyncio.Event()
        self.retry_at_s: float | None = None
        self._deaths = 0
        self._rest_s = 0.0

    @property
    def loading(self) -> bool:
        """Whether a process has it to build, and has not said how that went."""
        return self.spec is not None and not self.settled.is_set()

    def begin(self, spec: EngineSpec) -> None:
        """Take what is to be built."""
        self.spec = spec
        self.unsettle()

    def refuse(self, failure: BatonError) -> None:
        """Give it up until `begin`."""
        self.spec = None
        self._settle(failure)

    def built(self) -> None:
        """Note that its engine is there."""
        self._deaths, self._rest_s = 0, 0.0
        self._settle(None)

    def failed(self, failure: BatonError, now_s: float, *, beside: bool) -> None:
        """Note that its engine cannot be built. What was asked wrongly stays so; all else is tried again."""
        if isinstance(failure, BadInput | NotFound):
            self._settle(failure)
        else:
            self._rest(failure.message, now_s, beside=beside)

    def unsettle(self) -> None:
        """Have its requests wait for it."""
        self.failure = None
        self.retry_at_s = None
        self.settled.clear()

    def lose(self, name: str, now_s: float, *, beside: bool) -> None:
        """Note that the process has ended that had the engine, was building it, or was to build it.

        Args:
            name: the card's.
            now_s: the time.
            beside: whether other cards are served by the process.
        """
        if self.retry_at_s is not None:
            return  # it rests, and had no part in it
        if self.loading:
            self._deaths += 1
            if self._deaths >= _MAX_DEATHS:
                message = (
                    f"The model's process has ended {self._deaths} times before it had loaded {name!r}. Is there enough "
                    "memory for it? The server's log may say more."
                )
                self._rest(message, now_s, beside=beside)
                return
        if self.spec is not None:
            self.unsettle()

    def _rest(self, message: str, now_s: float, *, beside: bool) -> None:
        most_s = _MAX_REST_BESIDE_S if beside else _MAX_REST_S
        self._rest_s = min(max(2 * self._rest_s, _MIN_REST_S), most_s)
        self._settle(Unavailable(f"{message} It is tried again.", retry_after_s=self._rest_s))
        self.retry_at_s = now_s + self._rest_s

    def _settle(self, failure: BatonError | None) -> None:
        self.failure = failure
        self.trouble = None if failure is None else failure.message
        self.retry_at_s = None
        self.settled.set()
