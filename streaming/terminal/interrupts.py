"""What Ctrl-C means: while an answer is written it stops the answer; otherwise it ends the program, as do other signals."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Interrupted(Exception):
    """Ctrl-C was pressed."""


class Interrupts:
    """Signals of one program, taken from its event loop's thread only.

    Attributes:
        left_by: the signal that ended the program, once one has.
    """

    def __init__(self) -> None:
        self.left_by: signal.Signals | None = None
        self._patience: asyncio.Timeout | None = None
        self._guarded = False
        self._pressed = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals for the length of the block, which they end by cancelling the task that runs it."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def leave(number: signal.Signals) -> None:
            self.left_by = number
            task.cancel()

        def press() -> None:
            if not self._guarded:
                leave(signal.SIGINT)
            self._pressed = True
            if self._patience is not None:
                self._patience.reschedule(loop.time())

        loop.add_signal_handler(signal.SIGINT, press)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, leave, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """For the length of the block, Ctrl-C ends the next `wait` instead of the program."""
        self._guarded, self._pressed = True, False
        try:
            yield
        finally:
            self._guarded = False

    async def wait(self, begin: Callable[[], Awaitable[T]]) -> T:
        """Await what `begin` begins.

        Raises:
            Interrupted: Ctrl-C was pressed meanwhile, or since the last wait.
        """
        try:
            async with asyncio.timeout(None) as self._patience:
                if not self._pressed:
                    return await begin()
        except TimeoutError:
            if not self._pressed:
                raise
        finally:
            self._patience = None
        self._pressed = False
        raise Interrupted
