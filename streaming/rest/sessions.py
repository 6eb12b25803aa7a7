"""`/v1/sessions`: the conversations that are kept. List, make, read, change, delete, export.

They are followed at `/v1/sessions/{id}/events`: `streaming.realtime.follow`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from memory.sessions import SessionRecord
from models.content import ApprovalResponse, Item, status_of
from models.errors import BadInput, too_long
from models.ids import new_id
from models.owner import Owner
from orchestrator.build import Conductor
from orchestrator.events import SessionSettings, TurnInput
from orchestrator.sessions.registry import SessionHistory
from streaming.rest.export import markdown
from streaming.subjects import whose
from streaming.wire.items import response_id, wire_item
from streaming.wire.route import RestRoute


class SessionChanges(BaseModel):
    """What may be set; null clears, what is left out stays."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)] | None = None
    instructions: str | None = None
    model: Annotated[str | None, Field(max_length=128)] = None


class ApprovalAnswer(BaseModel):
    """Whether a call may be made that waits for it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    approval_request_id: Annotated[str, Field(min_length=1, max_length=64)]
    approve: bool
    reason: Annotated[str | None, Field(max_length=1000)] = None


class NewSession(SessionChanges):
    """What may be set when a session is made, and for whom; see `streaming.subjects`."""

    safety_identifier: str | None = None
    user: str | None = None


def session_routes(conductor: Conductor) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/sessions", route_class=RestRoute)
    sessions = conductor.sessions

    @router.get("")
    async def list_sessions(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 20,
        before: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        """List the sessions, the last active first."""
        records = await sessions.records(whose(request), limit=limit + 1, before=before)
        return {
            "object": "list",
            "data": [listed_session(record) for record in records[:limit]],
            "has_more": len(records) > limit,
        }

    @router.post("", status_code=201)
    async def make_session(body: NewSession, request: Request) -> dict[str, Any]:
        """Make a session that is kept from now on."""
        changes = _changes(body, conductor)
        await _check_possible(changes, SessionSettings(), conductor)
        owner = whose(request, safety_identifier=body.safety_identifier, user=body.user)
        session = await sessions.create(owner)
        await session.change(changes, keep=True)
        return listed_session(await sessions.record(owner, session.session_id))

    @router.get("/{session_id}")
    async def read_session(session_id: str, request: Request) -> dict[str, Any]:
        """Show a session and its conversation."""
        record = await sessions.record(whose(request), session_id)
        return _whole(record, await sessions.transcript(whose(request), session_id))

    @router.patch("/{session_id}")
    async def change_session(session_id: str, body: SessionChanges, request: Request) -> dict[str, Any]:
        """Set a session's title, instructions or model."""
        changes = _changes(body, conductor)
        session = await sessions.open(whose(request), session_id)
        await _check_possible(changes, session.settings, conductor)
        await session.change(changes)
        return listed_session(await sessions.record(whose(request), session_id))

    @router.delete("/{session_id}", status_code=204)
    async def delete_session(session_id: str, request: Request) -> Response:
        """Delete a session and its log."""
        owner = whose(request)
        await sessions.delete(owner, session_id)
        await conductor.forget(owner.within(session_id))  # what engines keep, they keep by owner and not by session
        return Response(status_code=204)

    @router.get("/{session_id}/export")
    async def export_session(
        session_id: str, request: Request, format: Literal["json", "markdown"] = "json"
    ) -> Response:
        """Return a session as a file."""
        record = await sessions.record(whose(request), session_id)
        told = await sessions.transcript(whose(request), session_id)
        if format == "markdown":
            return _download(
                markdown(record, told.items, told.turns), "text/markdown; charset=utf-8", f"{session_id}.md"
            )
        text = json.dumps(_whole(record, told), ensure_ascii=False, indent=2)
        return _download(text, "application/json", f"{session_id}.json")

    @router.post("/{session_id}/approvals", status_code=201)
    async def answer_request(session_id: str, body: ApprovalAnswer, request: Request) -> dict[str, Any]:
        """Say whether a call may be made that waits for it."""
        session = await sessions.open(whose(request), session_id)
        response = ApprovalResponse(
            item_id=new_id("item"), request_id=body.approval_request_id, approve=body.approve, reason=body.reason
        )
        await session.add((response,))
        return wire_item(response, "completed")

    return router


def _changes(body: SessionChanges, conductor: Conductor) -> dict[str, str | None]:
    changes: dict[str, str | None] = {
        name: getattr(body, name) for name in SessionChanges.model_fields if name in body.model_fields_set
    }
    if (model := changes.get("model")) is not None:
        conductor.check_model(model)
    most, instructions = conductor.settings.max_input_characters, changes.get("instructions") or ""
    if len(instructions) > most:
        raise too_long("the text of the instructions", len(instructions), most, field="instructions")
    return changes


async def _check_possible(changes: Mapping[str, str | None], settings: SessionSettings, conductor: Conductor) -> None:
    """Check that turns can have what is set.

    Raises:
        BadInput: none could.
    """
    names = [name for name in ("instructions", "model") if changes.get(name)]
    settings = replace(settings, **changes)
    try:
        if names:
            await conductor.vetting.room(TurnInput(instructions=settings.instructions, model=settings.model))
    except BadInput as exc:
        exc.field = names[0]
        raise


def listed_session(record: SessionRecord) -> dict[str, Any]:
    """Return a session as it is listed."""
    return {
        "id": record.session_id,
        "object": "session",
        "subject": Owner(tenant="", subject=record.subject).name,
        "title": record.title,
        "instructions": record.instructions,
        "model": record.model,
        "created_at": record.created_ms // 1000,
        "updated_at": record.updated_ms // 1000,
        "last_seq": record.last_seq,
    }


def _whole(record: SessionRecord, told: SessionHistory) -> dict[str, Any]:
    turns = [
        {"id": response_id(turn.turn_id), "state": turn.state, "reason": turn.reason, "after": turn.after}
        for turn in told.turns
    ]
    return {**listed_session(record), "items": _wire(told.items), "turns": turns}


def _wire(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [wire_item(item, status_of(item)) for item in items]


def _download(text: str, media_type: str, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type=media_type, headers=headers)
