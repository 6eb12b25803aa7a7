"""One generation at work: decide, then act, and hold what comes until it is committed.

A proposal may be a guess. It works ahead in memory only: it holds what it has done, within a bound that holds its engine
up, and a generation that is dropped leaves nothing behind. Once it is committed, it gives each event to its session
itself: a queue and a task between would cost as much for a token as taking it does.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

from agents.events import Fault
from agents.port import Task
from models.content import Item
from models.errors import BatonError, Conflict, DeadlineExceeded, Internal
from orchestrator.act.band import Band, Score
from orchestrator.events import Decision, GenerationEvent, TurnInput, failed

_log = logging.getLogger(__name__)

_HELD_EVENTS = 256
"""Events that wait for a commit; then the engine waits."""

Take = Callable[[GenerationEvent], Awaitable[bool]]
"""Takes an event; returns False if no more are wanted."""


class Generation:
    """One generation of a turn. `run` owns the work; the session owns the task that runs it.

    Attributes:
        turn_id: the turn.
        generation: which of its generations.
        turn_input: what is answered.
        task: what the agent was given; None before that was decided.
    """

    def __init__(
        self,
        band: Band,
        *,
        tenant: str,
        turn_id: str,
        generation: int,
        turn_input: TurnInput,
        history: Sequence[Item],
    ) -> None:
        self.turn_id = turn_id
        self.generation = generation
        self._band = band
        self._tenant = tenant
        self.turn_input = turn_input
        self.task: Task | None = None
        self._history = tuple(history)
        self._deadline_s = band.clock.now_s() + band.limits.turn_timeout_s
        self._decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._held: deque[GenerationEvent] = deque()
        self._take: Take | None = None
        self._taken_over = asyncio.Event()

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
            with self._band.seat(self._tenant):
                async with self._band.clock.timeout_at(self._deadline_s):
                    score = await self._decide()
                    self.task = score.task
                    if not self._decided.done():
                        self._decided.set_result(score.decision)
                    await self._act(score)
        except BatonError as exc:
            await self._fail(exc)
        except TimeoutError:
            await self._fail(DeadlineExceeded("The turn took longer than it may. Ask for less, or try again."))
        except Exception:  # noqa: BLE001  # a defect fails its turn, and the log says so
            _log.exception("turn %s failed", self.turn_id)
            await self._fail(Internal("The turn failed on our side. Try again; the server's log has the cause."))

    def abandon(self) -> None:
        """Tell whoever waits for the decision that there will be none."""
        self._refuse(Conflict("The proposal was dropped meanwhile. Propose it again.", code="not_proposed"))

    async def _decide(self) -> Score:
        return await self._band.decide(
            tenant=self._tenant,
            turn_id=self.turn_id,
            generation=self.generation,
            turn_input=self.turn_input,
            history=self._history,
            deadline_s=self._deadline_s,
        )

    def _refuse(self, error: BatonError) -> None:
        if not self._decided.done():
            self._decided.set_exception(error)
            self._decided.exception()  # retrieved here: a proposal that nobody commits is nobody's error

    async def _act(self, score: Score) -> None:
        async with aclosing(self._band.play(score)) as events:
            async for event in events:
                if not await self._hand(event):
                    return

    async def _fail(self, error: BatonError) -> None:
        self._refuse(error)
        await self._hand(failed(self.turn_id, self.generation, Fault.of(error)))

    async def _hand(self, event: GenerationEvent) -> bool:
        if self._take is None and len(self._held) >= _HELD_EVENTS:
            await self._taken_over.wait()
        if self._take is not None:
            return await self._take(event)
        self._held.append(event)
        return True
