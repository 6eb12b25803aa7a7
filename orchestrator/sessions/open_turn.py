"""What of a session is not in its log yet: the items that are being written, the turn that runs, the proposal.

A turn is the work of tasks, and each may have an item open. An item is known by its task and, if it is a call, by the
call: words, sound, pictures and evidence grow the message of their task, in the order in which they come; what a model
thinks grows an item beside it. What begins another item of a task closes the one before: only calls whose fragments come
in turn are open side by side.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from agents.events import Origin
from models.content import (
    ApprovalRequest,
    AudioDelta,
    Call,
    CallDelta,
    Delta,
    FinishDelta,
    ItemStatus,
    Message,
    OutputRole,
    Part,
    PartDelta,
    Reasoning,
    ReasoningDelta,
    TextDelta,
    TextPart,
    UsageDelta,
    is_beside,
)
from models.ports.generate import ToolSpec
from orchestrator.events import CallEffect, OnLeave, TaskResult, TurnInput, Usage, effect_key

ItemKey = tuple[str, str | None]
"""A task, and a call of it if the item is one."""


@dataclass(slots=True, kw_only=True)
class LiveTask:
    """A task that has begun and not ended.

    Attributes:
        task_id: its id.
        agent: who does it.
        role: what its output is to the turn.
        card: on which model; empty until it says so.
        output: the name of what it writes.
        started_s: when it began; None if it has not.
        usage: tokens so far, as the engine tells them.
        written: tokens that were taken so far.
        calls: how many it has made; the next one's ordinal.
        called: the ids of those that are closed.
        outputs: what it has put out.
        is_over: whether its end is logged: what it yields then is stale.
    """

    task_id: str
    agent: str
    role: OutputRole
    card: str = ""
    output: str = "answer"
    started_s: float | None = None
    usage: Usage = field(default_factory=Usage)
    written: int = 0
    calls: int = 0
    called: set[str] = field(default_factory=set)
    outputs: tuple[TaskResult, ...] = ()
    is_over: bool = False

    @property
    def spent(self) -> Usage:
        """What it has spent, also where its engine could not say so any more."""
        return self.usage.cut_off(self.written)


class OpenItem:
    """An item that is being written: its text so far, and the parts that stand in it.

    Attributes:
        item_id: its id.
        task: the task that writes it.
        index: its place among the reply's items that are part of the conversation; None if it is beside it.
        ordinal: which call of its task it is, if it is one.
        role: what it is to the turn.
        is_message: whether it takes words.
        length: characters so far.
        parts: what is not words, each behind so many characters.
        samples: of sound so far, at `rate_hz`.
    """

    __slots__ = (
        "_frame",
        "_text",
        "index",
        "is_message",
        "item_id",
        "length",
        "ordinal",
        "parts",
        "rate_hz",
        "role",
        "samples",
        "task",
    )

    def __init__(self, frame: Message | Call | Reasoning, task: LiveTask, index: int | None, ordinal: int = 0) -> None:
        """Take the item without its text."""
        self._frame = frame
        self._text = io.StringIO()
        self.item_id = frame.item_id
        self.task = task
        self.index = index
        self.ordinal = ordinal
        self.role = frame.output
        self.is_message = isinstance(frame, Message)
        self.length = 0
        self.parts: list[tuple[int, Part]] = []
        self.samples = 0
        self.rate_hz = 1

    @property
    def call_id(self) -> str | None:
        """The call's id, or None for what is no call."""
        return self._frame.call_id if isinstance(self._frame, Call) else None

    @property
    def key(self) -> ItemKey:
        """What it is known by."""
        return self.task.task_id, self.call_id

    @property
    def audio_ms(self) -> int:
        """How long its sound is so far."""
        return self.samples * 1000 // self.rate_hz

    def append(self, text: str) -> None:
        """Add to the end."""
        self._text.seek(0, io.SEEK_END)
        self._text.write(text)
        self.length += len(text)

    def since(self, offset: int, end: int | None = None) -> str:
        """Return the characters from `offset` on, up to `end`."""
        self._text.seek(offset)
        return self._text.read() if end is None else self._text.read(end - offset)

    def is_whole_call(self) -> bool:
        """Return whether it is a call whose arguments are complete."""
        if self.call_id is None:
            return False
        try:
            json.loads(self._text.getvalue())
        except (ValueError, RecursionError):
            return False
        return True

    def item(self, status: ItemStatus) -> Message | Call | Reasoning:
        """Return the item as it stands."""
        match self._frame:
            case Message():
                return replace(self._frame, parts=self._all_parts(), status=status)
            case Call():
                return replace(self._frame, arguments=self._text.getvalue(), status=status)
            case Reasoning():
                return replace(self._frame, text=self._text.getvalue(), status=status)
            case _:
                assert_never(self._frame)

    def _all_parts(self) -> tuple[Part, ...]:
        parts: list[Part] = []
        text, done = self._text.getvalue(), 0
        for offset, part in [*self.parts, (len(text), None)]:
            if offset > done:
                parts.append(TextPart(text=text[done:offset], source="generated"))
                done = offset
            if part is not None:
                parts.append(part)
        return tuple(parts)


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
        agent: who does it, as it was decided.
        card: on which model.
        on_leave: what becomes of it when nobody follows it any more.
        tools: the functions on offer.
        tasks: those that have begun, by id.
        open: the items that are being written, in the order in which they were begun.
        items: how many were begun that are part of the conversation; the next one's index.
        opened_id: the item that was begun last.
        first_delta_s: when the first delta was taken that is no work for other tasks.
        requests: what somebody is asked to allow and has not answered, by the items' ids.
    """

    turn_id: str
    accepted_seq: int
    generation: int
    current_generation: int
    last_generation: int
    asked_s: float
    accepted_s: float
    on_leave: OnLeave = "grace"
    agent: str = ""
    card: str = ""
    tools: Mapping[str, ToolSpec] = field(default_factory=dict)
    tasks: dict[str, LiveTask] = field(default_factory=dict)
    open: dict[ItemKey, OpenItem] = field(default_factory=dict)
    items: int = 0
    opened_id: str | None = None
    first_delta_s: float | None = None
    requests: dict[str, ApprovalRequest] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        """Whether it waits for somebody."""
        return bool(self.requests)

    @property
    def usage(self) -> Usage:
        """What all its tasks have spent."""
        total = Usage()
        for task in self.tasks.values():
            total = total.plus(task.spent)
        return total

    def task(self, origin: Origin) -> LiveTask:
        """Return the task that something comes from."""
        task = self.tasks.get(origin.task_id)
        if task is None:
            task = LiveTask(task_id=origin.task_id, agent=origin.agent, role=origin.role)
            self.tasks[origin.task_id] = task
        return task

    def known(self, task_id: str, role: OutputRole) -> LiveTask:
        """Return the task that a row is of; one that the log has not named before is of whom the decision names."""
        task = self.tasks.get(task_id)
        if task is None:
            self.tasks[task_id] = task = LiveTask(task_id=task_id, agent=self.agent, role=role, card=self.card)
        return task

    def find(self, item_id: str) -> OpenItem | None:
        """Return an item that is being written."""
        return next((item for item in self.open.values() if item.item_id == item_id), None)

    def open_of(self, task_id: str) -> list[OpenItem]:
        """Return the items that a task is writing."""
        return [item for item in self.open.values() if item.task.task_id == task_id]

    def effect_of(self, name: str, task_id: str, ordinal: int) -> CallEffect:
        """Return what a call does, and its key: the same for the same call of the same task of this turn, if that is run again."""
        tool = self.tools.get(name)
        key = effect_key(self.turn_id, task_id, ordinal)
        if tool is None:
            return CallEffect(key=key, effect="effectful")
        return CallEffect(key=key, effect=tool.effect, runner=tool.runner)


@dataclass(slots=True, kw_only=True)
class Proposal:
    """A turn that was proposed and not committed: its id, and the inputs that may become it, by generation."""

    turn_id: str
    last_generation: int = 0
    candidates: dict[int, TurnInput] = field(default_factory=dict)
    expires_s: float = 0.0
    asked_s: float = 0.0


def take_delta(turn: LiveTurn, origin: Origin, delta: Delta, item_id: str, now_s: float) -> bool:
    """Let `delta` grow the turn. Return False, and change nothing, if it is stale, or `superseded` names items to close first."""
    match delta:
        case TextDelta():
            item = turn.open.get((origin.task_id, None))
            if item is None or not item.is_message or item.role != origin.role:
                item = _begin(turn, origin, delta, item_id, now_s)
                if item is None:
                    return False
            item.append(delta.text)
            if delta.written > item.task.written:
                item.task.written = delta.written
            return True
        case AudioDelta() | PartDelta() | ReasoningDelta() | CallDelta():
            return _take_other(turn, origin, delta, item_id, now_s)
        case UsageDelta():
            task = turn.task(origin)
            task.usage = task.usage.plus(delta)
            return True
        case FinishDelta():
            return False
        case _:
            assert_never(delta)


def superseded(turn: LiveTurn, origin: Origin, delta: Delta) -> list[OpenItem]:
    """Return the items that have to be closed before `delta` can be taken."""
    if isinstance(delta, UsageDelta | FinishDelta) or turn.task(origin).is_over:
        return []
    opened = turn.open_of(origin.task_id)
    if any(_grows(item, origin, delta) for item in opened):
        return []
    if isinstance(delta, CallDelta):
        return [item for item in opened if item.call_id is None or item.is_whole_call()]
    return opened


def _take_other(
    turn: LiveTurn,
    origin: Origin,
    delta: AudioDelta | PartDelta | ReasoningDelta | CallDelta,
    item_id: str,
    now_s: float,
) -> bool:
    item = turn.open.get((origin.task_id, delta.call_id if isinstance(delta, CallDelta) else None))
    if item is None or not _grows(item, origin, delta):
        if isinstance(delta, CallDelta) and delta.call_id in turn.task(origin).called:
            return not turn.task(origin).is_over  # it is closed: what comes of it now, nobody can use
        item = _begin(turn, origin, delta, item_id, now_s)
        if item is None:
            return False
    match delta:
        case CallDelta():
            item.append(delta.arguments)
        case ReasoningDelta():
            item.append(delta.text)
        case PartDelta():
            item.parts.append((item.length, delta.part))
        case AudioDelta():
            item.samples += len(delta.pcm) // 2
            item.rate_hz = delta.rate_hz
        case _:
            assert_never(delta)
    if isinstance(delta, CallDelta | ReasoningDelta):
        item.task.written = max(item.task.written, delta.written)
    return True


def _grows(item: OpenItem, origin: Origin, delta: Delta) -> bool:
    """Return whether `delta` belongs to an item of its task."""
    if item.role != origin.role:
        return False
    match delta:
        case TextDelta() | AudioDelta() | PartDelta():
            return item.is_message
        case CallDelta():
            return item.call_id == delta.call_id
        case ReasoningDelta():
            return not item.is_message and item.call_id is None
        case UsageDelta() | FinishDelta():
            return False
        case _:
            assert_never(delta)


def _begin(turn: LiveTurn, origin: Origin, delta: Delta, item_id: str, now_s: float) -> OpenItem | None:
    """Open the item that `delta` begins; None if its task is over, or others have to be closed first."""
    task = turn.task(origin)
    if task.is_over or superseded(turn, origin, delta):
        return None
    if turn.first_delta_s is None and origin.role != "work":
        turn.first_delta_s = now_s
    frame = _frame(delta, item_id, origin.role)
    index = None
    if not is_beside(frame):
        index = turn.items
        turn.items += 1
    item = OpenItem(frame, task, index, task.calls)
    task.calls += isinstance(frame, Call)
    turn.open[item.key] = item
    turn.opened_id = item_id
    return item


def _frame(delta: Delta, item_id: str, role: OutputRole) -> Message | Call | Reasoning:
    match delta:
        case CallDelta():
            return Call(item_id=item_id, call_id=delta.call_id, name=delta.name, arguments="", output=role)
        case ReasoningDelta():
            return Reasoning(item_id=item_id, text="", output=role)
        case _:
            return Message(item_id=item_id, role="assistant", parts=(), output=role)
