"""What is said, in words: the Protocol through which speech is recognised while it is spoken."""

from dataclasses import dataclass
from typing import Literal, Protocol

from models.ports.streams import Flush, SoundInput, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscribeRequest:
    """One stream of speech, 16-bit mono.

    Attributes:
        rate_hz: samples a second.
        language: what is spoken, as BCP 47 writes it; None lets the model find out.
        deadline: absolute time in seconds of the injected clock; None, as for a conversation, leaves it open.
        tenant: whose speech it is.
        subject: the end user of the tenant that it is of.
    """

    kind: Literal["transcribe"] = "transcribe"
    rate_hz: int = 16_000
    language: str | None = None
    deadline: float | None = None
    tenant: str
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenWord:
    """A word, and where it was said, in samples from the beginning of the stream."""

    text: str
    start_sample: int
    end_sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """What has been said since the last segment, as far as can be told; the next hypothesis replaces it."""

    kind: Literal["hypothesis"] = "hypothesis"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What was said for good.

    Attributes:
        text: the words, as they are written.
        start_sample: where it begins, in samples from the beginning of the stream.
        end_sample: where it ends.
        words: each with its place, from a model that knows it; else empty.
    """

    kind: Literal["segment"] = "segment"
    text: str
    start_sample: int
    end_sample: int
    words: tuple[SpokenWord, ...] = ()


TranscriptEvent = Hypothesis | Segment


class Transcriber(Protocol):
    """Something that writes down what is said."""

    def open(self, request: TranscribeRequest) -> Stream[SoundInput | Flush, TranscriptEvent]:
        """Open a stream: `SoundInput` is pushed, and what was said comes out; `Flush` has the segment end that is open.

        Segments come in order and do not overlap; the end of the input flushes. What nothing was said in gives nothing.

        Raises:
            Unsupported: among the outputs, first of all, if the rate or the language cannot be had.
            BadInput: among the outputs, if a piece is not a whole number of samples.
        """
        ...

    async def aclose(self) -> None:
        """Stop all work and free everything. Idempotent."""
        ...
