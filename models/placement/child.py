"""The worker process: builds engines and runs requests on them until its socket closes.

Started as `python -m models.placement.child FD`. It leaves when the client's end of the socket is closed, so that no
worker outlives its gateway, however that ended.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from contextlib import aclosing
from typing import assert_never

from models.clock import SystemClock
from models.errors import BatonError, Internal, NotFound
from models.placement.engines import build_engine
from models.placement.frames import (
    WINDOW,
    Ended,
    FrameError,
    FrameReader,
    Grant,
    Load,
    Loaded,
    Ping,
    Pong,
    Progress,
    Ready,
    Stop,
    Submit,
    ToChild,
    ToClient,
    encode,
)
from models.ports.generate import Engine, stalled_s

_log = logging.getLogger(__name__)


class _Running:
    """One request: its task, and how many deltas it may still send."""

    def __init__(self) -> None:
        self.credit = asyncio.Semaphore(WINDOW)
        self.task: asyncio.Task[None] | None = None

    def grant(self, credit: int) -> None:
        for _ in range(credit):
            self.credit.release()


class _Child:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._frames = FrameReader(reader)
        self._writer = writer
        self._engines: dict[str, Engine] = {}
        self._running: dict[int, _Running] = {}

    async def serve(self) -> None:
        """Serve until the client is gone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._send(Ready(pid=os.getpid()))
                while (frame := await self._frames.next()) is not None:
                    await self._handle(frame, tasks)
                for request_id in list(self._running):
                    self._stop(request_id)
        except* ConnectionError:
            pass  # the client went while it was being sent something
        for engine in self._engines.values():
            await engine.aclose()

    async def _handle(self, frame: ToChild | ToClient, tasks: asyncio.TaskGroup) -> None:
        match frame:
            case Load():
                tasks.create_task(self._load(frame))
            case Submit():
                running = self._running[frame.request_id] = _Running()
                running.task = tasks.create_task(self._run(frame, running))
            case Grant():
                if frame.request_id in self._running:
                    self._running[frame.request_id].grant(frame.credit)
            case Stop():
                self._stop(frame.request_id)
            case Ping():
                stalled = max((stalled_s(engine) for engine in self._engines.values()), default=0.0)
                self._writer.write(encode(Pong(stalled_s=stalled)))  # not drained: it is small, and holds up no frame
            case Ready() | Loaded() | Progress() | Ended() | Pong():
                raise FrameError(f"a {type(frame).__name__} frame came from the client")
            case _:
                assert_never(frame)

    async def _load(self, load: Load) -> None:
        error: BatonError | None = None
        gc.disable()  # a tenth of the time: what imports make stays, and would be looked through again and again
        try:
            # In a thread: importing and reading weights takes seconds, in which other cards are served.
            self._engines[load.card] = await asyncio.to_thread(build_engine, load.spec, SystemClock())
        except BatonError as exc:
            error = exc
        except Exception:  # noqa: BLE001  # the client is told; the cause is logged here
            _log.exception("the engine of the card %s could not be built", load.card)
            error = Internal(f"The model {load.card!r} could not be loaded. The server's log has the cause.")
        finally:
            gc.enable()
        await self._send(Loaded(card=load.card, error=error))

    def _stop(self, request_id: int) -> None:
        running = self._running.pop(request_id, None)
        if running is not None and running.task is not None:
            running.task.cancel()

    async def _run(self, submit: Submit, running: _Running) -> None:
        error: BatonError | None = None
        try:
            engine = self._engines.get(submit.card)
            if engine is None:
                raise NotFound(f"This worker has no engine for the card {submit.card!r}.")
            async with aclosing(engine.generate(submit.request)) as deltas:
                async for delta in deltas:
                    await running.credit.acquire()
                    await self._send(Progress(request_id=submit.request_id, delta=delta))
        except BatonError as exc:
            error = exc
        except ConnectionError:
            return
        except Exception:  # noqa: BLE001  # an engine's defect fails its request, not its neighbours
            _log.exception("an engine failed on the card %s", submit.card)
            error = Internal("The engine failed. Try again; the server's log has the cause.")
        self._running.pop(submit.request_id, None)
        await self._send(Ended(request_id=submit.request_id, error=error))

    async def _send(self, frame: ToClient) -> None:
        self._writer.write(encode(frame))
        await self._writer.drain()


async def _main(fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    try:
        await _Child(reader, writer).serve()
    finally:
        writer.close()


if __name__ == "__main__":
    # Read when torch is first imported: its threads sleep while they wait for one another. Left to spin, on two cores of which
    # something else took a part of one, they wrote a token in two seconds instead of an eighth of one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Both may go to the whole process group; the gateway decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_main(int(sys.argv[1])))
