"""Whether somebody speaks: the Protocol through which detectors of voice activity are fed."""

from dataclasses import dataclass
from typing import Literal, Protocol

from models.ports.streams import SoundInput, Stream

RATE_HZ = 16_000

WINDOW_SAMPLES = 512
"""What one verdict is on: 32 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityRequest:
    """One stream of sound, 16-bit mono at `RATE_HZ`.

    Attributes:
        deadline: absolute time in seconds of the injected clock; None, as for a conversation, leaves it open.
        tenant: whose sound it is.
        subject: the end user of the tenant that it is of.
    """

    kind: Literal["activity"] = "activity"
    deadline: float | None = None
    tenant: str
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How likely somebody speaks in one window.

    Attributes:
        start_sample: the window's first sample, counted from the beginning of the stream.
        probability: from 0 to 1.
    """

    kind: Literal["verdict"] = "verdict"
    start_sample: int
    probability: float


class ActivityDetector(Protocol):
    """Something that hears whether somebody speaks."""

    def open(self, request: ActivityRequest) -> Stream[SoundInput, Verdict]:
        """Open a stream that gives one verdict for each `WINDOW_SAMPLES` samples, in order, as soon as the last of them is pushed.

        Pieces of sound may be of any length; what is left of a window when the input ends is filled up with silence. Streams
        know nothing of each other.

        Raises:
            BadInput: among the outputs, if a piece is not a whole number of samples.
        """
        ...

    async def aclose(self) -> None:
        """Stop all work and free everything. Idempotent."""
        ...
