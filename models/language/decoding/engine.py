"""The engine: the loop in a thread of its own, and requests that come and go from an event loop.

What goes in is put into a queue that the thread empties between two steps; what comes out is handed over once a step, for all
requests together. A request whose reader is behind rests, and is woken when it has caught up.
"""

import asyncio
import gc
import itertools
import logging
import math
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch

from models.clock import Clock
from models.content import Call, Delta, FinishDelta, Message, TextPart, text_of
from models.errors import BatonError, DeadlineExceeded, Internal
from models.language.decoding.adapters import Adapters
from models.language.decoding.constrain import Constrainer, Guide
from models.language.decoding.drafters import Context
from models.language.decoding.form_depth import check_depth
from models.language.decoding.form_trial import STACK_BYTES, FormTrial
from models.language.decoding.loop import Loop
from models.language.decoding.prefixes import Scope
from models.language.decoding.processors import Processors
from models.language.decoding.rows import Prompt, Row
from models.language.decoding.sampling import Chooser
from models.language.decoding.scheduler import Rank
from models.language.detokenize import Detokenizer, answer_limit
from models.language.prompts import PromptWriter
from models.language.tool_format import CallReader, offered
from models.owner import Owner
from models.ports.generate import PROCESSORS, Constraint, GenerateRequest, Sampling, ToolConstraint, refuse_unsupported

_log = logging.getLogger(__name__)

HONOURED = frozenset(
    {
        "adapter",
        "draft",
        "constraint.json_schema",
        "constraint.regex",
        "constraint.grammar",
        "constraint.tools",
        "signals.token_ids",
        "signals.logprobs",
        "signals.entropies",
        "signals.margins",
        "reads_ahead",
        "logprobs",
        "continues",
        "raw",
        *PROCESSORS,
    }
)
"""The optional fields of a request that this engine honours."""

_CLOSED = "The model has been closed."

_LOOK_S = 1.0
"""How often whoever waits for the thread looks whether it is still there."""

_UNREAD_DELTAS = 64
"""How far a reader may be behind before its request rests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """What stands between words and the model's tokens.

    Attributes:
        prompts: writes prompts.
        ends: tokens that end an answer.
        window_tokens: the most tokens of a prompt and its answer together.
        vocabulary: the width of the model's scores.
        constrainer: starts guides.
        adapters: by which name which adapter goes.
    """

    prompts: PromptWriter
    ends: frozenset[int]
    window_tokens: int
    vocabulary: int
    constrainer: Constrainer
    adapters: Adapters


class DecodingEngine:
    """Writes answers to all requests at once with one model; see `models.ports.generate.Engine`."""

    def __init__(self, build: Callable[[], tuple[Loop, Language]], clock: Clock, *, threads: int | None = None) -> None:
        """Build the loop in the engine's own thread, and begin to serve.

        Args:
            build: makes the loop and the language; called once, in the thread that then owns the device.
            clock: for deadlines.
            threads: of a step on a CPU; None leaves it to torch.

        Raises:
            BatonError: `build` raised it.
        """
        self._clock = clock
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets = itertools.count()
        self._told: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, Sequence[Delta], BatonError | None]]] = {}
        self._streams: set[_Stream] = set()
        self._closing = False
        self._failed = False
        self._step_began_s: float | None = None
        self._prompt_began_s: float | None = None
        # Tokenizers are not made for two threads at once; counting and masks may take long, and nobody waits for them here.
        self._words = ThreadPoolExecutor(1, "prompts")
        self._trial = FormTrial(clock)
        ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, args=(build, threads, ready), name="decoding", daemon=True)
        with _deep_stacks():
            self._words.submit(int)  # a thread is made with the first that there is to do
            self._thread.start()
        if (error := ready.get()) is not None:
            raise error

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer as it is written.

        Signals and log-probabilities are of the model's own distribution, before bias, penalties, temperature, truncation and constraints.

        Raises:
            LimitExceeded: the conversation fills the model's window.
            BadInput: the constraint is none that can be enforced.
            NotFound: there is no such adapter.
        """
        refuse_unsupported(request, HONOURED, "transformers")
        self._refuse_if_closed()
        stream = _Stream(asyncio.get_running_loop(), self._wake)
        came_s = self._clock.now_s()
        if request.deadline is not None and request.deadline <= came_s:
            raise DeadlineExceeded("The deadline had passed when the request came.")
        timer = None if request.deadline is None else self._clock.call_at(request.deadline, stream.expire)
        row: Row | None = None
        try:
            row = await stream.first(asyncio.ensure_future(self._prepared(request, stream, came_s)))
            self._inbox.put(lambda row=row: self._submit(row, stream))  # type: ignore[misc]
            self._refuse_if_closed()  # after it was put: now either the thread finds it, or it is refused here
            while not stream.ended:
                yield await stream.next()
        finally:
            if timer is not None:
                timer.cancel()
            if row is not None and not stream.ended:
                self._inbox.put(lambda row=row: self._cancel(row, stream))  # type: ignore[misc]

    def stalled_s(self) -> float:
        """Return for how long the loop has been at one step, or one prompt is prepared; see `models.ports.generate.Watched`."""
        if self._failed:
            return math.inf
        now_s = self._clock.now_s()
        return max(now_s - (now_s if at is None else at) for at in (self._step_began_s, self._prompt_began_s))

    async def aclose(self) -> None:
        """Let the running step end and let go of the model; an answer still being written fails."""
        self._closing = True
        self._wake()
        await asyncio.to_thread(self._thread.join)
        self._words.shutdown(wait=False)
        await self._trial.aclose()

    async def forget(self, tenant: str, subject: str | None) -> None:
        """Let go of prompts and answers that are kept of a tenant, or of one subject of it. Returns once they are gone."""
        self._refuse_if_closed()
        done = asyncio.get_running_loop().create_future()
        self._inbox.put(lambda: self._forget(tenant, subject, done))
        while not done.done() and self._thread.is_alive():
            await asyncio.wait((done,), timeout=_LOOK_S)

    def _refuse_if_closed(self) -> None:
        if self._closing:
            raise Internal(_CLOSED)

    async def _prepared(self, request: GenerateRequest, stream: "_Stream", came_s: float) -> Row:
        if request.constraint is not None:
            await self._try_out(request.constraint, request.owner)
        return await asyncio.get_running_loop().run_in_executor(self._words, self._watched, request, stream, came_s)

    async def _try_out(self, constraint: Constraint, owner: Owner) -> None:
        """Check that compiling a form ends nobody's process.

        Raises:
            BadInput: the form is none, or goes too deep, or takes too long.
        """
        constrainer = self._language.constrainer
        await asyncio.to_thread(check_depth, constraint)
        for source, field in await asyncio.to_thread(lambda: [*constrainer.sources(constraint)]):
            if await self._trial.compiles(source, constrainer.vocabulary, field=field, owner=owner):
                return  # the parts are compiled only to say which of them is at fault

    # In the thread of prompts

    def _watched(self, request: GenerateRequest, stream: "_Stream", came_s: float) -> Row:
        self._prompt_began_s = self._clock.now_s()
        try:
            return self._prepare(request, stream, came_s)
        finally:
            self._prompt_began_s = None

    def _prepare(self, request: GenerateRequest, stream: "_Stream", came_s: float) -> Row:
        language, sampling = self._language, request.sampling
        tools = request.constraint if isinstance(request.constraint, ToolConstraint) else None
        adapter = language.adapters.index(request.adapter)
        tokens = (
            language.prompts.raw(request.messages)
            if request.raw
            else language.prompts.tokens(
                request.messages, tools, asks=not request.reads_ahead, continues=request.continues
            )
        )
        limit = answer_limit(len(tokens), language.window_tokens, sampling)
        hint = () if request.draft is None else language.prompts.words(request.draft.text)
        return Row(
            prompt=Prompt(tokens=tuple(tokens)),
            context=Context(owner=request.owner, tokens=tokens, prompt_length=len(tokens)),
            scope=Scope(owner=request.owner, adapter=request.adapter),
            rank=Rank.of(request.priority, came_s, request.deadline, next(self._tickets)),
            chooser=Chooser.of(sampling),
            writer=Detokenizer(
                language.prompts.tokenizer,
                sampling,
                ends=language.ends,
                limit=limit,
                signals=request.signals,
                calls=CallReader(either=tools.form is not None) if tools is not None and offered(tools) else None,
                logprobs=request.logprobs,
            ),
            limit=limit,
            tell=lambda deltas, error: self._tell(stream, deltas, error),
            adapter=adapter,
            guide=self._guide(request),
            processors=Processors.of(sampling, tokens, language.vocabulary),
            fork=request.fork,
            hint=deque(hint),
            tolerance_nats=0.0 if request.draft is None else request.draft.tolerance_nats,
            stalled=stream.stalled,
            ahead=request.reads_ahead,
        )

    def _guide(self, request: GenerateRequest) -> Guide | None:
        if request.reads_ahead or request.raw:
            return None
        constrainer, constraint = self._language.constrainer, request.constraint
        begun = text_of(request.messages[-1]) if request.continues else ""
        guide = None if constraint is None else constrainer.start(constraint, begun)
        if guide is None and any(isinstance(item, Call) for item in request.messages):
            return constrainer.start_words()  # a small model goes on as it has gone on, and would write calls as words
        return guide

    # In the loop's thread

    def _serve(
        self,
        build: Callable[[], tuple[Loop, Language]],
        threads: int | None,
        ready: "queue.SimpleQueue[BaseException | None]",
    ) -> None:
        try:
            if threads is not None:
                torch.set_num_threads(threads)  # holds for the thread that says it
            self._loop, self._language = build()
            self._warm_up()
            # What is loaded stays. A full collection that looks at it all takes a fifth of a second, and everybody waits.
            gc.collect()
            gc.freeze()
        except BaseException as exc:  # noqa: BLE001  # whoever builds the engine is told
            ready.put(exc)
            return
        ready.put(None)
        try:
            while not self._closing:
                self._step_began_s = self._clock.now_s()
                stepped = self._loop.step()
                self._hand_over()
                self._step_began_s = None
                if not stepped:
                    self._inbox.get()()
                while not self._inbox.empty():
                    self._inbox.get()()
        except Exception:  # noqa: BLE001  # a defect; whoever waits is told, and who comes later is refused
            _log.exception("the decoding engine has failed, and is closed")
            self._closing = self._failed = True
        while not self._inbox.empty():
            with suppress(Exception):
                self._inbox.get()()
        for stream in list(self._streams):
            self._tell(stream, (), Internal(_CLOSED))
        self._hand_over()
        del self._loop

    def _warm_up(self) -> None:
        """Write two tokens: what is done once is done before the first request, and a broken model fails here."""
        failed: list[BatonError] = []
        greeting = Message(item_id="item_0", role="user", parts=(TextPart(text="Hello"),))
        sampling = Sampling(temperature=1.0, top_p=0.9, max_output_tokens=2)
        request = GenerateRequest(messages=(greeting,), sampling=sampling, tenant="")
        row = replace(
            self._prepare(request, _Stream(None, self._wake), 0.0),
            tell=lambda _, error: failed.append(error) if error is not None else None,
        )
        self._loop.submit(row)
        while self._loop.step():
            pass
        if failed:
            raise failed[0]

    def _submit(self, row: Row, stream: "_Stream") -> None:
        self._streams.add(stream)
        self._loop.submit(row)

    def _forget(self, tenant: str, subject: str | None, done: "asyncio.Future[None]") -> None:
        self._loop.forget(tenant, subject)
        with suppress(RuntimeError):  # the loop has been closed, and nobody waits there
            done.get_loop().call_soon_threadsafe(_settle, done)

    def _cancel(self, row: Row, stream: "_Stream") -> None:
        if stream in self._streams:
            self._streams.remove(stream)
            self._loop.cancel(row)

    def _tell(self, stream: "_Stream", deltas: Sequence[Delta], error: BatonError | None) -> None:
        stream.given += len(deltas)
        if error is not None or (deltas and isinstance(deltas[-1], FinishDelta)):
            self._streams.discard(stream)
        if stream.loop is not None:
            self._told.setdefault(stream.loop, []).append((stream, deltas, error))

    def _hand_over(self) -> None:
        for loop, told in self._told.items():
            with suppress(RuntimeError):  # it has been closed, and nobody waits there
                loop.call_soon_threadsafe(_receive, told)
        self._told = {}

    # From anywhere

    def _wake(self) -> None:
        self._inbox.put(lambda: None)


@contextmanager
def _deep_stacks() -> Iterator[None]:
    """Give threads that are made meanwhile more stack than forms were tried out with."""
    before = threading.stack_size(STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(before)


class _Stream:
    """What one request is told, between the two threads.

    Attributes:
        loop: whose request it is; None for the engine's own.
        given: deltas handed over; written by the engine's thread.
        ended: whether the last was taken, or the request failed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None, wake: Callable[[], None]) -> None:
        self.loop = loop
        self.given = 0
        self.ended = False
        self._taken = 0
        self._resting = False
        self._wake = wake
        self._deltas: deque[Delta] = deque()
        self._error: BatonError | None = None
        self._arrived = asyncio.Event()

    def stalled(self) -> bool:
        if self.given - self._taken < _UNREAD_DELTAS:
            return False
        self._resting = True
        return self.given - self._taken >= _UNREAD_DELTAS  # it may have been read before it could be seen to rest

    def receive(self, deltas: Sequence[Delta], error: BatonError | None) -> None:
        if self._error is None:
            self._deltas += deltas
            self._error = error
            self._arrived.set()

    def expire(self) -> None:
        self._deltas.clear()  # what is late is not told
        self.receive((), DeadlineExceeded("The deadline passed before the answer was whole."))

    async def first(self, prepared: "asyncio.Future[Row]") -> Row:
        """Return the row once it is made.

        Raises:
            DeadlineExceeded: it was not in time.
        """
        waiting = asyncio.ensure_future(self._arrived.wait())
        try:
            await asyncio.wait((prepared, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not prepared.done() and self._error is not None:
                raise self._error
            return await prepared
        finally:
            waiting.cancel()
            prepared.cancel()

    async def next(self) -> Delta:
        """Return the next delta.

        Raises:
            BatonError: the request failed.
        """
        while not self._deltas:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        delta = self._deltas.popleft()
        self._taken += 1
        if self._resting and not self._deltas:
            self._resting = False
            self._wake()
        self.ended = isinstance(delta, FinishDelta)
        return delta


def _settle(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


def _receive(told: Sequence[tuple[_Stream, Sequence[Delta], BatonError | None]]) -> None:
    for stream, deltas, error in told:
        stream.receive(deltas, error)
