"""How many connections are open, and which has to go when there is no room for another.

The bound is one for all, and not one for each address: on loopback and behind a proxy every client has the same. What
keeps it fair is who gives way. A connection *waits* while no whole request has arrived on it: nobody knows yet who it is,
so it can be let go, the one that has waited longest first. Whoever holds connections open thus pushes out its own, and
somebody who comes with a request has it answered. Connections that are being answered never give way; they are counted
for their tenant (`limits.Shares`), and if there are no others, the newcomer is refused.
"""

import asyncio
from collections.abc import Callable
from typing import Final

_LINGERING: Final = 64
"""How many clients that find no room are told so at a time; others are only let go."""


class Connections:
    """Those that are open, of one server."""

    def __init__(self, most: int) -> None:
        """Take `most` of them at a time."""
        self.most = most
        self._open: set[asyncio.Transport] = set()
        self._refused: set[asyncio.Transport] = set()
        self._waiting: dict[asyncio.Transport, None] = {}  # the one that has waited longest first

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """How many of them wait."""
        return len(self._waiting)

    def admit(self, transport: asyncio.Transport) -> bool:
        """Count one more, which waits, and let one go for it if need be. Return whether there was room."""
        if len(self._open) >= self.most:
            if not self._waiting:
                return False
            longest = next(iter(self._waiting))
            self.forget(longest)
            longest.abort()
        self._open.add(transport)
        self._waiting[transport] = None
        return True

    def lingers(self, transport: asyncio.Transport) -> bool:
        """Return whether one that was not admitted may stay to hear why; of many at once, only some may."""
        if len(self._refused) >= _LINGERING:
            return False
        self._refused.add(transport)
        return True

    def waits(self, transport: asyncio.Transport) -> None:
        """Say that a connection is being answered no more."""
        if transport in self._open and transport not in self._waiting:
            self._waiting[transport] = None

    def works(self, transport: asyncio.Transport) -> None:
        """Say that a connection is being answered."""
        self._waiting.pop(transport, None)

    def replace(self, transport: asyncio.Transport, other: asyncio.Transport) -> None:
        """Count `other` in the place of the one that it is laid over."""
        if transport in self._open:
            self.forget(transport)
            self._open.add(other)
            self._waiting[other] = None

    def forget(self, transport: asyncio.Transport) -> None:
        """Count one no more."""
        self._open.discard(transport)
        self._refused.discard(transport)
        self._waiting.pop(transport, None)


class Deadline:
    """Does something, abort a connection for one, unless it is called off in time."""

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        """Do `then` so many seconds after it is set."""
        self._seconds = seconds
        self._then = then
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """Begin to count, from now."""
        self.call_off()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._then)

    def keep(self) -> None:
        """Begin to count, unless it has been begun."""
        if self._timer is None:
            self.set()

    def call_off(self) -> None:
        """Count no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
