"""Responses beside the conversation: to it, or to a context of their own, and never part of it.

Nothing of one is kept. It is told as a session's turn is: its state is that of a session of its own, without a log.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from models.clock import Clock
from models.ids import new_id
from orchestrator.act.completions import Completion
from orchestrator.events import Committed, LogEvent, SessionEvent, TurnInput
from orchestrator.limits import SessionLimits
from orchestrator.sessions.cursor import Cursor
from orchestrator.sessions.state import SessionState


class Aside:
    """One such response. Whoever runs `events` owns the work."""

    def __init__(self, completion: Completion, turn_input: TurnInput, clock: Clock) -> None:
        """Take a turn that was decided."""
        self._completion = completion
        self._clock = clock
        self._state = SessionState(SessionLimits())
        self._cursor = Cursor(0)
        now_s = clock.now_s()
        generation, _ = self._state.propose(completion.turn_id, turn_input, now_s)
        self._apply(self._state.plan_accept(completion.turn_id, generation, completion.decision, asked_s=now_s))

    @property
    def turn_id(self) -> str:
        """Its id."""
        return self._completion.turn_id

    async def events(self) -> AsyncGenerator[SessionEvent, None]:
        """Yield what happens, as a session's readers are told it, from the acceptance to the end. Closing it stops the work."""
        for told in self._told():
            yield told
        async with aclosing(self._completion.events()) as events:
            async for event in events:
                now_s = self._clock.now_s()
                item_id = new_id("item")
                if not self._state.take(event, item_id, now_s):
                    self._apply(self._state.plan(event, item_id, now_s))
                    self._state.take(event, item_id, now_s)
                for told in self._told():
                    yield told

    def cancel(self, reason: str) -> list[SessionEvent]:
        """End it, once `events` is closed. Return what is still to be told; nothing if it had ended."""
        if self._state.turn is not None:
            self._apply(self._state.plan_cancel(self.turn_id, reason, self._clock.now_s()))
        return self._told()

    def _told(self) -> list[SessionEvent]:
        return self._cursor.advance(self._state) or []

    def _apply(self, events: tuple[LogEvent, ...]) -> None:
        rows = enumerate(events, start=self._state.last_seq + 1)
        self._state.apply((Committed(seq=seq, at_ms=0, event=event) for seq, event in rows), self._clock.now_s())
