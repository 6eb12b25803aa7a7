"""One generation at work: decide, then act, and hold what comes until it is committed.

A proposal may be a guess. It works ahead in memory only: its events wait in a bounded queue, a full queue holds its
engine up, and a generation that is dropped leaves nothing behind.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from agents.events import AgentEvent, Fault, Origin, TaskFailed
from models.content import Item
from models.errors import BatonError, Conflict, DeadlineExceeded, Internal
from orchestrator.band import Band, Score
from orchestrator.events import Decision, TurnInput

_log = logging.getLogger(__name__)

_HELD_EVENTS = 256
"""Events that wait for a commit, or for the session to take them; then the engine waits."""


class Attempt:
    """One generation of a turn. `run` owns the work; the session owns the task that runs it."""

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
        self._input = turn_input
        self._history = tuple(history)
        self._deadline_s = band.clock.now_s() + band.limits.turn_timeout_s
        self._decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._events: asyncio.Queue[AgentEvent | None] = asyncio.Queue(_HELD_EVENTS)

    async def decision(self) -> Decision:
        """Return the decision once it is made.

        Raises:
            BatonError: the turn was refused, or the generation was dropped meanwhile.
        """
        return await asyncio.shield(self._decided)

    async def events(self) -> AsyncGenerator[AgentEvent, None]:
        """Yield what the generation has done and does, to one consumer."""
        while (event := await self._events.get()) is not None:
            yield event

    async def run(self) -> None:
        """Decide and act. Ends with the last event, or when cancelled; what goes wrong is an event too."""
        try:
            with self._band.seat(self._tenant):
                await self._band.weigh(self._input, self._history)
                score = self._decide()
                if not self._decided.done():
                    self._decided.set_result(score.decision)
                async with self._band.clock.timeout_at(self._deadline_s):
                    await self._act(score)
        except BatonError as exc:
            await self._fail(exc)
        except TimeoutError:
            await self._fail(DeadlineExceeded("The turn took longer than it may. Ask for less, or try again."))
        except Exception:  # noqa: BLE001  # a defect fails its turn, and the log says so
            _log.exception("turn %s failed", self.turn_id)
            await self._fail(Internal("The turn failed on our side. Try again; the server's log has the cause."))
        await self._events.put(None)

    def abandon(self) -> None:
        """Tell whoever waits for the decision that there will be none."""
        self._refuse(Conflict("The proposal was dropped meanwhile. Propose it again.", code="not_proposed"))

    def _decide(self) -> Score:
        return self._band.decide(
            tenant=self._tenant,
            turn_id=self.turn_id,
            generation=self.generation,
            turn_input=self._input,
            history=self._history,
        )

    def _refuse(self, error: BatonError) -> None:
        if not self._decided.done():
            self._decided.set_exception(error)
            self._decided.exception()  # retrieved here: a proposal that nobody commits is nobody's error

    async def _act(self, score: Score) -> None:
        async with aclosing(self._band.play(score)) as events:
            async for event in events:
                await self._events.put(event)

    async def _fail(self, error: BatonError) -> None:
        self._refuse(error)
        origin = Origin(
            agent="conductor", task_id=f"{self.turn_id}.1", turn_id=self.turn_id, generation=self.generation
        )
        await self._events.put(TaskFailed(origin=origin, fault=Fault.of(error)))
