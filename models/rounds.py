"""A lock for which tenants queue by turns."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Rounds:
    """Lets in one at a time; of those that wait, each tenant's first in turn, however many more that tenant has."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def held(self, tenant: str) -> AsyncIterator[None]:
        """Wait for the turn of `tenant`, and hold the lock for the length of a block."""
        if self._held:
            await self._wait(tenant)
        self._held = True
        try:
            yield
        finally:
            self._let_in()

    async def _wait(self, tenant: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._let_in()  # it was its turn already
            raise

    def _let_in(self) -> None:
        for tenant in [*self._waiting]:
            left = [turn for turn in self._waiting.pop(tenant) if not turn.done()]
            if left:
                left[0].set_result(None)
            if left[1:]:
                self._waiting[tenant] = deque(left[1:])  # behind every other tenant
            if left:
                return
        self._held = False
