"""The `Session` handle: the whole interface between a surface and the conductor.

A thin adapter around `state.SessionState`. Ordering: every change of the log is planned, committed, applied and shown to
readers under one lock, in a task that the session owns, so that a caller who is cancelled in the middle leaves nothing
half done. Text needs no lock: it only grows the open item.

If a transaction fails, the session is closed: its log is the truth, and the next `Sessions.open` folds it anew.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from agents.events import Fault, TaskOutput, TaskProgress, TaskStarted
from memory.trouble import LASTING
from models.clock import Clock, wait_for_event
from models.content import ApprovalResponse, CallResult, Item, Part, UsageDelta
from models.errors import BadInput, BatonError, Conflict, Internal, NotFound, Unavailable, quoted
from models.ids import new_id
from models.owner import Owner
from orchestrator.act.execute import Executor
from orchestrator.act.generation import Generation
from orchestrator.act.work import Work
from orchestrator.events import (
    GenerationEvent,
    ItemsAdded,
    LogEvent,
    SessionEvent,
    SessionSettings,
    TurnDone,
    TurnEnded,
    TurnInput,
)
from orchestrator.meters import Meters
from orchestrator.sessions.ahead import ReadingAhead
from orchestrator.sessions.conversation import NOTHING_EARLIER, Earlier, check_context
from orchestrator.sessions.cursor import Cursor
from orchestrator.sessions.folding import fold
from orchestrator.sessions.journal import Journal
from orchestrator.sessions.order import FRONT, Order
from orchestrator.sessions.requests import Saying, TurnRequest
from orchestrator.sessions.state import SessionState

_log = logging.getLogger(__name__)

_CATCH_UP_ROWS = 256

_TOGETHER = 10
"""Turns of the loop within which what was said waits for the request that was sent with it."""


class Session:
    """One continuing conversation. Made by `Sessions.open`, which also runs it."""

    def __init__(
        self,
        owner: Owner,
        session_id: str,
        state: SessionState,
        journal: Journal,
        executor: Executor,
        clock: Clock,
        meters: Meters,
    ) -> None:
        self.owner = owner
        self.session_id = session_id
        self._state = state
        self._journal = journal
        self._executor = executor
        self._clock = clock
        self._meters = meters
        self._generations: dict[tuple[str, int], Generation] = {}  # by turn and generation
        self._ahead = ReadingAhead(executor, clock, meters, owner.tenant)
        self._watch = meters.watch(owner.tenant)
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._rescheduled = asyncio.Event()
        self._started = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        # Made when the last one is used up, not per delta: making a ULID costs as much as taking one.
        self._next_item_id = new_id("item")
        self._saying: Saying | None = None
        self._request: TurnRequest | None = None
        self._left_waiting: Generation | None = None  # what another process began and somebody is to answer
        self._closed = False
        self._closed_by: Fault | None = None  # what keeps the log from being written
        self._state.touch(clock.now_s())

    @property
    def tenant(self) -> str:
        """Whose share of what all share it takes."""
        return self.owner.tenant

    @property
    def last_seq(self) -> int:
        """The number of the last row; a reader that begins after it misses nothing from here on."""
        return self._state.last_seq

    @property
    def settings(self) -> SessionSettings:
        """What holds for this session's turns."""
        return self._state.settings

    @property
    def items(self) -> tuple[Item, ...]:
        """The conversation, as far back as it is kept for a model."""
        return tuple(self._state.items)

    async def order(self, seq: int) -> Order:
        """Return the order of the conversation's items at row `seq`, as far back as they are kept."""
        if seq == self._state.last_seq:
            return self._state.order.copy()
        return (await fold(self._journal, self._state.limits, seq, self._clock.now_s())).order

    @property
    def running_turn(self) -> str | None:
        """The turn that is running, if one is."""
        return None if self._state.turn is None else self._state.turn.turn_id

    @property
    def requested_turn(self) -> str | None:
        """The turn that is being decided, if one is."""
        return None if self._request is None else self._request.turn_id

    @property
    def running_since(self) -> int | None:
        """The row that accepted the turn that is running, if one is."""
        return None if self._state.turn is None else self._state.turn.accepted_seq

    @property
    def closed(self) -> bool:
        """Whether the session was put away; opening it again gives another handle."""
        return self._closed

    # The handle

    async def propose(self, turn_input: TurnInput, context: Sequence[Item] | None = None) -> int:
        """Take an input, possibly a guess, and begin to work on it. Return its generation.

        Args:
            turn_input: the input.
            context: what it is an answer to, if not the conversation; nothing of that is kept.

        Nothing is logged until `commit`; until then an input may be revised by proposing again. The answer is to the
        conversation as it is now: what is added to it or removed before the commit makes no difference to it. A turn may be
        running: of what it says, the answer knows what is said by now, or if it is played to somebody, what was heard.

        It takes none of the tenant's turns before it is committed, but a slot for guesses.

        Raises:
            Conflict: an item's id is taken.
            NotFound: a result answers no call of this conversation.
            Overloaded: too many guesses are worked on.
        """
        return await self._propose(turn_input, context, is_guess=True)

    async def _propose(
        self, turn_input: TurnInput, context: Sequence[Item] | None, *, is_guess: bool, replaces: bool = False
    ) -> int:
        await self._opened()
        turn_input = self._completed(turn_input)
        earlier = await self._earlier(turn_input.items)
        place = self._executor.admission.place(self.tenant, is_guess=is_guess, replaces=replaces)
        try:
            generation, dropped = self._state.propose(new_id("turn"), turn_input, self._clock.now_s(), earlier)
        except BaseException:
            place.leave()
            raise
        self._state.recall(earlier.calls)
        proposal = self._state.proposal
        assert proposal is not None  # `propose` has just made it
        self._drop(*((proposal.turn_id, each) for each in dropped))
        self._ahead.stop()
        self._begin(
            Generation(
                self._executor,
                owner=self.owner,
                turn_id=proposal.turn_id,
                generation=generation,
                turn_input=turn_input,
                history=self._state.context_now if context is None else context,
                history_seq=self._state.last_seq if context is None else None,
                place=place,
            )
        )
        self._rescheduled.set()
        return generation

    async def commit(self, generation: int, *, interrupts: str | None = None) -> str:
        """Accept a proposed input as the turn, and drop the others. Return the turn's id.

        When this returns, the turn is in the log.

        Args:
            generation: what `propose` has returned.
            interrupts: the turn that is ended by this one, in the same transaction, if it still runs by then.

        Raises:
            BadInput: the turn is refused; it is not proposed any more.
            NotFound: the model that was asked for does not exist.
            Conflict: that generation is not proposed any more; or a turn runs that it does not interrupt (`turn_active`), and
                it is still proposed.
        """
        proposal = self._state.proposal
        return await self._commit("" if proposal is None else proposal.turn_id, generation, interrupts)

    async def _commit(self, turn_id: str, generation: int, interrupts: str | None) -> str:
        asked_s = self._clock.now_s()
        await self._opened()
        key = (turn_id, generation)
        work = self._generations.get(key)
        if work is None or work.committed.is_set():
            raise Conflict(f"Generation {generation} is not proposed any more. Propose it again.", code="not_proposed")
        try:
            decision = replace(await work.decision(), history_seq=work.history_seq)
        except BatonError:
            self._discard(key)
            raise
        earlier = await self._earlier(work.turn_input.items)

        await self._transact(
            lambda: self._state.plan_accept(
                turn_id,
                generation,
                decision,
                asked_s=asked_s,
                now_s=self._clock.now_s(),
                interrupts=interrupts,
                earlier=earlier,
                admit=lambda: work.take_seat(replaces=self.running_turn is not None),
            )
        )
        return turn_id

    async def respond(
        self, turn_input: TurnInput, context: Sequence[Item] | None = None, *, interrupts: str | None = None
    ) -> str:
        """Propose and commit, for surfaces that cannot revise. Return the turn's id.

        What is refused, or whose asker is cancelled before it is accepted, is not proposed any more.

        Raises:
            BatonError: as `propose` and `commit` do; a turn that runs and is not interrupted is told of at once.
        """
        replaces = interrupts is not None and interrupts == self.running_turn
        if not replaces:
            self._state.check_free()
        generation = await self._propose(turn_input, context, is_guess=False, replaces=replaces)
        proposal = self._state.proposal
        assert proposal is not None  # as in `propose`, and nothing has run since
        key = (proposal.turn_id, generation)
        try:
            return await self._commit(*key, interrupts)
        except BaseException:
            self._discard(key)
            raise

    async def request(
        self, turn_input: TurnInput, context: Sequence[Item] | None = None, *, interrupts: str | None = None
    ) -> TurnRequest:
        """As `respond`, but it is accepted in its own time, whoever waits for that. `cancel` takes it back until then.

        What is just being said (`say`) is taken along, if it is the conversation that is answered: half the commits of a turn.

        Raises:
            Conflict: a turn is running and not interrupted, or one is being decided.
            BatonError: as `propose`.
        """
        await self._opened()
        if self._request is not None:
            raise Conflict(
                f"The turn {self._request.turn_id!r} is being decided. Wait until it ends, or cancel it.",
                code="turn_active",
            )
        replaces = interrupts is not None and interrupts == self.running_turn
        saying = self._saying
        if saying is None or saying.is_taken or context is not None or turn_input.items:
            saying = None
            await self._kept()
        else:
            saying.is_taken = True
            turn_input = replace(turn_input, items=saying.items)
        try:
            if not replaces:
                self._state.check_free()
            generation = await self._propose(turn_input, context, is_guess=False, replaces=replaces)
        except BaseException:
            if saying is not None:  # it is kept alone; if that is seen to already, it is so once
                saying.is_taken = False
                self._tasks.create_task(self._keep(saying))
            raise
        proposal = self._state.proposal
        assert proposal is not None  # `propose` has just made it
        self._request = TurnRequest(proposal.turn_id, generation, saying, interrupts)
        self._tasks.create_task(self._accept(self._request))
        return self._request

    async def say(self, items: tuple[Item, ...]) -> Saying:
        """Add items to the end of the conversation; they are in the log when what is returned is done.

        Raises:
            BatonError: they cannot be added; see `add`.
        """
        await self._opened()
        await self._kept()
        self._state.plan_add(items, earlier=await self._earlier(items))  # it checks
        saying = self._saying = Saying(items)
        self._tasks.create_task(self._keep(saying))
        return saying

    async def cancel(self, turn_id: str, reason: str) -> None:
        """Stop a turn: an explicit stop, or an interruption. Its engine stops within one step.

        Raises:
            Conflict: that turn is neither running nor proposed.
        """
        await self._opened()
        request, proposal = self._request, self._state.proposal
        if request is not None and proposal is not None and request.turn_id == turn_id == proposal.turn_id:
            request.settle(Conflict("The response was cancelled before it began.", code="turn_cancelled"))
        if proposal is not None and proposal.turn_id == turn_id:
            self._drop_proposal()
            return
        await self._transact(lambda: self._state.plan_cancel(turn_id, reason, self._clock.now_s()))

    async def speak_marks(self, item_id: str, marks: Sequence[tuple[int, int]]) -> None:
        """Tell how far into an item's words its sound reaches: (characters, milliseconds) of what is spoken so far.

        They go on where those before ended. Whoever speaks an item tells so; what comes with sound of its own needs no marks.

        Raises:
            BadInput: they go back, or beyond the words.
            NotFound: there is no such item.
        """
        await self._opened()
        self._state.speak_marks(item_id, marks)

    async def heard(self, item_id: str, ms: int, *, is_over: bool = False) -> None:
        """Acknowledge that playback of an item has reached `ms` milliseconds; logged when a turn begins or ends.

        If playback `is_over`, it has stopped there, at the end or because it was interrupted: that is logged at once, also
        when its turn has ended. Models are shown of the item what was heard.

        Raises:
            NotFound: there is no such item.
            LimitExceeded: the item's sound is not that long.
        """
        await self._opened()
        if is_over:
            await self._transact(lambda: self._state.plan_stop(item_id, ms))
        else:
            self._state.heard(item_id, ms)

    async def tool_result(self, call_id: str, parts: tuple[Part, ...], *, item_id: str | None = None) -> None:
        """Take the answer of a tool that the client has run. The ledger counts each call's answer once.

        Raises:
            NotFound: there is no such call.
            Conflict: it has its answer already.
        """
        await self.add((CallResult(item_id=item_id or new_id("item"), call_id=call_id, parts=parts),))

    async def add(self, items: tuple[Item, ...], after: str | None = None) -> None:
        """Add items to the conversation without asking for a reply. When this returns, they are in the log.

        Args:
            items: the items.
            after: what they come after: an item, `order.FRONT`, or the last one of all (None).

        Raises:
            BadInput: a result would come before its call.
            Conflict: an item's id is taken, or a call has its result already.
            NotFound: there is no item to come after; a result answers no call of this conversation.
        """
        await self._opened()
        await self._kept()
        known = {None, FRONT, *self._state.order.ids}
        left = after not in known and after is not None and await self._journal.holds(after)
        earlier = await self._earlier(items)
        await self._transact(
            lambda: self._state.plan_add(
                items, after, left=left and after not in self._state.order.ids, earlier=earlier
            )
        )
        self._state.recall(earlier.calls)

    async def find(self, item_id: str) -> tuple[Item, bool]:
        """Return an item of the conversation, however long ago it was said, and whether it is still written.

        Raises:
            NotFound: there is none of that id.
        """
        await self._opened()
        await self._kept()
        turn = self._state.turn
        if turn is not None and (opened := turn.find(item_id)) is not None:
            return opened.item("incomplete"), True
        found = next((item for item in self._state.items if item.item_id == item_id), None)
        if found is None:
            found = await self._journal.find(item_id)
        if found is None:
            raise NotFound(
                f"There is no item {quoted(item_id)} in this session.", code="item_not_found", field="item_id"
            )
        return found, False

    async def context(self, given: Sequence[Item | str] | None = None) -> tuple[Item, ...]:
        """Return what a turn answers: items of its own, those that are given by id from the conversation; or that (None).

        Raises:
            Conflict: an id is there twice, or a call has two results.
            LimitExceeded: they are too long.
            NotFound: there is no such item; a result answers no call before it.
        """
        await self._kept()
        if given is None:
            return tuple(self._state.context)
        items = [self._state.as_heard((await self.find(one))[0]) if isinstance(one, str) else one for one in given]
        check_context(items, self._state.limits.item_characters, self._state.limits.history_characters)
        return tuple(items)

    async def remove(self, item_ids: tuple[str, ...]) -> None:
        """Take items out of the conversation: no model is shown them any more.

        Their content goes with them for good, unless another conversation has them, too: then with the last of those.

        Raises:
            Conflict: a turn is running.
            NotFound: an item is not part of the conversation.
        """
        await self._opened()
        await self._kept()
        left = await self._left(item_ids)
        shared = set[str]().union(*(await self._journal.sharing(item_ids)).values())
        await self._transact(lambda: self._state.plan_remove(item_ids, left, shared=shared))

    async def redact(self, item_ids: tuple[str, ...]) -> tuple[list[Item], dict[str, set[str]]]:
        """Take the content of items out for good, also of sessions that share them; their places stay.

        When this returns, it is in no file of the home any more. `Sessions.redact` tells other sessions that are open.

        Returns:
            The items as they were, and the other sessions that may have had them: those of them that each has.

        Raises:
            Conflict: a turn is running.
            NotFound: an item is not part of the conversation.
        """
        items = [(await self.find(item_id))[0] for item_id in item_ids]
        left, sharing = await self._left(item_ids), await self._journal.sharing(item_ids)
        await self._transact(lambda: self._state.plan_redact(item_ids, left))
        return items, sharing

    async def forget(self, items: Sequence[Item], shared: Collection[str]) -> None:
        """Take content out of memory that another session has redacted; see `SessionState.forget`."""
        async with self._lock:
            self._state.forget(items, shared)
            self._journal.forget_documents()

    async def _left(self, item_ids: Sequence[str]) -> dict[str, Item]:
        """Return those of the items that are part of the conversation and have left memory."""
        known = {item.item_id for item in self._state.items}
        found = [await self._journal.find(item_id) for item_id in item_ids if item_id not in known]
        return {item.item_id: item for item in found if item is not None}

    async def branch(self, branch_id: str, turn_id: str | None) -> None:
        """Begin a session with what is in this one up to the end of a turn, or up to now (None); see `Sessions.fork`.

        Raises:
            Conflict: that turn is running, or one is while the whole is asked for.
            NotFound: there is no such turn.
        """
        await self._opened()
        async with self._lock:
            if self._closed:
                raise self._why_closed()
            if not self._state.free and turn_id in (None, self.running_turn):
                raise Conflict(f"The turn {self.running_turn!r} is running. Wait until it ends.", code="turn_active")
            seq = self._state.last_seq if turn_id is None else await self._journal.end_of(turn_id)
            if seq is None:
                raise NotFound(f"There is no turn {turn_id!r} in this session.", code="turn_not_found", field="turn")
            await self._journal.branch(branch_id, seq)

    async def change(self, changes: Mapping[str, str | None], *, keep: bool = False) -> None:
        """Set `title`, `instructions` or `model` for this session; turns that begin from now on have them.

        Args:
            changes: the fields of `SessionSettings` to set.
            keep: have the session in the database from here on, even if nothing changes.
        """
        await self._opened()
        await self._transact(lambda: self._state.plan_change(replace(self._state.settings, **changes), always=keep))

    async def until_free(self, deadline_s: float) -> bool:
        """Wait until no turn runs; return whether that came before `deadline_s`."""
        while not (self._state.free or self._waits or self._closed):
            if not await wait_for_event(self._clock, self._changed, deadline_s):
                return False
        return True

    async def events(self, after: int | None = None) -> AsyncGenerator[SessionEvent, None]:
        """Yield what happens: rows after number `after` (0 is the start, None is now), then live events.

        A reader that stops taking them costs nothing and holds nobody up; see `cursor`.

        Raises:
            BadInput: `after` is not a number that this session has reached.
            Unavailable: the session was closed; open it again and go on after the last row received.
            BatonError: its log cannot be written; see `memory.trouble`.
        """
        await self._opened()
        if after is not None and not 0 <= after <= self._state.last_seq:
            raise BadInput(
                f"This session has rows 1 to {self._state.last_seq}; it cannot go on after {after}.",
                code="sequence_gap",
                field="after",
            )
        cursor = Cursor(self._state.last_seq if after is None else after)
        self._state.attach()
        self._rescheduled.set()
        try:
            while True:
                changed = self._changed
                batch = cursor.advance(self._state)
                if batch is None:
                    # Not beyond what is applied: rows committed since would close items that are still open here.
                    behind = self._state.last_seq - cursor.seq
                    batch = cursor.take_rows(await self._journal.read(cursor.seq, min(behind, _CATCH_UP_ROWS)))
                for event in batch:
                    yield event
                if not batch:
                    if self._closed:
                        raise self._why_closed()
                    await changed.wait()
        finally:
            self._state.detach(self._clock.now_s())
            self._rescheduled.set()

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Count whoever will follow a turn as a reader, from before it is asked for until they leave."""
        self._state.attach()
        try:
            yield
        finally:
            self._state.detach(self._clock.now_s())
            self._rescheduled.set()

    def touch(self) -> None:
        """Start the idle time anew, for whoever has just been handed this session."""
        self._state.touch(self._clock.now_s())

    def put_away(self) -> bool:
        """Close the session if nobody uses it; return whether it is closed."""
        if self._started.is_set() and self._state.idle and not self._lock.locked():
            self._closed = True
            self._rescheduled.set()
        return self._closed

    # Ownership

    async def run(self) -> None:
        """Own every task of the session, and keep its times, until it is idle or `close` is called."""
        async with asyncio.TaskGroup() as self._tasks:
            self._started.set()
            try:
                if self._left_waiting is not None:
                    self._begin(self._left_waiting)
                while not self._closed:
                    self._rescheduled.clear()
                    await wait_for_event(self._clock, self._rescheduled, self._state.next_due_s())
                    await self._keep_time()
            finally:
                self._closed = True
                self._drop(*self._generations)
                self._ahead.stop()
                self._notify()

    async def close(self, reason: str) -> None:
        """Stop what runs, log that it was stopped, and end `run`. A turn that waits for somebody waits in the log."""
        await self._started.wait()
        while not self._closed:
            if not self._waits:
                await self._interrupt(reason)
            async with self._lock:  # what is being written may be the next turn
                if self._state.turn is None or self._waits:
                    self._closed = True
        self._rescheduled.set()

    @property
    def _waits(self) -> bool:
        return self._state.turn is not None and self._state.turn.waits

    async def _opened(self) -> None:
        await self._started.wait()
        if self._closed:
            raise self._why_closed()

    async def _keep_time(self) -> None:
        match self._state.overdue(self._clock.now_s()):
            case "proposal":
                self._drop_proposal()
            case "detached":
                await self._interrupt("client_detached")
            case "idle":
                async with self._lock:  # what is being written is written first, lest the log go on behind a new handle
                    if self._state.overdue(self._clock.now_s()) == "idle":
                        self._closed = True
            case None:
                pass

    async def _interrupt(self, reason: str) -> None:
        """Cancel the running turn, if there is one, on the session's own account."""
        if (turn := self._state.turn) is None:
            return
        try:
            await self._transact(lambda: self._state.plan_cancel(turn.turn_id, reason, self._clock.now_s()))
        except Conflict:
            return  # it ended by itself meanwhile
        except BatonError as exc:
            if exc.code == "session_closed":
                return
            _log.warning("session %s: the end of its turn was not logged", self.session_id, exc_info=True)

    # Inside

    async def _earlier(self, items: tuple[Item, ...]) -> Earlier:
        """Return what is named like `items` and may have left memory."""
        return await self._journal.earlier(items) if items and self._state.full else NOTHING_EARLIER

    def _completed(self, turn_input: TurnInput) -> TurnInput:
        """Return the input with what the session's settings say where it says nothing."""
        settings = self._state.settings
        return replace(
            turn_input,
            instructions=settings.instructions if turn_input.instructions is None else turn_input.instructions,
            model=settings.model if turn_input.model is None else turn_input.model,
        )

    def resume(self, work: Work) -> None:
        """Go on with the turn that waits, which another process began. Called before anything else is asked."""
        generation = Generation(
            self._executor,
            owner=self.owner,
            turn_id=work.turn_id,
            generation=work.generation,
            turn_input=work.turn_input,
            work=work,
        )
        generation.committed.set()
        self._left_waiting = generation

    def _begin(self, generation: Generation) -> None:
        self._generations[generation.turn_id, generation.generation] = generation
        generation.following = self._tasks.create_task(self._follow(generation))

    async def _accept(self, request: TurnRequest) -> None:
        """Commit what was asked for, and say what came of it."""
        error: BatonError | None = _cut_off()
        try:
            # By its turn's id: once it was taken back, the generation may be another turn's.
            await self._commit(request.turn_id, request.generation, request.interrupts)
            error = None
        except BatonError as exc:
            self._discard((request.turn_id, request.generation))
            error = exc
        except Exception:  # noqa: BLE001  # a defect fails its request, and the log says so
            _log.exception("session %s: a request failed", self.session_id)
            error = Internal("The response could not be begun. Try again; the server's log has the cause.")
        finally:
            self._request = None
            if error is not None and request.saying is not None and self._closed:
                request.saying.settle(error)
            elif error is not None and request.saying is not None:
                request.saying.is_taken = False
                self._tasks.create_task(self._keep(request.saying))
            elif request.saying is not None:
                request.saying.settle(None)
                self._saying = None
            request.settle(error)

    async def _keep(self, saying: Saying) -> None:
        """Write what was said, unless a request takes it along: one that was sent with it is heard within a few turns of the loop."""
        for _ in range(_TOGETHER):
            await asyncio.sleep(0)
            if saying.is_taken:
                return
        saying.is_taken = True
        error: BatonError | None = _cut_off()
        try:
            earlier = await self._earlier(saying.items)
            await self._transact(lambda: self._state.plan_add(saying.items, earlier=earlier))
            error = None
        except BatonError as exc:
            error = exc
        finally:
            self._saying = None
            saying.settle(error)

    async def _kept(self) -> None:
        """Wait until what was said is in the log, or is not going to be; whoever said it is told so."""
        if (saying := self._saying) is not None:
            with suppress(BatonError):
                await saying.done()

    async def _follow(self, generation: Generation) -> None:
        """Run a generation; once it is committed, take what it yields until it ends or is stale."""
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(generation.run())
            await generation.committed.wait()
            if not await generation.deliver(self._take):
                running.cancel()

    async def _take(self, event: GenerationEvent) -> bool:
        """Take one event; return False once its generation is over."""
        now_s = self._clock.now_s()
        item_id = self._next_item_id
        if not self._state.take(event, item_id, now_s):
            if isinstance(event, TaskOutput):  # it is an item, also if the turn is stopped while that is written
                self._next_item_id = new_id("item")
            try:
                await self._transact(lambda: self._state.plan(event, item_id, now_s))
            except BatonError:
                _log.warning("session %s: a turn is left to recovery", self.session_id, exc_info=True)
                return False
            if isinstance(event, TurnDone) or not self._state.is_current_event(event):
                return False
            self._state.take(event, item_id, now_s)
        if isinstance(event, TaskStarted):
            self._watch = self._meters.watch(self.tenant)
        elif isinstance(event, TaskProgress) and not isinstance(event.delta, UsageDelta):
            self._watch.delta(now_s)
        turn = self._state.turn
        if turn is not None and turn.opened_id == item_id:
            self._next_item_id = new_id("item")
        self._notify()
        return True

    async def _transact(self, plan: Callable[[], tuple[LogEvent, ...]]) -> None:
        """Plan, commit, apply and show, whole even if the caller is cancelled meanwhile."""
        if self._closed:
            raise self._why_closed()  # the task group may be gone
        task = self._tasks.create_task(self._transaction(plan))
        error = await asyncio.shield(task)
        if error is not None:
            raise error

    async def _transaction(self, plan: Callable[[], tuple[LogEvent, ...]]) -> BatonError | None:
        async with self._lock:
            if self._closed:
                return self._why_closed()
            try:
                events = plan()
            except BatonError as exc:
                return exc
            if not events:
                return None
            try:
                rows = await self._journal.write(events)
            except Exception as exc:  # noqa: BLE001  # whatever it is: what is in the log is now unknown here
                _log.exception("session %s is closed: a transaction failed", self.session_id)
                self._closed = True
                if isinstance(exc, BatonError) and exc.code in LASTING:
                    self._closed_by = Fault.of(exc)
                self._rescheduled.set()
                self._notify()
                return exc if isinstance(exc, BatonError) else Internal("The session's log could not be written.")
            self._state.apply(rows, self._clock.now_s())
            self._settle(events)
            self._notify()
            return None

    def _settle(self, events: tuple[LogEvent, ...]) -> None:
        """Begin, drop and stop generations, as the rows just applied say."""
        turn = self._state.turn
        keep = None if turn is None else (turn.turn_id, turn.generation)
        answered = next((each for each in self._generations.values() if each.committed.is_set()), None)
        proposal = self._state.proposal
        proposed = set() if proposal is None else {(proposal.turn_id, number) for number in proposal.candidates}
        for key, generation in list(self._generations.items()):
            if key == keep:
                generation.committed.set()
            elif key not in proposed:
                self._drop(key)
        for event in events:
            if isinstance(event, ItemsAdded) and answered is not None:
                for item in event.items:
                    if isinstance(item, ApprovalResponse):
                        answered.approve(item)
            if isinstance(event, TurnEnded):
                self._meters.turn_ended(self.tenant, event)
                if answered is not None and answered.task is not None and turn is None and not self._closed:
                    self._ahead.begin(self._tasks, answered.task, answered.turn_input, self._state)
        self._rescheduled.set()

    def _discard(self, key: tuple[str, int]) -> None:
        """Drop a candidate, if it is one still."""
        generation = self._generations.get(key)
        if generation is not None and not generation.committed.is_set() and not self._state.is_accepting(key[0]):
            self._state.discard(*key)
            self._drop(key)

    def _drop_proposal(self) -> None:
        if (proposal := self._state.proposal) is not None:
            self._state.drop_proposal()
            self._drop(*((proposal.turn_id, generation) for generation in proposal.candidates))
        self._rescheduled.set()

    def _drop(self, *keys: tuple[str, int]) -> None:
        for key in keys:
            if (generation := self._generations.pop(key, None)) is not None:
                generation.abandon()
                if generation.following is not None:
                    generation.following.cancel()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _why_closed(self) -> BatonError:
        if self._closed_by is not None:
            return self._closed_by.error()
        return Unavailable("The session was closed meanwhile. Open it again.", code="session_closed")


def _cut_off() -> BatonError:
    """Return what is told of something that was stopped before it was known to be in the log."""
    return Unavailable(
        "The session was stopped meanwhile. Open it again, and see what was kept.", code="session_closed"
    )
