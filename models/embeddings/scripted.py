"""The scripted embedder: a real engine without a model. Texts that share words are near each other.

Each word has a place of its own, by its hash, and a text is the sum of its words (feature hashing, Weinberger et al. 2009).
"""

import asyncio
import hashlib
import math
import os
from array import array

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, ValidationError

from models.catalog import EngineSpec
from models.clock import Clock, sleep_until
from models.errors import BadInput, DeadlineExceeded, context_overflow
from models.ports.context import EngineContext
from models.ports.embed import Embeddings, EmbedRequest


class ScriptedEmbedderOptions(BaseModel):
    """Options of the engine.

    Attributes:
        dimensions: of a vector.
        window_tokens: the most words of a text.
        gap_s: seconds that each text takes.
        exit_on: a text that contains this takes the process down; empty for none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dimensions: PositiveInt = 16
    window_tokens: PositiveInt = 256
    gap_s: NonNegativeFloat = 0.0
    exit_on: str = ""


def build(spec: EngineSpec, context: EngineContext) -> "ScriptedEmbedder":
    """Build the engine; its options have the fields of `ScriptedEmbedderOptions`.

    Raises:
        BadInput: the text does not fit.
    """
    try:
        return ScriptedEmbedder(ScriptedEmbedderOptions.model_validate_json(spec.options), context.clock)
    except ValidationError as exc:
        raise BadInput(f"The options of the scripted embedder do not fit: {exc}") from exc


class ScriptedEmbedder:
    """Embeds by words; see the module."""

    def __init__(self, options: ScriptedEmbedderOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return the vectors of texts; see `Embedder.embed`."""
        if not request.texts:
            raise BadInput("There is no text to embed.", field="input")
        options, tokens, data = self._options, 0, array("f")
        for text in request.texts:
            words = text.split()
            if len(words) > options.window_tokens:
                raise context_overflow(options.window_tokens, len(words))
            await self._pace(request.deadline)
            if options.exit_on and options.exit_on in text:
                os._exit(70)
            tokens += len(words)
            data.extend(_vector(words, options.dimensions))
        return Embeddings(dimensions=options.dimensions, data=data.tobytes(), input_tokens=tokens)

    async def aclose(self) -> None:
        """Do nothing: the engine holds nothing."""

    async def _pace(self, deadline_s: float | None) -> None:
        done_s = self._clock.now_s() + self._options.gap_s
        if deadline_s is not None and done_s > deadline_s:
            await sleep_until(self._clock, deadline_s)
            raise DeadlineExceeded("The deadline passed before all texts were embedded. Send fewer.")
        if self._options.gap_s:
            await sleep_until(self._clock, done_s)
        else:
            await asyncio.sleep(0)


def _vector(words: list[str], dimensions: int) -> list[float]:
    vector = [0.0] * dimensions
    for word in words or [""]:
        digest = hashlib.sha256(word.lower().encode("utf-8", "surrogatepass")).digest()
        vector[int.from_bytes(digest[:4], "big") % dimensions] += 1 if digest[4] & 1 else -1
    length = math.sqrt(sum(number * number for number in vector))
    return [number / length for number in vector] if length else [1.0, *[0.0] * (dimensions - 1)]
