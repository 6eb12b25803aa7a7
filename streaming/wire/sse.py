"""Server-sent events (WHATWG HTML, section 9.2), and answers that stop with their client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from models.clock import Clock, sleep_until
from models.errors import BatonError
from streaming.wire.errors import error_body

_PING_S = 15.0
_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}


class Disconnected(Exception):
    """The client has gone."""


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[asyncio.TaskGroup]:
    """Run the block until its end or until the client goes, which cancels it. Yields a group for what runs beside it."""
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_watch(receive))
            yield tasks
            watching.cancel()
    except* Disconnected:
        pass


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise Disconnected


class EventStream(Response):
    """Sends chunks as they come. One that is slow to come is bridged by a comment, so that proxies keep the connection.

    The status is sent with the first chunk: what fails before is an HTTP error like any other, what fails after is an
    event with an `error`, and the end.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        clock: Clock,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take the chunks, each one or more whole events; they are closed at the end, or when the client goes."""
        super().__init__()
        del self.headers["content-length"]
        self.headers.update({**_HEADERS, **(headers or {})})
        self._chunks = chunks
        self._clock = clock
        self._started = False
        self._sent_s = clock.now_s()
        self._sending = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        failure: BatonError | None = None
        async with while_connected(receive) as tasks, aclosing(self._chunks) as chunks:
            pinging = tasks.create_task(self._ping(send))
            try:
                async for chunk in chunks:
                    await self._write(send, chunk)
                await self._write(send, b"", more=False)
            except BatonError as exc:
                if self._started:
                    await self._write(send, event(error_body(exc)), more=False)
                else:
                    failure = exc  # raised outside of the task group, which would wrap it
            pinging.cancel()
        if failure is not None:
            raise failure

    async def _ping(self, send: Send) -> None:
        """Bridge what is slow to come. What is slow to be read needs no bridge."""
        while True:
            now_s = self._clock.now_s()
            if now_s < self._sent_s + _PING_S:
                await sleep_until(self._clock, self._sent_s + _PING_S)
            elif self._sending.locked():
                await sleep_until(self._clock, now_s + _PING_S)
            else:
                await self._write(send, b": still here\n\n")

    async def _write(self, send: Send, chunk: bytes, *, more: bool = True) -> None:
        async with self._sending:
            self._sent_s = self._clock.now_s()
            if not self._started:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                self._started = True
            await send({"type": "http.response.body", "body": chunk, "more_body": more})


def event(data: str, *, kind: str | None = None, seq: int | None = None) -> bytes:
    """Return one event; `data` is a line of JSON text."""
    head = f"event: {kind}\n" if kind else ""
    if seq is not None:
        head += f"id: {seq}\n"
    return f"{head}data: {data}\n\n".encode()
