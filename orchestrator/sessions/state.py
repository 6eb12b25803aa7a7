"""One session as a pure state machine: no I/O, no clock, no ids of its own making.

Two kinds of step. *Planning* a change checks it and returns the rows it would write; the caller commits them and hands
them back to `apply`, which is the only way that rows change the state, so that a session folded from its log and one
that lived through it are the same. *Taking* a delta changes only the items that are open.

A turn is the work of tasks. Each task's end is a row, and ends no turn: the conductor's `TurnDone` does, or a cancellation.

The sink is `take`: what does not come from the current (turn, generation), or from a task that is over, is dropped there.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite
from types import MappingProxyType
from typing import Literal, assert_never

from agents.events import Fault, TaskFailed, TaskFinished, TaskItem, TaskOutput, TaskProgress, TaskStarted
from memory.log import EndState
from models.content import AudioDelta, Call, Item, ItemStatus, Message, is_beside, text_of
from models.errors import Conflict, quoted
from orchestrator.events import (
    Committed,
    Decision,
    GenerationEvent,
    ItemClosed,
    ItemsAdded,
    ItemsRedacted,
    ItemsRemoved,
    LogEvent,
    PlanMade,
    PlanRevised,
    PlaybackHeard,
    SessionSettings,
    SettingsChanged,
    TaskEnded,
    TurnAccepted,
    TurnDone,
    TurnEnded,
    TurnInput,
    title_of,
)
from orchestrator.limits import SessionLimits
from orchestrator.sessions import approvals
from orchestrator.sessions.conversation import NOTHING_EARLIER, Conversation, Earlier
from orchestrator.sessions.open_turn import LiveTask, LiveTurn, Proposal, superseded, take_delta
from orchestrator.sessions.order import Order
from orchestrator.sessions.sound import SoundRing
from orchestrator.sessions.task_rows import cancelled, closed, cut_off, fold_closed, fold_task, ms, task_ended

EMPTY: Mapping[str, Item] = MappingProxyType({})


class SessionState:
    """Everything that a session knows. See the module for how it changes."""

    def __init__(self, limits: SessionLimits) -> None:
        self.limits = limits
        self.last_seq = 0
        self.settings = SessionSettings()
        self._conversation = Conversation(
            items=limits.items, characters=limits.history_characters, item_characters=limits.item_characters
        )
        self.rows: deque[Committed] = deque(maxlen=limits.rows)
        self.sound = SoundRing(limits.sound_bytes)
        self.turn: LiveTurn | None = None
        self.proposal: Proposal | None = None
        self._accepting: Proposal | None = None
        self._readers = 0
        self._quiet_since_s = 0.0

    @property
    def items(self) -> list[Item]:
        """The conversation, as far back as it is kept for a model."""
        return self._conversation.items

    @property
    def order(self) -> Order:
        """The order of the items."""
        return self._conversation.order

    @property
    def context(self) -> Sequence[Item]:
        """What of it a model may be shown; it begins with the same item for many turns."""
        return self._conversation.context

    @property
    def context_now(self) -> Sequence[Item]:
        """What a model may be shown that is asked now: also what the turn that runs has said so far, as far as it was heard."""
        context, turn = self.context, self.turn
        if turn is None or not turn.open:
            return context
        shown = list(context)
        said: list[tuple[int, int, Item]] = []
        for opened in turn.open.values():
            if opened.index is not None and (opened.length or opened.parts):
                behind = len(self.items) - self.order.place(opened.index)
                item = self._conversation.playback.as_heard(opened.item("incomplete"), opened.audio_ms)
                said.append((max(0, len(shown) - behind), opened.index, item))
        for at, _, item in sorted(said, key=lambda one: one[:2], reverse=True):
            shown.insert(at, item)
        return shown

    def as_heard(self, item: Item) -> Item:
        """Return an item as a model is shown it; see `playback`."""
        return self._conversation.playback.as_heard(item)

    def next_context(self, most: int) -> tuple[int, Sequence[Item]] | None:
        """Return what it will be shown of these items next, if that is another one soon; see `Conversation`."""
        return self._conversation.next_context(most)

    def recall(self, items: Sequence[Item]) -> None:
        """Take what has left memory and is needed by what is in it; see `Conversation.recall`."""
        self._conversation.recall(items)

    @property
    def full(self) -> bool:
        """Whether older items would have no place in `items`."""
        return self._conversation.full

    # Folding the log

    def apply(self, rows: Iterable[Committed], now_s: float) -> None:
        """Take rows in, in order of `seq`, right after they were committed or read."""
        for row in rows:
            if row.seq > self.last_seq + 1:
                self._conversation.order.behind = True  # what was said in the rows that were left out
            self.last_seq = row.seq
            self.rows.append(row)
            self._fold(row.event, row.seq, now_s)
            # After each row, not at the end: what is removed later makes no room for what had left before.
            self._conversation.trim()

    def _fold(self, event: LogEvent, seq: int, now_s: float) -> None:
        match event:
            case ItemsAdded():
                self._conversation.add(event.items, event.after, is_open=event.after_open, index=event.after_index)
                approvals.note(self.turn, event.items)
                self._name(event)
            case ItemsRemoved():
                self._conversation.remove(event.item_ids)
                self._redact(event.redacted, untitled=event.untitled)
            case ItemsRedacted():
                self._redact(event.item_ids, untitled=event.untitled)
            case SettingsChanged():
                self.settings = event.settings
            case PlaybackHeard():
                if self._conversation.holds(event.item_id):  # else it has left meanwhile
                    self._conversation.playback.logged(event)
            case TurnAccepted() | PlanMade() | PlanRevised() | ItemClosed() | TaskEnded() | TurnEnded():
                self._fold_turn(event, seq, now_s)
            case _:
                assert_never(event)

    def _fold_turn(
        self,
        event: TurnAccepted | PlanMade | PlanRevised | ItemClosed | TaskEnded | TurnEnded,
        seq: int,
        now_s: float,
    ) -> None:
        match event:
            case TurnAccepted():
                self._conversation.add(event.input.items)
                self._conversation.order.begin()
                self._name(event)
                proposed = self._accepting
                self.turn = LiveTurn(
                    turn_id=event.turn_id,
                    accepted_seq=seq,
                    generation=event.generation,
                    current_generation=event.generation,
                    last_generation=event.generation if proposed is None else proposed.last_generation,
                    asked_s=now_s if proposed is None else proposed.asked_s,
                    accepted_s=now_s,
                    on_leave=event.input.on_leave,
                    agent=event.decision.agent,
                    card=event.decision.card,
                    tools={} if event.input.tools is None else {tool.name: tool for tool in event.input.tools.tools},
                )
                self._accepting = None
                self.sound.clear()
                if proposed is None:
                    self.proposal = None
                self._quiet_since_s = now_s
            case ItemClosed():
                if not is_beside(event.item):
                    self._conversation.take(event.item, event.index, audio_ms=event.audio_ms)
                if self.turn is not None:
                    fold_closed(self.turn, event)
                approvals.note(self.turn, (event.item,))
            case PlanMade() | PlanRevised() | TaskEnded():
                if self.turn is not None:
                    fold_task(self.turn, event)
            case TurnEnded():
                self._conversation.order.end()
                self.turn = None
                self._quiet_since_s = now_s
            case _:
                assert_never(event)

    def _redact(self, item_ids: Collection[str], *, untitled: bool) -> None:
        """Take the content of items out of all that is known here of the rows so far."""
        if untitled:
            self.settings = replace(self.settings, title=None)
        if item_ids:
            self._conversation.redact(item_ids)
            self.rows = deque([self.rows[-1]], maxlen=self.rows.maxlen)  # a reader that lags reads the log

    def _name(self, event: LogEvent) -> None:
        if self.settings.title is None and (title := title_of(event)) is not None:
            self.settings = replace(self.settings, title=title)

    # What a surface asks

    def propose(
        self, turn_id: str, turn_input: TurnInput, now_s: float, earlier: Earlier = NOTHING_EARLIER
    ) -> tuple[int, tuple[int, ...]]:
        """Open a turn, or revise the one that is open.

        Args:
            turn_id: the id of the turn, if this is its first input.
            turn_input: what might be said.
            now_s: the time.
            earlier: what the log has that is named like its items.

        Returns:
            The generation of this input, and those that it pushed out.

        A turn may be running: what is proposed then may come after it, or interrupt it.

        Raises:
            Conflict: an item's id is taken.
            LimitExceeded: an item is too long.
        """
        self._conversation.check_new(turn_input.items, earlier)
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

    def drop_proposal(self) -> None:
        """Drop the proposal, with all its candidates."""
        self.proposal = None

    def is_accepting(self, turn_id: str) -> bool:
        """Return whether a turn's acceptance is being written: then it is too late to drop it."""
        return self._accepting is not None and self._accepting.turn_id == turn_id

    def discard(self, turn_id: str, generation: int) -> None:
        """Drop one candidate, and the proposal with its last one."""
        if (proposal := self.proposal) is not None and proposal.turn_id == turn_id:
            proposal.candidates.pop(generation, None)
            if not proposal.candidates:
                self.proposal = None

    def plan_accept(
        self,
        turn_id: str,
        generation: int,
        decision: Decision,
        *,
        asked_s: float,
        now_s: float | None = None,
        interrupts: str | None = None,
        earlier: Earlier = NOTHING_EARLIER,
        admit: Callable[[], None] = lambda: None,
    ) -> tuple[LogEvent, ...]:
        """Return the rows by which a candidate becomes the turn: from this call on it can be neither revised nor dropped.

        If it interrupts the turn that runs, the same rows end that one, whose generation is stale from this call on.

        Args:
            turn_id: the turn's id.
            generation: the candidate.
            decision: what was decided for it.
            asked_s: when the commit was asked for; the turn's times count from there.
            now_s: the time, if it may interrupt.
            interrupts: the turn that it may interrupt. If that has ended by itself, there is nothing to interrupt.
            earlier: what the log has that is named like its items.
            admit: called when nothing else speaks against it; what it raises refuses the turn.

        Raises:
            Conflict: it is not proposed any more, a turn is running that it does not interrupt, or an item's id was taken
                meanwhile.
        """
        old = self.turn
        if old is None or old.turn_id != interrupts or self._accepting is not None:
            self.check_free()
        proposal = self.proposal
        if proposal is None or proposal.turn_id != turn_id or generation not in proposal.candidates:
            raise Conflict(f"Generation {generation} is not proposed any more. Propose it again.", code="not_proposed")
        turn_input = proposal.candidates[generation]
        self._conversation.check_new(turn_input.items, earlier)
        admit()
        proposal.asked_s = asked_s
        accepted = TurnAccepted(turn_id=turn_id, generation=generation, input=turn_input, decision=decision)
        if old is None:
            ended = self._plan_heard()
        else:
            ended = self.plan_cancel(old.turn_id, "interrupted", asked_s if now_s is None else now_s)
        self.proposal, self._accepting = None, proposal
        return (*ended, accepted)

    def plan_cancel(self, turn_id: str, reason: str, now_s: float) -> tuple[LogEvent, ...]:
        """Interrupt the running turn: from this call on its generation is stale. Return the rows that end it.

        Raises:
            Conflict: that turn is not running.
        """
        turn = self.turn
        if turn is None or turn.turn_id != turn_id:
            raise Conflict(f"The turn {quoted(turn_id)} is not running.", code="turn_not_active")
        turn.current_generation = turn.last_generation + 1  # one that no candidate of this turn has had
        return (*cancelled(turn, (), now_s), *self._plan_end(turn, now_s, state="interrupted", reason=reason))

    def plan_recover(self, reason: str) -> tuple[LogEvent, ...]:
        """Return the rows that report a turn which was cut off, and by what, and those of its tasks that have no end.

        None if there is no such turn, or it waits.
        """
        if self.turn is None or self.turn.waits:
            return ()
        ended = TurnEnded(
            turn_id=self.turn.turn_id, generation=self.turn.generation + 1, state="interrupted", reason=reason
        )
        return (*cut_off(self.turn), ended)

    def plan_add(
        self,
        items: tuple[Item, ...],
        after: str | None = None,
        *,
        left: bool = False,
        earlier: Earlier = NOTHING_EARLIER,
    ) -> tuple[LogEvent, ...]:
        """Return the row that adds items to the conversation.

        Args:
            items: the items.
            after: what they come after: an item, `order.FRONT`, or the last one of all (None).
            left: whether that is an item which has left memory, not the log.
            earlier: what the log has that is named like the items.

        Raises:
            BadInput: a result would come before its call.
            Conflict: an item's id is taken, or a call has its result already.
            LimitExceeded: an item is too long.
            NotFound: there is no item to come after; a result answers no call of this conversation.
        """
        opened = {} if self.turn is None else {item.item_id: item.index for item in self.turn.open.values()}
        indexes = {item_id: index for item_id, index in opened.items() if index is not None}
        self._conversation.check_place(items, after, left=left, open_indexes=indexes)
        self._conversation.check_new(items, earlier)
        approvals.check(self.turn, items, self.items)
        at = None if after is None else indexes.get(after)
        return (ItemsAdded(items=items, after=after, after_open=at is not None, after_index=at),)

    def plan_remove(
        self, item_ids: tuple[str, ...], left: Mapping[str, Item] = EMPTY, *, shared: Collection[str] = ()
    ) -> tuple[LogEvent, ...]:
        """Return the row that takes items out of the conversation, and their content with them if no other one has them.

        Args:
            item_ids: the items.
            left: those of them that have left memory, not the log.
            shared: those of them that are in another conversation, too.

        Raises:
            Conflict: a turn is running, which was shown them.
            NotFound: an item is not part of the conversation.
        """
        self.check_free()
        items = self._known(item_ids, left)
        alone = [item for item in items if item.item_id not in shared]
        redacted = tuple(item.item_id for item in alone)
        event = ItemsRemoved(item_ids=item_ids, redacted=redacted, untitled=self._is_title_of(items))
        return (event,) if item_ids else ()

    def plan_redact(self, item_ids: tuple[str, ...], left: Mapping[str, Item] = EMPTY) -> tuple[LogEvent, ...]:
        """Return the row that takes the content of items out for good; those in `left` have left memory, not the log.

        Raises:
            Conflict: a turn is running, which was shown them.
            NotFound: an item is not part of the conversation.
        """
        self.check_free()
        items = self._known(item_ids, left)
        return (ItemsRedacted(item_ids=item_ids, untitled=self._is_title_of(items)),) if item_ids else ()

    def forget(self, items: Sequence[Item], shared: Collection[str]) -> None:
        """Take content out that another session has redacted in rows which this one may share.

        Args:
            items: what it was.
            shared: those of the items that are in this conversation.
        """
        if self._is_title_of(items):
            self.settings = replace(self.settings, title=None)
        self._conversation.redact(shared)
        self.rows.clear()  # a reader that lags reads the log

    def _known(self, item_ids: Sequence[str], left: Mapping[str, Item]) -> list[Item]:
        self._conversation.check_known([item_id for item_id in item_ids if item_id not in left])
        known = {item.item_id: item for item in self._conversation.items}
        return [known.get(item_id) or left[item_id] for item_id in item_ids]

    def _is_title_of(self, items: Sequence[Item]) -> bool:
        """Return whether the session is called what it would be after one of the items."""
        titles = {title_of(ItemsAdded(items=(item,))) for item in items} - {None}
        return self.settings.title in titles

    def plan_change(self, settings: SessionSettings, *, always: bool = False) -> tuple[LogEvent, ...]:
        """Return the row that sets what holds from here on; none if it holds already, unless one is wanted `always`."""
        return (SettingsChanged(settings=settings),) if always or settings != self.settings else ()

    def speak_marks(self, item_id: str, marks: Iterable[tuple[int, int]]) -> None:
        """Take how far into an item's words its sound reaches, in milliseconds; see `playback`.

        Raises:
            BadInput: they go back, or beyond the words.
            NotFound: there is no such item.
        """
        text, _ = self._spoken(item_id)
        self._conversation.playback.speak(item_id, marks, len(text))

    def heard(self, item_id: str, ms: int) -> None:
        """Note that playback of an item has reached `ms`; logged when a turn begins or ends, or playback stops.

        Raises:
            NotFound: there is no such item.
            LimitExceeded: the item's sound is not that long.
        """
        _, sound_ms = self._spoken(item_id)
        self._conversation.playback.check(item_id, ms, sound_ms)
        self._conversation.playback.hear(item_id, ms)

    def plan_stop(self, item_id: str, ms: int) -> tuple[LogEvent, ...]:
        """Note that playback of an item has stopped at `ms`. Return the row of it.

        The row of an item that is still open comes with the end of its turn.

        Raises:
            NotFound: there is no such item.
            LimitExceeded: the item's sound is not that long.
        """
        text, sound_ms = self._spoken(item_id)
        playback = self._conversation.playback
        playback.check(item_id, ms, sound_ms)
        playback.stop(item_id, ms)
        return (playback.row(item_id, text, sound_ms),) if self._conversation.holds(item_id) else ()

    # What a generation yields

    def is_current(self, turn_id: str, generation: int) -> bool:
        """Return whether output of this generation may be taken now."""
        return self.turn is not None and (self.turn.turn_id, self.turn.current_generation) == (turn_id, generation)

    def is_current_event(self, event: GenerationEvent) -> bool:
        """Return whether what a generation yields may be taken now."""
        return self._current(event) is not None

    def take(self, event: GenerationEvent, item_id: str, now_s: float) -> bool:
        """Take an event that needs no row. Return False, and change nothing, if it needs one or is stale.

        Args:
            event: what the generation yields.
            item_id: the id of the item that the event opens, if it opens one.
            now_s: the time.
        """
        turn = self.turn
        match event:
            case TaskProgress(origin=origin, delta=delta):
                if turn is None or origin.generation != turn.current_generation or origin.turn_id != turn.turn_id:
                    return False
                is_taken = take_delta(turn, origin, delta, item_id, now_s)
                if is_taken and isinstance(delta, AudioDelta) and (spoken := turn.open.get((origin.task_id, None))):
                    before = spoken.samples - len(delta.pcm) // 2
                    self.sound.append(spoken.item_id, before, delta.rate_hz, delta.pcm)
                return is_taken
            case TaskStarted(origin=origin):
                if turn is None or not self.is_current(origin.turn_id, origin.generation):
                    return False
                task = turn.task(origin)
                if task.is_over:
                    return False
                task.card, task.output, task.started_s = event.card, event.output, now_s
                return True
            case TaskOutput() | TaskItem() | TaskFinished() | TaskFailed() | PlanMade() | PlanRevised() | TurnDone():
                return False
            case _:
                assert_never(event)

    def plan(self, event: GenerationEvent, item_id: str, now_s: float) -> tuple[LogEvent, ...]:
        """Return the rows that `event` needs before it can be taken; none if it is stale.

        What begins another item of a task closes the one before. The end of a task closes what it has open; the end of
        the turn closes everything.

        Args:
            event: what the generation yields.
            item_id: the id of the item that the event is, if it is one that has none.
            now_s: the time.
        """
        turn = self._current(event)
        if turn is None:
            return ()
        match event:
            case TaskProgress():
                return tuple(closed(turn, item, "completed") for item in superseded(turn, event.origin, event.delta))
            case TaskStarted():
                return ()
            case TaskOutput(origin=origin):
                item = Message(item_id=item_id, role="assistant", parts=event.parts, output=origin.role)
                return self._plan_whole(turn, turn.task(origin), item, event.name)
            case TaskItem():
                return self._plan_whole(turn, turn.task(event.origin), event.item, None)
            case TaskFinished() | TaskFailed():
                return self._plan_task_end(turn, event, now_s)
            case PlanMade() | PlanRevised():
                return (event,)
            case TurnDone():
                return self._plan_done(turn, event, now_s)
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

    @property
    def free(self) -> bool:
        """Whether no turn runs or is being accepted."""
        return self.turn is None and self._accepting is None

    @property
    def idle(self) -> bool:
        """Whether nobody reads, nothing runs and nothing is proposed."""
        return not self._readers and self.free and self.proposal is None

    def touch(self, now_s: float) -> None:
        """Start the idle time anew."""
        self._quiet_since_s = now_s

    def next_due_s(self) -> float | None:
        """Return when `overdue` may next have something to say."""
        return min((due_s for due_s, _ in self._due()), default=None)

    def overdue(self, now_s: float) -> Literal["proposal", "detached", "idle"] | None:
        """Return what is due now: `proposal` expired, `detached` turn out of grace, session `idle`; or None."""
        return next((what for due_s, what in sorted(self._due()) if now_s >= due_s), None)

    def _due(self) -> Iterator[tuple[float, Literal["proposal", "detached", "idle"]]]:
        if self.proposal is not None:
            yield self.proposal.expires_s, "proposal"
        if self._readers or self._accepting is not None or (self.turn is not None and self.turn.waits):
            return  # what waits for somebody has a deadline of its own
        if self.turn is None:
            if self.proposal is None and isfinite(self.limits.idle_s):
                yield self._quiet_since_s + self.limits.idle_s, "idle"
        elif isfinite(grace_s := self._grace_s(self.turn)):
            yield self._quiet_since_s + grace_s, "detached"

    # Inside

    def _current(self, event: GenerationEvent) -> LiveTurn | None:
        at = event if isinstance(event, PlanMade | PlanRevised) else event.origin
        return self.turn if self.is_current(at.turn_id, at.generation) else None

    def _grace_s(self, turn: LiveTurn) -> float:
        match turn.on_leave:
            case "cancel":
                return 0.0
            case "grace":
                return self.limits.detach_grace_s
            case "background":
                return inf
            case _:
                assert_never(turn.on_leave)

    def _plan_whole(self, turn: LiveTurn, task: LiveTask, item: Item, output: str | None) -> tuple[LogEvent, ...]:
        """Return the row of an item that comes whole, after those of what its task has open."""
        if task.is_over:
            return ()
        effect = None
        if isinstance(item, Call) and item.status == "completed":
            effect = turn.effect_of(item.name, task.task_id, task.calls)
        whole = ItemClosed(
            turn_id=turn.turn_id,
            generation=turn.generation,
            item=item,
            task_id=task.task_id,
            index=None if is_beside(item) else turn.items,
            output=output,
            effect=effect,
        )
        return (*(closed(turn, opened, "completed") for opened in turn.open_of(task.task_id)), whole)

    def _plan_task_end(
        self, turn: LiveTurn, event: TaskFinished | TaskFailed, now_s: float
    ) -> tuple[ItemClosed | TaskEnded, ...]:
        task = turn.task(event.origin)
        if task.is_over:
            return ()
        if isinstance(event, TaskFailed):
            return task_ended(turn, task, "incomplete", now_s, state="failed", fault=event.fault)
        status: ItemStatus = "incomplete" if event.reason == "length" else "completed"
        return task_ended(turn, task, status, now_s, state="finished", reason=event.reason)

    def _plan_done(self, turn: LiveTurn, event: TurnDone, now_s: float) -> tuple[LogEvent, ...]:
        ends = {end.origin.task_id: end for end in event.ends}
        rows: list[LogEvent] = []
        for end in ends.values():
            rows += self._plan_task_end(turn, end, now_s)
        rows += cancelled(turn, ends, now_s)
        ended = self._plan_end(turn, now_s, state=event.state, reason=event.reason, fault=event.fault)
        return (*rows, *ended)

    def _plan_end(
        self,
        turn: LiveTurn,
        now_s: float,
        *,
        state: EndState,
        reason: str | None = None,
        fault: Fault | None = None,
    ) -> tuple[LogEvent, ...]:
        first_s = turn.first_delta_s
        ended = TurnEnded(
            turn_id=turn.turn_id,
            generation=turn.current_generation,
            state=state,
            reason=reason,
            fault=fault,
            usage=turn.usage,
            decided_ms=ms(turn.accepted_s - turn.asked_s),
            first_delta_ms=None if first_s is None else ms(first_s - turn.asked_s),
            duration_ms=ms(now_s - turn.asked_s),
        )
        return (*self._plan_heard(), ended)

    def _plan_heard(self) -> tuple[LogEvent, ...]:
        playback = self._conversation.playback
        return tuple(playback.row(item_id, *self._spoken(item_id)) for item_id in sorted(playback.coming))

    def check_free(self) -> None:
        """Check that no turn runs or is being accepted.

        Raises:
            Conflict: one is.
        """
        running = self.turn or self._accepting
        if running is not None:
            raise Conflict(
                f"The turn {quoted(running.turn_id)} is running. Wait until it ends, or cancel it.", code="turn_active"
            )

    def _spoken(self, item_id: str) -> tuple[str, int]:
        """Return the words of an item that may be spoken, and how long its sound is; raises NotFound if there is none."""
        playback = self._conversation.playback
        opened = None if self.turn is None else self.turn.find(item_id)
        if opened is None or opened.index is None:
            item = self._conversation.find(item_id)
            return text_of(item), playback.sound_ms(item_id)
        return opened.since(0), playback.sound_ms(item_id, opened.audio_ms)
