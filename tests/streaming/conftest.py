"""The application in this process, served on a free port of loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from starlette.types import ASGIApp

from orchestrator.build import Conductor, conduct
from orchestrator.settings import Settings
from streaming.app import create_app
from streaming.limits import SurfaceLimits
from streaming.server import server_config

_LIMITS = SurfaceLimits(drain_s=1)


@dataclass
class Served:
    """A running application and what it is made of."""

    conductor: Conductor
    app: ASGIApp
    address: str


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def run(
        *, limits: SurfaceLimits = _LIMITS, loopback: bool = True, script: str | None = None
    ) -> AsyncIterator[Served]:
        path = None
        if script is not None:
            path = tmp_path / "script.json"
            path.write_text(script)
        async with conduct(Settings(home=tmp_path / "home", script=path)) as conductor:
            app = await create_app(conductor, limits, loopback=loopback)
            config = server_config(app, "127.0.0.1", 0, limits)
            server = uvicorn.Server(config)
            async with asyncio.TaskGroup() as tasks:
                config.load()
                server.lifespan = config.lifespan_class(config)
                await server.startup()
                loop = tasks.create_task(server.main_loop())
                port = server.servers[0].sockets[0].getsockname()[1]
                try:
                    yield Served(conductor=conductor, app=app, address=f"127.0.0.1:{port}")
                finally:
                    server.should_exit = True
                    await loop
                    await server.shutdown()

    return run
