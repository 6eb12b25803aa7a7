"""Runs the application on a socket until a signal says stop."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from memory import keys
from models.errors import BadInput, Conflict
from orchestrator.build import conduct
from orchestrator.settings import Settings
from streaming.app import create_app
from streaming.auth import is_loopback
from streaming.limits import SurfaceLimits

_LINGER_S = 2.0


async def serve(settings: Settings, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then drain and close.

    Args:
        settings: of the conductor.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        ready: called with the page's address once connections are taken.

    Raises:
        BadInput: `host` can be reached from outside and no key was ever made.
        Conflict: another server holds the home, or the address.
    """
    limits = SurfaceLimits()
    loopback = is_loopback(host)
    async with conduct(settings) as conductor:
        if not loopback and not await conductor.database.read(keys.any_key):
            raise BadInput(
                f"{host} can be reached from other machines, and there is no key yet. Make one with "
                "`baton keys create --tenant NAME`, or serve on 127.0.0.1."
            )
        config = server_config(await create_app(conductor, limits, loopback=loopback), host, port, limits)
        with _listener(host, port) as listener:
            await _Server(config, ready).serve([listener])


def _listener(host: str, port: int) -> socket.socket:
    """Listen; uvicorn would end the process itself if the address were taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as exc:
        raise Conflict(
            f"{host}:{port} cannot be listened on: {exc.strerror}. Choose another --port or --host."
        ) from exc


def server_config(app: ASGIApp, host: str, port: int, limits: SurfaceLimits) -> uvicorn.Config:
    """Return how uvicorn serves `app`."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="off",
        log_level="warning",
        ws=_WebSocketProtocol,
        ws_max_size=limits.message_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=round(limits.drain_s),
    )


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's, which lets go of a client that does not take the last that it is sent."""

    async def send(self, message: Any) -> None:  # uvicorn keeps its type to itself
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # A refusal completes the handshake too; uvicorn would log it as a fault of the application.
            self.handshake_complete = True

    async def run_asgi(self) -> None:
        await super().run_asgi()
        # `close` waits for what is buffered to be sent, and a client that does not read would hold it for ever.
        self.loop.call_later(_LINGER_S, self.transport.abort)


class _Server(uvicorn.Server):
    """Uvicorn, which says when it is ready and leaves the process to whoever called it."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = self.config.host, sockets[0].getsockname()[1]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Uvicorn's own would raise the signal again after serving, before the conductor is closed.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
