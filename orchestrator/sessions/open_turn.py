"""What of a session is not in its log yet: the item that is being written, the turn that runs, the proposal."""

import io
from dataclasses import dataclass, field, replace
from typing import assert_never

from models.content import (
    AudioDelta,
    Call,
    CallDelta,
    Delta,
    FinishDelta,
    ItemStatus,
    Message,
    TextDelta,
    TextPart,
    UsageDelta,
)
from orchestrator.events import TurnInput, Usage


class OpenItem:
    """The item that is being written, and its text so far."""

    def __init__(self, frame: Message | Call) -> None:
        """Take the item without its text."""
        self._frame = frame
        self._text = io.StringIO()
        self.length = 0
        self.samples = 0
        self.rate_hz = 1

    @property
    def item_id(self) -> str:
        """The item's id."""
        return self._frame.item_id

    @property
    def call_id(self) -> str | None:
        """The call's id, or None for a message."""
        return self._frame.call_id if isinstance(self._frame, Call) else None

    @property
    def audio_ms(self) -> int:
        """How long its sound is so far."""
        return self.samples * 1000 // self.rate_hz

    def append(self, text: str) -> None:
        """Add to the end."""
        self._text.seek(0, io.SEEK_END)
        self._text.write(text)
        self.length += len(text)

    def since(self, offset: int) -> str:
        """Return the characters from `offset` on."""
        self._text.seek(offset)
        return self._text.read()

    def item(self, status: ItemStatus) -> Message | Call:
        """Return the item as it stands."""
        text = self._text.getvalue()
        match self._frame:
            case Message():
                parts = (TextPart(text=text, source="generated"),) if text else ()
                return replace(self._frame, parts=parts, status=status)
            case Call():
                return replace(self._frame, arguments=text, status=status)
            case _:
                assert_never(self._frame)


@dataclass(slots=True, kw_only=True)
class LiveTurn:
    """The turn that was accepted and has not ended.

    Attributes:
        turn_id: its id.
        accepted_seq: the row that accepted it.
        generation: the one that was accepted; what is written of the turn carries it.
        current_generation: the same, until an interruption raises it; output of any other is stale.
        last_generation: the highest that a candidate of this turn had.
        asked_s: when it was asked for.
        accepted_s: when it was accepted.
        open: the item that is being written.
        usage: tokens so far, as the engine tells them.
        written: tokens of the answer that were taken so far.
        first_delta_s: when the first delta was taken.
    """

    turn_id: str
    accepted_seq: int
    generation: int
    current_generation: int
    last_generation: int
    asked_s: float
    accepted_s: float
    open: OpenItem | None = None
    usage: Usage = field(default_factory=Usage)
    written: int = 0
    first_delta_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Proposal:
    """A turn that was proposed and not committed: its id, and the inputs that may become it, by generation."""

    turn_id: str
    last_generation: int = 0
    candidates: dict[int, TurnInput] = field(default_factory=dict)
    expires_s: float = 0.0
    asked_s: float = 0.0


def take_delta(turn: LiveTurn, delta: Delta, item_id: str, now_s: float) -> bool:
    """Let `delta` grow the turn. Return False, and change nothing, if it belongs to another item than the open one."""
    match delta:
        case UsageDelta():
            turn.usage = turn.usage.plus(delta)
            return True
        case TextDelta() | AudioDelta() | CallDelta():
            if turn.open is None:
                turn.open = OpenItem(_frame(delta, item_id))
            elif turn.open.call_id != (delta.call_id if isinstance(delta, CallDelta) else None):
                return False
            if turn.first_delta_s is None:
                turn.first_delta_s = now_s
            _grow(turn.open, delta)
            if not isinstance(delta, AudioDelta):
                turn.written = max(turn.written, delta.written)
            return True
        case FinishDelta():
            return False
        case _:
            assert_never(delta)


def _frame(delta: TextDelta | AudioDelta | CallDelta, item_id: str) -> Message | Call:
    match delta:
        case TextDelta() | AudioDelta():
            return Message(item_id=item_id, role="assistant", parts=())
        case CallDelta():
            return Call(item_id=item_id, call_id=delta.call_id, name=delta.name, arguments="")
        case _:
            assert_never(delta)


def _grow(item: OpenItem, delta: TextDelta | AudioDelta | CallDelta) -> None:
    match delta:
        case TextDelta():
            item.append(delta.text)
        case CallDelta():
            item.append(delta.arguments)
        case AudioDelta():
            item.samples += len(delta.pcm) // 2
            item.rate_hz = delta.rate_hz
        case _:
            assert_never(delta)
