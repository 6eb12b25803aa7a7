"""The gateway's side of a worker process: a door for each card, and the supervisor that keeps it alive.

Each placement (decoding, senses) is one of these; they differ in what they are told and in nothing else. Policies: at most `max_requests` run at a time, and `max_tenant_requests` of one tenant, the next is refused (`Overloaded`,
may be retried); a request holds at most `WINDOW` outputs here. A process that dies, is not ready in time, is not understood or
does not answer (`models.placement.heartbeat`) is ended: its requests fail with `WorkerDied`, which may be retried, and another is
started, after a delay that doubles up to `_MAX_DELAY_S` while they keep dying young. A card that keeps ending the process rests
and is tried again, for ever (`models.placement.cards`).
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from copy import copy
from itertools import count
from typing import assert_never

from models.catalog import EngineSpec
from models.clock import Clock, sleep_until, wait_for_event
from models.errors import BatonError, DeadlineExceeded, LimitExceeded, NotFound, WorkerDied
from models.placement.budget import environment
from models.placement.cards import WorkerCard
from models.placement.doors import Arrivals, Door, RequestInputs
from models.placement.engines import Place
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
from models.placement.heartbeat import BEAT_S, UNSURE_S, Heartbeat
from models.placement.port import PlacementStatus
from models.shares import Shares
from models.urgency import Urgency

_log = logging.getLogger(__name__)

_URGENCY: Mapping[Place, Urgency] = {"decoding": "answer", "senses": "voice"}
"""How a process begins; what in it is less urgent becomes nicer by itself."""

_MIN_DELAY_S = 0.1
_MAX_DELAY_S = 5.0
_YOUNG_S = 10.0
_STOP_TIMEOUT_S = 5.0

_HELD_BYTES = 64 * 1024
"""What may be on its way to a process before a request waits until it has taken that."""


class Worker:
    """One worker process, supervised; a `Placement` and a `Keeper`.

    `run` owns the process and has to be running, in a task of the caller's, for requests to be served.
    """

    def __init__(
        self,
        engines: Mapping[str, EngineSpec],
        clock: Clock,
        *,
        place: Place = "decoding",
        threads: int | None = None,
        lazy: bool = False,
        max_requests: int = 512,
        max_tenant_requests: int | None = None,
        ready_timeout_s: float = 60.0,
    ) -> None:
        """Describe a process.

        Args:
            engines: what it builds from the first on, by card.
            clock: for deadlines, and for the supervisor's own.
            place: which of the worker processes it is.
            threads: its share of the machine's threads; None leaves it to the libraries.
            lazy: whether it is only started when a card is to be loaded.
            max_requests: how many requests run at a time.
            max_tenant_requests: and of one tenant; by default nine tenths.
            ready_timeout_s: how long a process may take to say that it is there.
        """
        self.place = place
        self._threads = threads
        self._wanted = asyncio.Event()
        if engines or not lazy:
            self._wanted.set()
        self._cards = {name: WorkerCard(spec) for name, spec in engines.items()}
        self._clock = clock
        self._shares = Shares(
            max_requests,
            max_tenant_requests,
            what="requests are running",
            code="too_many_requests",
        )
        self._ready_timeout_s = ready_timeout_s
        self._ids = count(1)
        self._streams: dict[int, Arrivals] = {}
        self._inputs: dict[int, RequestInputs] = {}
        self._forgetting: dict[int, asyncio.Event] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._heartbeat: Heartbeat | None = None
        self.pid: int | None = None
        self.restarts = 0

    @property
    def requests(self) -> int:
        """How many requests run now."""
        return len(self._streams)

    def door(self, card: str) -> Door:
        """Return the engine of `card`, which runs in this worker; see `Placement.door`."""
        self._cards.setdefault(card, WorkerCard(None))
        return Door(self, card)

    async def settle(self, card: str, with_: EngineSpec | BatonError) -> None:
        """Have the engine of a card built, or have its requests fail; see `Placement.settle`."""
        if isinstance(with_, BatonError):
            self._cards.setdefault(card, WorkerCard(None)).refuse(with_)
            return
        self.load(card, with_)
        await self.until_settled(card)

    def status(self, card: str) -> PlacementStatus:
        """Return how a card stands; see `Placement.status`."""
        known = self._cards.get(card)
        if known is None:
            return PlacementStatus(state="loading")
        if known.failure is not None:
            return PlacementStatus(state="failed", message=known.failure.message)
        if not known.settled.is_set():
            return PlacementStatus(state="loading", message=known.trouble)
        if self.silent_s >= UNSURE_S:
            why = "Its process does not answer. It is replaced if it goes on so."
            return PlacementStatus(state="loading", message=why)
        return PlacementStatus(state="ready")

    async def forget(self, tenant: str, subject: str | None = None) -> None:
        """Have the process let go of what it keeps of a tenant; see `Keeper.forget`."""
        if self._writer is None:
            return
        forget_id = next(self._ids)
        done = self._forgetting[forget_id] = asyncio.Event()
        try:
            self._send(Forget(forget_id=forget_id, tenant=tenant, subject=subject))
            await done.wait()
        finally:
            del self._forgetting[forget_id]

    @property
    def silent_s(self) -> float:
        """For how long the process has said nothing; 0 if there is none."""
        return 0.0 if self._heartbeat is None else self._heartbeat.silent_s

    async def until_settled(self, card: str) -> None:
        """Wait until the engine of a card is built.

        Raises:
            BatonError: it cannot be.
        """
        known = self._cards[card]
        await known.settled.wait()
        if known.failure is not None:
            raise copy(known.failure)

    def load(self, card: str, spec: EngineSpec) -> None:
        """Have the engine of a card built, without waiting for it; see `settle`."""
        self._cards.setdefault(card, WorkerCard(spec)).begin(spec)
        self._wanted.set()
        if self._writer is not None:
            self._writer.write(encode(Load(card=card, spec=spec)))

    async def run(self) -> None:
        """Keep the process running until cancelled, then end it."""
        delay_s = _MIN_DELAY_S
        await self._wanted.wait()
        while True:
            started_s = self._clock.now_s()
            try:
                await self._run_process()
            except OSError:
                _log.exception("the worker process (%s) could not be started", self.place)
            _log.error("the worker process (%s) ended; it is being restarted", self.place)
            self.restarts += 1
            old = self._clock.now_s() - started_s > _YOUNG_S
            delay_s = _MIN_DELAY_S if old else min(delay_s * 2, _MAX_DELAY_S)
            await sleep_until(self._clock, self._clock.now_s() + delay_s)

    async def _run_process(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            frames = FrameReader(reader)
            try:
                process = await asyncio.create_subprocess_exec(
                    # -P: a module is the environment's, never one that happens to lie in the working directory.
                    *(sys.executable, "-P", "-m", "models.placement.child", str(theirs.fileno())),
                    *(_URGENCY[self.place], str(self._threads or 0)),
                    pass_fds=(theirs.fileno(),),
                    env={**(environment(self._threads) if self._threads else {}), **os.environ},
                )
            except BaseException:  # cancelled while it starts: asyncio ends the process, the socket is ours
                writer.close()
                raise
        try:
            async with self._clock.timeout_at(self._clock.now_s() + self._ready_timeout_s):
                first = await self._next_frame(frames)
            if isinstance(first, Ready):
                self._writer = writer
                self.pid = first.pid
                for name, card in self._cards.items():
                    if card.spec is not None and card.retry_at_s is None:
                        writer.write(encode(Load(card=name, spec=card.spec)))
                self._heartbeat = Heartbeat(self._clock.now_s())
                async with asyncio.TaskGroup() as tasks:
                    watching = tasks.create_task(self._watch(self._heartbeat, process, writer))
                    await self._receive(frames, self._heartbeat)
                    watching.cancel()
            else:
                _log.error("the worker process ended before it was ready")
        except TimeoutError:
            _log.error("the worker process was not ready within %s s", self._ready_timeout_s)
        finally:
            now_s = self._clock.now_s()
            for name, card in self._cards.items():
                card.lose(name, now_s, beside=self._serves_beside(name))
            self._writer = self._heartbeat = None
            self.pid = None
            writer.close()
            for stream in self._streams.values():
                stream.end(WorkerDied("The process that ran this model ended. It is being restarted; try again."))
            self._streams.clear()
            for forgotten in self._forgetting.values():
                forgotten.set()  # with all that it kept
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Wait for a process whose socket was closed; kill it if it does not leave by itself."""
        try:
            async with self._clock.timeout_at(self._clock.now_s() + _STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()  # which is at once, now
            raise

    async def _watch(
        self, heartbeat: Heartbeat, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter
    ) -> None:
        """Have the process say that it is there; end it when it does not, and try again what rests."""
        while True:
            writer.write(encode(Ping()))  # small, and no more of them than `LOADING_SILENCE_S` has beats
            await sleep_until(self._clock, self._clock.now_s() + BEAT_S)
            now_s = self._clock.now_s()
            heartbeat.beat(now_s)
            trouble = heartbeat.trouble(loading=any(card.loading for card in self._cards.values()))
            if trouble is not None:
                _log.error("the worker process %s; it is ended", trouble)
                process.kill()
                return
            for name, card in self._cards.items():
                if card.spec is not None and card.retry_at_s is not None and card.retry_at_s <= now_s:
                    _log.warning("the model %s is tried again", name)
                    self.load(name, card.spec)

    def _serves_beside(self, name: str) -> bool:
        return any(
            other != name and card.settled.is_set() and card.failure is None for other, card in self._cards.items()
        )

    async def _receive(self, frames: FrameReader, heartbeat: Heartbeat) -> None:
        while (frame := await self._next_frame(frames)) is not None:
            heartbeat.heard(frame.stalled_s if isinstance(frame, Pong) else None)
            match frame:
                case DeltaFrame() | Taken() | Ended():
                    self._hear_of(frame)
                case Loaded():
                    self._loaded(frame)
                case Forgotten():
                    if (forgotten := self._forgetting.get(frame.forget_id)) is not None:
                        forgotten.set()
                case Pong():
                    pass
                case Ready() | Load() | Submit() | Feed() | EndOfInput() | Grant() | Stop() | Forget() | Ping():
                    _log.error("the worker process is not understood: a %s frame came from it", type(frame).__name__)
                    return
                case _:
                    assert_never(frame)

    def _hear_of(self, frame: DeltaFrame | Taken | Ended) -> None:
        stream = self._streams.get(frame.request_id)
        if stream is None:
            return  # nobody wants to know any more
        match frame:
            case DeltaFrame():
                stream.take_in(frame.output)
            case Taken():
                if (inputs := self._inputs.get(frame.request_id)) is not None:
                    inputs.grant(frame.credit)
            case Ended():
                del self._streams[frame.request_id]
                stream.end(frame.error)
            case _:
                assert_never(frame)

    @staticmethod
    async def _next_frame(frames: FrameReader) -> ToChild | ToClient | None:
        """Return the next frame; None when the process is gone, or is not understood."""
        try:
            return await frames.next()
        except FrameError as exc:
            _log.error("the worker process is not understood: %s", exc)
            return None

    def _loaded(self, frame: Loaded) -> None:
        card = self._cards[frame.card]
        if frame.error is None:
            card.built()
        else:
            _log.error("the model %s cannot be loaded: %s", frame.card, frame.error.message)
            card.failed(frame.error, self._clock.now_s(), beside=self._serves_beside(frame.card))

    async def submit(
        self, card: str, request: EngineRequest, inputs: RequestInputs | None = None
    ) -> AsyncGenerator[Output, None]:
        """Run `request` on the engine of `card`; see `Submitting.submit`, and the port for what it raises."""
        self._shares.enter(request.tenant)
        request_id = next(self._ids)
        stream = self._streams[request_id] = Arrivals()
        # One timer a request: a timeout around each wait would cost as much as the output that it waits for.
        timer = None if request.deadline is None else self._clock.call_at(request.deadline, stream.expire)
        try:
            await self._until_ready(card, request.deadline)
            await self._until_writable(stream)
            if not stream.ended:  # else a process died meanwhile; the next one must not run what has failed
                self._send(Submit(request_id=request_id, card=card, request=request))
                if inputs is not None:
                    self._inputs[request_id] = inputs
                    inputs.flow(request_id, self._send)
            taken = 0
            while (output := await stream.next()) is not None:
                taken += 1
                if taken == WINDOW // 2:
                    self._send(Grant(request_id=request_id, credit=taken))
                    taken = 0
                yield output
        except FrameError as exc:
            raise LimitExceeded("The request is too large for the model's process. Send less.") from exc
        finally:
            self._shares.leave(request.tenant)
            self._inputs.pop(request_id, None)
            if timer is not None:
                timer.cancel()
            if self._streams.pop(request_id, None) is not None and self._writer is not None:
                # Not awaited: a closing generator may be under cancellation, and the frame is small.
                self._writer.write(encode(Stop(request_id=request_id)))

    async def _until_ready(self, name: str, deadline_s: float | None) -> None:
        card = self._cards.get(name)
        if card is None:
            raise NotFound(f"This worker has no engine for the card {name!r}.")
        limit_s = self._clock.now_s() + self._ready_timeout_s
        until_s = limit_s if deadline_s is None else deadline_s
        if not await wait_for_event(self._clock, card.settled, until_s):
            if deadline_s is not None:
                raise DeadlineExceeded("The deadline passed while the model was being loaded.")
            raise WorkerDied("The process that runs this model did not get ready. The server's log has the cause.")
        if card.failure is not None:
            raise copy(card.failure)

    async def _until_writable(self, stream: Arrivals) -> None:
        """Wait until the process has taken what it was sent before, or until the request has ended."""
        if (writer := self._writer) is None or writer.transport.get_write_buffer_size() <= _HELD_BYTES:
            return
        draining = asyncio.ensure_future(_drained(writer))
        ending = asyncio.ensure_future(stream.arrived.wait())  # nothing arrives of what was not asked but its end
        try:
            await asyncio.wait((draining, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
            ending.cancel()

    def _send(self, frame: ToChild) -> None:
        """Send a frame. Only `Submit` may be large, and waits before it for those that were sent before."""
        if self._writer is not None:  # else the process has just died, and every stream was told so
            self._writer.write(encode(frame))


async def _drained(writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):  # the reading side sees the end and tells every stream
        await writer.drain()
