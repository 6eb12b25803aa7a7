"""What a session does between two turns: it has the beginning of the next prompt read, if that is going to be another one.

Once a window is full it is cut, and what is kept is read anew, from its first word on. That can be done before it is
asked for. It begins after a pause, so that a client who asks at once is not held up by it, and ends when a turn is
proposed; what was read by then is found all the same.
"""

import asyncio
import logging
from contextlib import aclosing

from agents.port import Task
from models.clock import Clock, sleep_until
from models.errors import BatonError
from orchestrator.act.execute import Executor
from orchestrator.events import TurnInput
from orchestrator.meters import Meters
from orchestrator.sessions.state import SessionState

_log = logging.getLogger(__name__)

_PAUSE_S = 0.25
"""After the end of a turn. Who has not asked by then reads or thinks."""

_SOON_ITEMS = 32
"""How many items before memory lets go of what the prompt begins with, what it will begin with is read."""


class ReadingAhead:
    """One session's; at most one prompt is read at a time. The session owns the tasks."""

    def __init__(self, executor: Executor, clock: Clock, meters: Meters, tenant: str) -> None:
        """Begin with nothing to do."""
        self._executor = executor
        self._clock = clock
        self._meters = meters
        self._tenant = tenant
        self._task: asyncio.Task[None] | None = None

    def begin(self, tasks: asyncio.TaskGroup, last: Task, turn_input: TurnInput, state: SessionState) -> None:
        """Read what follows a turn that has just ended."""
        self.stop()
        self._task = tasks.create_task(self._run(last, turn_input, state))

    def stop(self) -> None:
        """Make way: a turn comes, or the session ends."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self, last: Task, turn_input: TurnInput, state: SessionState) -> None:
        await sleep_until(self._clock, self._clock.now_s() + _PAUSE_S)
        try:
            coming, history = state.next_context(_SOON_ITEMS) or (None, state.context)
            async with aclosing(self._executor.read_ahead(last, turn_input, tuple(history), coming=coming)) as read:
                async for used in read:
                    self._meters.read_ahead(self._tenant, used)
        except BatonError:
            return  # whatever it is, the turn will say so
        except Exception:  # noqa: BLE001  # a defect here must not end the session
            _log.exception("reading ahead failed")
