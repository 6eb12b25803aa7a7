"""Time, injected.

A deadline is an absolute time of a clock in seconds, never a duration that each callee starts anew. The
monotonic clock of one host is shared by its processes, so a deadline crosses to a worker as it is.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol


class Timer(Protocol):
    """Something that will be called."""

    def cancel(self) -> None:
        """Have it not called. Harmless afterwards."""
        ...


class Clock(Protocol):
    """Where every floor takes the time from."""

    def now_s(self) -> float:
        """Return the monotonic time in seconds; deadlines are times of this clock."""
        ...

    def wall_s(self) -> float:
        """Return Unix time in seconds, for rows that people read."""
        ...

    def timeout_at(self, deadline_s: float | None) -> AbstractAsyncContextManager[object]:
        """Return a context whose body raises TimeoutError once `deadline_s` has passed; None never does."""
        ...

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        """Have `callback` called in the running loop at `deadline_s`, unless the timer is cancelled before."""
        ...


class SystemClock:
    """The host's clocks."""

    def now_s(self) -> float:
        """Return `time.monotonic()`, which is also the event loop's time."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Return `time.time()`."""
        return time.time()

    def timeout_at(self, deadline_s: float | None) -> AbstractAsyncContextManager[object]:
        """Return `asyncio.timeout_at`, shifted from this clock to the running loop's."""
        if deadline_s is None:
            return asyncio.timeout(None)
        return asyncio.timeout_at(asyncio.get_running_loop().time() + deadline_s - self.now_s())

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        """Return the running loop's timer."""
        return asyncio.get_running_loop().call_later(deadline_s - self.now_s(), callback)


class ManualClock:
    """A clock that stands still until it is told to advance, so that tests never sleep."""

    def __init__(self, now_s: float = 1_000.0, wall_s: float = 1_750_000_000.0) -> None:
        self._now_s = now_s
        self._wall_s = wall_s
        self._armed: dict[asyncio.Timeout, float] = {}
        self._timers: list[_ManualTimer] = []

    def now_s(self) -> float:
        """Return the time that was set."""
        return self._now_s

    def wall_s(self) -> float:
        """Return the Unix time, advanced together with the monotonic time."""
        return self._wall_s

    def timeout_at(self, deadline_s: float | None) -> AbstractAsyncContextManager[object]:
        """Return a timeout that `advance` fires."""
        return _ManualTimeout(self, deadline_s)

    def call_at(self, deadline_s: float, callback: Callable[[], None]) -> Timer:
        """Return a timer that `advance` fires."""
        timer = _ManualTimer(deadline_s, callback)
        self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Move on by `seconds` and fire every timeout and timer whose deadline has been reached."""
        self._now_s += seconds
        self._wall_s += seconds
        for timeout, deadline_s in list(self._armed.items()):
            if deadline_s <= self._now_s:
                self.disarm(timeout)
                timeout.reschedule(asyncio.get_running_loop().time())
        due = [timer for timer in self._timers if timer.deadline_s <= self._now_s]
        self._timers = [timer for timer in self._timers if timer.deadline_s > self._now_s and not timer.cancelled]
        for timer in due:
            if not timer.cancelled:
                timer.callback()

    def arm(self, timeout: asyncio.Timeout, deadline_s: float) -> None:
        """Fire `timeout` when the clock reaches `deadline_s`; at once if it already has."""
        if deadline_s <= self._now_s:
            timeout.reschedule(asyncio.get_running_loop().time())
        else:
            self._armed[timeout] = deadline_s

    def disarm(self, timeout: asyncio.Timeout) -> None:
        """Forget `timeout`."""
        self._armed.pop(timeout, None)


class _ManualTimer:
    """A timer that is fired by a `ManualClock`."""

    def __init__(self, deadline_s: float, callback: Callable[[], None]) -> None:
        self.deadline_s = deadline_s
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class _ManualTimeout:
    """`asyncio.timeout`, fired by a `ManualClock`."""

    def __init__(self, clock: ManualClock, deadline_s: float | None) -> None:
        self._clock = clock
        self._deadline_s = deadline_s
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> asyncio.Timeout:
        await self._timeout.__aenter__()
        if self._deadline_s is not None:
            self._clock.arm(self._timeout, self._deadline_s)
        return self._timeout

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clock.disarm(self._timeout)
        await self._timeout.__aexit__(kind, exc, traceback)


async def sleep_until(clock: Clock, deadline_s: float) -> None:
    """Sleep until `deadline_s` of `clock`."""
    try:
        async with clock.timeout_at(deadline_s):
            await asyncio.get_running_loop().create_future()
    except TimeoutError:
        return


async def wait_for_event(clock: Clock, event: asyncio.Event, deadline_s: float | None) -> bool:
    """Wait until `event` is set (True) or `deadline_s` has passed (False)."""
    try:
        async with clock.timeout_at(deadline_s):
            return await event.wait()
    except TimeoutError:
        return event.is_set()
