"""Words made heard: the Protocol through which speech is made of text while that is still being written."""

from dataclasses import dataclass
from typing import Literal, Protocol

from models.content import AudioDelta
from models.ports.streams import Flush, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesizeRequest:
    """One stream of text that is to be spoken.

    Attributes:
        voice: a name that the model knows; None takes its own.
        speed: 1 is the voice's own pace, 2 twice as fast.
        deadline: absolute time in seconds of the injected clock; None leaves it open.
        tenant: whose words they are.
        subject: the end user of the tenant that they are for.
    """

    kind: Literal["synthesize"] = "synthesize"
    voice: str | None = None
    speed: float = 1.0
    deadline: float | None = None
    tenant: str
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A mark: what of the text has been spoken by when. What was heard is told by it.

    Attributes:
        characters: of the text from its beginning.
        samples: of the sound from its beginning.
    """

    kind: Literal["spoken"] = "spoken"
    characters: int
    samples: int


SpeechEvent = AudioDelta | Spoken


class Synthesizer(Protocol):
    """Something that speaks."""

    def open(self, request: SynthesizeRequest) -> Stream[str | Flush, SpeechEvent]:
        """Open a stream: pieces of text are pushed, as they are written, and sound and marks come out.

        Pieces need not end where words do; a word is spoken when it is whole, or at a `Flush`, which the end of the input is too.
        All sound of a stream has one rate. A mark follows the sound that it is of, and the last one is of all the text.

        Raises:
            Unsupported: among the outputs, first of all, if the voice or the speed cannot be had.
        """
        ...

    async def aclose(self) -> None:
        """Stop all work and free everything. Idempotent."""
        ...
