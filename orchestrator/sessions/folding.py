"""Folding the end of a session's log into its state, as far back as is needed for what is kept to be as it was lived."""

from itertools import dropwhile

from orchestrator.events import Committed, TurnAccepted
from orchestrator.limits import SessionLimits
from orchestrator.sessions.journal import Journal
from orchestrator.sessions.left import has_question, without_call
from orchestrator.sessions.state import SessionState


async def fold(journal: Journal, limits: SessionLimits, last_seq: int, now_s: float) -> SessionState:
    """Return the state at row `last_seq`: its items, as many as are kept, and the turn that was last accepted."""
    reach = limits.items * 2
    while True:
        rows = await journal.read(max(0, last_seq - reach), min(reach, last_seq))
        state = SessionState(limits)
        state.apply(rows if reach >= last_seq else from_a_turn_on(rows), now_s)
        if reach >= last_seq or state.full:
            await _recall(journal, state)
            return state
        reach *= 2


async def _recall(journal: Journal, state: SessionState) -> None:
    """Give a state what has left memory and is needed by what is in it."""
    if not state.full:
        return
    if (results := without_call(state.items)) and (calls := (await journal.earlier(results)).calls):
        state.recall(calls)
    if not has_question(state.items) and (question := await journal.last_of_user()) is not None:
        state.recall((question,))


def from_a_turn_on(rows: tuple[Committed, ...]) -> tuple[Committed, ...]:
    """Return `rows` from the first turn on that they hold the beginning of: where an item goes depends on its turn."""
    return tuple(dropwhile(lambda row: not isinstance(row.event, TurnAccepted), rows))
