"""A worker process: builds engines and runs requests on them until its socket closes.

Started as `python -m models.placement.child FD URGENCY THREADS`. It leaves when the client's end of the socket is closed, so that
no worker outlives its gateway, however that ended.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Protocol, assert_never, cast

from models.clock import SystemClock
from models.errors import BatonError, Internal, NotFound
from models.placement.engines import AnyEngine, build_engine
from models.placement.frames import (
    WINDOW,
    DeltaFrame,
    Ended,
    EndOfInput,
    EngineRequest,
    Feed,
    Forget,
    Forgotten,
    FrameError,
    FrameReader,
    Grant,
    Input,
    Load,
    Loaded,
    Output,
    Ping,
    Pong,
    Ready,
    Stop,
    Submit,
    Taken,
    ToChild,
    ToClient,
    encode,
)
from models.ports.activity import ActivityRequest
from models.ports.context import EngineContext
from models.ports.embed import Embedder, EmbedRequest
from models.ports.generate import Engine, GenerateRequest, Keeping, stalled_s
from models.ports.streams import UNREAD_INPUTS, Stream
from models.ports.synthesize import SynthesizeRequest
from models.ports.transcribe import TranscribeRequest
from models.urgency import Urgency, be

_log = logging.getLogger(__name__)

_CREDIT = UNREAD_INPUTS // 4
"""How many pieces of input are taken before the client is told."""

_SWITCH_S = 0.001
"""After how long a thread that holds the interpreter lets another one have it: a voice waits for no more than that."""


class _Opening(Protocol):
    def open(self, request: EngineRequest) -> Stream[Input, Output]: ...


class _Running:
    """One request: its task, how many outputs it may still send, and what it was fed and has not taken."""

    def __init__(self) -> None:
        self.credit = asyncio.Semaphore(WINDOW)
        self.task: asyncio.Task[None] | None = None
        self.inputs: deque[Input] = deque()
        self.ended = False
        self.fed = asyncio.Event()

    def grant(self, credit: int) -> None:
        for _ in range(credit):
            self.credit.release()


class _Child:
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, urgency: Urgency, threads: int | None
    ) -> None:
        self._frames = FrameReader(reader)
        self._writer = writer
        self._context = EngineContext(clock=SystemClock(), threads=threads)
        # The senses are brought up beside answers that are written; what answers is waited for.
        building: Urgency = "loading" if urgency == "voice" else urgency
        self._builder = ThreadPoolExecutor(4, "loading", initializer=be, initargs=(building,))
        self._engines: dict[str, AnyEngine] = {}
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
            case Feed() | EndOfInput() | Grant() | Stop():
                if (known := self._running.get(frame.request_id)) is not None:
                    self._tell(frame, known)
            case Forget():
                tasks.create_task(self._forget(frame))
            case Ping():
                stalled = max((stalled_s(engine) for engine in self._engines.values()), default=0.0)
                self._writer.write(encode(Pong(stalled_s=stalled)))  # not drained: it is small, and holds up no frame
            case Ready() | Loaded() | DeltaFrame() | Taken() | Ended() | Forgotten() | Pong():
                raise FrameError(f"a {type(frame).__name__} frame came from the client")
            case _:
                assert_never(frame)

    def _tell(self, frame: Feed | EndOfInput | Grant | Stop, running: _Running) -> None:
        match frame:
            case Feed():
                running.inputs.append(frame.value)
                running.fed.set()
            case EndOfInput():
                running.ended = True
                running.fed.set()
            case Grant():
                running.grant(frame.credit)
            case Stop():
                self._stop(frame.request_id)
            case _:
                assert_never(frame)

    async def _load(self, load: Load) -> None:
        error: BatonError | None = None
        gc.disable()  # a tenth of the time: what imports make stays, and would be looked through again and again
        try:
            # In a thread: importing and reading weights takes seconds, in which other cards are served.
            building = asyncio.get_running_loop().run_in_executor(self._builder, build_engine, load.spec, self._context)
            self._engines[load.card] = await building
        except BatonError as exc:
            error = exc
        except Exception:  # noqa: BLE001  # the client is told; the cause is logged here
            _log.exception("the engine of the card %s could not be built", load.card)
            error = Internal(f"The model {load.card!r} could not be loaded. The server's log has the cause.")
        finally:
            gc.enable()
        await self._send(Loaded(card=load.card, error=error))

    async def _forget(self, forget: Forget) -> None:
        for card, engine in list(self._engines.items()):
            if isinstance(engine, Keeping):
                try:
                    await engine.forget(forget.tenant, forget.subject)
                except BatonError as exc:  # it is closed, and keeps nothing any more
                    _log.warning("the engine of the card %s had nothing to forget: %s", card, exc.message)
        with suppress(ConnectionError):
            await self._send(Forgotten(forget_id=forget.forget_id))

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
            async with aclosing(self._outputs(engine, submit, running)) as outputs:
                async for output in outputs:
                    await running.credit.acquire()
                    await self._send(DeltaFrame(request_id=submit.request_id, output=output))
        except BatonError as exc:
            error = exc
        except ConnectionError:
            return
        except Exception:  # noqa: BLE001  # an engine's defect fails its request, not its neighbours
            _log.exception("an engine failed on the card %s", submit.card)
            error = Internal("The engine failed. Try again; the server's log has the cause.")
        self._running.pop(submit.request_id, None)
        await self._send(Ended(request_id=submit.request_id, error=error))

    async def _outputs(self, engine: AnyEngine, submit: Submit, running: _Running) -> AsyncGenerator[Output, None]:
        # That the card keeps the port that it is asked through, its door has seen to.
        match request := submit.request:
            case GenerateRequest():
                async with aclosing(cast("Engine", engine).generate(request)) as deltas:
                    async for delta in deltas:
                        yield delta
            case EmbedRequest():
                yield await cast("Embedder", engine).embed(request)
            case ActivityRequest() | TranscribeRequest() | SynthesizeRequest():
                stream = cast("_Opening", engine).open(request)
                feeding = asyncio.create_task(self._feed(stream, submit.request_id, running))
                try:
                    async with aclosing(stream.outputs()) as outputs:
                        async for output in outputs:
                            yield output
                finally:
                    feeding.cancel()
                    with suppress(asyncio.CancelledError, BatonError, ConnectionError):
                        await feeding
            case _:
                assert_never(request)

    async def _feed(self, stream: Stream[Input, Output], request_id: int, running: _Running) -> None:
        taken = 0
        while True:
            while running.inputs:
                await stream.push(running.inputs.popleft())
                taken += 1
                if taken == _CREDIT:
                    await self._send(Taken(request_id=request_id, credit=taken))
                    taken = 0
            if running.ended:
                await stream.end()
                return
            running.fed.clear()
            await running.fed.wait()

    async def _send(self, frame: ToClient) -> None:
        self._writer.write(encode(frame))
        await self._writer.drain()


async def _main(fd: int, urgency: Urgency, threads: int | None) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    try:
        await _Child(reader, writer, urgency, threads).serve()
    finally:
        writer.close()


if __name__ == "__main__":
    be(urgency := cast("Urgency", sys.argv[2]))
    # Read when torch is first imported: its threads sleep while they wait for one another. Left to spin, on two cores of which
    # something else took a part of one, they wrote a token in two seconds instead of an eighth of one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if urgency == "voice":
        sys.setswitchinterval(_SWITCH_S)
    # Both may go to the whole process group; the gateway decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_main(int(sys.argv[1]), urgency, int(sys.argv[3]) or None))
