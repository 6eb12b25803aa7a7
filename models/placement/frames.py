"""What the gateway and a worker say to each other over a socket pair.

Frames are length-prefixed pickles: both ends are one installation, and the socket has no other door.

Flow control is by credit, as in HTTP/2: a child may have `WINDOW` outputs of a request under way, and the client
grants more as its reader takes them. A reader that stops so stops its engine, and nothing piles up between. What is fed to a
request that takes input goes by credit, too: `UNREAD_INPUTS` pieces, and as many more as the engine is said to have taken.
"""

import asyncio
import copyreg
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from models.catalog import EngineSpec
from models.content import AudioDelta, Call, CallResult, Delta, Message, ScoredToken, TextDelta, TextPart, WrittenToken
from models.errors import BatonError
from models.ports.activity import ActivityRequest, Verdict
from models.ports.embed import Embeddings, EmbedRequest
from models.ports.generate import GenerateRequest, Sampling
from models.ports.streams import Flush, SoundInput
from models.ports.synthesize import SpeechEvent, Spoken, SynthesizeRequest
from models.ports.transcribe import TranscribeRequest, TranscriptEvent

StreamRequest = ActivityRequest | TranscribeRequest | SynthesizeRequest
"""What opens a stream."""

EngineRequest = GenerateRequest | EmbedRequest | StreamRequest
"""What an engine can be asked, through whichever port."""

Input = SoundInput | Flush | str
"""What can be fed to a request while it runs."""

Output = Delta | Embeddings | Verdict | TranscriptEvent | SpeechEvent
"""What comes of a request."""

WINDOW = 64
"""Outputs of one request that may be under way."""

MAX_FRAME_BYTES = 64 * 1024 * 1024

_READ_BYTES = 256 * 1024

_LENGTH = struct.Struct("!I")


class FrameError(Exception):
    """A frame that is too large, cannot be read, or may not come from where it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Client: build the engine of a card. Others go on working meanwhile."""

    card: str
    spec: EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Client: run `request` on the engine of `card`."""

    request_id: int
    card: str
    request: EngineRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """Client: a piece of input for a request that takes some. It has the credit for it."""

    request_id: int
    value: Input


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOfInput:
    """Client: nothing more will be fed to this request."""

    request_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Client: so many more outputs of this request may be sent."""

    request_id: int
    credit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Client: stop this request within one step; nothing more is wanted of it."""

    request_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Client: say that you are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """Child: it is there; `stalled_s` is how long an engine has been at one step, 0 if none is."""

    stalled_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Child, first: the process is there."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Child: the engine of a card is built, or cannot be."""

    card: str
    error: BatonError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Client: let go of all that is kept of a tenant, or of one subject of it; `Forgotten` says when that is done."""

    forget_id: int
    tenant: str
    subject: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """Child: what was to be forgotten is in none of its engines any more."""

    forget_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaFrame:
    """Child: one output of a request."""

    request_id: int
    output: Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Child: so many pieces of input were taken, and as many more may be fed."""

    request_id: int
    credit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Child: the request is over, by an error if there is one."""

    request_id: int
    error: BatonError | None


ToChild = Load | Submit | Feed | EndOfInput | Grant | Stop | Forget | Ping
ToClient = Ready | Loaded | DeltaFrame | Taken | Ended | Forgotten | Pong


def encode(frame: ToChild | ToClient) -> bytes:
    """Return the bytes of one frame.

    Raises:
        FrameError: it is too large.
    """
    body = pickle.dumps(frame, protocol=pickle.HIGHEST_PROTOCOL)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Frames as they come, a whole read of the socket at a time: awaiting each part of each costs more than they do."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        """Take the reading side of the socket; the caller closes it."""
        self._reader = reader
        self._buffer = bytearray()
        self._at = 0

    async def next(self) -> ToChild | ToClient | None:
        """Return the next frame, or None when the other end is gone.

        Raises:
            FrameError: what came is not a frame.
        """
        while (body := self._body()) is None:
            del self._buffer[: self._at]
            self._at = 0
            try:
                read = await self._reader.read(_READ_BYTES)
            except ConnectionError:
                return None
            if not read:
                return None
            self._buffer += read
        try:
            frame: ToChild | ToClient = pickle.loads(body)
        except Exception as exc:  # unpickling fails in any way it likes
            raise FrameError("a frame cannot be read") from exc
        return frame

    def _body(self) -> bytes | None:
        """Return the body of the next frame if it is whole."""
        begin = self._at + _LENGTH.size
        if len(self._buffer) < begin:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._at)
        if length > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
        if len(self._buffer) < begin + length:
            return None
        self._at = begin + length
        return bytes(self._buffer[begin : self._at])


def _reduce(value: Any) -> tuple[Any, ...]:
    kind = type(value)
    return _make, (kind, _FIELDS[kind](value))


def _make(kind: type[Any], values: tuple[Any, ...]) -> Any:
    made = object.__new__(kind)
    for name, value in zip(kind.__slots__, values, strict=True):
        object.__setattr__(made, name, value)
    return made


# What crosses for each token, and for each item of a conversation. A frozen dataclass's own way through a pickle looks
# its fields up anew each time, and takes three to six times as long.
_FIELDS: dict[type[Any], Callable[[Any], tuple[Any, ...]]] = {
    kind: attrgetter(*kind.__slots__)
    for kind in (
        Submit,
        Feed,
        DeltaFrame,
        Taken,
        SoundInput,
        Verdict,
        Spoken,
        AudioDelta,
        GenerateRequest,
        Sampling,
        Message,
        Call,
        CallResult,
        TextPart,
        TextDelta,
        ScoredToken,
        WrittenToken,
    )
}
for _kind in _FIELDS:
    copyreg.pickle(_kind, _reduce)
