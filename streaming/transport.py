"""How uvicorn speaks to clients that do not do their part: bounded waits where it has none."""

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from streaming.limits import SurfaceLimits

_LINGER_S = 2.0

_REQUEST_S = 30.0
"""How long a request may take to arrive, from its first byte, or from the connection, to its last."""


def server_config(app: ASGIApp, host: str, port: int, limits: SurfaceLimits) -> uvicorn.Config:
    """Return how uvicorn serves `app`."""
    return _Config(
        app,
        unread_s=limits.send_timeout_s,
        host=host,
        port=port,
        lifespan="off",
        log_level="warning",
        http=_HttpProtocol,
        ws=_WebSocketProtocol,
        ws_max_size=limits.message_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=round(limits.drain_s),
    )


class _Config(uvicorn.Config):
    """Uvicorn's, and how long a client may leave unread what it is sent."""

    def __init__(self, app: ASGIApp, *, unread_s: float, **options: Any) -> None:
        super().__init__(app, **options)
        self.unread_s = unread_s


class _Deadline:
    """Aborts a connection unless it is called off in time."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        self.call_off()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)

    def call_off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class _HttpProtocol(HttpToolsProtocol):
    """Uvicorn's, which waits for ever neither for a request that was begun nor for a client to read its answer."""

    config: _Config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._arrival = _Deadline(transport, _REQUEST_S)
        self._reading = _Deadline(transport, self.config.unread_s)
        self._arrival.set()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._arrival.set()

    def on_message_complete(self) -> None:
        self._arrival.call_off()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._arrival.call_off()
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.set()

    def resume_writing(self) -> None:
        self._reading.call_off()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrival.call_off()
        self._reading.call_off()
        super().connection_lost(exc)


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's, which lets go of a client that does not read what it is sent, the last of it included."""

    config: _Config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._reading = _Deadline(transport, self.config.unread_s)

    async def send(self, message: Any) -> None:  # uvicorn keeps its type to itself
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # A refusal completes the handshake too; uvicorn would log it as a fault of the application.
            self.handshake_complete = True

    async def run_asgi(self) -> None:
        await super().run_asgi()
        # `close` waits for what is buffered to be sent, and a client that does not read would hold it for ever.
        self.loop.call_later(_LINGER_S, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.set()

    def resume_writing(self) -> None:
        self._reading.call_off()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.call_off()
        super().connection_lost(exc)
