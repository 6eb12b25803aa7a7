"""The stream response by itself: a client and a clock that do exactly what the test says."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sse import Event, Parser, parse

from models.clock import ManualClock
from models.errors import Internal, NotFound
from streaming.wire.sse import EventStream, event

_CHUNKS = (event('{"n": 1}'), event('{"n": 2}'))


class _Client:
    """Takes what it is sent while it reads, and can go."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reading.wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent if "body" in message)

    @property
    def kinds(self) -> list[str]:
        return [message["type"].removeprefix("http.response.") for message in self.sent]


class _Source:
    """Chunks that come when they are let, and whether they were closed."""

    def __init__(self, chunks: Iterable[bytes | BaseException] = ()) -> None:
        self.queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self.closed = False
        for chunk in chunks:
            self.queue.put_nowait(chunk)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            while (chunk := await self.queue.get()) is not None:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
        finally:
            self.closed = True


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def _served(source: _Source, client: _Client, clock: ManualClock) -> AsyncIterator[asyncio.Task[None]]:
    stream = EventStream(source.chunks(), clock)
    task = asyncio.create_task(stream({"type": "http"}, client.receive, client.send))
    await _settle()
    yield task
    client.gone.set()
    async with asyncio.timeout(5):
        await asyncio.wait({task})
    assert source.closed


async def test_the_status_comes_with_the_first_chunk_and_the_end_after_the_last() -> None:
    source, client = _Source(), _Client()
    async with _served(source, client, ManualClock()) as task:
        assert client.sent == []
        for chunk in (*_CHUNKS, None):
            source.queue.put_nowait(chunk)
        await task
    assert client.kinds == ["start", "body", "body", "body"]
    headers = dict(client.sent[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"
    assert b"content-length" not in headers
    assert [event.json() for event in parse(client.body)] == [{"n": 1}, {"n": 2}]
    assert [message["more_body"] for message in client.sent[1:]] == [True, True, False]


async def test_what_fails_before_the_first_chunk_is_raised_for_a_status_of_its_own() -> None:
    source, client = _Source([NotFound("There is none.")]), _Client()
    async with _served(source, client, ManualClock()) as task:
        with pytest.raises(NotFound):
            await task
    assert client.sent == []


async def test_what_fails_after_it_is_an_event_in_the_shape_of_every_error_and_the_end() -> None:
    source, client = _Source([_CHUNKS[0], Internal("It broke\nin two.")]), _Client()
    async with _served(source, client, ManualClock()) as task:
        await task
    _, failed = parse(client.body)
    assert failed.json() == {
        "error": {"message": "It broke\nin two.", "type": "server_error", "param": None, "code": "internal"}
    }
    assert client.sent[-1]["more_body"] is False


async def test_a_chunk_that_is_slow_to_come_is_bridged_by_comments_also_before_the_first() -> None:
    source, client, clock = _Source(), _Client(), ManualClock()
    async with _served(source, client, clock):
        for _ in range(3):
            clock.advance(14.9)
            await _settle()
            source.queue.put_nowait(_CHUNKS[0])
            await _settle()
        assert b":" not in client.body.replace(b"data: ", b"").replace(b'"n": ', b""), "nothing was slow"
        for _ in range(2):
            clock.advance(15)
            await _settle()
    parser = Parser()
    assert len(parser.feed(client.body)) == 3
    assert len(parser.comments) == 2
    source, client = _Source(), _Client()
    async with _served(source, client, clock):
        clock.advance(15)
        await _settle()
        assert client.kinds == ["start", "body"]
        source.queue.put_nowait(NotFound("It is too late for a status."))
        await _settle()
        assert parse(client.body)[0].json()["error"]["code"] == "not_found"


async def test_a_client_that_goes_stops_the_chunks() -> None:
    source, client = _Source(_CHUNKS), _Client()
    async with _served(source, client, ManualClock()) as task:
        client.gone.set()
        async with asyncio.timeout(5):
            await task
        assert source.closed
        assert task.exception() is None


async def test_waiting_for_a_client_that_does_not_read_costs_no_turns_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, client, clock = _Source(), _Client(), ManualClock()
    async with _served(source, client, clock):
        client.reading.clear()
        source.queue.put_nowait(_CHUNKS[0])
        await _settle()
        clock.advance(20)  # past the time of a comment
        await _settle()
        looked = 0
        now_s = clock.now_s

        def look() -> float:
            nonlocal looked
            looked += 1
            return now_s()

        monkeypatch.setattr(clock, "now_s", look)
        await _settle()
        assert looked == 0


@given(
    data=st.dictionaries(st.text(), st.text()).map(partial(json.dumps, ensure_ascii=False)),
    kind=st.none() | st.just("response.done"),
    seq=st.none() | st.integers(0, 10**12),
    cuts=st.lists(st.integers(0, 200)),
)
def test_an_event_reads_as_it_was_written_however_it_is_cut(
    data: str, kind: str | None, seq: int | None, cuts: list[int]
) -> None:
    sent = event(data, kind=kind, seq=seq) * 2
    parser, read, at = Parser(), [], 0
    for cut in [*sorted(cuts), len(sent)]:
        read += parser.feed(sent[at:cut])
        at = max(at, cut)
    parser.close()
    assert read == [Event(data=data, kind=kind, seq=seq)] * 2
