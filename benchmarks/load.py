"""The load generator: a process of its own that asks for answers and notes when each word comes.

It reads plans from its standard input, one a line of JSON, and writes what it saw of each. It speaks HTTP and websockets
on bare `asyncio.Protocol`s, as little of them as these servers need, so that it is not what is measured.
"""

import asyncio
import gc
import itertools
import json
import random
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast
from urllib.parse import urlsplit

import uvloop
from pydantic import TypeAdapter

from models.catalog import EngineSpec
from models.clock import SystemClock
from models.content import Message, TextDelta, TextPart
from models.placement.engines import build_engine
from models.ports.context import EngineContext
from models.ports.generate import Engine, GenerateRequest

Surface = Literal["rest", "websocket", "engine"]

_PATIENCE_S = 30.0
_SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to ask, and how often: at random moments (Poisson) with a mean `rate`, or by `clients` without a pause.

    Attributes:
        surface: what is spoken; `engine` is the scripted engine with nothing around it.
        address: of the server, or the options of the engine.
        model: that is asked for.
        text: what it is told.
        seconds: how long to ask, or for clients, to count.
        warm_s: how long clients ask before that.
        rate: requests a second, whether the ones before were answered or not.
        clients: that each ask as soon as they have been answered.
    """

    surface: Surface
    address: str
    model: str = ""
    text: str = "go"
    seconds: float
    warm_s: float = 0.0
    rate: float | None = None
    clients: int = 0


@dataclass(slots=True, kw_only=True)
class Seen:
    """What came of a plan: the times to first words and between words, and how many were not answered.

    `total` counts every answer, also those of warming up.
    """

    first_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    failed: int = 0
    total: int = 0

    @property
    def answered(self) -> int:
        """How many were answered."""
        return len(self.first_ms)

    def note(self, asked_s: float, words_s: list[float]) -> None:
        """Add an answer; one without words is a failure."""
        if not words_s:
            self.failed += 1
            return
        self.first_ms.append((words_s[0] - asked_s) * 1000)
        self.gap_ms += [(after - before) * 1000 for before, after in itertools.pairwise(words_s)]


PLAN = TypeAdapter(Plan)
SEEN = TypeAdapter(Seen)


class _Line(Protocol):
    """A connection that carries one answer at a time."""

    async def ask(self) -> list[float]:
        """Ask, and return when each word came; nothing if the answer failed."""
        ...


class _Connection(asyncio.Protocol):
    """What both surfaces share: asking, and waiting for the end of the answer."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._words_s: list[float] = []
        self._answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # of a stream socket

    def connection_lost(self, _exc: Exception | None) -> None:
        self._end(whole=False)

    async def _ask(self, request: bytes) -> list[float]:
        self._words_s = []
        self._answered = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            return []
        self._transport.write(request)
        return self._words_s if await self._answered else []

    def _end(self, *, whole: bool) -> None:
        if not self._answered.done():
            self._answered.set_result(whole)


class _Rest(_Connection):
    """Chat completions; the end of the chunked body ends the answer."""

    _WORD = re.compile(rb'"content":\s*"[^"]')
    _TAIL = 32  # longer than a word's pattern, and than what follows the last event

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        url = urlsplit(plan.address)
        body = json.dumps(
            {
                "model": plan.model,
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [{"role": "user", "content": plan.text}],
            }
        )
        head = f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        self._tail = b""
        self._in_body = False

    async def ask(self) -> list[float]:
        self._tail, self._in_body = b"", False
        return await self._ask(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        data = self._tail + data
        if not self._in_body:
            head, end, body = data.partition(b"\r\n\r\n")
            if not end:
                self._tail = data
                return
            self._in_body, data = True, body
            if b" 200 " not in head:
                self._transport.abort()
                return
        past = 0
        for word in self._WORD.finditer(data):
            self._words_s.append(now_s)
            past = word.end()
        self._tail = data[max(past, len(data) - self._TAIL) :]
        if self._tail.endswith(b"0\r\n\r\n"):
            self._end(whole=b"[DONE]" in self._tail)


class _Websocket(_Connection):
    """The Realtime API, in a session of its own. Frames of a client have to be masked; its mask here is 0."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._url = urlsplit(plan.address)
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": plan.text}]}
        self._request = b"".join(
            _frame(json.dumps(event).encode())
            for event in ({"type": "conversation.item.create", "item": item}, {"type": "response.create"})
        )
        self._received = b""
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        head = f"GET {self._url.path}?{self._url.query} HTTP/1.1\r\nHost: {self._url.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        self._transport.write(f"{head}{key}\r\n".encode())

    async def opened(self) -> None:
        await self._answered

    async def ask(self) -> list[float]:
        return await self._ask(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        self._received += data
        if not self._open:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            self._received, self._open = rest, True
            self._end(whole=b" 101 " in head)
        while (frame := self._next()) is not None:
            opcode, payload = frame
            if opcode == 9:
                self._transport.write(_frame(payload, opcode=10))
            elif b'"response.output_text.delta"' in payload:
                self._words_s.append(now_s)
            elif b'"response.done"' in payload:
                self._end(whole=b'"completed"' in payload)

    def _next(self) -> tuple[int, bytes] | None:
        """Return the next whole frame's opcode and payload."""
        received = self._received
        if len(received) < 10 and len(received) < 2 + (received[1] if len(received) > 1 else 0):
            return None
        size, start = received[1], 2
        if size == 126:
            size, start = int.from_bytes(received[2:4]), 4
        elif size == 127:
            size, start = int.from_bytes(received[2:10]), 10
        if len(received) < start + size:
            return None
        self._received = received[start + size :]
        return received[0] & 15, received[start : start + size]


def _frame(payload: bytes, *, opcode: int = 1) -> bytes:
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
    return bytes([0x80 | opcode]) + size + bytes(4) + payload


class _Engine:
    """The scripted engine alone."""

    def __init__(self, plan: Plan) -> None:
        spec = EngineSpec(name="scripted", options=plan.address)
        self._engine = cast("Engine", build_engine(spec, EngineContext(clock=SystemClock())))
        said = Message(item_id="a", role="user", parts=(TextPart(text=plan.text),))
        self._request = GenerateRequest(messages=(said,), tenant="local")

    async def ask(self) -> list[float]:
        deltas = self._engine.generate(self._request)
        return [time.perf_counter() async for delta in deltas if isinstance(delta, TextDelta)]


async def _connect(plan: Plan) -> _Line:
    if plan.surface == "engine":
        return _Engine(plan)
    url = urlsplit(plan.address)
    loop = asyncio.get_running_loop()
    host, port = url.netloc.split(":")
    if plan.surface == "rest":
        return (await loop.create_connection(lambda: _Rest(plan), host, int(port)))[1]
    _, line = await loop.create_connection(lambda: _Websocket(plan), host, int(port))
    await line.opened()
    return line


async def _ask(line: _Line) -> list[float]:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await line.ask()
    except TimeoutError:
        return []


async def _at_a_rate(plan: Plan, rate: float, seen: Seen) -> None:
    """Ask at random moments; lines are open before, and used again."""
    arrivals = random.Random(_SEED)
    idle = [await _connect(plan) for _ in range(max(2, round(rate)))]
    await asyncio.gather(*map(_ask, idle))
    seen.total += len(idle)

    async def ask() -> None:
        line = idle.pop() if idle else await _connect(plan)
        asked_s = time.perf_counter()
        words_s = await _ask(line)
        seen.note(asked_s, words_s)
        seen.total += 1
        if words_s:
            idle.append(line)

    at_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(round(rate * plan.seconds)):
            at_s += arrivals.expovariate(rate)
            await asyncio.sleep(at_s - time.perf_counter())
            tasks.create_task(ask())


async def _without_a_pause(plan: Plan, seen: Seen) -> None:
    """Ask again and again; clients do not begin together. What is answered within the time counts."""
    begin = random.Random(_SEED)
    lines = await asyncio.gather(*(_connect(plan) for _ in range(plan.clients)))
    first_s = time.perf_counter() + plan.warm_s
    last_s = first_s + plan.seconds

    async def ask(line: _Line) -> None:
        await asyncio.sleep(begin.uniform(0, plan.warm_s / 2))
        while (asked_s := time.perf_counter()) < last_s:
            words_s = await _ask(line)
            seen.total += 1
            if first_s <= time.perf_counter() < last_s:
                seen.note(asked_s, words_s)
            if not words_s:
                line = await _connect(plan)

    async with asyncio.TaskGroup() as tasks:
        for line in lines:
            tasks.create_task(ask(line))


async def _run(plan: Plan) -> Seen:
    seen = Seen()
    if plan.rate is None:
        await _without_a_pause(plan, seen)
    else:
        await _at_a_rate(plan, plan.rate, seen)
    return seen


def main() -> None:
    """Carry plans out until there are no more."""
    gc.disable()
    for line in sys.stdin:
        seen = uvloop.run(_run(PLAN.validate_json(line)))
        sys.stdout.write(SEEN.dump_json(seen).decode() + "\n")
        sys.stdout.flush()
        gc.collect()


if __name__ == "__main__":
    main()
