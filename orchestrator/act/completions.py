"""Turns without a session: answered, counted, and forgotten. What REST's stateless requests are."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from agents.events import Fault, TaskProgress
from memory.log import EndState
from models.content import CallDelta, Item, ReasoningDelta, TextDelta, UsageDelta, length_of
from models.errors import Internal, too_long
from models.ids import new_id
from models.owner import Owner
from orchestrator.act.execute import Executor
from orchestrator.act.work import Work
from orchestrator.events import Decision, GenerationEvent, TurnDone, TurnEnded, TurnInput, Usage, failed
from orchestrator.limits import SessionLimits, check_lengths
from orchestrator.meters import Meters, TurnWatch

_log = logging.getLogger(__name__)


class Completion:
    """One such turn, decided and not yet played. Its times count from when it was begun."""

    def __init__(self, executor: Executor, work: Work, watch: TurnWatch, began_s: float) -> None:
        self._executor = executor
        self._work = work
        self._watch = watch
        self._began_s = began_s
        self._decided_s = executor.clock.now_s()
        self._first_s: float | None = None
        self._usage = Usage()
        self._written = 0
        self._end: tuple[EndState, str | None, Fault | None] = ("interrupted", "client_gone", None)

    @property
    def turn_id(self) -> str:
        """Its id."""
        return self._work.turn_id

    @property
    def decision(self) -> Decision:
        """Who answers, and why."""
        return self._work.decision

    async def events(self) -> AsyncGenerator[GenerationEvent, None]:
        """Yield the answer; the last event is `TurnDone`. Closing it stops the work."""
        try:
            async with aclosing(self._executor.run(self._work)) as events:
                async for event in events:
                    self._note(event)
                    yield event
        except Exception:  # noqa: BLE001  # a defect fails its turn, and the log says so
            _log.exception("turn %s failed", self.turn_id)
            error = Internal("The turn failed on our side. Try again; the server's log has the cause.")
            done = failed(self.turn_id, 1, Fault.of(error))
            self._note(done)
            yield done

    def ended(self) -> TurnEnded:
        """Return how it ended, or how it would have if it were left now."""
        now_s = self._executor.clock.now_s()
        state, reason, fault = self._end
        return TurnEnded(
            turn_id=self.turn_id,
            generation=1,
            state=state,
            reason=reason,
            fault=fault,
            usage=self._usage.cut_off(self._written),
            decided_ms=round((self._decided_s - self._began_s) * 1000),
            first_delta_ms=None if self._first_s is None else round((self._first_s - self._began_s) * 1000),
            duration_ms=round((now_s - self._began_s) * 1000),
        )

    def _note(self, event: GenerationEvent) -> None:
        match event:
            case TaskProgress(delta=UsageDelta() as delta):
                self._usage = self._usage.plus(delta)
            case TaskProgress(delta=delta):
                if isinstance(delta, TextDelta | CallDelta | ReasoningDelta):
                    self._written = max(self._written, delta.written)
                now_s = self._executor.clock.now_s()
                self._watch.delta(now_s)
                if self._first_s is None:
                    self._first_s = now_s
            case TurnDone():
                self._end = (event.state, event.reason, event.fault)
            case _:
                pass


class Completions:
    """Begins them; one for all tenants."""

    def __init__(self, executor: Executor, meters: Meters, limits: SessionLimits) -> None:
        """Take histories within the limits that sessions keep theirs in; what is longer is refused, since nothing keeps it."""
        self._executor = executor
        self._meters = meters
        self._limits = limits

    @asynccontextmanager
    async def begin(
        self, owner: Owner, turn_input: TurnInput, history: Sequence[Item], *, fork: str | None = None
    ) -> AsyncIterator[Completion]:
        """Decide a turn, and count it in for the length of the block; `fork` names it one of several answers to one prompt.

        Raises:
            LimitExceeded: the history is too long.
            BatonError: the turn is refused; see `Executor.decide`, `Executor.seat`.
        """
        turn_id = new_id("turn")
        owner = Owner.of(owner).within(turn_id)
        check_lengths(history, self._limits.item_characters)
        if (length := sum(length_of(item) for item in history)) > self._limits.history_characters:
            raise too_long("the conversation", length, self._limits.history_characters)
        began_s = self._executor.clock.now_s()
        with self._executor.admission.seat(owner.tenant):
            work = await self._executor.decide(
                owner=owner, turn_id=turn_id, generation=1, turn_input=turn_input, history=history
            )
            completion = Completion(self._executor, work.forked(fork), self._meters.watch(owner.tenant), began_s)
            try:
                yield completion
            finally:
                self._meters.turn_ended(owner.tenant, completion.ended())
