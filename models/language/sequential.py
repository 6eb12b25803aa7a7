"""Models that the decoding engine does not know: transformers' own code, one answer's step at a time.

An answer is a series of *steps*, each one run of the model: over a chunk of the prompt, then over one token after another.
Steps run in one thread, so that the event loop stays free, one at a time and by turns, so that answers written at the same
time advance together. A request that is closed ends between two steps, and its cache goes with it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, get_args

import torch

from models.clock import Clock
from models.content import Delta, Message, TextPart, UsageDelta
from models.errors import DeadlineExceeded, Internal, Overloaded
from models.language.causal import CausalAnswer, CausalModel
from models.language.options import TransformersOptions
from models.language.priority_semaphore import PrioritySemaphore
from models.ports.generate import PROCESSORS, GenerateRequest, Sampling, Signal, refuse_unsupported

_T = TypeVar("_T")

_HONOURED = (
    frozenset(f"signals.{signal}" for signal in get_args(Signal)) | PROCESSORS | {"logprobs", "continues", "raw"}
)


class SequentialEngine:
    """Writes answers with a model of transformers; see the module."""

    def __init__(self, causal: CausalModel, options: TransformersOptions, clock: Clock) -> None:
        self._causal: CausalModel | None = causal
        self._clock = clock
        self._room = PrioritySemaphore(options.max_requests)
        self._turns = PrioritySemaphore(1)
        # The setting holds for the thread that makes it.
        setting = partial(torch.set_num_threads, options.threads) if options.threads else None
        self._thread = ThreadPoolExecutor(1, "transformers", initializer=setting)
        self._thread.submit(self._warm_up).result()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer a token at a time.

        Signals and log-probabilities are of the model's own distribution, before bias, penalties, temperature and truncation.

        Raises:
            LimitExceeded: the conversation fills the model's window.
        """
        refuse_unsupported(request, _HONOURED, "transformers")
        await self._in_time(request, self._room.take(request.priority))
        try:
            answer = await self._step(request, partial(self._begin, request))
            yield UsageDelta(input_tokens=answer.prompt_tokens, output_tokens=0)
            while not answer.finished:
                for delta in await self._step(request, answer.step):
                    yield delta
        finally:
            self._room.give()

    async def aclose(self) -> None:
        """Let the running step end and let go of the model; an answer still being written fails at its next step."""
        self._causal = None
        await asyncio.to_thread(self._thread.shutdown)

    def _begin(self, request: GenerateRequest) -> CausalAnswer:
        if self._causal is None:
            raise Internal("The model has been closed.")
        return CausalAnswer(self._causal, request)

    def _warm_up(self) -> None:
        """Write two tokens: what is done once is then done before the first request, and a broken model fails here."""
        greeting = Message(item_id="item_0", role="user", parts=(TextPart(text="Hello"),))
        sampling = Sampling(temperature=1.0, top_p=0.9, max_output_tokens=2)
        answer = self._begin(GenerateRequest(messages=(greeting,), sampling=sampling, tenant="local"))
        while not answer.finished:
            answer.step()

    async def _step(self, request: GenerateRequest, work: Callable[[], _T]) -> _T:
        await self._in_time(request, self._turns.take(request.priority))
        try:
            if self._causal is None:
                raise Internal("The model has been closed.")
            # Whoever leaves meanwhile gives up the turn at once; the thread ends this step before it begins another.
            running = asyncio.get_running_loop().run_in_executor(self._thread, work)
            return await self._in_time(request, running)
        except torch.OutOfMemoryError as exc:
            raise Overloaded("The GPU has no memory left for this request. Try again, or make it shorter.") from exc
        finally:
            self._turns.give()

    async def _in_time(self, request: GenerateRequest, awaited: Awaitable[_T]) -> _T:
        try:
            async with self._clock.timeout_at(request.deadline):
                return await awaited
        except TimeoutError as exc:
            raise DeadlineExceeded("The deadline passed before the answer was whole.") from exc
