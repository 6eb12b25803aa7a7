"""Calls that take input while they give output: sound that is still being said, words that are still being written.

A caller opens a stream, pushes what it has, and reads what comes of it, each at its own pace. An engine is written the other way
round, as a generator over what is pushed; `Fed` makes a stream of it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from models.clock import Clock
from models.errors import Conflict, DeadlineExceeded

In = TypeVar("In")
Out = TypeVar("Out")
_In_contra = TypeVar("_In_contra", contravariant=True)
_Out_co = TypeVar("_Out_co", covariant=True)

UNREAD_INPUTS = 32
"""How much may be pushed that was not taken before a push waits: a second of sound in windows of 32 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundInput:
    """Sound as it is heard: little-endian 16-bit mono samples, as many as there are, at the rate that the stream was opened with."""

    kind: Literal["sound"] = "sound"
    pcm: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """Nothing that is to come belongs to what has come: give what can be given of it, without waiting for more."""

    kind: Literal["flush"] = "flush"


class Stream(Protocol[_In_contra, _Out_co]):
    """One call that is open. One task pushes, one reads."""

    async def push(self, value: _In_contra) -> None:
        """Give input, in order. Waits while `UNREAD_INPUTS` pieces have not been taken yet.

        Raises:
            Conflict: `end` was called, or the outputs have ended or were closed.
        """
        ...

    async def end(self) -> None:
        """Say that there is no more input: the outputs end after what follows from it. Idempotent."""
        ...

    def outputs(self) -> AsyncGenerator[_Out_co, None]:
        """Yield what comes of the input. To be called once; closing it stops the work and frees what it held.

        Raises:
            DeadlineExceeded: the deadline passed.
            Overloaded: there is no room for another call now.
            BatonError: as the port says.
        """
        ...


class Fed(Generic[In, Out]):
    """A stream of a generator over its input, in this process."""

    def __init__(
        self, work: Callable[[AsyncIterator[In]], AsyncGenerator[Out, None]], clock: Clock, deadline_s: float | None
    ) -> None:
        """Open it; `work` begins when the outputs are read, and is told of the deadline when it asks for input after that."""
        self._work = work
        self._clock = clock
        self._deadline_s = deadline_s
        self._inputs: deque[In] = deque()
        self._ended = False
        self._over = False
        self._changed = asyncio.Condition()

    async def push(self, value: In) -> None:
        """Give input; see `Stream.push`."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._inputs) < UNREAD_INPUTS or self._ended or self._over)
            if self._ended or self._over:
                raise Conflict("Nothing can be pushed into a stream that has ended. Open another.", code="stream_ended")
            self._inputs.append(value)
            self._changed.notify_all()

    async def end(self) -> None:
        """Say that there is no more input; see `Stream.end`."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def outputs(self) -> AsyncGenerator[Out, None]:
        """Yield what comes of the input; see `Stream.outputs`."""
        try:
            async with aclosing(self._work(self._taken())) as outputs:
                async for output in outputs:
                    yield output
        finally:
            self._over = True
            self._inputs.clear()
            async with self._changed:
                self._changed.notify_all()

    async def _taken(self) -> AsyncGenerator[In, None]:
        while True:
            try:
                # Around the wait alone, and never around a yield: there it would end what the reader does.
                async with self._clock.timeout_at(self._deadline_s), self._changed:
                    await self._changed.wait_for(lambda: bool(self._inputs) or self._ended)
            except TimeoutError as exc:
                raise DeadlineExceeded("The deadline passed before the stream had ended.") from exc
            if not self._inputs:
                return
            value = self._inputs.popleft()
            async with self._changed:
                self._changed.notify_all()
            yield value
