"""One generation at work: decide, then act, and hold what comes until it is committed.

A proposal may be a guess. It works ahead in memory only: it holds what it has done, within a bound that holds its engine
up, and a generation that is dropped leaves nothing behind. Once it is committed, it gives each event to its session
itself: a queue and a task between would cost as much for a token as taking it does.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager

from agents.events import Fault, TaskItem, TaskOutput, TaskProgress
from agents.port import Task
from models.clock import wait_for_event
from models.content import (
    ApprovalResponse,
    AudioDelta,
    CallDelta,
    EvidencePart,
    Item,
    Part,
    PartDelta,
    ReasoningDelta,
    TextDelta,
    TextPart,
    length_of,
)
from models.errors import BatonError, Conflict, DeadlineExceeded, Internal
from models.owner import Owner
from orchestrator.act.admission import HeldPlace
from orchestrator.act.execute import Executor
from orchestrator.act.work import Work
from orchestrator.events import Decision, GenerationEvent, PlanMade, PlanRevised, TurnDone, TurnInput, failed

_log = logging.getLogger(__name__)

_HELD_BYTES = 256 * 1024
"""Of events that wait for a commit; then the engine waits. It is room for thousands of words, or seconds of sound."""

_EVENT_BYTES = 256
"""What an event takes beside its content."""

Take = Callable[[GenerationEvent], Awaitable[bool]]
"""Takes an event; returns False if no more are wanted."""


class Generation:
    """One generation of a turn. `run` owns the work; the session owns the task that runs it.

    Attributes:
        turn_id: the turn.
        generation: which of its generations.
        turn_input: what is answered.
        history_seq: the row of the log that its history ends with; None if that is not the conversation's.
        task: what the agent was given; None before that was decided.
        committed: set by the session once it is accepted.
        following: the session's task that runs it.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        owner: Owner,
        turn_id: str,
        generation: int,
        turn_input: TurnInput,
        history: Sequence[Item] = (),
        history_seq: int | None = None,
        work: Work | None = None,
        place: HeldPlace | None = None,
    ) -> None:
        """Answer `turn_input` to `history`, in a `place`; or go on with `work` that waited, and is committed already."""
        self.turn_id = turn_id
        self.generation = generation
        self._executor = executor
        self._owner = owner
        self.turn_input = turn_input
        self.task: Task | None = None
        self._history = tuple(history)
        self.history_seq = history_seq
        self._deadline_s = executor.clock.now_s() + executor.limits.turn_timeout_s
        self._decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._place = place
        self._held: deque[GenerationEvent] = deque()
        self._held_bytes = 0
        self._take: Take | None = None
        self.committed = asyncio.Event()
        self.following: asyncio.Task[None] | None = None
        self._taken_over = asyncio.Event()
        self._answered = asyncio.Event()
        self._work = work

    async def decision(self) -> Decision:
        """Return the decision once it is made.

        Raises:
            BatonError: the turn was refused, or the generation was dropped meanwhile.
        """
        return await asyncio.shield(self._decided)

    async def deliver(self, take: Take) -> bool:
        """Give `take` what was held, and have `run` give it all that follows. Return False if no more is wanted."""
        while self._held:
            if not await take(self._held.popleft()):
                return False
        self._take = take
        self._taken_over.set()
        return True

    async def run(self) -> None:
        """Decide and act. Ends with the last event, or when cancelled; what goes wrong is an event too."""
        try:
            with self._seated():
                async with self._executor.clock.timeout_at(self._deadline_s):
                    if self._work is None:
                        self._work = await self._decide()
                    self.task = self._work.task
                    if not self._decided.done():
                        self._decided.set_result(self._work.decision)
                    await self._act(self._work)
            while self._work.wants is not None:
                await self._go_on(self._work)
        except BatonError as exc:
            await self._fail(exc)
        except TimeoutError:
            await self._fail(DeadlineExceeded("The turn took longer than it may. Ask for less, or try again."))
        except Exception:  # noqa: BLE001  # a defect fails its turn, and the log says so
            _log.exception("turn %s failed", self.turn_id)
            await self._fail(Internal("The turn failed on our side. Try again; the server's log has the cause."))
        finally:
            if self._work is not None and self._work.made:
                await self._executor.calls.forget(self._work)

    def take_seat(self, *, replaces: bool) -> None:
        """Have a turn's seat from here on; see `admission.Place`."""
        if self._place is not None:
            self._place.take_seat(replaces=replaces)

    @contextmanager
    def _seated(self) -> Iterator[None]:
        if self._place is None:
            with self._executor.admission.seat(self._owner.tenant, is_running=self._work is not None):
                yield
            return
        try:
            yield
        finally:
            self._place.leave()

    def approve(self, response: ApprovalResponse) -> None:
        """Take in what was said to a call that waits, once that is in the log."""
        if self._work is not None and self._work.approve(response):
            self._answered.set()

    async def _go_on(self, work: Work) -> None:
        """Wait for what is wanted, which takes no seat and none of the turn's time; then act further."""
        clock = self._executor.clock
        left_s = work.deadline_s - clock.now_s()
        if work.wants == "commit":
            await self._taken_over.wait()
            work.is_committed = True
        else:
            await wait_for_event(clock, self._answered, self._executor.calls.deadline_s(work))
            self._answered.clear()
        work.deadline_s = clock.now_s() + left_s
        with self._executor.admission.seat(self._owner.tenant, is_running=True):
            async with clock.timeout_at(work.deadline_s):
                await self._act(work)

    def abandon(self) -> None:
        """Tell whoever waits for the decision that there will be none, and give back what is held."""
        if self._place is not None:
            self._place.leave()
        self._refuse(Conflict("The proposal was dropped meanwhile. Propose it again.", code="not_proposed"))

    async def _decide(self) -> Work:
        return await self._executor.decide(
            owner=self._owner,
            turn_id=self.turn_id,
            generation=self.generation,
            turn_input=self.turn_input,
            history=self._history,
            deadline_s=self._deadline_s,
            is_kept=True,
        )

    def _refuse(self, error: BatonError) -> None:
        if not self._decided.done():
            self._decided.set_exception(error)
            self._decided.exception()  # retrieved here: a proposal that nobody commits is nobody's error

    async def _act(self, work: Work) -> None:
        work.is_committed = work.is_committed or self._taken_over.is_set()
        async with aclosing(self._executor.run(work)) as events:
            async for event in events:
                if not await self._hand(event):
                    work.wants = None
                    return

    async def _fail(self, error: BatonError) -> None:
        self._refuse(error)
        await self._hand(failed(self.turn_id, self.generation, Fault.of(error)))

    async def _hand(self, event: GenerationEvent) -> bool:
        if self._take is None and self._held_bytes >= _HELD_BYTES:
            await self._taken_over.wait()
        if self._take is not None:
            return await self._take(event)
        self._held.append(event)
        self._held_bytes += _bytes_of(event)
        return True


def _bytes_of(event: GenerationEvent) -> int:
    """Return about what it takes to hold an event."""
    match event:
        case TaskProgress(delta=AudioDelta() as delta):
            return _EVENT_BYTES + len(delta.pcm)
        case TaskProgress(delta=TextDelta() as delta):
            return _EVENT_BYTES * (1 + len(delta.tokens)) + 4 * len(delta.text) + 32 * len(delta.token_ids)
        case TaskProgress(delta=ReasoningDelta() as delta):
            return _EVENT_BYTES + 4 * len(delta.text)
        case TaskProgress(delta=CallDelta() as delta):
            return _EVENT_BYTES + 4 * len(delta.arguments)
        case TaskProgress(delta=PartDelta() as delta):
            return _EVENT_BYTES + _part_bytes(delta.part)
        case TaskItem():
            return _EVENT_BYTES + 4 * length_of(event.item)
        case TaskOutput():
            return _EVENT_BYTES + sum(_part_bytes(part) for part in event.parts)
        case PlanMade() | PlanRevised() | TurnDone():
            return 4 * _EVENT_BYTES
        case _:
            return _EVENT_BYTES


def _part_bytes(part: Part) -> int:
    match part:
        case TextPart():
            return _EVENT_BYTES + 4 * len(part.text)
        case EvidencePart():
            return _EVENT_BYTES + 4 * len(part.quote)
        case _:
            return _EVENT_BYTES  # a reference to a blob
