"""What an agent yields: a model's deltas, wrapped with who yields them, for which task, in which generation."""

from dataclasses import dataclass
from typing import Literal

from models.content import Delta
from models.errors import BatonError


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an event comes from."""

    agent: str
    task_id: str
    turn_id: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An error as data, fit for a log and for a reader; see `models.errors`."""

    code: str
    message: str
    retryable: bool
    field: str | None = None

    @classmethod
    def of(cls, error: BatonError) -> "Fault":
        """Return `error` as data."""
        return cls(code=error.code, message=error.message, retryable=error.retryable, field=error.field)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStarted:
    """The task's work has begun."""

    kind: Literal["task_started"] = "task_started"
    origin: Origin
    card: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgress:
    """A delta of the task's model."""

    kind: Literal["task_progress"] = "task_progress"
    origin: Origin
    delta: Delta


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFinished:
    """The task is done; `reason` is the engine's."""

    kind: Literal["task_finished"] = "task_finished"
    origin: Origin
    reason: Literal["stop", "length", "calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed:
    """The task ended in an error. What it yielded before stands."""

    kind: Literal["task_failed"] = "task_failed"
    origin: Origin
    fault: Fault


AgentEvent = TaskStarted | TaskProgress | TaskFinished | TaskFailed
