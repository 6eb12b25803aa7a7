"""Processes that a benchmark runs beside itself. Each is ended by the id that it was started with."""

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import aiohttp
import psutil

_START_S = 120.0
_STOP_S = 20.0


class Process:
    """One that runs. `cpu_s` is what it and its children have computed so far."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def cpu_s(self) -> float:
        """Return user and system time in seconds."""
        times = [one.cpu_times() for one in (self._process, *self._process.children(recursive=True))]
        return sum(time.user + time.system for time in times)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(*command: str, answers: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Process]:
    """Run `command` for the length of the block, which begins once a GET of `answers` gives 200.

    Raises:
        RuntimeError: it ends before, or does not answer in time; with the last of what it printed.
    """
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **(environment or {})}, stdout=output, stderr=output
        )
        try:
            if not await _answers(process, answers):
                output.seek(0)
                raise RuntimeError(f"{command[0]} did not start:\n{output.read().decode(errors='replace')[-2000:]}")
            yield Process(process.pid)
        finally:
            await _end(process)


async def _answers(process: asyncio.subprocess.Process, url: str) -> bool:
    began_s = time.monotonic()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while process.returncode is None and time.monotonic() - began_s < _START_S:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return True
            await asyncio.sleep(0.1)
    return False


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
