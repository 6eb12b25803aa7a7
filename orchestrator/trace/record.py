"""A turn as its rows tell it: what was decided and from what, what was done by whom, what it cost, how it ended. Pure.

Nothing of what was said is in it, but the names of tools and the ids of items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from models.content import ApprovalRequest, ApprovalResponse, Call, CallResult, Item
from models.errors import NotFound, quoted
from orchestrator.events import (
    Committed,
    Decision,
    ItemClosed,
    PlanMade,
    PlanRevised,
    TaskEnded,
    TurnAccepted,
    TurnEnded,
    items_of,
)

TraceState = Literal["running", "waiting", "finished", "interrupted", "failed"]


@dataclass(slots=True, kw_only=True)
class TracedCall:
    """A call of a tool.

    Attributes:
        call_id: its id.
        name: of the tool.
        task_id: the task that made it.
        runner: who runs it.
        effect: what it does to the world; None if it was cut short.
        key: of its effect.
        approval: whether somebody was asked, and what they said.
        why: what they said to it.
        is_answered: whether it has its result.
    """

    call_id: str
    name: str
    task_id: str
    runner: str = "client"
    effect: str | None = None
    key: str | None = None
    approval: Literal["asked", "given", "refused"] | None = None
    why: str | None = None
    is_answered: bool = False


@dataclass(slots=True, kw_only=True)
class TurnTrace:
    """One turn.

    Attributes:
        session_id: of which session.
        turn_id: the turn.
        ordinal: the how many-th it is of its session, from 1.
        generation: the one that was accepted.
        accepted_seq: the row that accepted it.
        accepted_ms: when, in milliseconds of Unix time.
        decision: who does it, why, and from which inputs.
        plans: as they were made and revised.
        tasks: those that have ended.
        calls: of tools, in the order in which they were made.
        ended: how; None if it has not.
    """

    session_id: str
    turn_id: str
    ordinal: int
    generation: int
    accepted_seq: int
    accepted_ms: int
    decision: Decision
    plans: list[PlanMade | PlanRevised] = field(default_factory=list)
    tasks: list[TaskEnded] = field(default_factory=list)
    calls: list[TracedCall] = field(default_factory=list)
    ended: TurnEnded | None = None

    @property
    def state(self) -> TraceState:
        """How it stands."""
        if self.ended is not None:
            return self.ended.state
        return "waiting" if any(call.approval == "asked" and not call.is_answered for call in self.calls) else "running"


class Tracer:
    """Takes the rows of a session, and gives the traces of its turns."""

    def __init__(self, session_id: str) -> None:
        """Begin before the first row."""
        self._session_id = session_id
        self._turns: dict[str, TurnTrace] = {}
        self._calls: dict[str, TracedCall] = {}
        self._requests: dict[str, TracedCall] = {}

    def take(self, rows: Sequence[Committed]) -> None:
        """Take rows, in order."""
        for row in rows:
            event = row.event
            match event:
                case TurnAccepted():
                    self._turns[event.turn_id] = TurnTrace(
                        session_id=self._session_id,
                        turn_id=event.turn_id,
                        ordinal=len(self._turns) + 1,
                        generation=event.generation,
                        accepted_seq=row.seq,
                        accepted_ms=row.at_ms,
                        decision=event.decision,
                    )
                case PlanMade() | PlanRevised():
                    self._turns[event.turn_id].plans.append(event)
                case TaskEnded():
                    self._turns[event.turn_id].tasks.append(event)
                case TurnEnded():
                    self._turns[event.turn_id].ended = event
                case ItemClosed(item=Call() as call):
                    self._take_call(event, call)
                case _:
                    pass
            for item in items_of(event):
                self._take_item(item)

    def turn(self, turn: str | None) -> TurnTrace:
        """Return a turn by its id or its ordinal; the last one if None.

        Raises:
            NotFound: there is none.
        """
        found = None
        if turn is None:
            found = next(reversed(self._turns.values()), None)
        elif turn.isascii() and turn.isdecimal():
            found = next((each for each in self._turns.values() if str(each.ordinal) == turn), None)
        else:
            found = self._turns.get(turn)
        if found is None:
            what = "no turn" if turn is None else f"no turn {quoted(turn)}"
            raise NotFound(
                f"There is {what} in this session, which has {len(self._turns)}.", code="turn_not_found", field="turn"
            )
        return found

    def _take_call(self, closed: ItemClosed, call: Call) -> None:
        traced = TracedCall(call_id=call.call_id, name=call.name, task_id=closed.task_id)
        if closed.effect is not None:
            traced.runner, traced.effect, traced.key = closed.effect.runner, closed.effect.effect, closed.effect.key
        self._turns[closed.turn_id].calls.append(traced)
        self._calls[call.call_id] = traced

    def _take_item(self, item: Item) -> None:
        match item:
            case CallResult() if (call := self._calls.get(item.call_id)) is not None:
                call.is_answered = True
            case ApprovalRequest() if (call := self._calls.get(item.call_id)) is not None:
                call.approval = "asked"
                self._requests[item.item_id] = call
            case ApprovalResponse() if (call := self._requests.get(item.request_id)) is not None:
                call.approval, call.why = "given" if item.approve else "refused", item.reason
            case _:
                pass
