"""The server as a process: what it loads, how it starts and how it stops."""

import asyncio
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from support.server import Server, say, serving, until

_ONE_TURN = """
import asyncio, json, sys
from pathlib import Path
from orchestrator.settings import Settings
from streaming.server import serve
import websockets

async def turn(address):
    async with websockets.connect(address.replace("http", "ws") + "v1/realtime") as socket:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "count to 3"}]}
        await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        await socket.send(json.dumps({"type": "response.create"}))
        while json.loads(await socket.recv())["type"] != "response.done":
            pass

async def main():
    ready = asyncio.get_running_loop().create_future()
    server = asyncio.ensure_future(serve(Settings(home=Path(sys.argv[1])), "127.0.0.1", 0, ready.set_result))
    await turn(await ready)
    print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
    server.cancel()

asyncio.run(main())
"""


def test_the_gateway_has_loaded_no_torch_after_answering_a_turn(tmp_path: Path) -> None:
    assert importlib.util.find_spec("torch"), "torch has to be installed for this to mean anything"
    assert importlib.util.find_spec("transformers")
    ran = subprocess.run(
        [sys.executable, "-c", _ONE_TURN, str(tmp_path / "home")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(json.loads(ran.stdout.splitlines()[-1]))
    assert {"streaming", "orchestrator"} <= loaded
    assert not {"torch", "transformers", "numpy", "langgraph"} & loaded


async def test_a_stop_ends_the_process_and_its_worker_and_logs_the_turn_it_cut_off(tmp_path: Path) -> None:
    server = Server(tmp_path / "home", gap_s=0.05)
    await server.start()
    family = psutil.Process(server.pid).children(recursive=True)
    async with server.connect() as client:
        await say(client, "count to 1000")
        await until(client, "response.output_text.delta")
        status = await server.stop()
    assert status == 0
    _gone, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    with closing(sqlite3.connect(tmp_path / "home" / "baton.sqlite3")) as connection:
        (body,) = connection.execute("SELECT body FROM events WHERE kind = 'turn_ended'").fetchone()
    assert (json.loads(body)["state"], json.loads(body)["reason"]) == ("interrupted", "server_stopped")


async def test_a_second_server_on_the_same_home_is_told_who_holds_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "home") as server:
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "streaming", "serve", "--port", "0"),
            env={**os.environ, "BATON_HOME": str(tmp_path / "home"), "COLUMNS": "200"},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(second.communicate(), 30)
        assert second.returncode == 1
        assert f"in use by process {server.pid}" in said.decode()


async def test_a_signal_to_the_whole_process_group_ends_the_turn_as_a_stop_and_not_as_a_death(tmp_path: Path) -> None:
    server = Server(tmp_path / "home", gap_s=0.05)
    await server.start(start_new_session=True)
    async with server.connect() as client:
        await say(client, "count to 1000")
        await until(client, "response.output_text.delta")
        os.killpg(server.pid, signal.SIGTERM)
        assert await server.stop() == 0
    with closing(sqlite3.connect(tmp_path / "home" / "baton.sqlite3")) as connection:
        (body,) = connection.execute("SELECT body FROM events WHERE kind = 'turn_ended'").fetchone()
    assert json.loads(body)["reason"] == "server_stopped"


def _start(home: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a server that cannot start, and return what it said."""
    return subprocess.run(
        [sys.executable, "-m", "streaming", "serve", "--port", "0", *options],
        env={**os.environ, "BATON_HOME": str(home), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _is_explained(ran: subprocess.CompletedProcess[str], words: str) -> None:
    assert ran.returncode == 1
    assert words in ran.stderr
    assert ran.stderr.startswith("baton: "), "the user is shown the error and not the code it came from"
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_binding_beyond_loopback_without_a_key_is_refused_with_the_remedy(tmp_path: Path, host: str) -> None:
    _is_explained(_start(tmp_path, "--host", host), "baton keys create")


def test_a_setting_that_does_not_fit_is_named(tmp_path: Path) -> None:
    _is_explained(_start(tmp_path, BATON_TURN_TIMEOUT_S="soon"), "BATON_TURN_TIMEOUT_S")


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    _is_explained(_start(tmp_path, BATON_SCRIPT="/nonesuch.json"), "BATON_SCRIPT names /nonesuch.json")


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    database = tmp_path / "baton.sqlite3"
    database.touch(mode=0o600)
    database.write_text("this is no database, and long enough to be taken for a broken one" * 100)
    _is_explained(_start(tmp_path), "baton.sqlite3 cannot be opened")


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _is_explained(_start(tmp_path, "--port", str(port)), f"127.0.0.1:{port} cannot be listened on")
