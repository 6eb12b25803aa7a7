"""Every interleaving of what may happen to one session, over the pure state and its readers.

A turn is the work of three tasks, which write, call, speak, think and paint at once; each may end, fail or hang. The next one is
proposed while it runs, and may interrupt it at any instant.

The play below takes the adapter's part: one transaction at a time, planned now, committed later, applied later still.
In between goes on what needs no lock: proposals, text, playback, readers that come, go, lag and resume.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from support.sessions import bare

from agents.events import (
    Fault,
    Origin,
    TaskFailed,
    TaskFinished,
    TaskItem,
    TaskOutput,
    TaskProgress,
    TaskStarted,
)
from models.content import (
    ApprovalRequest,
    AudioDelta,
    BlobRef,
    Call,
    CallDelta,
    CallResult,
    Delta,
    DraftUsage,
    EvidencePart,
    FinishDelta,
    ImagePart,
    Item,
    Message,
    OtherItem,
    OutputRole,
    Part,
    PartDelta,
    ReasoningDelta,
    TextDelta,
    TextPart,
    UsageDelta,
    is_beside,
    text_of,
)
from models.errors import BatonError, Conflict, LimitExceeded, NotFound
from orchestrator.events import (
    AnswerControl,
    Committed,
    Decision,
    GenerationEvent,
    ItemClosed,
    ItemsAdded,
    ItemsRemoved,
    LogEvent,
    PlanMade,
    PlanRevised,
    PlaybackHeard,
    SessionSettings,
    SettingsChanged,
    SingleRoute,
    TaskEnded,
    TurnAccepted,
    TurnDone,
    TurnEnded,
    TurnInput,
    Usage,
    done_with,
    failed,
    items_of,
    title_of,
)
from orchestrator.limits import SessionLimits
from orchestrator.sessions.cursor import Cursor
from orchestrator.sessions.folding import from_a_turn_on
from orchestrator.sessions.order import FRONT
from orchestrator.sessions.state import SessionState
from orchestrator.sessions.tombstones import without

# Small, so that a few steps pass every bound.
LIMITS = SessionLimits(
    candidates=2, items=6, rows=4, sound_bytes=200, detach_grace_s=20.0, proposal_s=30.0, idle_s=40.0
)

# None at all; characters of one to four bytes; a mark that joins the one before it; line ends that must stay as they are.
TEXTS = ("", "a", "word ", "\u00e9\u20ac", "\u0301", "\U0001f3bb\U0001f469\u200d\U0001f3a4", "\r\n", "\r", "\x00")

GOES_ON = "where the response goes on"

DECISION = Decision(control=AnswerControl(), route=SingleRoute(card="scripted"), reasons=(), refused=(), inputs="{}")

End = Literal["stop", "length", "calls", "fail"]

BLOB = BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1)

PARTS: tuple[Part, ...] = (
    ImagePart(blob=BLOB, width_px=1, height_px=2),
    EvidencePart(source="rec_1", quote="as it was said"),
)

TASKS: dict[str, OutputRole] = {"1": "answer", "2": "answer", "3": "work"}


def id_of(place: Item | str) -> str:
    return place if isinstance(place, str) else place.item_id


@dataclass(frozen=True)
class Generation:
    turn_id: str
    number: int

    def origin(self, task: str, role: OutputRole | None = None) -> Origin:
        role = role or TASKS[task]
        task_id = f"{self.turn_id}.{task}"
        return Origin(agent="writer", task_id=task_id, turn_id=self.turn_id, generation=self.number, role=role)

    def yields(self, task: str, delta: Delta, role: OutputRole | None = None) -> TaskProgress:
        return TaskProgress(origin=self.origin(task, role), delta=delta)

    def ends(self, task: str, how: End) -> TaskFinished | TaskFailed:
        if how == "fail":
            return TaskFailed(origin=self.origin(task), fault=Fault(code="internal", message="", retryable=True))
        return TaskFinished(origin=self.origin(task), reason=how)


@dataclass
class Opened:
    """An item that is being written, as the test's books have it."""

    item_id: str
    what: str  # message, reasoning, or the call's id
    role: OutputRole


@dataclass
class TaskBook:
    """What was taken of a task."""

    opened: list[Opened]
    called: set[str]
    usage: Usage
    outputs: list[str]
    is_over: bool = False


@dataclass
class Transaction:
    """Rows that were planned, and the event that their asker wants taken once they are applied."""

    rows: tuple[Committed, ...]
    then: GenerationEvent | None
    committed: bool = False

    def accepts(self, generation: Generation) -> bool:
        return any(
            isinstance(row.event, TurnAccepted) and Generation(row.event.turn_id, row.event.generation) == generation
            for row in self.rows
        )


@dataclass
class Reader:
    cursor: Cursor
    transcript: Any


class Play:
    """A session, its adapter, its engines and its readers, and the test's own books of what has to come of them."""

    def __init__(self, new_transcript: Callable[[int], Any], pieces: Any) -> None:
        self.new_transcript = new_transcript
        self.grow, self.pieces_of = pieces
        self.state = SessionState(LIMITS)
        self.now_s = 0.0
        self.log: list[Committed] = []
        self.in_flight: Transaction | None = None
        self.waiting: GenerationEvent | None = None
        self.running: Generation | None = None  # whose output is taken now
        self.proposed: list[Generation] = []
        self.stale: list[Generation] = []
        self.tasks: dict[str, TaskBook] = {}  # of the turn that runs
        self.ending: dict[str, str] = {}  # how tasks end that were told to
        self.texts: dict[str, list[str | Part]] = {}  # of each item of a reply, what was taken of it
        self.samples: dict[str, int] = {}
        self.pcm: dict[str, bytes] = {}
        self.spoken: dict[str, int] = {}  # of each item that somebody speaks, how long that is so far
        self.heard: dict[str, int] = {}
        self.stopped: set[str] = set()  # items whose playback is over
        self.effects: set[str] = set()
        # The conversation; in it, as bare ids, the item that is open, and where the response goes on.
        self.places: list[Item | str] = []
        self.has_left = False
        self.settings = SessionSettings()
        self.readers: list[Reader] = []
        self.left: list[Reader] = []
        self.ids = 0

    # What may happen next

    def enabled(self) -> Iterator[tuple[int, Callable[[random.Random], None]]]:
        """Yield each step that may be made now, with its weight."""
        yield 1, self.time_passes
        yield 6 if self.state.turn is None and not self.proposed else 3, self.propose
        yield 4 if any(self.samples.values()) else 1, self.hear
        yield 2, self.speak_aloud
        yield from self.enabled_by_the_lock()
        if self.state.proposal is not None:
            yield 1, self.a_candidate_is_refused
            yield 1, self.the_proposal_is_dropped
        if self.running is not None and self.waiting is None and (self.in_flight is None or not self.in_flight.then):
            yield 14, self.write
            yield 4, self.speak
            yield 8, self.call
            yield 3, self.think
            yield 3, self.insert_a_part
            yield 2, self.put_out
            yield 1, self.yield_no_content
            yield 1, self.plan
            yield 3, self.a_task_ends
            yield 2, self.finish
        if self.stale or self.proposed:
            yield 3, self.output_at_the_wrong_time
        yield from self.enabled_for_readers()

    def enabled_by_the_lock(self) -> Iterator[tuple[int, Callable[[random.Random], None]]]:
        if self.in_flight is not None:
            yield 12, self.the_database_goes_on
            return
        yield 3, self.add
        yield 2, self.answer_a_call
        yield 2, self.remove
        yield 1, self.change_the_settings
        yield 2, self.playback_stops
        if self.waiting is not None:
            yield 16, self.the_follower_gets_the_lock
        if self.proposed:
            yield 16, self.commit
        if self.stale:
            yield 1, self.commit_what_is_over
        if self.running is not None:
            yield 2, self.cancel

    def enabled_for_readers(self) -> Iterator[tuple[int, Callable[[random.Random], None]]]:
        if len(self.readers) < 4:
            yield 3, self.a_reader_attaches
        if self.left:
            yield 2, self.a_reader_resumes
        if self.readers:
            yield 1, self.a_reader_leaves
            yield 8, self.a_reader_advances

    def step(self, chance: random.Random) -> None:
        weights, steps = zip(*self.enabled(), strict=True)
        (chosen,) = chance.choices(steps, weights)
        note(f"{chosen.__name__}, in flight: {self.in_flight is not None}")
        chosen(chance)
        self.check()

    @staticmethod
    def is_refused(error: BatonError, *codes: str) -> None:
        assert error.code in codes

    # The adapter

    def new_id(self, prefix: str) -> str:
        self.ids += 1
        return f"{prefix}_{self.ids:04}"

    def begin(self, events: tuple[LogEvent, ...], then: GenerationEvent | None = None) -> None:
        """Take the lock and write, if there is something to write."""
        assert self.in_flight is None
        if events:
            numbered = enumerate(events, start=self.state.last_seq + 1)
            self.in_flight = Transaction(
                tuple(Committed(seq=seq, at_ms=0, event=event) for seq, event in numbered), then
            )

    def the_database_goes_on(self, _: random.Random) -> None:
        """Commit what is in flight; or, if that is done, apply it."""
        transaction = self.in_flight
        assert transaction is not None
        if not transaction.committed:
            transaction.committed = True
            self.log.extend(transaction.rows)
            for row in transaction.rows:
                self.redact(row.event)
            return
        self.in_flight = None
        self.state.apply(transaction.rows, self.now_s)
        for row in transaction.rows:
            self.book(row.event)
            self.book_what_leaves()
        if transaction.then is not None and self.running is not None:
            self.take(transaction.then)

    def redact(self, event: LogEvent) -> None:
        """Take out of the log what a row takes out of those before it, as the database does in its transaction."""
        if not isinstance(event, ItemsRemoved):
            return
        titles = {
            title_of(ItemsAdded(items=(item,)))
            for row in self.log
            for item in items_of(row.event)
            if item.item_id in event.redacted
        }
        for at, row in enumerate(self.log):
            rest = without(row.event, event.redacted)
            if isinstance(rest, SettingsChanged) and rest.settings.title in titles:
                rest = replace(rest, settings=replace(rest.settings, title=None))
            self.log[at] = replace(row, event=rest)

    def book(self, event: LogEvent) -> None:
        match event:
            case ItemsAdded():
                self.book_added(event)
                self.book_title(event.items)
            case ItemsRemoved():
                assert event.redacted == event.item_ids  # no other conversation has them
                self.book_title_gone(event)
                self.places = [place for place in self.places if id_of(place) not in event.item_ids]
                for item_id in event.item_ids:
                    self.heard.pop(item_id, None)
            case SettingsChanged():
                self.settings = event.settings
            case TurnAccepted() | ItemClosed() | TaskEnded() | TurnEnded():
                self.book_of_turn(event)

    def book_of_turn(self, event: TurnAccepted | ItemClosed | TaskEnded | TurnEnded) -> None:
        match event:
            case TurnAccepted():
                self.places += [*event.input.items, GOES_ON]
                self.book_title(event.input.items)
                self.running = Generation(event.turn_id, event.generation)
                others = [known for known in self.proposed if known.turn_id == event.turn_id and known != self.running]
                self.stale.extend(others)
                self.proposed = [known for known in self.proposed if known.turn_id != event.turn_id]
                self.tasks, self.ending = {}, {}
            case ItemClosed():
                self.book_closed(event)
            case TaskEnded():
                task = self.tasks[event.task_id]
                assert not task.is_over
                assert not task.opened, "a task ended and left an item open"
                assert event.state == self.ending.get(event.task_id, "cancelled")
                assert event.usage == task.usage
                assert [one.item_id for one in event.outputs] == task.outputs
                task.is_over = True
            case TurnEnded():
                assert all(task.is_over for task in self.tasks.values())
                total = Usage()
                for task in self.tasks.values():
                    total = total.plus(task.usage)
                assert event.usage == total
                if self.running is not None:
                    self.stale.append(self.running)
                    self.running = None
                self.places.remove(GOES_ON)

    def book_closed(self, event: ItemClosed) -> None:
        item, task = event.item, self.tasks[event.task_id]
        assert not task.is_over
        assert (event.index is None) == is_beside(item)
        opened = next((one for one in task.opened if one.item_id == item.item_id), None)
        if opened is not None:
            task.opened.remove(opened)
            assert self.pieces_of(item) == self.texts[item.item_id]
            assert event.audio_ms == self.samples[item.item_id]
            if not is_beside(item):
                self.places[self.places.index(item.item_id)] = item
        elif not is_beside(item):
            self.places.insert(self.places.index(GOES_ON), item)
        if event.output is not None:
            task.outputs.append(item.item_id)
        if isinstance(item, Call):
            task.called.add(item.call_id)
            assert (event.effect is not None) == (item.status == "completed"), "the ledger lacks a call"
        if event.effect is not None:
            assert event.effect.key not in self.effects, "two calls have one key"
            self.effects.add(event.effect.key)

    def book_title(self, items: tuple[Item, ...]) -> None:
        said = (" ".join(text_of(item).split()) for item in items if isinstance(item, Message))
        if self.settings.title is None:
            self.settings = replace(self.settings, title=next(filter(None, said), None))

    def book_title_gone(self, event: ItemsRemoved) -> None:
        gone = [place for place in self.places if not isinstance(place, str) and place.item_id in event.item_ids]
        words = {" ".join(text_of(item).split()) for item in gone if isinstance(item, Message) and item.role == "user"}
        named = self.settings.title is not None and self.settings.title in words
        assert event.untitled == named
        if named:
            self.settings = replace(self.settings, title=None)

    def book_what_leaves(self) -> None:
        for _ in range(len(self.order) - LIMITS.items):
            self.places.remove(self.order[0])
            self.has_left = True

    @property
    def order(self) -> list[Item]:
        return [place for place in self.places if not isinstance(place, str)]

    def book_added(self, event: ItemsAdded) -> None:
        if event.after is None:
            self.places += event.items
        elif event.after != FRONT:
            at = [id_of(place) for place in self.places].index(event.after) + 1
            self.places[at:at] = event.items
        elif not self.has_left:
            self.places[:0] = event.items

    def output(self, event: GenerationEvent) -> None:
        """Do as the follower of the running generation does: take, or wait for the lock."""
        if not self.take(event):
            self.waiting = event

    def take(self, event: GenerationEvent) -> bool:
        item_id = self.new_id("item")
        if not self.state.take(event, item_id, self.now_s):
            return False
        if isinstance(event, TaskProgress):
            self.book_delta(event.origin, event.delta, item_id)
        elif isinstance(event, TaskStarted):
            self.task(event.origin)
        return True

    def task(self, origin: Origin) -> TaskBook:
        return self.tasks.setdefault(origin.task_id, TaskBook([], set(), Usage(), []))

    def book_delta(self, origin: Origin, delta: Delta, item_id: str) -> None:
        task = self.task(origin)
        assert not task.is_over, "something of a task was taken that is over"
        if isinstance(delta, UsageDelta):
            task.usage = task.usage.plus(delta)
            return
        what = "message"
        if isinstance(delta, CallDelta):
            what = delta.call_id
            if what in task.called:
                return
        elif isinstance(delta, ReasoningDelta):
            what = "reasoning"
        opened = next((one for one in task.opened if (one.what, one.role) == (what, origin.role)), None)
        if opened is None:
            unfinished = {one.what for one in task.opened} - {"message", "reasoning"}
            assert len(unfinished) == len(task.opened), "two items of a task are open that are no calls"
            assert isinstance(delta, CallDelta) or not unfinished, "a call is open behind what came after it"
            opened = Opened(item_id, what, origin.role)
            task.opened.append(opened)
            self.texts[item_id], self.samples[item_id] = [], 0
            if origin.role != "work" and what != "reasoning":
                self.places.insert(self.places.index(GOES_ON), item_id)
        self.book_growth(self.texts[opened.item_id], opened.item_id, delta)

    def book_growth(self, pieces: list[str | Part], item_id: str, delta: Delta) -> None:
        match delta:
            case TextDelta() | ReasoningDelta():
                self.grow(pieces, delta.text)
            case CallDelta():
                self.grow(pieces, delta.arguments)
            case PartDelta():
                self.grow(pieces, delta.part)
            case AudioDelta():
                self.samples[item_id] += len(delta.pcm) // 2
                self.pcm[item_id] = self.pcm.get(item_id, b"") + delta.pcm
            case _:
                pass

    def the_follower_gets_the_lock(self, _: random.Random) -> None:
        event, self.waiting = self.waiting, None
        assert event is not None
        self.expect_ends(event)
        rows = self.state.plan(event, self.new_id("item"), self.now_s)
        at = event if isinstance(event, PlanMade | PlanRevised) else event.origin
        if self.running != Generation(at.turn_id, at.generation):
            assert rows == (), "a generation that was stopped writes rows"
        self.begin(rows, event)

    def expect_ends(self, event: GenerationEvent) -> None:
        if isinstance(event, PlanMade | PlanRevised) or self.running is None:
            return
        if (event.origin.turn_id, event.origin.generation) != (self.running.turn_id, self.running.number):
            return  # it waited while its turn was stopped
        ends = event.ends if isinstance(event, TurnDone) else (event,)
        for end in ends:
            if isinstance(end, TaskFinished | TaskFailed):
                task = self.task(end.origin)
                if not task.is_over:
                    self.ending[end.origin.task_id] = "failed" if isinstance(end, TaskFailed) else "finished"
            elif isinstance(end, TaskOutput | TaskItem):
                self.task(end.origin)

    # What a surface does

    def propose(self, chance: random.Random) -> None:
        turn_input = TurnInput(items=tuple(self.message(chance) for _ in range(chance.randint(0, 2))))
        number, pushed_out = self.state.propose(self.new_id("turn"), turn_input, self.now_s)
        assert self.state.proposal is not None
        fresh = Generation(self.state.proposal.turn_id, number)
        assert fresh not in self.proposed + self.stale, "a generation that was used before"
        self.proposed.append(fresh)
        for old in pushed_out:
            self.drop(Generation(fresh.turn_id, old))

    def drop(self, generation: Generation) -> None:
        accepting = self.in_flight is not None and self.in_flight.accepts(generation)
        assert not accepting, "a candidate was dropped whose acceptance is being written"
        self.proposed.remove(generation)
        self.stale.append(generation)

    def a_candidate_is_refused(self, chance: random.Random) -> None:
        chosen = chance.choice(self.candidates)
        self.state.discard(chosen.turn_id, chosen.number)
        self.drop(chosen)

    @property
    def candidates(self) -> list[Generation]:
        """What is proposed and not being accepted."""
        proposal = self.state.proposal
        assert proposal is not None
        known = [each for each in self.proposed if each.turn_id == proposal.turn_id]
        assert [each.number for each in known] == list(proposal.candidates)
        return known

    def the_proposal_is_dropped(self, _: random.Random) -> None:
        candidates = self.candidates
        self.state.proposal = None
        for generation in candidates:
            self.drop(generation)

    def commit(self, chance: random.Random) -> None:
        chosen = chance.choice(self.proposed)
        running = self.running
        interrupts = chance.choice((None, "turn_other" if running is None else running.turn_id))
        try:
            rows = self.state.plan_accept(
                chosen.turn_id, chosen.number, DECISION, asked_s=1_000.0, now_s=self.now_s, interrupts=interrupts
            )
        except Conflict as refused:
            self.is_refused(refused, "turn_active")
            assert running is not None
            assert interrupts is None
            return
        assert running is None or interrupts is not None
        if running is not None:
            self.stale.append(running)
            self.running = None  # from the planning on, before any row is written
        self.begin(rows)

    def commit_what_is_over(self, chance: random.Random) -> None:
        chosen = chance.choice(self.stale)
        try:
            self.state.plan_accept(chosen.turn_id, chosen.number, DECISION, asked_s=1_000.0)
        except Conflict as refused:
            self.is_refused(refused, "turn_active", "not_proposed")
        else:
            raise AssertionError("a generation that is over was accepted")

    def cancel(self, _: random.Random) -> None:
        assert self.running is not None
        self.begin(self.state.plan_cancel(self.running.turn_id, "client_cancelled", self.now_s))
        self.stale.append(self.running)
        self.running = None  # from the planning on, before any row is written

    def add(self, chance: random.Random) -> None:
        known = [id_of(place) for place in self.places if place != GOES_ON]
        after = chance.choice((None, FRONT, chance.choice(known) if known else None, "item_unknown"))
        try:
            self.begin(self.state.plan_add(tuple(self.message(chance) for _ in range(chance.randint(1, 3))), after))
        except NotFound as refused:
            self.is_refused(refused, "item_not_found")
            assert after == "item_unknown"

    def answer_a_call(self, chance: random.Random) -> None:
        calls = [item for item in self.state.items if isinstance(item, Call)]
        if not calls:
            return
        call = chance.choice(calls)
        answered = {item.call_id for item in self.state.items if isinstance(item, CallResult)}
        part = TextPart(text="done", source="tool")
        try:
            rows = self.state.plan_add((CallResult(item_id=self.new_id("item"), call_id=call.call_id, parts=(part,)),))
        except NotFound:
            assert call.status == "incomplete"
        except Conflict as refused:
            self.is_refused(refused, "call_answered")
            assert call.call_id in answered
        else:
            assert call.status == "completed"
            assert call.call_id not in answered
            self.begin(rows)

    def remove(self, chance: random.Random) -> None:
        known = [item.item_id for item in self.state.items]
        chosen = tuple(chance.sample(known, min(len(known), chance.randint(0, 3))))
        if chance.random() < 0.1:
            chosen += ("item_unknown",)
        try:
            self.begin(self.state.plan_remove(chosen))
        except Conflict as refused:
            self.is_refused(refused, "turn_active")
            assert self.state.turn is not None
        except NotFound as refused:
            self.is_refused(refused, "item_not_found")
            assert "item_unknown" in chosen
        else:
            assert self.state.turn is None
            assert (self.in_flight is not None) == bool(chosen)

    def change_the_settings(self, chance: random.Random) -> None:
        (field,) = chance.sample(("title", "instructions", "model"), 1)
        changed = replace(self.state.settings, **{field: chance.choice((None, "one", "two"))})
        always = chance.random() < 0.2
        self.begin(self.state.plan_change(changed, always=always))
        assert (self.in_flight is not None) == (always or changed != self.settings)

    def hear(self, chance: random.Random) -> None:
        known = [id_of(place) for place in self.places if place != GOES_ON]
        sounding = [item_id for item_id in known if self.sound_ms(item_id)]
        item_id = chance.choice(sounding or [*known, "item_unknown"])
        longest_ms = self.sound_ms(item_id)
        ms = chance.randint(0, longest_ms + 1)
        try:
            self.state.heard(item_id, ms)
        except NotFound:
            assert item_id == "item_unknown"
        except LimitExceeded:
            assert ms > longest_ms
        else:
            assert ms <= longest_ms
            if item_id not in self.stopped:
                self.heard[item_id] = max(ms, self.heard.get(item_id, 0))

    def playback_stops(self, chance: random.Random) -> None:
        """Somebody interrupts what is played, perhaps before what they were taken to have heard."""
        known = [id_of(place) for place in self.places if place != GOES_ON]
        sounding = [item_id for item_id in known if self.sound_ms(item_id)]
        if not sounding:
            return
        item_id = chance.choice(sounding)
        ms = chance.randint(0, self.sound_ms(item_id))
        rows = self.state.plan_stop(item_id, ms)
        is_open = self.state.turn is not None and self.state.turn.find(item_id) is not None
        assert len(rows) == (not is_open)
        self.heard[item_id] = ms
        self.stopped.add(item_id)
        self.begin(rows)

    def sound_ms(self, item_id: str) -> int:
        return max(self.samples.get(item_id, 0), self.spoken.get(item_id, 0))  # at 1000 samples a second

    def speak_aloud(self, chance: random.Random) -> None:
        """Somebody turns words into sound, as far as there are words."""
        known = [item_id for place in self.places if self.texts.get(item_id := id_of(place))]
        if not known:
            return
        item_id = chance.choice(known)
        characters = sum(len(piece) for piece in self.texts[item_id] if isinstance(piece, str))
        marks = self.state._conversation.playback.marks.get(item_id)
        said = marks[-1].characters if marks else 0
        ms = self.spoken.get(item_id, 0) + chance.randint(1, 30)
        self.state.speak_marks(item_id, ((chance.randint(said, characters), ms),))
        self.spoken[item_id] = ms

    def message(self, chance: random.Random) -> Message:
        part = TextPart(text=chance.choice(TEXTS))
        return Message(item_id=self.new_id("item"), role="user", parts=(part,))

    # What engines yield

    def write(self, chance: random.Random) -> None:
        """Say something: mostly the answer, at times what is said while it is worked on."""
        assert self.running is not None
        task = chance.choice(list(TASKS))
        role: OutputRole | None = "commentary" if TASKS[task] == "answer" and chance.random() < 0.1 else None
        self.output(self.running.yields(task, TextDelta(text=chance.choice(TEXTS)), role))

    def speak(self, chance: random.Random) -> None:
        assert self.running is not None
        delta = AudioDelta(pcm=chance.randbytes(2 * chance.randint(0, 40)), rate_hz=1_000)
        self.output(self.running.yields(chance.choice(list(TASKS)), delta))

    def think(self, chance: random.Random) -> None:
        assert self.running is not None
        self.output(self.running.yields(chance.choice(list(TASKS)), ReasoningDelta(text=chance.choice(TEXTS))))

    def insert_a_part(self, chance: random.Random) -> None:
        assert self.running is not None
        self.output(self.running.yields(chance.choice(list(TASKS)), PartDelta(part=chance.choice(PARTS))))

    def call(self, chance: random.Random) -> None:
        """Go on with a call, or begin another, though the ones before may not be whole; at times with one that is closed."""
        assert self.running is not None
        name = chance.choice(list(TASKS))
        task = self.tasks.get(self.running.origin(name).task_id, TaskBook([], set(), Usage(), []))
        calls = [one.what for one in task.opened if one.what not in ("message", "reasoning")]
        if chance.random() < 0.1:
            calls = [*calls, *sorted(task.called)]
        call_id = chance.choice(calls) if calls and chance.random() < 0.6 else self.new_id("call")
        arguments = chance.choice((*TEXTS, "{}", '{"a": 1}', '{"a":', "1}"))
        self.output(self.running.yields(name, CallDelta(call_id=call_id, name="tool", arguments=arguments)))

    def put_out(self, chance: random.Random) -> None:
        """Yield something whole: an output of its own name, an approval that is asked for, an item that nobody knows."""
        assert self.running is not None
        origin = self.running.origin(chance.choice(list(TASKS)))
        item_id = self.new_id("item")
        asked = ApprovalRequest(item_id=item_id, call_id="call_x", name="pay", arguments="{}", output=origin.role)
        unknown = OtherItem(item_id=item_id, type="hologram", body='{"depth": 3}', output=origin.role)
        call = Call(item_id=item_id, call_id=self.new_id("call"), name="tool", arguments="{}", output=origin.role)
        self.output(
            chance.choice(
                (
                    TaskOutput(origin=origin, name="sum", parts=(TextPart(text="40", source="tool"), PARTS[0])),
                    TaskItem(origin=origin, item=asked),
                    TaskItem(origin=origin, item=unknown),
                    TaskItem(origin=origin, item=call),
                )
            )
        )

    def yield_no_content(self, chance: random.Random) -> None:
        assert self.running is not None
        task = chance.choice(list(TASKS))
        drafts = (DraftUsage(drafter=chance.choice(("suffix", "model")), drafted=3, accepted=2),)
        self.output(
            chance.choice(
                (
                    self.running.yields(task, UsageDelta(input_tokens=1, output_tokens=2, drafts=drafts)),
                    TaskStarted(origin=self.running.origin(task), card="scripted"),
                    self.running.yields(task, FinishDelta(reason="stop")),
                )
            )
        )

    def plan(self, chance: random.Random) -> None:
        assert self.running is not None
        turn_id, number = self.running.turn_id, self.running.number
        made = PlanMade(turn_id=turn_id, generation=number, tasks=())
        revised = PlanRevised(turn_id=turn_id, generation=number, revision=1, reason="it failed")
        self.output(chance.choice((made, revised)))

    def a_task_ends(self, chance: random.Random) -> None:
        assert self.running is not None
        how: End = chance.choice(("stop", "length", "calls", "fail"))
        self.output(self.running.ends(chance.choice(list(TASKS)), how))

    def finish(self, chance: random.Random) -> None:
        """End the turn: with the end of a task, or while others hang."""
        assert self.running is not None
        how: End = chance.choice(("stop", "length", "calls", "fail"))
        done = done_with(self.running.ends(chance.choice(list(TASKS)), how))
        fault = Fault(code="deadline_exceeded", message="", retryable=True)
        self.output(chance.choice((done, failed(self.running.turn_id, self.running.number, fault))))

    def output_at_the_wrong_time(self, chance: random.Random) -> None:
        """A generation that is over, or not accepted yet, yields something: nothing may change."""
        source = chance.choice(self.stale + self.proposed)
        task = chance.choice(list(TASKS))
        event = chance.choice(
            (
                source.yields(task, TextDelta(text="STALE")),
                source.yields(task, ReasoningDelta(text="STALE")),
                source.yields(task, PartDelta(part=TextPart(text="STALE"))),
                source.yields(task, CallDelta(call_id="call_stale", name="tool", arguments="STALE")),
                source.yields(task, UsageDelta(input_tokens=1_000, output_tokens=1_000)),
                TaskStarted(origin=source.origin(task), card="stale"),
                TaskOutput(origin=source.origin(task), name="stale", parts=(TextPart(text="STALE"),)),
                PlanMade(turn_id=source.turn_id, generation=source.number, tasks=()),
                source.ends(task, "stop"),
                done_with(source.ends(task, "fail")),
            )
        )
        assert not self.state.take(event, self.new_id("item"), self.now_s)
        assert self.state.plan(event, self.new_id("item"), self.now_s) == ()

    # Readers

    def a_reader_attaches(self, chance: random.Random) -> None:
        last = self.state.last_seq
        self.attach(chance.choice((0, last, chance.randint(0, last))))

    def attach(self, after: int) -> None:
        self.state.attach()
        self.readers.append(Reader(Cursor(after), self.new_transcript(after)))

    def a_reader_leaves(self, chance: random.Random) -> None:
        self.left.append(self.readers.pop(chance.randrange(len(self.readers))))
        self.state.detach(self.now_s)

    def a_reader_resumes(self, chance: random.Random) -> None:
        self.resume(self.left.pop(chance.randrange(len(self.left))))

    def resume(self, reader: Reader) -> None:
        self.state.attach()
        reader.transcript.partial.clear()  # a snapshot of what is open comes anew
        self.readers.append(Reader(Cursor(reader.transcript.seq), reader.transcript))

    def a_reader_advances(self, chance: random.Random) -> None:
        self.advance(chance.choice(self.readers))

    def advance(self, reader: Reader) -> bool:
        """Give the reader what there is, as `Session.events` does. Return whether there was something."""
        batch = reader.cursor.advance(self.state)
        if batch is None:
            seq = reader.cursor.seq
            behind = self.state.last_seq - seq
            assert behind > len(self.state.rows)
            # Nor are those kept that were before content was taken out.
            assert len(self.state.rows) == LIMITS.rows or isinstance(self.state.rows[0].event, ItemsRemoved)
            batch = reader.cursor.take_rows(self.log[seq : seq + min(3, behind)])
        for event in batch:
            reader.transcript.take(event)
        return bool(batch)

    # Time

    def time_passes(self, chance: random.Random) -> None:
        self.now_s += chance.choice((1.0, 5.0, 35.0))
        match self.state.overdue(self.now_s):
            case "proposal":
                self.the_proposal_is_dropped(chance)
            case "detached":
                assert self.state.turn is not None
                assert not self.readers
                if self.running is not None and self.in_flight is None:
                    self.cancel(chance)
            case "idle":
                assert self.state.turn is None
                assert not self.readers
                assert not self.proposed
            case None:
                pass

    # What always holds

    def check(self) -> None:
        for generation in (*self.stale, *self.proposed):
            assert not self.state.is_current(generation.turn_id, generation.number)
        assert self.running is None or self.state.is_current(self.running.turn_id, self.running.number)
        assert self.state.items == self.order
        assert self.state.settings == self.settings
        turn = self.state.turn
        if turn is None:
            return
        opened = {one.item_id for task in self.tasks.values() for one in task.opened}
        assert {item.item_id for item in turn.open.values()} == opened
        for item in turn.open.values():
            words = "".join(piece for piece in self.texts[item.item_id] if isinstance(piece, str))
            assert item.since(0) == words
            assert item.length == len(words)

    # The end

    def finish_play(self) -> None:
        chance = random.Random(0)
        while self.in_flight or self.waiting or self.state.turn:
            if self.in_flight is not None:
                self.the_database_goes_on(chance)
            elif self.waiting is not None:
                self.the_follower_gets_the_lock(chance)
            else:
                self.cancel(chance)
        self.check()
        self.every_reader_has_everything()
        self.every_turn_ended_once()
        self.the_log_folds_to_the_same()

    def every_reader_has_everything(self) -> None:
        for reader in self.left:
            self.resume(reader)
        self.attach(0)
        for reader in self.readers:
            while self.advance(reader):
                pass
            assert reader.transcript.seq == len(self.log) == self.state.last_seq
            assert not reader.transcript.partial
            rows = reader.transcript.rows
            assert bare(rows, self.log) == bare(self.log[len(self.log) - len(rows) :], self.log)
            for item_id, sound in reader.transcript.sound.items():
                for offset, pcm in sound:
                    assert self.pcm[item_id][2 * offset :].startswith(pcm), "it is other sound"

    def every_turn_ended_once(self) -> None:
        events = [row.event for row in self.log]
        accepted = [event.turn_id for event in events if isinstance(event, TurnAccepted)]
        assert accepted == [event.turn_id for event in events if isinstance(event, TurnEnded)]
        assert len(set(accepted)) == len(accepted)
        every = [event.item.item_id for event in events if isinstance(event, ItemClosed)]
        assert len(set(every)) == len(every), "an item was closed twice"
        assert "STALE" not in "".join(text_of(event.item) for event in events if isinstance(event, ItemClosed))

    def the_log_folds_to_the_same(self) -> None:
        self.begin(self.state._plan_heard())  # what was heard since the last rows would go with the next ones
        while self.in_flight is not None:
            self.the_database_goes_on(random.Random(0))
        logged = {row.event.item_id: row.event.heard_ms for row in self.log if isinstance(row.event, PlaybackHeard)}
        for item in self.state.items:
            assert logged.get(item.item_id) == self.heard.get(item.item_id), "playback that was acknowledged is lost"
        at_once = SessionState(LIMITS)
        at_once.apply(self.log, self.now_s)
        one_by_one = SessionState(LIMITS)
        for row in self.log:
            one_by_one.apply((row,), self.now_s)
        for folded in (at_once, one_by_one):
            assert folded.items == self.state.items
            assert folded.context == self.state.context, "a model is shown something else than was lived"
            assert folded.last_seq == self.state.last_seq
            assert folded.rows == self.state.rows
            assert folded.turn is None
            assert folded.settings == self.state.settings
            assert vars(folded._conversation) == vars(self.state._conversation)
        self.the_end_of_the_log_is_enough()

    def the_end_of_the_log_is_enough(self) -> None:
        """Whatever was before it: as soon as it fills the conversation, its items are the ones that were lived."""
        for reach in range(LIMITS.items, len(self.log), LIMITS.items):
            folded = SessionState(LIMITS)
            folded.apply(from_a_turn_on(tuple(self.log[-reach:])), self.now_s)
            if folded.full:
                assert folded.items == self.state.items


def test_every_reader_gets_every_character_once_and_the_log_folds_to_what_lived(
    new_transcript: Callable[[int], Any], pieces: Any
) -> None:
    # One number a step: an example that fails is shortened by leaving steps out.
    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.lists(st.integers(0, 65_535), min_size=40, max_size=400))
    def every_interleaving(steps: list[int]) -> None:
        play = Play(new_transcript, pieces)
        for number in steps:
            play.step(random.Random(number))
        play.finish_play()

    every_interleaving()
