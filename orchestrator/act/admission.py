"""Who may have a turn run: so many at a time, so many of one tenant, and none once the server stops.

Guesses at what may be said next have slots of their own: however many somebody makes, none takes a turn's seat.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from models.clock import Clock, wait_for_event
from models.errors import Overloaded
from models.shares import Shares


class Admission:
    """One for all tenants and sessions."""

    def __init__(self, clock: Clock, *, turns: int, tenant_turns: int, guesses: int = 128) -> None:
        """Admit at most so many turns at a time, and of one tenant; and so many guesses, of which one tenant has its share."""
        self._clock = clock
        self._most = turns
        self._most_of_one = tenant_turns
        self._running: Counter[str] = Counter()
        self.slots = Shares(guesses, None, what="guesses are worked on", code="too_many_guesses")
        self._quiet = asyncio.Event()
        self.draining = False

    @property
    def turns(self) -> int:
        """How many turns run now."""
        return self._running.total()

    @property
    def guesses(self) -> int:
        """How many guesses are worked on now."""
        return len(self.slots)

    def place(self, tenant: str, *, is_guess: bool, replaces: bool = False) -> "HeldPlace":
        """Return a place for a generation: a guess's slot, or a turn's seat; the latter is there if it `replaces` another.

        Raises:
            Overloaded: there is none, or the server is stopping.
        """
        if not is_guess:
            self.sit(tenant, is_running=replaces)
        elif self.draining:
            raise _stopping()
        else:
            self.slots.enter(tenant)
        return HeldPlace(self, tenant, is_guess=is_guess)

    @contextmanager
    def seat(self, tenant: str, *, is_running: bool = False) -> Iterator[None]:
        """Count a turn in while it runs. One that `is_running`, and has waited, is not refused any more.

        Raises:
            Overloaded: too many run already, or the server is stopping.
        """
        self.sit(tenant, is_running=is_running)
        try:
            yield
        finally:
            self.rise(tenant)

    def check(self, tenant: str) -> None:
        """Check that one more turn may run.

        Raises:
            Overloaded: too many run already, or the server is stopping.
        """
        if self.draining:
            raise _stopping()
        if self.turns >= self._most:
            raise Overloaded(f"{self._most} turns are running, the most this server takes. Try again in a moment.")
        if self._running[tenant] >= self._most_of_one:
            raise Overloaded(
                f"{self._most_of_one} turns of yours are running, the most you may have at a time. "
                "Wait for one to end.",
                code="too_many_turns",
            )

    def sit(self, tenant: str, *, is_running: bool) -> None:
        """Count a turn in; `rise` has to follow. Raises as `seat` does."""
        if not is_running:
            self.check(tenant)
        self._running[tenant] += 1
        self._quiet.clear()

    def rise(self, tenant: str) -> None:
        """Count a turn out."""
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        if not self._running:
            self._quiet.set()

    async def drain(self, deadline_s: float) -> None:
        """Take no turn any more, and wait until those that run have ended, or until `deadline_s`."""
        self.draining = True
        if self._running:
            await wait_for_event(self._clock, self._quiet, deadline_s)


class HeldPlace:
    """What a generation holds while it works: a guess's slot, and once it is accepted a turn's seat."""

    def __init__(self, admission: Admission, tenant: str, *, is_guess: bool) -> None:
        """Take over what was entered."""
        self._admission = admission
        self._tenant = tenant
        self._held: Literal["slot", "seat"] | None = "slot" if is_guess else "seat"

    def take_seat(self, *, replaces: bool) -> None:
        """Have a turn's seat, by `replaces` instead of a turn that ends with it. One that has done its work needs none.

        Raises:
            Overloaded: there is none, or the server is stopping.
        """
        match self._held:
            case "slot":
                self._admission.sit(self._tenant, is_running=replaces)
                self._admission.slots.leave(self._tenant)
                self._held = "seat"
            case None if not replaces:
                self._admission.check(self._tenant)
            case _:
                pass

    def leave(self) -> None:
        """Give back what is held, once."""
        held, self._held = self._held, None
        if held == "slot":
            self._admission.slots.leave(self._tenant)
        elif held == "seat":
            self._admission.rise(self._tenant)


def _stopping() -> Overloaded:
    return Overloaded("The server is stopping. Try again in a moment.", code="server_stopping")
