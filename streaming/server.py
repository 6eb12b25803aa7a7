"""Runs the application on a socket until a signal says stop."""

import asyncio
import resource
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType

import uvicorn

from memory import keys
from models.errors import BadInput, Conflict
from models.placement.fleet import ServedCards
from orchestrator.build import Conductor, conduct
from orchestrator.settings import Settings
from streaming.app import create_app
from streaming.auth import is_loopback
from streaming.edge.transport import ServerConfig, server_config
from streaming.limits import SurfaceLimits
from streaming.metrics import count_connections

_OTHER_FILES = 256
"""Files that may be open beside connections: the database's, weights', pipes."""


async def serve(
    settings: Settings,
    host: str,
    port: int,
    ready: Callable[[str], None],
    *,
    watch: Callable[[ServedCards], Awaitable[None]] | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then drain and close.

    Draining takes `settings.drain_s` at most: no connection and no turn is taken any more, and those that run go on to
    their end. What still runs then is interrupted, and logged as such. A second signal ends the wait.

    Args:
        settings: of the conductor.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        ready: called with the page's address once connections are taken, which is before a model is up.
        watch: runs beside the server, to show how its models come up.
        tls: how to speak TLS, if it does.

    Raises:
        BadInput: `host` can be reached from outside and no key was ever made.
        Conflict: another server holds the home, or the address.
    """
    limits = _within_open_files(SurfaceLimits())
    loopback = is_loopback(host)
    async with conduct(settings) as conductor:
        if not loopback and not await conductor.database.read(keys.any_key):
            raise BadInput(
                f"{host} can be reached from other machines, and there is no key yet. Make one with "
                "`baton keys create --tenant NAME`, or serve on 127.0.0.1."
            )
        config = server_config(await create_app(conductor, limits, loopback=loopback), host, port, limits, tls=tls)
        count_connections(conductor.registry, config.open)
        with _listener(host, port) as listener:
            async with asyncio.TaskGroup() as tasks:
                watching = None if watch is None else tasks.create_task(_run(watch, conductor.fleet))
                await _Server(config, conductor, ready).serve([listener])
                if watching is not None:
                    watching.cancel()


def _within_open_files(limits: SurfaceLimits) -> SurfaceLimits:
    """Ask the system for as many open files as the connections need, and take no more of them than it gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        with suppress(OSError, ValueError):  # some systems give less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limits = replace(limits, connections=min(limits.connections, max(soft - _OTHER_FILES, soft // 2)))
    return limits


async def _run(watch: Callable[[ServedCards], Awaitable[None]], fleet: ServedCards) -> None:
    await watch(fleet)


def _listener(host: str, port: int) -> socket.socket:
    """Listen; uvicorn would end the process itself if the address were taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as exc:
        raise Conflict(
            f"{host}:{port} cannot be listened on: {exc.strerror}. Choose another --port or --host."
        ) from exc


class _Server(uvicorn.Server):
    """Uvicorn, which says when it is ready, drains, and leaves the process to whoever called it."""

    def __init__(self, config: ServerConfig, conductor: Conductor, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._scheme = "http" if config.tls is None else "https"
        self._conductor = conductor
        self._ready = ready
        self._hurry = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = self.config.host, sockets[0].getsockname()[1]
            self._ready(f"{self._scheme}://{f'[{host}]' if ':' in host else host}:{port}/")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._hurry.set()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        draining = asyncio.ensure_future(self._conductor.drain())
        hurried = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, hurried):
            task.cancel()
        # Now: with their session, event streams and websockets end, for which uvicorn would wait.
        await self._conductor.sessions.stop()
        await super().shutdown(sockets)

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
