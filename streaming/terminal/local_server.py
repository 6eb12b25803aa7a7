"""A server of one's own: `baton serve` as a child process, for as long as the chat runs."""

import asyncio
import contextlib
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO

from models.errors import BatonError
from streaming.terminal.api import Address

_START_S = 60.0
_STOP_S = 20.0
_SAID_BYTES = 4_000


class ServerEnded(BatonError):
    """The server that this chat had started is not there any more."""

    code = "server_ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalServer:
    """A server that runs.

    Attributes:
        address: where it is.
    """

    address: Address
    _process: asyncio.subprocess.Process
    _said: IO[bytes]

    def check(self) -> None:
        """Raise `ServerEnded`, with the server's own last words, if it has ended."""
        if self._process.returncode is not None:
            raise _ended(self._process.returncode, self._said)


@asynccontextmanager
async def local_server(host: str, port: int) -> AsyncIterator[LocalServer]:
    """Start a server, and end it by its own process id when the block ends.

    Args:
        host: address of this machine to listen on.
        port: port to listen on; 0 takes a free one.

    Raises:
        ServerEnded: it did not start; the message is its own, which for a home in use names who holds it.
    """
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C in this terminal stops an answer, not the server. -P: the working directory may
        # hold folders of the same names as our packages.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "streaming", "serve", "--host", host, "--port", str(port)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        try:
            yield LocalServer(address=await _announced(process, said), _process=process, _said=said)
        finally:
            await _end(process)


async def _announced(process: asyncio.subprocess.Process, said: IO[bytes]) -> Address:
    """Wait until the server prints its address."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            while line := await process.stdout.readline():
                if found := re.search(r"https?://\S+", line.decode(errors="replace")):
                    return Address.parse(found.group())
    except TimeoutError:
        raise ServerEnded(f"The server did not start within {_START_S:.0f} s. {_words(said)}") from None
    raise _ended(await process.wait(), said)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _ended(status: int, said: IO[bytes]) -> ServerEnded:
    words = _words(said)
    if " is in use by " in words:
        words += " If that is a server of Baton's, say where it listens: --url or BATON_URL."
    return ServerEnded(f"The server that this chat started ended with status {status}. {words}".strip())


def _words(said: IO[bytes]) -> str:
    """Return what the server wrote last, without its own mark of errors."""
    size = said.seek(0, 2)
    said.seek(max(0, size - _SAID_BYTES))
    return " ".join(said.read().decode(errors="replace").split()).removeprefix("baton: ")
