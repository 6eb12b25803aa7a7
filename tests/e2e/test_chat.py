"""`baton chat` as it is used: by somebody at a keyboard, and by scripts."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from support.server import Server, count, serving
from support.terminal import ALT_ENTER, CTRL_C, CTRL_D, Terminal

_RULES = [
    {"pattern": r"^count to (\d+)$", "reply": "{n} ", "times": r"\1"},
    {"pattern": r"^slowly count to (\d+)$", "reply": "{n} ", "times": r"\1", "gap_s": 0.05},
    {"pattern": r"^recipe$", "reply": "# Soup\n\n1. **Cut** it\n2. Boil it\n\n```python\nboil()\n```\n"},
    {"pattern": r"^fail$", "reply": "I am about to ", "fault": "error"},
    {"pattern": r"(?s)(.*)", "reply": "You said: \\1"},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with serving(tmp_path_factory.mktemp("chat") / "home", rules=_RULES) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


def _chat(server: Server, *arguments: str) -> Terminal:
    command = ("-m", "streaming", "chat", "--url", server.address, *arguments)
    return Terminal(*command, BATON_HOME=str(server.home.parent / "client"))


async def _script(*arguments: str, typed: str | None = None, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streaming", "chat", *arguments),
        env={**os.environ, **environment},
        stdin=DEVNULL if typed is None else PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate(None if typed is None else typed.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def test_answers_stream_with_their_route_and_times_two_in_a_row(server: Server) -> None:
    async with _chat(server) as terminal:
        await terminal.shows("lists the commands.*▸")
        terminal.say("slowly count to 30")
        await terminal.shows(r"1 2 3(?! 4 5 6 7 8 9 10 11 12 13 14 15)")
        await terminal.shows(r"29 30.*scripted · .*decided \d+ ms · first word .* · total .* · 30 tokens, \d+/s.*▸")
        terminal.type(f"two{ALT_ENTER}")
        terminal.say("lines")
        await terminal.shows(r"You said: two\s+lines\s.*tokens.*▸")
        terminal.say("recipe")
        await terminal.shows(r"Soup.*1 Cut it.*2 Boil it.*boil\(\).*tokens.*▸")
        terminal.type(CTRL_D)
        assert await terminal.ends() == 0


async def test_ctrl_c_stops_an_answer_and_stays(server: Server) -> None:
    async with _chat(server) as terminal:
        await terminal.shows("▸")
        terminal.say("slowly count to 5000")
        await terminal.shows("1 2 3 4 5")
        terminal.type(CTRL_C)
        await terminal.shows("Stopped.*▸")
        terminal.say("count to 3")
        await terminal.shows(r"1 2 3\s.*3 tokens.*▸")
        terminal.type("half a thought")
        await terminal.shows("half a thought")
        terminal.type(CTRL_C)
        terminal.type(CTRL_C)
        await terminal.shows("Ctrl-D or /quit leaves.*▸")
        terminal.say("/quit")
        assert await terminal.ends() == 0


async def test_conversations_are_begun_listed_named_exported_and_gone_back_to(server: Server, tmp_path: Path) -> None:
    async with _chat(server, "--model", "scripted", "--system", "Be kind.") as terminal:
        await terminal.shows("▸")
        terminal.say("/system")
        await terminal.shows(r"Be kind\..*▸")
        terminal.say("the first of them")
        await terminal.shows("You said: the first of them.*tokens.*▸")
        terminal.say("/title Firsts")
        terminal.say("/new")
        await terminal.shows("A new conversation.*▸")
        terminal.say("/model")
        await terminal.shows("scripted +ready, .* chosen.*▸")
        terminal.say("the second")
        await terminal.shows("You said: the second.*tokens.*▸")
        terminal.say("/sessions")
        await terminal.shows(r"1 the second .* here.*2 Firsts .*▸")
        terminal.say("/open 2")
        await terminal.shows("▸ the first of them.*You said: the first of them.*tokens.*▸")
        exported = tmp_path / "firsts.md"
        terminal.say(f"/export {exported}")
        await terminal.shows("Written to.*▸")
        terminal.say(f"/export {exported}")
        await terminal.shows("cannot be written: File exists.*▸")
        terminal.say("/model nobody")
        await terminal.shows("nobody.*scripted.*▸")
        terminal.say("/opne")
        await terminal.shows("Did you mean /open.*▸")
        terminal.type(CTRL_D)
        assert await terminal.ends() == 0
    assert "the first of them" in exported.read_text()
    async with _chat(server, "--resume") as terminal:
        # The newest is the one that was last active.
        await terminal.shows("▸ the second.*You said: the second.*▸")
        terminal.say("and on")
        await terminal.shows("You said: and on.*tokens")


async def test_a_script_gets_the_answer_alone(server: Server) -> None:
    url = ("--url", server.address)
    assert await _script(*url, "count", "to", "5") == (0, f"{count(5)}\n", "")
    assert await _script(*url, typed="from a pipe") == (0, "You said: from a pipe\n", "")
    assert await _script(*url, "Sum up:", "-", typed="a\nb\n") == (0, "You said: Sum up:\n\na\nb\n", "")
    status, out, err = await _script("-v", "count to 5", BATON_URL=server.address)
    assert (status, out) == (0, f"{count(5)}\n")
    assert "scripted · " in err
    assert "5 tokens" in err


async def test_a_script_goes_on_with_a_conversation(server: Server) -> None:
    url = ("--url", server.address)
    await _script(*url, "remember this")
    status, out, _ = await _script(*url, "--resume", "and this")
    assert (status, out) == (0, "You said: and this\n")
    async with _chat(server, "--resume") as terminal:
        await terminal.shows("▸ remember this.*▸ and this.*You said: and this")


async def test_what_cannot_be_answered_ends_a_script_with_the_reason(server: Server) -> None:
    url = ("--url", server.address)
    status, out, err = await _script(*url, "fail")
    assert (status, out) == (1, "I am about to \n")
    assert "Failed." in err
    for arguments, told in (
        ((*url, "--session", "sess_none", "hello"), "sess_none"),
        ((*url, "--model", "nobody", "hello"), "scripted"),
        ((*url, "  "), "nothing to say"),
        (("--url", "http://baton.invalid", "hello"), "does not answer"),
    ):
        status, out, err = await _script(*arguments)
        assert (status, out) == (1, "")
        assert told in err
        assert "Traceback" not in err


async def test_ctrl_c_in_a_script_stops_the_answer_and_says_so_in_the_status(server: Server) -> None:
    async with _chat(server, "slowly count to 5000") as terminal:
        await terminal.shows("1 2 3")
        terminal.type(CTRL_C)
        assert await terminal.ends() == 130
    async with _chat(server, "--resume") as terminal:
        await terminal.shows(r"slowly count.*1 2 3.*Stopped\.")


class _Killed:
    """A server that is killed and started again, at the same address."""

    def __init__(self, tmp_path: Path) -> None:
        script = tmp_path / "script.json"
        script.write_text(json.dumps({"rules": _RULES}))
        self.environment = {"BATON_HOME": str(tmp_path / "home"), "BATON_SCRIPT": str(script)}
        self.port = str(_free_port())
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "streaming", "serve", "--port", self.port),
            env={**os.environ, **self.environment},
            stdout=PIPE,
        )
        assert self._process.stdout is not None
        await self._process.stdout.readline()

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]  # asyncio would warn of the pipe


@pytest_asyncio.fixture(loop_scope="module")
async def killed(tmp_path: Path) -> AsyncIterator[_Killed]:
    running = _Killed(tmp_path)
    await running.start()
    yield running
    await running.kill()


async def test_a_server_that_was_killed_is_gone_back_to(killed: _Killed) -> None:
    url = f"http://127.0.0.1:{killed.port}"
    async with Terminal("-m", "streaming", "chat", "--url", url, **killed.environment) as terminal:
        await terminal.shows("▸")
        terminal.say("slowly count to 5000")
        await terminal.shows("1 2 3 4 5")
        await killed.kill()
        await terminal.shows("The connection is lost. Trying again")
        await killed.start()
        await terminal.shows("The server was restarted before this answer was whole.*▸")
        await killed.kill()
        await killed.start()
        terminal.say("still there?")
        await terminal.shows("You said: still there\\?.*tokens.*▸")
        await killed.kill()
        terminal.say("and now?")
        await terminal.shows("The connection is lost")
        terminal.type(CTRL_C)
        await terminal.shows("▸")
        terminal.type(CTRL_D)
        assert await terminal.ends() == 0


async def test_a_server_is_started_where_none_runs_and_ended_on_leaving(tmp_path: Path) -> None:
    port = _free_port()
    url = ("--url", f"http://127.0.0.1:{port}")
    home = tmp_path / "home"
    async with Terminal("-m", "streaming", "chat", *url, BATON_HOME=str(home)) as terminal:
        await terminal.shows(f"No server answers at http://127.0.0.1:{port}: this chat starts one.*▸")
        terminal.say("count to 5")
        await terminal.shows(r"1 2 3 4 5\s.*5 tokens.*▸")
        pid = json.loads((home / "holder").read_text())["pid"]
        assert pid != terminal.pid
        # Another chat at another address finds the home held, and says by whom.
        status, _, err = await _script("--url", f"http://127.0.0.1:{_free_port()}", "hello", BATON_HOME=str(home))
        assert status == 1
        assert f"in use by process {pid}" in re.sub(r"\s+", " ", err)
        assert "--url" in err
        # One at this address uses this server.
        assert await _script(*url, "count to 2", BATON_HOME=str(home)) == (0, f"{count(2)}\n", "")
        terminal.type(CTRL_D)
        assert await terminal.ends() == 0
    assert not psutil.pid_exists(pid)
    assert await _script(*url, "count to 3", BATON_HOME=str(home)) == (0, f"{count(3)}\n", "")


async def test_closing_the_window_ends_the_server_that_was_started(tmp_path: Path) -> None:
    home = tmp_path / "home"
    url = ("--url", f"http://127.0.0.1:{_free_port()}")
    async with Terminal("-m", "streaming", "chat", *url, BATON_HOME=str(home)) as terminal:
        await terminal.shows("starts one.*▸")
        pid = json.loads((home / "holder").read_text())["pid"]
        os.kill(terminal.pid, signal.SIGHUP)
        assert await terminal.ends() == 128 + signal.SIGHUP
    assert not psutil.pid_exists(pid)


async def test_a_server_that_was_started_and_died_is_told_of(tmp_path: Path) -> None:
    home = tmp_path / "home"
    url = ("--url", f"http://127.0.0.1:{_free_port()}")
    async with Terminal("-m", "streaming", "chat", *url, BATON_HOME=str(home)) as terminal:
        await terminal.shows("starts one.*▸")
        os.kill(json.loads((home / "holder").read_text())["pid"], signal.SIGKILL)
        terminal.say("hello?")
        await terminal.shows("The server that this chat started ended with status -9")


async def test_something_else_at_the_address_is_not_taken_for_a_server() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    other = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with other:
        port = other.sockets[0].getsockname()[1]
        status, _, err = await _script("--url", f"http://127.0.0.1:{port}", "hello")
    assert status == 1
    assert "is not a server of Baton's" in err
