"""Who goes first when there is not room for all."""

import asyncio
import heapq
from itertools import count

from models.ports.generate import Priority

_RANKS: dict[Priority, int] = {"interactive": 0, "normal": 1, "batch": 2}


class PrioritySemaphore:
    """So many places, given to the most urgent first, and within a priority in the order of asking.

    It belongs to one event loop.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tickets = count()

    async def take(self, priority: Priority) -> None:
        """Wait for a place. Whoever took one gives it back; one who is cancelled while waiting has none."""
        if self._free > 0:
            self._free -= 1
            return
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (_RANKS[priority], next(self._tickets), called))
        try:
            await called
        except asyncio.CancelledError:
            if not called.cancelled():
                self.give()  # it was called, and left before it could hear it
            raise

    def give(self) -> None:
        """Give a place back."""
        while self._waiting:
            *_, called = heapq.heappop(self._waiting)
            if not called.done():
                called.set_result(None)
                return
        self._free += 1
