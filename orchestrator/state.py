"""One session as a pure state machine: no I/O, no clock, no ids of its own making.

Two kinds of step. *Planning* a change checks it and returns the rows it would write; the caller commits them and hands
them back to `apply`, which is the only way that rows change the state, so that a session folded from its log and one
that lived through it are the same. *Taking* a delta changes only the item that is open.

The sink is `take`: what does not come from the current (turn, generation) is dropped there.
"""

import io
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from agents.events import AgentEvent, Fault, TaskFailed, TaskFinished, TaskProgress, TaskStarted
from models.content import (
    AudioDelta,
    Call,
    CallDelta,
    CallResult,
    Delta,
    FinishDelta,
    Item,
    ItemStatus,
    Message,
    TextDelta,
    TextPart,
    UsageDelta,
)
from models.errors import Conflict, LimitExceeded, NotFound
from orchestrator.events import (
    Committed,
    Decision,
    ItemClosed,
    ItemsAdded,
    LogEvent,
    PlaybackHeard,
    TurnAccepted,
    TurnEnded,
    TurnInput,
    Usage,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """Bounds of one session, each with what happens at it.

    Attributes:
        candidates: proposals open at a time; the oldest is dropped.
        items: items kept for the model's context; the oldest leave it, the log keeps them.
        rows: rows kept for readers that lag; a reader further behind reads the database.
        detach_grace_s: how long a turn runs on without a reader before it is cancelled.
        proposal_s: how long a proposal waits to be committed before it is dropped.
        idle_s: how long a session without reader or turn stays in memory.
    """

    candidates: int = 4
    items: int = 512
    rows: int = 256
    detach_grace_s: float = 60.0
    proposal_s: float = 60.0
    idle_s: float = 300.0


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
    """The turn that was accepted and has not ended."""

    turn_id: str
    generation: int
    slot: int
    accepted_s: float
    open: OpenItem | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    first_delta_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Proposal:
    """A turn that was proposed and not committed: its id, and the inputs that may become it, by generation."""

    turn_id: str
    last_generation: int = 0
    candidates: dict[int, TurnInput] = field(default_factory=dict)
    expires_s: float = 0.0


class SessionState:
    """Everything that a session knows. See the module for how it changes."""

    def __init__(self, limits: SessionLimits) -> None:
        self.limits = limits
        self.last_seq = 0
        self.items: list[Item] = []
        self.rows: deque[Committed] = deque(maxlen=limits.rows)
        self.turn: LiveTurn | None = None
        self.proposal: Proposal | None = None
        self._audio_ms: dict[str, int] = {}
        self._heard_ms: dict[str, int] = {}
        self._unlogged_heard: set[str] = set()
        self._readers = 0
        self._quiet_since_s = 0.0

    # Folding the log

    def apply(self, rows: Iterable[Committed], now_s: float) -> None:
        """Take rows in, in order of `seq`, right after they were committed or read."""
        for row in rows:
            self.last_seq = row.seq
            self.rows.append(row)
            self._fold(row.event, now_s)
        if (excess := len(self.items) - self.limits.items) > 0:
            for item in self.items[:excess]:
                self._audio_ms.pop(item.item_id, None)
                self._heard_ms.pop(item.item_id, None)
            del self.items[:excess]
            if self.turn is not None:
                self.turn.slot = max(0, self.turn.slot - excess)

    def _fold(self, event: LogEvent, now_s: float) -> None:
        match event:
            case ItemsAdded():
                self.items.extend(event.items)
            case TurnAccepted():
                self.items.extend(event.input.items)
                self.turn = LiveTurn(
                    turn_id=event.turn_id, generation=event.generation, slot=len(self.items), accepted_s=now_s
                )
                self.proposal = None
            case ItemClosed():
                # At the place of its turn: what was added while it was written comes after it.
                at = len(self.items) if self.turn is None else self.turn.slot
                self.items.insert(at, event.item)
                self._audio_ms[event.item.item_id] = event.audio_ms
                if self.turn is not None:
                    self.turn.slot = at + 1
                    self.turn.open = None
            case PlaybackHeard():
                self._heard_ms[event.item_id] = event.heard_ms
                self._unlogged_heard.discard(event.item_id)
            case TurnEnded():
                self.turn = None
                self._quiet_since_s = now_s
            case _:
                assert_never(event)

    # What a surface asks

    def propose(self, turn_id: str, turn_input: TurnInput, now_s: float) -> tuple[int, tuple[int, ...]]:
        """Open a turn, or revise the one that is open.

        Args:
            turn_id: the id of the turn, if this is its first input.
            turn_input: what might be said.
            now_s: the time.

        Returns:
            The generation of this input, and those that it pushed out.

        Raises:
            Conflict: a turn is running, or an item's id is taken.
        """
        if self.turn is not None:
            raise Conflict(
                f"The turn {self.turn.turn_id!r} is running. Wait until it ends, or cancel it.",
                code="turn_active",
            )
        self._check_items(turn_input.items)
        if self.proposal is None:
            self.proposal = Proposal(turn_id=turn_id)
        proposal = self.proposal
        proposal.last_generation += 1
        proposal.candidates[proposal.last_generation] = turn_input
        proposal.expires_s = now_s + self.limits.proposal_s
        excess = tuple(proposal.candidates)[: -self.limits.candidates]
        for generation in excess:
            del proposal.candidates[generation]
        return proposal.last_generation, excess

    def discard(self, turn_id: str, generation: int) -> None:
        """Drop one candidate, and the proposal with its last one."""
        if (proposal := self.proposal) is not None and proposal.turn_id == turn_id:
            proposal.candidates.pop(generation, None)
            if not proposal.candidates:
                self.proposal = None

    def plan_accept(self, turn_id: str, generation: int, decision: Decision) -> tuple[LogEvent, ...]:
        """Return the rows by which a candidate becomes the turn.

        Raises:
            Conflict: it is not proposed any more, a turn is running, or an item's id was taken meanwhile.
        """
        if self.turn is not None:
            raise Conflict(
                f"The turn {self.turn.turn_id!r} is running. Wait until it ends, or cancel it.",
                code="turn_active",
            )
        proposal = self.proposal
        if proposal is None or proposal.turn_id != turn_id or generation not in proposal.candidates:
            raise Conflict(f"Generation {generation} is not proposed any more. Propose it again.", code="not_proposed")
        turn_input = proposal.candidates[generation]
        self._check_items(turn_input.items)
        accepted = TurnAccepted(turn_id=turn_id, generation=generation, input=turn_input, decision=decision)
        return (*self._plan_heard(), accepted)

    def plan_cancel(self, turn_id: str, reason: str, now_s: float) -> tuple[LogEvent, ...]:
        """Interrupt the running turn: from this call on its generation is stale. Return the rows that end it.

        Raises:
            Conflict: that turn is not running.
        """
        turn = self.turn
        if turn is None or turn.turn_id != turn_id:
            raise Conflict(f"The turn {turn_id!r} is not running.", code="turn_not_active")
        turn.generation += 1
        return self._plan_end(turn, "incomplete", now_s, state="interrupted", reason=reason)

    def plan_recover(self) -> tuple[LogEvent, ...]:
        """Return the row that reports a turn which a restart cut off; none if there is no such turn."""
        if self.turn is None:
            return ()
        return (
            TurnEnded(
                turn_id=self.turn.turn_id,
                generation=self.turn.generation + 1,
                state="interrupted",
                reason="server_restarted",
            ),
        )

    def plan_add(self, items: tuple[Item, ...]) -> tuple[LogEvent, ...]:
        """Return the row that adds items to the conversation.

        Raises:
            Conflict: an item's id is taken, or a call has its result already.
            NotFound: a result answers no call of this conversation.
        """
        self._check_items(items)
        return (ItemsAdded(items=items),)

    def heard(self, item_id: str, ms: int) -> None:
        """Note that playback of an item has reached `ms`; logged together with the next rows.

        Raises:
            NotFound: there is no such item.
            LimitExceeded: the item's sound is not that long.
        """
        audio_ms = self._sound_ms(item_id)
        if not 0 <= ms <= audio_ms:
            raise LimitExceeded(
                f"The item {item_id!r} has {audio_ms} ms of sound; {ms} ms of it cannot have been heard.",
                field="ms",
            )
        if ms > self._heard_ms.get(item_id, -1):
            self._heard_ms[item_id] = ms
            self._unlogged_heard.add(item_id)

    # What a generation yields

    def is_current(self, turn_id: str, generation: int) -> bool:
        """Return whether output of this generation may be taken now."""
        return self.turn is not None and (self.turn.turn_id, self.turn.generation) == (turn_id, generation)

    def take(self, event: AgentEvent, item_id: str, now_s: float) -> bool:
        """Take an event that needs no row. Return False, and change nothing, if it needs one or is stale.

        Args:
            event: what the generation yields.
            item_id: the id of the item that the event opens, if it opens one.
            now_s: the time.
        """
        turn = self._current(event)
        if turn is None:
            return False
        match event:
            case TaskStarted():
                return True
            case TaskProgress():
                return _take_delta(turn, event.delta, item_id, now_s)
            case TaskFinished() | TaskFailed():
                return False
            case _:
                assert_never(event)

    def plan(self, event: AgentEvent, now_s: float) -> tuple[LogEvent, ...]:
        """Return the rows that `event` needs before it can be taken; none if it is stale.

        A delta of another item closes the one that is open; the end of the task ends the turn.
        """
        turn = self._current(event)
        if turn is None:
            return ()
        match event:
            case TaskFinished():
                status: ItemStatus = "incomplete" if event.reason == "length" else "completed"
                return self._plan_end(turn, status, now_s, state="finished", reason=event.reason)
            case TaskFailed():
                return self._plan_end(turn, "incomplete", now_s, state="failed", fault=event.fault)
            case TaskProgress() | TaskStarted():
                return self._plan_close(turn, "completed")
            case _:
                assert_never(event)

    # Readers and time

    def attach(self) -> None:
        """Count a reader in."""
        self._readers += 1

    def detach(self, now_s: float) -> None:
        """Count a reader out."""
        self._readers -= 1
        self._quiet_since_s = now_s

    def touch(self, now_s: float) -> None:
        """Start the idle time anew."""
        self._quiet_since_s = now_s

    def next_due_s(self) -> float | None:
        """Return when `overdue` may next have something to say."""
        if self.proposal is not None:
            return self.proposal.expires_s
        if self._readers:
            return None
        return self._quiet_since_s + (self.limits.idle_s if self.turn is None else self.limits.detach_grace_s)

    def overdue(self, now_s: float) -> Literal["proposal", "detached", "idle"] | None:
        """Return what is due now: `proposal` expired, `detached` turn out of grace, session `idle`; or None."""
        due_s = self.next_due_s()
        if due_s is None or now_s < due_s:
            return None
        if self.proposal is not None:
            return "proposal"
        return "idle" if self.turn is None else "detached"

    # Inside

    def _current(self, event: AgentEvent) -> LiveTurn | None:
        return self.turn if self.is_current(event.origin.turn_id, event.origin.generation) else None

    def _plan_close(self, turn: LiveTurn, status: ItemStatus) -> tuple[LogEvent, ...]:
        if turn.open is None:
            return ()
        return (
            ItemClosed(
                turn_id=turn.turn_id,
                generation=turn.generation,
                item=turn.open.item(status),
                audio_ms=turn.open.audio_ms,
            ),
        )

    def _plan_end(
        self,
        turn: LiveTurn,
        status: ItemStatus,
        now_s: float,
        *,
        state: str,
        reason: str | None = None,
        fault: Fault | None = None,
    ) -> tuple[LogEvent, ...]:
        first_s = turn.first_delta_s
        ended = TurnEnded(
            turn_id=turn.turn_id,
            generation=turn.generation,
            state=state,  # type: ignore[arg-type]  # one of three literals, all written in this module
            reason=reason,
            fault=fault,
            usage=Usage(input_tokens=turn.input_tokens, output_tokens=turn.output_tokens),
            first_delta_ms=None if first_s is None else _ms(first_s - turn.accepted_s),
            duration_ms=_ms(now_s - turn.accepted_s),
        )
        return (*self._plan_close(turn, status), *self._plan_heard(), ended)

    def _plan_heard(self) -> tuple[LogEvent, ...]:
        return tuple(
            PlaybackHeard(item_id=item_id, heard_ms=self._heard_ms[item_id]) for item_id in sorted(self._unlogged_heard)
        )

    def _check_items(self, items: tuple[Item, ...]) -> None:
        known = {item.item_id for item in self.items}
        calls = {item.call_id for item in self.items if isinstance(item, Call) and item.status == "completed"}
        answered = {item.call_id for item in self.items if isinstance(item, CallResult)}
        for item in items:
            if item.item_id in known:
                raise Conflict(f"There is an item {item.item_id!r} in this session already.", code="item_exists")
            known.add(item.item_id)
            if isinstance(item, CallResult):
                if item.call_id not in calls:
                    raise NotFound(f"There is no call {item.call_id!r} in this session.", field="call_id")
                if item.call_id in answered:
                    raise Conflict(f"The call {item.call_id!r} has its result already.", code="call_answered")
                answered.add(item.call_id)

    def _sound_ms(self, item_id: str) -> int:
        turn = self.turn
        if turn is not None and turn.open is not None and turn.open.item_id == item_id:
            return turn.open.audio_ms
        if any(item.item_id == item_id for item in self.items):
            return self._audio_ms.get(item_id, 0)
        raise NotFound(f"There is no item {item_id!r} in this session.", field="item_id")


def _take_delta(turn: LiveTurn, delta: Delta, item_id: str, now_s: float) -> bool:
    match delta:
        case UsageDelta():
            turn.input_tokens += delta.input_tokens
            turn.output_tokens += delta.output_tokens
            return True
        case TextDelta() | AudioDelta() | CallDelta():
            if turn.open is None:
                turn.open = OpenItem(_frame(delta, item_id))
            elif turn.open.call_id != (delta.call_id if isinstance(delta, CallDelta) else None):
                return False
            if turn.first_delta_s is None:
                turn.first_delta_s = now_s
            _grow(turn.open, delta)
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


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
