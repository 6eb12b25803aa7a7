"""`baton serve` with a certificate of its own, as it is run."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import websockets
from fastapi import FastAPI
from support.server import Server
from typer.testing import CliRunner
from uvicorn.server import ServerState

from streaming.cli import app
from streaming.edge.transport import server_config
from streaming.limits import SurfaceLimits


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a certificate for this machine, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@asynccontextmanager
async def _serving(home: Path, pair: tuple[Path, Path], log: Path) -> AsyncIterator[Server]:
    with log.open("wb") as said:
        server = Server(home, options=("--tls-cert", str(pair[0]), "--tls-key", str(pair[1])))
        await server.start(stderr=said)
        try:
            yield server
        finally:
            await server.stop()


def _said_to(port: int, data: bytes) -> bytes:
    """Return the first of what a client is answered that sends as soon as it is connected."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(data)
        return client.recv(100)


def _hello() -> bytes:
    """Return what a client begins TLS with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


async def test_with_a_certificate_everything_is_served_over_tls_and_nothing_without(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    log = tmp_path / "log"
    trusted = ssl.create_default_context(cafile=str(pair[0]))
    async with _serving(tmp_path / "home", pair, log) as server:
        assert server.address.startswith("https://127.0.0.1:")
        port = int(server.address.rpartition(":")[2])
        for _ in range(20):  # whether its first bytes come before or after it is looked at
            said = await asyncio.to_thread(_said_to, port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert not said.startswith(b"HTTP/1.1"), "what is not TLS is let go of at once"
            assert await asyncio.to_thread(_said_to, port, _hello()), "what is TLS is answered"
        async with httpx.AsyncClient(base_url=server.address, verify=trusted) as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "stream": True}
            assert (await client.post("/v1/chat/completions", json=body)).text.endswith("data: [DONE]\n\n")
            posted = await client.post("/v1/sessions", json={}, headers={"origin": server.address})
            assert posted.status_code == 201, "the page's own origin"
            made = CliRunner(env={"BATON_HOME": str(server.home)}).invoke(app, ["keys", "create", "--tenant", "acme"])
            login = await client.post("/v1/login", json={"key": made.stdout.strip()})
            assert "Secure" in login.headers["set-cookie"]
        key = {"authorization": f"Bearer {made.stdout.strip()}"}
        async with websockets.connect(
            f"wss://127.0.0.1:{port}/v1/realtime", ssl=trusted, additional_headers=key
        ) as socket:
            assert "session.created" in str(await socket.recv())
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("cert.pem", None, "--tls-cert and --tls-key go together"),
        (None, "key.pem", "--tls-cert and --tls-key go together"),
        ("cert.pem", "nonesuch.pem", "nonesuch.pem cannot be read"),
        ("cert.pem", "cert.pem", "no certificate in PEM with its key"),
        ("key.pem", "key.pem", "no certificate in PEM with its key"),
        ("cert.pem", "locked.pem", "without a password"),
    ],
)
def test_what_is_no_certificate_with_its_key_is_said_in_one_line(
    tmp_path: Path, pair: tuple[Path, Path], cert: str | None, key: str | None, said: str
) -> None:
    folder = pair[0].parent
    if not (locked := folder / "locked.pem").exists():
        asked = ("openssl", "ec", "-aes256", "-passout", "pass:word", "-in", str(pair[1]), "-out", str(locked))
        subprocess.run(asked, check=True, capture_output=True)
    options = [
        *(("--tls-cert", str(folder / cert)) if cert else ()),
        *(("--tls-key", str(folder / key)) if key else ()),
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "streaming", "serve", "--port", "0", *options],
        env={**os.environ, "BATON_HOME": str(tmp_path / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


async def test_a_connection_for_which_there_is_no_room_is_let_go_of_without_a_fault() -> None:
    loop, faults = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    config = server_config(FastAPI(), "127.0.0.1", 0, SurfaceLimits(connections=0), tls=context)
    config.load()
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        door = config.http_protocol_class(config=config, server_state=ServerState(), app_state={}, _loop=loop)
        await loop.connect_accepted_socket(lambda: door, ours)
        assert await asyncio.wait_for(loop.sock_recv(theirs, 1), 5) == b""
    assert faults == []
