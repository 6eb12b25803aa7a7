"""How an engine in a worker process looks from the gateway: one door for all ports, and the two ends of a request.

What arrives of a request and was not yet taken is bounded by the credit that the process has; what was pushed and not yet taken
by the engine, by `UNREAD_INPUTS`.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol, cast, overload

from models.content import Delta
from models.errors import BatonError, Conflict, DeadlineExceeded, Internal
from models.placement.frames import EndOfInput, EngineRequest, Feed, Input, Output, StreamRequest
from models.ports.activity import ActivityRequest, Verdict
from models.ports.embed import Embeddings, EmbedRequest
from models.ports.generate import GenerateRequest
from models.ports.streams import UNREAD_INPUTS, Flush, SoundInput, Stream
from models.ports.synthesize import SpeechEvent, SynthesizeRequest
from models.ports.transcribe import TranscribeRequest, TranscriptEvent


class Arrivals:
    """What has arrived of one request and was not yet taken."""

    def __init__(self) -> None:
        self.outputs: deque[Output] = deque()
        self.ended = False
        self.error: BatonError | None = None
        self.arrived = asyncio.Event()

    def take_in(self, output: Output) -> None:
        """Note an output; one that comes too late is dropped."""
        if not self.ended:
            self.outputs.append(output)
            self.arrived.set()

    def end(self, error: BatonError | None) -> None:
        """Note that nothing more will come."""
        self.ended = True
        self.error = error
        self.arrived.set()

    def expire(self) -> None:
        """Note that the deadline has passed."""
        if not self.ended:
            self.end(DeadlineExceeded("The deadline passed before the answer was whole."))

    async def next(self) -> Output | None:
        """Return the next output, or None after the last.

        Raises:
            BatonError: the request failed.
        """
        while not self.outputs:
            if self.error is not None:
                raise self.error
            if self.ended:
                return None
            self.arrived.clear()
            await self.arrived.wait()
        return self.outputs.popleft()


class RequestInputs:
    """What was pushed for one request: it waits here until the request has been sent, and then goes by credit."""

    def __init__(self) -> None:
        self._waiting: deque[Input] = deque()
        self._credit = UNREAD_INPUTS
        self._ended = False
        self._over = False
        self._send: Callable[[Feed | EndOfInput], None] | None = None
        self._request_id = 0
        self._changed = asyncio.Event()

    def flow(self, request_id: int, send: Callable[[Feed | EndOfInput], None]) -> None:
        """Send what waits and what will be pushed: the request has been sent."""
        self._request_id, self._send = request_id, send
        while self._waiting:
            send(Feed(request_id=request_id, value=self._waiting.popleft()))
        if self._ended:
            send(EndOfInput(request_id=request_id))

    def grant(self, credit: int) -> None:
        """Note that so many pieces have been taken."""
        self._credit += credit
        self._changed.set()

    def close(self) -> None:
        """Note that the request is over: who pushes is refused."""
        self._over = True
        self._send = None
        self._waiting.clear()
        self._changed.set()

    async def push(self, value: Input) -> None:
        """Give input; see `Stream.push`."""
        while self._credit == 0 and not (self._ended or self._over):
            self._changed.clear()
            await self._changed.wait()
        if self._ended or self._over:
            raise Conflict("Nothing can be pushed into a stream that has ended. Open another.", code="stream_ended")
        self._credit -= 1
        if self._send is None:
            self._waiting.append(value)
        else:
            self._send(Feed(request_id=self._request_id, value=value))

    async def end(self) -> None:
        """Say that there is no more input; see `Stream.end`."""
        if not self._ended and self._send is not None:
            self._send(EndOfInput(request_id=self._request_id))
        self._ended = True
        self._changed.set()


class Submitting(Protocol):
    """What runs requests elsewhere."""

    def submit(
        self, card: str, request: EngineRequest, inputs: RequestInputs | None = None
    ) -> AsyncGenerator[Output, None]:
        """Run `request` on the engine of `card`, feed it `inputs`, and yield what comes of it."""
        ...


class _FarStream:
    """One stream of an engine elsewhere."""

    def __init__(self, through: Submitting, card: str, request: StreamRequest) -> None:
        self._through = through
        self._card = card
        self._request = request
        self._inputs = RequestInputs()

    async def push(self, value: Input) -> None:
        await self._inputs.push(value)

    async def end(self) -> None:
        await self._inputs.end()

    async def outputs(self) -> AsyncGenerator[Output, None]:
        try:
            async with aclosing(self._through.submit(self._card, self._request, self._inputs)) as outputs:
                async for output in outputs:
                    yield output
        finally:
            self._inputs.close()


class Door:
    """One card's engine elsewhere, through whichever port it keeps; it owns nothing. Whoever opens it knows the card's port."""

    def __init__(self, through: Submitting, card: str) -> None:
        self._through = through
        self._card = card

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Write an answer; see `Engine.generate`."""
        return cast("AsyncGenerator[Delta, None]", self._through.submit(self._card, request))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Embed texts; see `Embedder.embed`."""
        async with aclosing(self._through.submit(self._card, request)) as outputs:
            async for output in outputs:
                return cast("Embeddings", output)
        raise Internal("The model gave nothing. Try again.")

    @overload
    def open(self, request: ActivityRequest) -> Stream[SoundInput, Verdict]: ...
    @overload
    def open(self, request: TranscribeRequest) -> Stream[SoundInput | Flush, TranscriptEvent]: ...
    @overload
    def open(self, request: SynthesizeRequest) -> Stream[str | Flush, SpeechEvent]: ...
    def open(self, request: StreamRequest) -> object:
        """Open a stream; see the port that the request is of."""
        return _FarStream(self._through, self._card, request)

    async def aclose(self) -> None:
        """Do nothing: the worker owns the engine."""
