"""The server as its users run it: a process of its own, on loopback and a free port."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

_READY_S = 60
_STOP_S = 20


class Server:
    """`baton serve`, started and ended by its own process id."""

    def __init__(
        self,
        home: Path,
        *,
        rules: list[dict[str, Any]] | None = None,
        gap_s: float = 0.0,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.home = home
        self._options = options
        self._environment = environment or {}
        self._rules = rules
        self._gap_s = gap_s
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, **spawn: Any) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        environment = {
            "BATON_MODELS": "scripted",
            "BATON_DRAIN_S": "0.2",
            **os.environ,
            "BATON_HOME": str(self.home),
            **self._environment,
        }
        if self._rules is not None or self._gap_s:
            script = self.home.parent / f"{self.home.name}-script.json"
            options: dict[str, Any] = {"gap_s": self._gap_s}
            if self._rules is not None:
                options["rules"] = self._rules
            script.write_text(json.dumps(options))
            environment["BATON_SCRIPT"] = str(script)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "streaming", "serve", "--port", "0"),
            *self._options,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            **spawn,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(_READY_S):
            while True:
                line = (await self._process.stdout.readline()).decode()
                assert line, "the server ended before it was ready"
                if "://" in line:
                    self.address = line.split()[-1].rstrip("/")
                    return

    async def kill(self) -> None:
        """SIGKILL, at once."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM; return the exit status."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        async with asyncio.timeout(_STOP_S):
            status = await process.wait()
        # Lets go of the pipe, which asyncio would otherwise warn of.
        process._transport.close()  # type: ignore[attr-defined]
        return status

    def connect(self, query: str = "", **options: Any) -> websockets.connect:
        """Open the realtime websocket."""
        address = self.address.replace("http", "ws")
        return websockets.connect(f"{address}/v1/realtime{query}", **options)


@asynccontextmanager
async def serving(home: Path, **options: Any) -> AsyncIterator[Server]:
    """Run a server for the length of the block."""
    server = Server(home, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def send(socket: ClientConnection, **event: Any) -> None:
    """Send a client event."""
    await socket.send(json.dumps(event))


async def receive(socket: ClientConnection, timeout_s: float = 20) -> dict[str, Any]:
    """Receive a server event."""
    async with asyncio.timeout(timeout_s):
        event: dict[str, Any] = json.loads(await socket.recv())
    return event


async def until(socket: ClientConnection, *kinds: str, timeout_s: float = 20) -> list[dict[str, Any]]:
    """Receive up to and with the first event of one of `kinds`."""
    events = []
    async with asyncio.timeout(timeout_s):
        while True:
            event = json.loads(await socket.recv())
            events.append(event)
            if event["type"] in kinds:
                return events


async def say(socket: ClientConnection, text: str, *, item_id: str | None = None) -> None:
    """Add a message of the user and ask for a response."""
    content = [{"type": "input_text", "text": text}]
    item: dict[str, Any] = {"type": "message", "role": "user", "content": content}
    if item_id is not None:
        item["id"] = item_id
    await send(socket, type="conversation.item.create", item=item)
    await send(socket, type="response.create")


def words(events: list[dict[str, Any]]) -> str:
    """Return the text of the deltas among `events`."""
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def count(to: int) -> str:
    """Return what the scripted engine says to `count to N`."""
    return "".join(f"{n} " for n in range(1, to + 1))
