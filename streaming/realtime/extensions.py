"""Baton's own events on `/v1/realtime`. They go only to clients that asked for them: `?baton=events` or `session.update`."""

from typing import Literal

from pydantic import BaseModel

from orchestrator.events import Decision, SessionSettings
from streaming.wire.items import response_id


class BatonAttached(BaseModel):
    """`baton.session.attached`: which session this is; everything up to row `seq` was sent before, or not asked for."""

    type: Literal["baton.session.attached"] = "baton.session.attached"
    session_id: str
    seq: int


class BatonSession(BaseModel):
    """`baton.session.updated`: what holds for the session from here on."""

    type: Literal["baton.session.updated"] = "baton.session.updated"
    session_id: str
    title: str | None
    instructions: str | None
    model: str | None

    @classmethod
    def of(cls, session_id: str, settings: SessionSettings) -> "BatonSession":
        """Build the event from a session's settings."""
        return cls(
            session_id=session_id, title=settings.title, instructions=settings.instructions, model=settings.model
        )


class BatonSequence(BaseModel):
    """`baton.sequence`: everything up to row `seq` has been sent; reconnect with `after=` it."""

    type: Literal["baton.sequence"] = "baton.sequence"
    seq: int


class BatonRefused(BaseModel):
    """A model that was not taken, and why."""

    model: str
    reason: str


class BatonRouted(BaseModel):
    """`baton.turn.routed`: who answers, on which model, and why."""

    type: Literal["baton.turn.routed"] = "baton.turn.routed"
    response_id: str
    agent: str
    model: str
    reasons: tuple[str, ...]
    refused: tuple[BatonRefused, ...]

    @classmethod
    def of(cls, turn: str, decision: Decision) -> "BatonRouted":
        """Build the event from a decision."""
        return cls(
            response_id=response_id(turn),
            agent=decision.agent,
            model=decision.card,
            reasons=decision.remarks,
            refused=tuple(BatonRefused(model=r.card, reason=r.reason) for r in decision.refused),
        )


class BatonTimed(BaseModel):
    """`baton.turn.timed`: where the time of a turn went, from when it was asked for, in milliseconds."""

    type: Literal["baton.turn.timed"] = "baton.turn.timed"
    response_id: str
    decided_ms: int | None
    first_delta_ms: int | None
    duration_ms: int | None


BatonEvent = BatonAttached | BatonSession | BatonSequence | BatonRouted | BatonTimed
