"""Clients that do not do their part: they send half a request, or do not read what they are sent."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from support.app import Served

from streaming import transport
from streaming.limits import SurfaceLimits

Serve = Callable[..., AbstractAsyncContextManager[Served]]


async def _closed_within(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Whether the server lets go; what it sends before that is not looked at."""
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(65536):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"POST /v1/login HT",
        b"POST /v1/login HTTP/1.1\r\nhost: 127.0.0.1\r\n",
        b"POST /v1/login HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nGET /he",
    ],
    ids=["nothing", "line", "headers", "body", "second"],
)
async def test_a_request_that_is_begun_and_not_finished_is_let_go(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    monkeypatch.setattr(transport, "_REQUEST_S", 0.3)
    async with serve() as served:
        host, port = served.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(half)
        assert await _closed_within(reader, 4)
        writer.close()


async def test_a_request_that_is_whole_in_time_may_take_its_time_to_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_REQUEST_S", 0.3)
    async with serve(rules=[{"pattern": "", "reply": "slowly", "gap_s": 1.0}]) as served:
        host, port = served.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"messages": [{"role": "user", "content": "go"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {served.address}\r\ncontent-type: application/json\r\n"
        writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(10):
            assert (await reader.readline()).split()[1] == b"200"
        writer.close()


@pytest.fixture
async def flooded(serve: Serve) -> AsyncIterator[tuple[Served, socket.socket]]:
    """A client that has asked for ten megabytes, and the server that sends them."""
    rules = [{"pattern": "", "reply": "x" * 10_000 + " ", "times": "1000"}]
    async with serve(limits=SurfaceLimits(send_timeout_s=1.0, drain_s=1), rules=rules) as served:
        host, port = served.address.split(":")
        with socket.socket() as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (host, int(port)))
            body = b'{"messages": [{"role": "user", "content": "go"}], "stream": true}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {served.address}\r\ncontent-length: {len(body)}\r\n"
            await loop.sock_sendall(client, head.encode() + b"content-type: application/json\r\n\r\n" + body)
            yield served, client


async def test_who_reads_slowly_gets_it_all(flooded: tuple[Served, socket.socket]) -> None:
    _, client = flooded
    end = b""
    async with asyncio.timeout(60):
        while b"[DONE]" not in end:
            read = await asyncio.get_running_loop().sock_recv(client, 1 << 18)
            assert read, "it was let go"
            end = (end + read)[-100:]
            await asyncio.sleep(0.02)


async def test_who_never_reads_is_let_go(flooded: tuple[Served, socket.socket]) -> None:
    served, _ = flooded
    await served.until(lambda: served.conductor.band.turns == 1)
    await served.until(lambda: served.conductor.band.turns == 0, timeout_s=10)
    assert served.sample("baton_turns_total", tenant="local", state="interrupted") == 1
