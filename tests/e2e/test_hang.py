"""The worker process lives and does not answer: callers are told in time, and another takes its place."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from support.server import Server, serving

_TURN_S = 4.0
_RULES = [{"pattern": r"^hello$", "reply": "hello"}, {"pattern": "(?s).*", "reply": "long", "gap_s": 60}]


@asynccontextmanager
async def _hung(tmp_path: Path) -> AsyncIterator[tuple[Server, httpx.AsyncClient, psutil.Process]]:
    environment = {"BATON_TURN_TIMEOUT_S": str(_TURN_S)}
    async with (
        serving(tmp_path / "home", rules=_RULES, environment=environment) as server,
        httpx.AsyncClient(base_url=server.address, timeout=60) as client,
    ):
        await _until_ready(client, True)
        (worker,) = psutil.Process(server.pid).children()
        worker.suspend()
        yield server, client, worker


async def _ask(client: httpx.AsyncClient, text: str) -> tuple[int, float]:
    began_s = time.monotonic()
    body: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": text}]}
    response = await client.post("/v1/chat/completions", json=body)
    return response.status_code, time.monotonic() - began_s


async def _until_ready(client: httpx.AsyncClient, is_ready: bool, *, within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while ((await client.get("/readyz")).status_code == 200) != is_ready:  # noqa: ASYNC110  # it is only asked
            await asyncio.sleep(0.1)


async def test_long_requests_to_a_hung_worker_are_answered_in_time_and_it_is_replaced(tmp_path: Path) -> None:
    async with _hung(tmp_path) as (_, client, worker):
        stopped_s = time.monotonic()
        asking = [asyncio.create_task(_ask(client, "x" * 90_000)) for _ in range(20)]
        await _until_ready(client, False, within_s=15)
        for status, took_s in await asyncio.gather(*asking):
            assert status in {503, 504}
            assert took_s < _TURN_S + 1
        await asyncio.to_thread(worker.wait, 30)
        await _until_ready(client, True)
        assert (await _ask(client, "hello"))[0] == 200
        assert time.monotonic() - stopped_s < 60


async def test_a_worker_that_was_stopped_for_two_seconds_is_the_same_afterwards(tmp_path: Path) -> None:
    async with _hung(tmp_path) as (server, client, worker):
        asking = asyncio.create_task(_ask(client, "hello"))
        await asyncio.sleep(2)
        worker.resume()
        status, took_s = await asking
        assert (status, took_s > 1.9) == (200, True)
        assert psutil.Process(server.pid).children() == [worker]


async def test_a_server_stops_in_time_while_its_worker_hangs(tmp_path: Path) -> None:
    async with _hung(tmp_path) as (server, client, worker):
        asking = asyncio.create_task(_ask(client, "x" * 90_000))
        await asyncio.sleep(0.5)
        async with asyncio.timeout(10):
            await server.stop()
        await asyncio.gather(asking, return_exceptions=True)
        assert not worker.is_running()
