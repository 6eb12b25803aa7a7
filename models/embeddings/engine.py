"""The `minilm` engine: sentence embeddings behind the port `embed`, in the worker of the senses.

A request goes a run of the encoder at a time, and between two runs the next request has its turn. What somebody waits for
(priority `interactive`) and what is done in bulk run in threads of their own, so that no search waits for an import.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from models.catalog import EngineSpec
from models.clock import Clock
from models.embeddings.minilm import MiniLm
from models.errors import BadInput, DeadlineExceeded, Internal
from models.ports.context import EngineContext
from models.ports.embed import Embeddings, EmbedRequest
from models.ports.generate import Priority
from models.urgency import Urgency, be

_T = TypeVar("_T")

_URGENCY: Mapping[Priority, Urgency] = {"interactive": "answer", "normal": "bulk", "batch": "bulk"}


class MiniLmOptions(BaseModel):
    """Options of the engine, as a card writes them.

    Attributes:
        window_tokens: the most tokens of a text, its two marks included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    window_tokens: PositiveInt = 256


def build(spec: EngineSpec, context: EngineContext) -> "MiniLmEmbedder":
    """Load the model in the spec's folder; the options have the fields of `MiniLmOptions`.

    Raises:
        BadInput: the options do not fit, or the spec names no folder.
        Internal: what lies in the folder cannot be loaded.
    """
    try:
        options = MiniLmOptions.model_validate_json(spec.options)
    except ValidationError as exc:
        raise BadInput(f"The options of the minilm engine do not fit: {exc}") from exc
    if spec.folder is None:
        raise BadInput("The minilm engine needs weights, and the card names no source of any.")
    try:
        model = MiniLm(Path(spec.folder), window_tokens=options.window_tokens)
    except (OSError, ValueError, KeyError, SafetensorError) as exc:
        raise Internal(f"The model in {spec.folder} cannot be loaded: {exc}") from exc
    return MiniLmEmbedder(model, context.clock, threads=context.threads)


class MiniLmEmbedder:
    """Embeds texts; see the module."""

    def __init__(self, model: MiniLm, clock: Clock, *, threads: int | None = None) -> None:
        """Serve `model` with `threads` a step; None leaves their number to torch."""
        self._model: MiniLm | None = model
        self._clock = clock
        # They begin with the first request, from the event loop: a thread is no less nice than the one that it is begun from.
        self._threads = {urgency: _thread(urgency, threads) for urgency in sorted(set(_URGENCY.values()))}
        deque(model.embed(model.tokens(["Hello"])), maxlen=0)  # a broken model fails here

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return the vectors of texts; see `Embedder.embed`."""
        if not request.texts:
            raise BadInput("There is no text to embed.", field="input")
        try:
            async with self._clock.timeout_at(request.deadline):
                return await self._embed(request, self._threads[_URGENCY[request.priority]])
        except TimeoutError as exc:
            raise DeadlineExceeded("The deadline passed before all texts were embedded. Send fewer.") from exc

    async def aclose(self) -> None:
        """Let the running steps end and let go of the model."""
        self._model = None
        for thread in self._threads.values():
            await asyncio.to_thread(thread.shutdown, cancel_futures=True)

    async def _embed(self, request: EmbedRequest, thread: ThreadPoolExecutor) -> Embeddings:
        model = self._model
        if model is None:
            raise Internal("The model has been closed.")
        tokens = await _run(thread, lambda: model.tokens(request.texts))
        steps = model.embed(tokens)
        vectors = torch.empty(len(tokens), model.dimensions)
        while (step := await _run(thread, lambda: next(steps, None))) is not None:
            _put(vectors, *step)
        return Embeddings(
            dimensions=model.dimensions,
            data=vectors.numpy().astype("<f4", copy=False).tobytes(),
            input_tokens=sum(map(len, tokens)),
        )


def _put(vectors: Tensor, texts: Sequence[int], found: Tensor) -> None:
    vectors[torch.tensor(texts)] = found


async def _run(thread: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    """Run one step. Who leaves meanwhile leaves at once; the thread ends the step before it begins another."""
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
    except RuntimeError as exc:
        raise Internal("The model has been closed.") from exc


def _thread(urgency: Urgency, threads: int | None) -> ThreadPoolExecutor:
    def begin() -> None:
        be(urgency)
        if threads is not None:
            torch.set_num_threads(threads)  # holds for the thread that says it

    return ThreadPoolExecutor(1, f"minilm-{urgency}", initializer=begin)
