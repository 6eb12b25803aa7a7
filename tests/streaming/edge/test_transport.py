"""Clients that do not do their part: they send half a request, or too much of one, or do not read what they are sent."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.app import Served, serving_app

from streaming.limits import SurfaceLimits

Serve = Callable[..., AbstractAsyncContextManager[Served]]

_SOON = SurfaceLimits(request_s=0.3, idle_s=0.3, send_timeout_s=1.0, drain_s=1)
_UPGRADE = (
    b"GET /v1/realtime HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
_POST = b"POST /v1/login HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
_GET = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n"


async def _connect(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = served.address.split(":")
    return await asyncio.open_connection(host, int(port))


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


async def _heard(reader: asyncio.StreamReader, seconds: float = 4) -> bytes:
    """Return all that the server sends until it lets go."""
    heard = b""
    async with asyncio.timeout(seconds):
        with suppress(ConnectionError):
            while read := await reader.read(65536):
                heard += read
    return heard


_HALVES = {
    "nothing": b"",
    "line": b"POST /v1/login HT",
    "headers": b"POST /v1/login HTTP/1.1\r\nhost: 127.0.0.1\r\n",
    "body": _POST + b"content-length: 9\r\n\r\n{",
    "second": _GET + b"\r\nGET /he",
    "idle": _GET + b"\r\n",
    "blank lines after an answer": _GET + b"\r\n\r\n\r\n\r\n",
    "chunk": _POST + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
    "size of a chunk": _POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0000",
    "extension of a chunk": _POST + b"transfer-encoding: chunked\r\n\r\n1;a=b",
    "trailer": _POST + b"transfer-encoding: chunked\r\n\r\n0\r\na: b\r\n",
    "expects to go on": _POST + b"content-length: 9\r\nexpect: 100-continue\r\n\r\n",
    "refused before its body": _POST + b"origin: http://evil.example\r\ncontent-length: 9\r\n\r\n{",
    "upgrade with a body": _UPGRADE + b"content-length: 1\r\n\r\nx",
    "upgrade with a body to come": _UPGRADE + b"content-length: 9\r\n\r\n",
    "upgrade with chunks": _UPGRADE + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "half an upgrade": _UPGRADE,
    "upgrade without a key": _UPGRADE.replace(b"sec-websocket-key", b"x") + b"\r\n",
    "upgrade to something else": _GET + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n" + _GET + b"\r\n",
    "upgrade behind a request": _GET + b"\r\n" + _UPGRADE,
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS where there is none": bytes.fromhex("160301007a010000760303") + b"x" * 40,
    "tunnel": b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n",
}


async def _is_let_go(served: Served, half: bytes, *, drips: bool) -> bool:
    reader, writer = await _connect(served)
    writer.write(half)
    closing = asyncio.create_task(_closed_within(reader, 4))
    while drips and not closing.done():
        # As what was begun would go on, for ever.
        writer.write(b"\r\n" if half.endswith(b"\r\n\r\n\r\n") else b"0")
        await asyncio.wait({closing}, timeout=0.05)
    try:
        return await closing
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "dripping"])
async def test_whatever_is_begun_and_not_finished_is_let_go(serve: Serve, drips: bool) -> None:
    async with serve(limits=_SOON) as served:
        gone = await asyncio.gather(*(_is_let_go(served, half, drips=drips) for half in _HALVES.values()))
        assert [name for name, is_gone in zip(_HALVES, gone, strict=True) if not is_gone] == []
        await served.until(lambda: not served.connections, timeout_s=4)


@pytest.mark.parametrize(
    "half", [_HALVES["upgrade with a body"], _HALVES["upgrade with chunks"], _HALVES["upgrade with a body to come"]]
)
async def test_an_upgrade_with_a_body_is_refused_at_once(serve: Serve, half: bytes) -> None:
    async with serve(limits=SurfaceLimits(drain_s=1)) as served:
        reader, writer = await _connect(served)
        writer.write(half)
        assert (await _heard(reader)).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_a_request_that_is_whole_in_time_may_take_its_time_to_answer(serve: Serve) -> None:
    async with serve(limits=_SOON, rules=[{"pattern": "", "reply": "slowly", "gap_s": 1.0}]) as served:
        reader, writer = await _connect(served)
        body = b'{"messages": [{"role": "user", "content": "go"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {served.address}\r\ncontent-type: application/json\r\n"
        writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        writer.write(b"GET /he")  # what comes after it has its time when the answer has ended
        async with asyncio.timeout(10):
            assert (await reader.readline()).split()[1] == b"200"
            assert b"slowly" in await _heard(reader)
        writer.close()


async def test_requests_that_are_sent_at_once_are_answered_in_turn(serve: Serve) -> None:
    async with serve(limits=_SOON) as served:
        reader, writer = await _connect(served)
        writer.write((_GET + b"\r\n") * 8)
        assert (await _heard(reader)).count(b'{"status":"ok"}') == 8
        writer.close()


async def test_only_so_many_requests_are_taken_ahead_on_one_connection(serve: Serve) -> None:
    async with serve(limits=SurfaceLimits(drain_s=1)) as served:
        reader, writer = await _connect(served)
        writer.write((_GET + b"\r\n") * 10_000)
        heard = await _heard(reader)
        assert 1 <= heard.count(b'{"status":"ok"}') <= 10
        assert b" 500 " not in heard
        writer.close()


async def test_who_leaves_stops_the_answer_also_with_a_request_behind_it(serve: Serve) -> None:
    async with serve(rules=[{"pattern": "", "reply": "x " * 1000, "gap_s": 0.1}]) as served:
        _, writer = await _connect(served)
        body = b'{"messages": [{"role": "user", "content": "go"}], "stream": true}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {served.address}\r\ncontent-type: application/json\r\n"
        writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body + _GET + b"\r\n")
        await served.until(lambda: served.conductor.executor.admission.turns == 1, timeout_s=10)
        writer.transport.abort()
        await served.until(lambda: served.conductor.executor.admission.turns == 0)


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Served]]:
    """A server with small bounds, for the examples of a property."""
    folder: Path = tmp_path_factory.mktemp("bounded")
    limits = SurfaceLimits(header_bytes=2_000, headers=20, line_bytes=500, drain_s=1)
    with asyncio.Runner() as runner:
        up: asyncio.Future[Served] = runner.get_loop().create_future()
        done = asyncio.Event()

        async def serve() -> None:
            async with serving_app(folder, limits=limits) as served:
                up.set_result(served)
                await done.wait()

        serving = runner.get_loop().create_task(serve())
        yield runner, runner.run(_first(up, serving))
        done.set()
        runner.run(_first(serving))


async def _first(*awaited: asyncio.Future[Any]) -> Any:
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    return next(future.result() for future in awaited if future.done())


_NAMES = st.text("abcdefghij-", min_size=1, max_size=40)
_CUTS = st.lists(st.floats(0, 1), max_size=6)


async def _answer_to(served: Served, sent: bytes, cuts: list[float]) -> bytes:
    reader, writer = await _connect(served)
    try:
        at = sorted({int(len(sent) * cut) for cut in cuts} | {0, len(sent)})
        for start, end in pairwise(at):
            writer.write(sent[start:end])
            with suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            return (await reader.readline()).strip()
    finally:
        writer.transport.abort()


@given(
    headers=st.lists(st.tuples(_NAMES, st.integers(0, 900)), max_size=30),
    line=st.integers(1, 1_000),
    cuts=_CUTS,
)
@examples(max_examples=60)
def test_how_much_a_head_may_be_depends_on_its_size_and_number_alone_not_on_its_pieces(
    bounded: tuple[asyncio.Runner, Served], headers: list[tuple[str, int]], line: int, cuts: list[float]
) -> None:
    runner, served = bounded
    lines = [f"host: {served.address}", *(f"x{name}: {'v' * size}" for name, size in headers)]
    sent = f"GET /{'p' * (line - 1)} HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
    status = int(runner.run(_answer_to(served, sent.encode(), cuts)).split()[1])
    size = sum(len(line) + 2 for line in lines)
    expected = 414 if line > 500 else 431 if size > 2_000 or len(lines) > 20 else 404
    assert status == (200 if (expected, line) == (404, 1) else expected)


@given(
    head=st.sampled_from([b"GET /", b"GET / HTTP/1.1\r\na", b"GET / HTTP/1.1\r\na: ", b"GET / HTTP/1.1\r\na: b\r\n"]),
    filler=st.sampled_from([b"a", b" ", b"a: b\r\n"]),
    cuts=_CUTS,
)
@examples(max_examples=30)
def test_a_head_without_end_is_refused_before_it_ends(
    bounded: tuple[asyncio.Runner, Served], head: bytes, filler: bytes, cuts: list[float]
) -> None:
    runner, served = bounded
    sent = head + filler * (1_000_000 // len(filler))
    assert runner.run(_answer_to(served, sent, cuts)).split()[1] in {b"400", b"414", b"431"}


@pytest.mark.parametrize(
    "endless",
    [b"1;" + b"a" * 100_000, b"0\r\n" + b"a: b\r\n" * 20_000, b"0" * 100_000 + b"1\r\n{", b"0\r\na: " + b"b" * 100_000],
    ids=["extension", "trailers", "zeros", "trailer"],
)
async def test_what_frames_a_body_is_bounded_too(serve: Serve, endless: bytes) -> None:
    async with serve() as served:
        reader, writer = await _connect(served)
        writer.write(_POST + b"transfer-encoding: chunked\r\n\r\n")
        for start in range(0, len(endless), 5_000):
            writer.write(endless[start : start + 5_000])
            await asyncio.sleep(0)
        heard = await _heard(reader)
        assert heard.split()[1] in {b"400", b"431"}
        assert heard.count(b"HTTP/1.1 ") == 1
        writer.close()


async def test_a_body_in_the_smallest_chunks_is_taken_and_its_trailers_are_no_headers(serve: Serve) -> None:
    async with serve() as served, served.http() as client:
        key = await served.key("acme")
        body = json.dumps({"key": key}).encode() + b" " * 30_000
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        reader, writer = await _connect(served)
        writer.write(_POST + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + chunks + b"0\r\nx: y\r\n\r\n")
        assert (await _heard(reader)).split()[1] == b"204"
        writer.close()
        assert (await client.get("/healthz")).status_code == 200


async def test_a_large_body_is_taken_and_another_request_behind_it(serve: Serve) -> None:
    async with serve(limits=SurfaceLimits(header_bytes=2_000, drain_s=1)) as served, served.http() as client:
        for _ in range(3):
            body = json.dumps({"key": await served.key("acme")}).encode() + b" " * 900_000
            answer = await client.post("/v1/login", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 204


async def test_a_large_header_takes_none_of_the_loops_time(serve: Serve) -> None:
    async with serve() as served, served.http() as client:
        writers = [(await _connect(served))[1] for _ in range(3)]
        for writer in writers:
            writer.write(b"GET / HTTP/1.1\r\na: " + b"a" * 16_000_000)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await client.get("/healthz")).status_code == 200
        assert loop.time() - began < 2
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize("waits", [b"", _POST, _GET + b"\r\n"], ids=["silent", "half", "idle"])
async def test_who_waits_longest_gives_way_when_all_connections_are_taken(serve: Serve, waits: bytes) -> None:
    async with serve(limits=SurfaceLimits(connections=5, drain_s=1)) as served:
        held = [await _connect(served) for _ in range(12)]
        for _, writer in held:
            writer.write(waits)
        await served.until(lambda: served.connections == 5)
        async with served.http() as client:
            assert (await client.get("/healthz")).status_code == 200
        assert await _closed_within(held[0][0], 2)
        assert not await _closed_within(held[-1][0], 0.1)
        for _, writer in held:
            writer.close()


async def test_who_is_being_answered_never_gives_way_and_the_next_is_told_so(serve: Serve) -> None:
    limits = SurfaceLimits(connections=2, tenant_connections=2, drain_s=1)
    async with serve(limits=limits, rules=[{"pattern": "", "reply": "a b", "gap_s": 0.5}]) as served:
        body = {"messages": [{"role": "user", "content": "go"}]}
        async with served.http() as one, served.http() as two, served.http() as three:
            asked = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for client in (one, two)]
            await served.until(lambda: served.conductor.executor.admission.turns == 2, timeout_s=5)
            refused = await three.get("/healthz")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"]
            assert [(await answer).status_code for answer in asked] == [200, 200]


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
    await served.until(lambda: served.conductor.executor.admission.turns == 1)
    await served.until(lambda: served.conductor.executor.admission.turns == 0, timeout_s=10)
    assert served.sample("baton_turns_total", tenant="local", state="interrupted") == 1
