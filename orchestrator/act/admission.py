"""Who may have a turn run: so many at a time, so many of one tenant, and none once the server stops."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from models.clock import Clock, wait_for_event
from models.errors import Overloaded


class Admission:
    """One for all tenants and sessions."""

    def __init__(self, clock: Clock, *, turns: int, tenant_turns: int) -> None:
        """Admit at most so many turns at a time, and of one tenant."""
        self._clock = clock
        self._most = turns
        self._most_of_one = tenant_turns
        self._running: Counter[str] = Counter()
        self._quiet = asyncio.Event()
        self.draining = False

    @property
    def turns(self) -> int:
        """How many turns run now."""
        return self._running.total()

    @contextmanager
    def seat(self, tenant: str, *, is_running: bool = False) -> Iterator[None]:
        """Count a turn in while it runs. One that `is_running`, and has waited, is not refused any more.

        Raises:
            Overloaded: too many run already, or the server is stopping.
        """
        if not is_running:
            self._check(tenant)
        self._running[tenant] += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._running[tenant] -= 1
            if not self._running[tenant]:
                del self._running[tenant]
            if not self._running:
                self._quiet.set()

    def _check(self, tenant: str) -> None:
        if self.draining:
            raise Overloaded("The server is stopping. Try again in a moment.", code="server_stopping")
        if self.turns >= self._most:
            raise Overloaded(f"{self._most} turns are running, the most this server takes. Try again in a moment.")
        if self._running[tenant] >= self._most_of_one:
            raise Overloaded(
                f"{self._most_of_one} turns of yours are running, the most you may have at a time. "
                "Wait for one to end.",
                code="too_many_turns",
            )

    async def drain(self, deadline_s: float) -> None:
        """Take no turn any more, and wait until those that run have ended, or until `deadline_s`."""
        self.draining = True
        if self._running:
            await wait_for_event(self._clock, self._quiet, deadline_s)
