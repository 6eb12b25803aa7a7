"""Requests of a turn that somebody has to answer: which wait, and what may be added while they do. Pure; part of `state`."""

from collections.abc import Iterable, Sequence

from models.content import ApprovalRequest, ApprovalResponse, Call, CallResult, Item
from models.errors import Conflict, NotFound
from orchestrator.sessions.open_turn import LiveTurn


def note(turn: LiveTurn | None, items: Iterable[Item]) -> None:
    """Take in items that have become part of the log."""
    if turn is None:
        return
    for item in items:
        match item:
            case ApprovalRequest():
                turn.requests[item.item_id] = item
            case ApprovalResponse():
                turn.requests.pop(item.request_id, None)
            case _:
                pass


def check(turn: LiveTurn | None, items: Sequence[Item], conversation: Sequence[Item]) -> None:
    """Check that what is added answers what is asked, and nothing that the server answers itself.

    Raises:
        Conflict: a result is of a call that the server runs.
        NotFound: nothing waits under that id.
    """
    waiting = set() if turn is None else set(turn.requests)
    for item in items:
        if isinstance(item, ApprovalResponse):
            if item.request_id not in waiting:
                raise NotFound(
                    f"Nothing waits under {item.request_id!r} to be allowed: there is no such request, or it was answered.",
                    code="approval_not_found",
                    field="approval_request_id",
                )
            waiting.discard(item.request_id)
        elif isinstance(item, CallResult) and turn is not None and _is_servers(turn, item.call_id, conversation):
            raise Conflict(
                f"The call {item.call_id!r} is run by the server, which has its result.", code="call_answered"
            )


def _is_servers(turn: LiveTurn, call_id: str, conversation: Sequence[Item]) -> bool:
    call = next((item for item in reversed(conversation) if isinstance(item, Call) and item.call_id == call_id), None)
    tool = None if call is None else turn.tools.get(call.name)
    return tool is not None and tool.runner == "server"
