"""Scripted speech: real engines without models, behind the ports `activity`, `transcribe` and `synthesize`.

The detector calls loud what is loud. The transcriber hears the words of its script, one for each stretch of loud sound. The
synthesizer beeps, a stretch for each character. What one of them says, the others so understand, and everything around
speech can be run exactly.
"""

import math
import sys
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from models.catalog import EngineSpec
from models.clock import Clock
from models.content import AudioDelta
from models.errors import BadInput, Unsupported
from models.ports.activity import WINDOW_SAMPLES, ActivityRequest, Verdict
from models.ports.context import EngineContext
from models.ports.streams import Fed, Flush, SoundInput
from models.ports.synthesize import SpeechEvent, Spoken, SynthesizeRequest
from models.ports.transcribe import Hypothesis, Segment, SpokenWord, TranscribeRequest, TranscriptEvent

_LOUD = 1_000
"""The mean amplitude, of 32,767, from which sound is loud."""

_TONE_HZ = 440
_AMPLITUDE = 8_000

_Options = TypeVar("_Options", bound=BaseModel)


class DetectorOptions(BaseModel):
    """The detector has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TranscriberOptions(BaseModel):
    """Options of the transcriber.

    Attributes:
        words: what is heard, over and over, one for each stretch of loud sound.
        language: the only one that it knows.
        silence_samples: after so much silence what was said is a segment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: tuple[str, ...] = ("one", "two", "three")
    language: str = "en"
    silence_samples: PositiveInt = 8_000


class SynthesizerOptions(BaseModel):
    """Options of the synthesizer.

    Attributes:
        rate_hz: of the sound.
        character_samples: how long a character sounds.
        voice: the name of the only voice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate_hz: PositiveInt = 16_000
    character_samples: PositiveInt = 800
    voice: str = "beep"


def _options(kind: type[_Options], spec: EngineSpec) -> _Options:
    try:
        return kind.model_validate_json(spec.options)
    except ValidationError as exc:
        raise BadInput(f"The options of the engine {spec.name!r} do not fit: {exc}") from exc


def build_detector(spec: EngineSpec, context: EngineContext) -> "ScriptedDetector":
    """Build the detector; raises BadInput for options that do not fit."""
    _options(DetectorOptions, spec)
    return ScriptedDetector(context.clock)


def build_transcriber(spec: EngineSpec, context: EngineContext) -> "ScriptedTranscriber":
    """Build the transcriber; raises BadInput for options that do not fit."""
    return ScriptedTranscriber(_options(TranscriberOptions, spec), context.clock)


def build_synthesizer(spec: EngineSpec, context: EngineContext) -> "ScriptedSynthesizer":
    """Build the synthesizer; raises BadInput for options that do not fit."""
    return ScriptedSynthesizer(_options(SynthesizerOptions, spec), context.clock)


class ScriptedDetector:
    """Calls loud what is loud."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def open(self, request: ActivityRequest) -> Fed[SoundInput, Verdict]:
        """Open a stream; see `ActivityDetector.open`."""
        return Fed(self._hear, self._clock, request.deadline)

    async def aclose(self) -> None:
        """Do nothing: the engine holds nothing."""

    async def _hear(self, sound: AsyncIterator[SoundInput]) -> AsyncGenerator[Verdict, None]:
        cutter, at = _Windows(), 0
        async for piece in sound:
            for window in cutter.cut(piece.pcm):
                yield Verdict(start_sample=at, probability=_loudness(window))
                at += WINDOW_SAMPLES
        for window in cutter.rest():
            yield Verdict(start_sample=at, probability=_loudness(window))


class ScriptedTranscriber:
    """Hears the words of its script."""

    def __init__(self, options: TranscriberOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock

    def open(self, request: TranscribeRequest) -> Fed[SoundInput | Flush, TranscriptEvent]:
        """Open a stream; see `Transcriber.open`."""
        return Fed(partial(self._hear, request), self._clock, request.deadline)

    async def aclose(self) -> None:
        """Do nothing: the engine holds nothing."""

    async def _hear(
        self, request: TranscribeRequest, inputs: AsyncIterator[SoundInput | Flush]
    ) -> AsyncGenerator[TranscriptEvent, None]:
        if request.language not in {None, self._options.language}:
            raise Unsupported(f"The scripted transcriber knows {self._options.language!r} alone.", field="language")
        if request.rate_hz != 16_000:
            raise Unsupported("The scripted transcriber hears 16,000 samples a second.", field="rate_hz")
        cutter, script = _Windows(), _Script(self._options)
        async for piece in inputs:
            heard = script.hear(cutter.cut(piece.pcm)) if isinstance(piece, SoundInput) else script.close()
            for event in heard:
                yield event
        for event in (*script.hear(cutter.rest()), *script.close()):
            yield event


class _Script:
    """What has been said of the script: a word is begun by loud sound and ended by silence."""

    def __init__(self, options: TranscriberOptions) -> None:
        self._options = options
        self._at = 0
        self._said = 0
        self._began: int | None = None
        self._silent = 0
        self._words: list[SpokenWord] = []

    def hear(self, windows: Iterator[bytes]) -> Iterator[TranscriptEvent]:
        for window in windows:
            yield from self._hear(loud=_loudness(window) > 0.5)

    def _hear(self, *, loud: bool) -> Iterator[TranscriptEvent]:
        if loud:
            if self._began is None:
                self._began = self._at
                yield Hypothesis(text=" ".join([*(word.text for word in self._words), self._next()]))
            self._silent = 0
        else:
            self._end_word()
            self._silent += WINDOW_SAMPLES
        self._at += WINDOW_SAMPLES
        if self._words and self._silent >= self._options.silence_samples:
            yield from self.close()

    def close(self) -> Iterator[TranscriptEvent]:
        self._end_word()
        if self._words:
            words = tuple(self._words)
            yield Segment(
                text=" ".join(word.text for word in words),
                start_sample=words[0].start_sample,
                end_sample=words[-1].end_sample,
                words=words,
            )
        self._words = []

    def _end_word(self) -> None:
        if self._began is not None:
            self._words.append(SpokenWord(text=self._next(), start_sample=self._began, end_sample=self._at))
            self._said += 1
            self._began = None

    def _next(self) -> str:
        return self._options.words[self._said % len(self._options.words)]


class ScriptedSynthesizer:
    """Beeps."""

    def __init__(self, options: SynthesizerOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock

    def open(self, request: SynthesizeRequest) -> Fed[str | Flush, SpeechEvent]:
        """Open a stream; see `Synthesizer.open`."""
        return Fed(partial(self._speak, request), self._clock, request.deadline)

    async def aclose(self) -> None:
        """Do nothing: the engine holds nothing."""

    async def _speak(
        self, request: SynthesizeRequest, inputs: AsyncIterator[str | Flush]
    ) -> AsyncGenerator[SpeechEvent, None]:
        if request.voice not in {None, self._options.voice}:
            raise Unsupported(f"The only scripted voice is {self._options.voice!r}.", field="voice")
        if request.speed != 1:
            raise Unsupported("The scripted voice has one speed, 1.", field="speed")
        waiting, spoken = "", 0
        async for piece in inputs:
            if isinstance(piece, str):
                waiting += piece
                whole = max(waiting.rfind(" "), waiting.rfind("\n")) + 1
            else:
                whole = len(waiting)
            now, waiting = waiting[:whole], waiting[whole:]
            for event in self._say(now, spoken):
                yield event
            spoken += len(now)
        for event in self._say(waiting, spoken):
            yield event

    def _say(self, text: str, before: int) -> Iterator[SpeechEvent]:
        if not text:
            return
        each, rate = self._options.character_samples, self._options.rate_hz
        samples = array(
            "h",
            (
                0 if character.isspace() else round(_AMPLITUDE * math.sin(2 * math.pi * _TONE_HZ * n / rate))
                for character in text
                for n in range(each)
            ),
        )
        if sys.byteorder == "big":
            samples.byteswap()
        yield AudioDelta(pcm=samples.tobytes(), rate_hz=rate)
        yield Spoken(characters=before + len(text), samples=(before + len(text)) * each)


class _Windows:
    """Cuts sound into windows."""

    def __init__(self) -> None:
        self._left = b""

    def cut(self, pcm: bytes) -> Iterator[bytes]:
        if len(pcm) % 2:
            raise BadInput("A piece of sound has to be a whole number of 16-bit samples.", field="audio")
        pcm, size = self._left + pcm, 2 * WINDOW_SAMPLES
        for at in range(0, len(pcm) - size + 1, size):
            yield pcm[at : at + size]
        self._left = pcm[len(pcm) // size * size :]

    def rest(self) -> Iterator[bytes]:
        if self._left:
            yield self._left.ljust(2 * WINDOW_SAMPLES, b"\0")
            self._left = b""


def _loudness(window: bytes) -> float:
    samples = array("h", window)
    if sys.byteorder == "big":
        samples.byteswap()
    return min(1.0, sum(map(abs, samples)) / len(samples) / (2 * _LOUD))
