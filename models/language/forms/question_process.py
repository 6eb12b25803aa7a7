"""A module run as a process that answers a line of JSON with one, and may die of a question.

For work whose amount a caller chooses: a question that takes more of a processor, of memory or of stack than it may ends the
process, and fails alone. The process is started with the first question, and again whenever it has ended. How it answers is
in `models.language.forms.answering`, which also bounds what it uses: its processor's time, not ours, so that a busy machine is nobody's fault.
"""

import asyncio
import json
import logging
import signal
import sys
from contextlib import suppress
from typing import Any

from models.clock import Clock
from models.errors import Unavailable
from models.language.forms.answering import DEFEATED
from models.rounds import Rounds

_log = logging.getLogger(__name__)

_PATIENCE_S = 30.0
"""Of a machine that is busy, beyond what a question may use of a processor; Python alone takes seconds to start there."""

_LINE_BYTES = 1 << 24

_OF_THE_QUESTION = frozenset(
    {-signal.SIGPROF, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, DEFEATED}
)
"""How a process ends of what it was asked: its time was over, its stack, its memory, or its wits. Others end it in other ways."""


class TooMuch(Exception):
    """A question took more time, memory or stack than it may, or native code could make nothing of it."""


class LineProcess:
    """One such process. Questions wait for one another, tenants by turns."""

    def __init__(self, module: str, clock: Clock) -> None:
        """Run `python -m module`."""
        self._module = module
        self._clock = clock
        self._turns = Rounds()
        self._process: asyncio.subprocess.Process | None = None
        self._closed = False

    async def ask(self, question: Any, *, tenant: str = "") -> Any:
        """Return the answer to `question`, both made of JSON's values.

        Raises:
            TooMuch: answering it takes more than it may.
            Unavailable: there is no process to answer it now; nothing is known of the question.
        """
        line = json.dumps(question).encode() + b"\n"
        async with self._turns.held(tenant):
            try:
                for _ in range(2):  # it may have been ended by somebody since, or meanwhile
                    if (said := await self._answer(line)) is not None:
                        return json.loads(said)
                raise Unavailable("What looks at forms before they are used has ended twice. Try again in a moment.")
            except (TimeoutError, OSError) as exc:
                await self._end()
                raise Unavailable("What looks at forms before they are used does not answer. Try again.") from exc
            except BaseException:
                await self._end()  # somebody left in the middle of a question: its answer must not be the next one's
                raise

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        self._closed = True
        await self._end()

    async def _answer(self, line: bytes) -> bytes | None:
        """Return what the process says to a line; None if it was ended, but not by that."""
        if self._closed:
            raise Unavailable("The model has been closed.")
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                # -P: a module is the environment's, never one that happens to lie in the working directory.
                *(sys.executable, "-P", "-m", self._module),
                stdin=pipe,
                stdout=pipe,
                limit=_LINE_BYTES,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        async with self._clock.timeout_at(self._clock.now_s() + _PATIENCE_S):
            with suppress(ConnectionError):
                process.stdin.write(line)
                await process.stdin.drain()
                said = await process.stdout.readline()
            if said.endswith(b"\n"):
                return said
            status = await process.wait()
        self._process = None
        _log.warning("%s has ended (%s)", self._module, status)
        if status in _OF_THE_QUESTION:
            raise TooMuch
        return None

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
