"""`GET /v1/sessions/{id}/turns/{turn}/trace`: what was decided about a turn and from what, what was done, and what it cost."""

from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from orchestrator.build import Conductor
from orchestrator.trace.record import Tracer
from orchestrator.trace.replay import replay
from orchestrator.trace.wire import changes_of, wire_replay, wire_trace
from streaming.subjects import whose
from streaming.wire.items import response_id, turn_id
from streaming.wire.route import RestRoute


def trace_routes(conductor: Conductor) -> APIRouter:
    """Return the route."""
    router = APIRouter(prefix="/v1/sessions", route_class=RestRoute)

    @router.get("/{session_id}/turns/{turn}/trace")
    async def trace_turn(
        session_id: str,
        turn: str,
        request: Request,
        what_if: Annotated[list[str] | None, Query(max_length=32)] = None,
    ) -> dict[str, Any]:
        """Trace a turn, by its id, its response's, or its place in the session (1 is the first); decide it anew on request."""
        tracer = Tracer(session_id)
        async with aclosing(conductor.sessions.rows(whose(request), session_id)) as pages:
            async for rows in pages:
                tracer.take(rows)
        trace = tracer.turn(turn_id(turn) if turn.startswith("resp_") else turn)
        told = {**wire_trace(trace), "response_id": response_id(trace.turn_id)}
        if what_if is not None:
            changes = changes_of(what_if)
            told["replay"] = wire_replay(await replay(trace.decision, changes), changes)
        return told

    return router
