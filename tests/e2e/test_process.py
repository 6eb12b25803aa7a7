"""The server as a process: what it loads, how it starts and how it stops."""

import asyncio
import importlib.util
import json
import os
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
    assert {"streaming", "orchestrator", "langgraph"} <= loaded
    assert not {"torch", "transformers", "numpy"} & loaded


async def test_a_stop_ends_the_process_and_its_worker_and_logs_the_turn_it_cut_off(tmp_path: Path) -> None:
    server = Server(tmp_path / "home", gap_s=0.05)
    await server.start()
    family = psutil.Process(server.pid).children(recursive=True)
    async with server.connect() as socket:
        await say(socket, "count to 1000")
        await until(socket, "response.output_text.delta")
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


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_binding_beyond_loopback_without_a_key_is_refused_with_the_remedy(tmp_path: Path, host: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "streaming", "serve", "--host", host, "--port", "0"],
        env={**os.environ, "BATON_HOME": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 1
    assert "baton keys create" in ran.stderr
