"""A turn that waits, from its rows: what was decided, what it has come to, and which calls somebody is asked about. Pure.

A restart ends every turn that ran, but not one that waits for somebody to allow a call: nothing of it was lost. Of calls that
were allowed before the restart and have no result it is not known whether they ran.
"""

from collections.abc import Sequence
from itertools import takewhile

from agents.events import Origin
from models.content import ApprovalRequest, ApprovalResponse, Call, CallResult, Item, Message
from models.owner import Owner
from orchestrator.act.work import Work
from orchestrator.events import Committed, ItemClosed, ItemsAdded, TaskEnded, TurnAccepted


def resumed(rows: Sequence[Committed], conversation: Sequence[Item], owner: Owner, deadline_s: float) -> Work | None:
    """Return what is left of a turn to do; None if it waits for nobody.

    Args:
        rows: of the session, from the turn's acceptance on.
        conversation: its items, as far back as a model may be shown them.
        owner: whose turn it is.
        deadline_s: until when it may take, once it goes on.
    """
    if not rows or not isinstance(accepted := rows[0].event, TurnAccepted):
        return None
    work = Work(
        owner=owner,
        turn_id=accepted.turn_id,
        generation=accepted.generation,
        decision=accepted.decision,
        turn_input=accepted.input,
        before=(),
        deadline_s=deadline_s,
        is_committed=True,
        is_kept=True,
    )
    for row in rows[1:]:
        match row.event:
            case ItemClosed() as closed:
                _take(work, closed)
            case ItemsAdded(items=items):
                for item in items:
                    if isinstance(item, ApprovalResponse):
                        work.approve(item)
            case TaskEnded() as ended:
                work.tasks += 1
                work.rounds += ended.agent != "tools"
            case _:
                pass
    for made in work.made.values():
        made.is_in_doubt = made.approval is not None and made.approval["approve"] and made.result is None
    work.tasks += len({made.run_id for made in work.made.values() if made.result is None and made.run_id is not None})
    own = {item.item_id for item in (*accepted.input.items, *work.said)}
    work.before = (*takewhile(lambda item: item.item_id not in own, conversation), *accepted.input.items)
    return work if any(made.waits for made in work.made.values()) else None


def _take(work: Work, closed: ItemClosed) -> None:
    item = closed.item
    match item:
        case Message():
            work.said.append(item)
        case Call(status="completed"):
            work.said.append(item)
            work.take_call(item, item.call_id if closed.effect is None else closed.effect.key)
            work.last_origin = Origin(
                agent=work.decision.agent,
                task_id=closed.task_id,
                turn_id=closed.turn_id,
                generation=closed.generation,
            )
        case CallResult():
            work.take_result(item)
        case ApprovalRequest():
            if (made := work.made.get(item.call_id)) is not None:
                made.request, made.run_id = item, closed.task_id
        case ApprovalResponse():
            work.approve(item)
        case _:
            pass
