"""Baton's own events on `/v1/realtime`. They go only to clients that asked for them: `?baton=events` or `session.update`."""

from typing import Any, Literal

from pydantic import BaseModel

from models.content import OutputRole
from orchestrator.events import Decision, PlanMade, PlannedTask, PlanRevised, SessionSettings, TaskEnded
from streaming.wire.errors import told
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


class BatonRedacted(BaseModel):
    """`baton.item.redacted`: the content of an item was taken out for good; the item keeps its place."""

    type: Literal["baton.item.redacted"] = "baton.item.redacted"
    item_id: str


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


class BatonTaskInput(BaseModel):
    """What a task works from: an output of another."""

    name: str
    task_id: str
    output: str


class BatonTask(BaseModel):
    """A task of a plan."""

    task_id: str
    agent: str
    model: str
    inputs: tuple[BatonTaskInput, ...]
    output: str
    role: OutputRole

    @classmethod
    def of(cls, task: PlannedTask) -> "BatonTask":
        """Build it from the plan's."""
        return cls(
            task_id=task.task_id,
            agent=task.agent,
            model=task.card,
            inputs=tuple(BatonTaskInput(name=one.name, task_id=one.task_id, output=one.output) for one in task.inputs),
            output=task.output,
            role=task.role,
        )


class BatonPlanned(BaseModel):
    """`baton.turn.planned`: which tasks a turn of many consists of."""

    type: Literal["baton.turn.planned"] = "baton.turn.planned"
    response_id: str
    tasks: tuple[BatonTask, ...]

    @classmethod
    def of(cls, plan: PlanMade) -> "BatonPlanned":
        """Build the event from a row."""
        return cls(response_id=response_id(plan.turn_id), tasks=tuple(map(BatonTask.of, plan.tasks)))


class BatonReplanned(BaseModel):
    """`baton.turn.replanned`: the plan was changed, and why."""

    type: Literal["baton.turn.replanned"] = "baton.turn.replanned"
    response_id: str
    revision: int
    reason: str
    added: tuple[BatonTask, ...]
    dropped: tuple[str, ...]

    @classmethod
    def of(cls, plan: PlanRevised) -> "BatonReplanned":
        """Build the event from a row."""
        return cls(
            response_id=response_id(plan.turn_id),
            revision=plan.revision,
            reason=plan.reason,
            added=tuple(map(BatonTask.of, plan.added)),
            dropped=plan.dropped,
        )


class BatonOutput(BaseModel):
    """An output of a task, and the item that holds it."""

    name: str
    item_id: str


class BatonTaskEnded(BaseModel):
    """`baton.task.ended`: a task is over, which ends no turn; times count from when the turn was asked for, in milliseconds."""

    type: Literal["baton.task.ended"] = "baton.task.ended"
    response_id: str
    task_id: str
    agent: str
    model: str
    role: OutputRole
    state: Literal["finished", "failed", "cancelled"]
    reason: str | None
    error: dict[str, str] | None
    outputs: tuple[BatonOutput, ...]
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    started_ms: int | None
    ended_ms: int | None

    @classmethod
    def of(cls, ended: TaskEnded) -> "BatonTaskEnded":
        """Build the event from a row."""
        said = None if ended.fault is None else told(ended.fault.error())
        return cls(
            response_id=response_id(ended.turn_id),
            task_id=ended.task_id,
            agent=ended.agent,
            model=ended.card,
            role=ended.role,
            state=ended.state,
            reason=ended.reason,
            error=None if said is None else {"type": said.type, "code": said.code, "message": said.message},
            outputs=tuple(BatonOutput(name=one.name, item_id=one.item_id) for one in ended.outputs),
            input_tokens=ended.usage.input_tokens,
            output_tokens=ended.usage.output_tokens,
            cached_tokens=ended.usage.cached_tokens,
            started_ms=ended.started_ms,
            ended_ms=ended.ended_ms,
        )


def beside_event(
    what: Literal["added", "delta", "part", "done"], turn: str, item_id: str, **fields: Any
) -> dict[str, Any]:
    """Build `baton.item.*`: what is beside the conversation, thoughts and work for other tasks, told as an item is."""
    return {"type": f"baton.item.{what}", "response_id": response_id(turn), "item_id": item_id, **fields}


BatonEvent = (
    BatonAttached
    | BatonSession
    | BatonRedacted
    | BatonSequence
    | BatonRouted
    | BatonPlanned
    | BatonReplanned
    | BatonTaskEnded
    | BatonTimed
)
