"""The application in this process, served on a free port of loopback, with its engine watched."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from memory import keys
from models.clock import Clock
from models.content import Delta
from models.ports.generate import Engine, GenerateRequest
from orchestrator.build import Conductor, conduct
from orchestrator.settings import Settings
from streaming.app import create_app
from streaming.edge.front import Front
from streaming.limits import SurfaceLimits
from streaming.server import server_config


class WatchedEngine:
    """An engine that is watched: the requests it was given, and how many of them it has let go of."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: list[GenerateRequest] = []
        self.let_go = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        try:
            async with aclosing(self.engine.generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self.let_go += 1

    async def aclose(self) -> None:
        await self.engine.aclose()

    @property
    def running(self) -> int:
        return len(self.requests) - self.let_go


@dataclass
class Served:
    """A running application and what it is made of."""

    conductor: Conductor
    app: Front
    address: str
    engine: WatchedEngine
    config: uvicorn.Config

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self.config.open)  # type: ignore[attr-defined]  # ours has it

    def http(self, key: str | None = None, **options: Any) -> httpx.AsyncClient:
        """Return a client of it."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=f"http://{self.address}", headers=headers, timeout=30, **options)

    async def key(self, tenant: str, **options: Any) -> str:
        """Make a key."""
        return await self.conductor.database.write(lambda c: keys.create_key(c, tenant, "test", 1, **options))

    async def until(self, holds: Callable[[], bool], timeout_s: float = 1.0) -> None:
        """Wait for what another task or process brings about; a second is what the design allows most of it."""
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110  # what it looks at sets no event
                await asyncio.sleep(0.005)

    def sample(self, name: str, **labels: str) -> float:
        """Return a metric."""
        return self.conductor.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def serving_app(
    folder: Path,
    *,
    limits: SurfaceLimits,
    loopback: bool = True,
    rules: list[dict[str, Any]] | None = None,
    script: str | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Serve for the length of the block.

    Args:
        folder: of the home.
        limits: of the surfaces.
        loopback: whether it takes itself to be out of others' reach.
        rules: of the scripted engine.
        script: its options, whole.
        clock: of the surfaces; the conductor has the host's.
        settings: of the conductor.
    """
    path = None
    if rules is not None:
        script = json.dumps({"rules": rules})
    if script is not None:
        path = folder / "script.json"
        path.write_text(script)
    async with conduct(Settings(home=folder / "home", script=path, **settings)) as conductor:
        engines: Any = conductor.fleet.engines
        engines["scripted"] = watched = WatchedEngine(engines["scripted"])
        surfaces = conductor if clock is None else replace(conductor, clock=clock)
        app = await create_app(surfaces, limits, loopback=loopback)
        config = server_config(app, "127.0.0.1", 0, limits)
        server = uvicorn.Server(config)
        async with asyncio.TaskGroup() as tasks:
            config.load()
            server.lifespan = config.lifespan_class(config)
            await server.startup()
            loop = tasks.create_task(server.main_loop())
            port = server.servers[0].sockets[0].getsockname()[1]
            try:
                yield Served(conductor=conductor, app=app, address=f"127.0.0.1:{port}", engine=watched, config=config)
            finally:
                server.should_exit = True
                await loop
                await server.shutdown()
