"""What one client sends over its websocket, one message after another."""

import asyncio

from starlette.websockets import WebSocket

from streaming.sse import Disconnected


class Inbox:
    """What the client sends, with a look at what has arrived already."""

    def __init__(self, websocket: WebSocket, tasks: asyncio.TaskGroup) -> None:
        """Read `websocket`, ahead of time in one of `tasks`, which end with the connection."""
        self._websocket = websocket
        self._tasks = tasks
        self._reading: asyncio.Task[str | None] | None = None

    async def next(self) -> str:
        """Return the next message.

        Raises:
            Disconnected: the client has gone.
        """
        reading, self._reading = self._reading, None
        text = await (self._read() if reading is None else reading)
        if text is None:
            raise Disconnected
        return text

    async def arrived(self) -> str | None:
        """Return the next message if it has arrived, and take it; else None, also if the client has gone."""
        if self._reading is None:
            self._reading = self._tasks.create_task(self._read())
            await asyncio.sleep(0)
        if not self._reading.done() or self._reading.result() is None:
            return None
        return await self.next()

    async def _read(self) -> str | None:
        # None rather than an error, which would end the connection's tasks: what was asked before is done first.
        message = await self._websocket.receive()
        return None if message["type"] == "websocket.disconnect" else str(message.get("text") or "")
