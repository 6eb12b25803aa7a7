"""What is done to a conversation that is kept: it is forked, and an item is taken out of it."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, StringConstraints

from orchestrator.build import Conductor
from streaming.rest.sessions import listed_session
from streaming.subjects import whose
from streaming.wire.items import turn_id
from streaming.wire.route import RestRoute


class SessionFork(BaseModel):
    """Where a branch begins: at the end of a turn, by its id or its response's, or where the session is now."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    turn: Annotated[str, StringConstraints(max_length=128)] | None = None


def session_edit_routes(conductor: Conductor) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/sessions", route_class=RestRoute)
    sessions = conductor.sessions

    @router.post("/{session_id}/fork", status_code=201)
    async def fork_session(session_id: str, request: Request, body: SessionFork | None = None) -> dict[str, Any]:
        """Make a session that goes on from a turn of another one, or from where that is now."""
        turn = None if body is None else body.turn
        if turn is not None and not turn.startswith("turn_"):
            turn = turn_id(turn)
        branch_id = await sessions.fork(whose(request), session_id, turn)
        return listed_session(await sessions.record(whose(request), branch_id))

    @router.delete("/{session_id}/items/{item_id}", status_code=204)
    async def delete_item(session_id: str, item_id: str, request: Request, redact: bool = False) -> Response:
        """Take an item out of a conversation; or, to redact it, its content out of every conversation that has it."""
        if redact:
            await sessions.redact(whose(request), session_id, (item_id,))
        else:
            await (await sessions.open(whose(request), session_id)).remove((item_id,))
        return Response(status_code=204)

    return router
