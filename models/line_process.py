"""A module run as a process that answers a line of JSON with one, and may die of a question.

For native code whose work a caller chooses: what ends the process, or takes too long there, fails one question. It is started
with the first one, and again whenever it had to be ended.
"""

import asyncio
import json
import logging
import sys
from contextlib import suppress
from typing import Any

from models.clock import Clock
from models.rounds import Rounds

_log = logging.getLogger(__name__)

_START_PATIENCE_S = 20.0
"""On a machine that is busy, Python alone takes seconds to start."""

_LINE_BYTES = 1 << 24

_GREETING = b"null\n"


class LineProcess:
    """One such process. Questions wait for one another, tenants by turns. The module has to answer `null` with a line, too."""

    def __init__(self, module: str, clock: Clock, *, patience_s: float) -> None:
        """Run `python -m module`; a question that is not answered within `patience_s` ends the process."""
        self._module = module
        self._clock = clock
        self._patience_s = patience_s
        self._turns = Rounds()
        self._process: asyncio.subprocess.Process | None = None
        self._closed = False

    async def ask(self, question: Any, *, tenant: str = "") -> Any:
        """Return the answer to `question`, both made of JSON's values.

        Raises:
            TimeoutError: it was not answered in time; the process was ended.
            ConnectionError: the process has died of it, or has been closed.
        """
        line = json.dumps(question).encode() + b"\n"
        async with self._turns.held(tenant):
            try:
                process = await self._started()
                return json.loads(await self._line(process, line, self._patience_s))
            except (TimeoutError, ConnectionError):
                _log.warning("%s did not answer, and is ended", self._module)
                await self._end()
                raise
            except BaseException:
                await self._end()  # somebody left in the middle of a question: its answer must not be the next one's
                raise

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        self._closed = True
        await self._end()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._closed:
            raise ConnectionResetError("it has been closed")
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                # -P: a module is the environment's, never one that happens to lie in the working directory.
                *(sys.executable, "-P", "-m", self._module),
                stdin=pipe,
                stdout=pipe,
                limit=_LINE_BYTES,
            )
            await self._line(self._process, _GREETING, _START_PATIENCE_S)
        return self._process

    async def _line(self, process: asyncio.subprocess.Process, line: bytes, patience_s: float) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        async with self._clock.timeout_at(self._clock.now_s() + patience_s):
            process.stdin.write(line)
            await process.stdin.drain()
            said = await process.stdout.readline()
        if not said.endswith(b"\n"):
            raise ConnectionResetError("it has died")
        return said

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
