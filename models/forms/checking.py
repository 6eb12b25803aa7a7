"""Checking answers against schemas, in a process of their own; see `models.forms.judge`."""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress

from models.clock import Clock
from models.errors import BadInput, LimitExceeded

_log = logging.getLogger(__name__)

_PATIENCE_S = 3.0
_START_PATIENCE_S = 20.0  # on a machine that is busy, Python alone takes seconds to start
_LINE_BYTES = 1 << 24


class Checker:
    """Asks the judge, one question at a time. Its process is started with the first, and again if it had to be ended."""

    def __init__(self, clock: Clock) -> None:
        """Wait by `clock`."""
        self._clock = clock
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._closed = False

    async def check(self, schema: str, texts: Sequence[str]) -> list[str | None]:
        """Return what is wrong with each of `texts` by `schema`, both JSON; None where it fits.

        Raises:
            BadInput: `schema` is none, or refers to what is not in it.
            LimitExceeded: checking takes too long, or more memory than it may.
        """
        line = json.dumps({"schema": schema, "texts": list(texts)}).encode() + b"\n"
        async with self._turn:
            try:
                reply = await self._asked(line)
            except (TimeoutError, ConnectionError, ValueError, json.JSONDecodeError) as exc:
                raise LimitExceeded(
                    "Checking an answer against this schema takes too long, or too much memory. Make it simpler."
                ) from exc
            except BaseException:
                await self._end()  # somebody left in the middle of a question: its answer must not be the next one's
                raise
        if "wrong" in reply:
            raise BadInput(f"The JSON schema is none that can be checked: {reply['wrong']}.")
        faults: list[str | None] = reply["faults"]
        return faults

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        self._closed = True
        await self._end()

    async def _asked(self, line: bytes) -> dict[str, list[str | None]]:
        try:
            process = await self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            async with self._clock.timeout_at(self._clock.now_s() + _PATIENCE_S):
                process.stdin.write(line)
                await process.stdin.drain()
                said = await process.stdout.readline()
            if not said.endswith(b"\n"):
                raise ConnectionResetError("the judge has died")
            reply: dict[str, list[str | None]] = json.loads(said)
        except (TimeoutError, ConnectionError, ValueError):
            _log.warning("checking an answer against its schema was given up")
            await self._end()
            raise
        return reply

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            if self._closed:
                raise ConnectionResetError("the engine has been closed")
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "models.forms.judge", stdin=pipe, stdout=pipe, limit=_LINE_BYTES
            )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            async with self._clock.timeout_at(self._clock.now_s() + _START_PATIENCE_S):
                self._process.stdin.write(b'{"schema": "true", "texts": []}\n')
                await self._process.stdout.readline()
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
