"""The rows that the items and the tasks of a running turn end with, and what those rows change in it. Pure; part of `state`."""

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import assert_never

from agents.events import Fault
from models.content import Call, ItemStatus
from orchestrator.events import (
    ItemClosed,
    LogEvent,
    PlanMade,
    PlannedTask,
    PlanRevised,
    TaskEnded,
    TaskResult,
    TaskState,
)
from orchestrator.sessions.open_turn import LiveTask, LiveTurn, OpenItem


def closed(turn: LiveTurn, item: OpenItem, status: ItemStatus) -> ItemClosed:
    """Return the row that closes an item."""
    whole, task, effect = item.item(status), item.task, None
    if isinstance(whole, Call) and status == "completed":
        effect = turn.effect_of(whole.name, task.task_id, item.ordinal)
    return ItemClosed(
        turn_id=turn.turn_id,
        generation=turn.generation,
        item=whole,
        audio_ms=item.audio_ms,
        task_id=task.task_id,
        index=item.index,
        output=task.output if item.is_message and item.role != "commentary" else None,
        effect=effect,
    )


def task_ended(
    turn: LiveTurn,
    task: LiveTask,
    status: ItemStatus,
    now_s: float,
    *,
    state: TaskState,
    reason: str | None = None,
    fault: Fault | None = None,
) -> tuple[ItemClosed | TaskEnded, ...]:
    """Return the rows that close what a task has open, and end it."""
    rows = tuple(closed(turn, item, status) for item in turn.open_of(task.task_id))
    ended = TaskEnded(
        turn_id=turn.turn_id,
        generation=turn.generation,
        task_id=task.task_id,
        agent=task.agent,
        card=task.card,
        role=task.role,
        state=state,
        reason=reason,
        fault=fault,
        outputs=task.outputs + tuple(result for row in rows if (result := _result(row)) is not None),
        usage=task.spent,
        started_ms=None if task.started_s is None else ms(task.started_s - turn.asked_s),
        ended_ms=ms(now_s - turn.asked_s),
    )
    return (*rows, ended)


def cancelled(turn: LiveTurn, but: Container[str], now_s: float) -> list[LogEvent]:
    """Return the rows that end the tasks which still run, but for those whose end is known."""
    rows: list[LogEvent] = []
    for task in turn.tasks.values():
        if not task.is_over and task.task_id not in but:
            rows += task_ended(turn, task, "incomplete", now_s, state="cancelled")
    return rows


def cut_off(turn: LiveTurn) -> list[LogEvent]:
    """Return the rows that end the tasks of a turn which was cut off, as far as its log knows them: nobody knows when."""
    return [
        replace(row, started_ms=None, ended_ms=None) for row in cancelled(turn, (), 0.0) if isinstance(row, TaskEnded)
    ]


def fold_task(turn: LiveTurn, event: PlanMade | PlanRevised | TaskEnded) -> None:
    """Take in which tasks there are, and which are over."""
    match event:
        case PlanMade():
            _plan(turn, event.tasks)
        case PlanRevised():
            for task_id in event.dropped:
                if (task := turn.tasks.get(task_id)) is not None and task.started_s is None and not task.is_over:
                    del turn.tasks[task_id]
            _plan(turn, event.added)
        case TaskEnded():
            turn.known(event.task_id, event.role).is_over = True
        case _:
            assert_never(event)


def _plan(turn: LiveTurn, tasks: Sequence[PlannedTask]) -> None:
    for one in tasks:
        task = turn.known(one.task_id, one.role)
        if task.started_s is None:
            task.agent, task.card, task.role, task.output = one.agent, one.card, one.role, one.output


def fold_closed(turn: LiveTurn, event: ItemClosed) -> None:
    """Take in that an item was closed."""
    call_id = event.item.call_id if isinstance(event.item, Call) else None
    key = (event.task_id, call_id)
    opened = turn.open.get(key)
    is_opened = opened is not None and opened.item_id == event.item.item_id
    if is_opened:
        del turn.open[key]
    elif event.index is not None:
        turn.items = max(turn.items, event.index + 1)
    if not event.task_id:
        return  # a row of when a turn was one task
    task = turn.known(event.task_id, event.item.output)
    if call_id is not None:
        task.called.add(call_id)
        task.calls += not is_opened
    if (result := _result(event)) is not None:
        task.outputs = (*task.outputs, result)


def _result(closed: ItemClosed) -> TaskResult | None:
    return None if closed.output is None else TaskResult(name=closed.output, item_id=closed.item.item_id)


def ms(seconds: float) -> int:
    """Return a span of time in milliseconds."""
    return max(0, round(seconds * 1000))
