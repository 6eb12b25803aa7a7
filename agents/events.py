"""What an agent yields: a model's deltas, wrapped with who yields them, for which task, in which generation."""

from dataclasses import dataclass
from typing import Literal

from models.content import Delta
from models.errors import CLASSES, BadInput, BatonError, ErrorKind, Internal


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an event comes from."""

    agent: str
    task_id: str
    turn_id: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An error as data, fit for a log and for a reader; see `models.errors`. `kind` is None in rows of before it was logged."""

    kind: ErrorKind | None = None
    code: str
    message: str
    retryable: bool
    field: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: BatonError) -> "Fault":
        """Return `error` as data."""
        return cls(
            kind=error.kind,
            code=error.code,
            message=error.message,
            retryable=error.retryable,
            field=error.field,
            retry_after_s=error.retry_after_s,
        )

    def error(self) -> BatonError:
        """Return the error that this was, of its own class."""
        if self.kind is None:
            cls: type[BatonError] = Internal if self.retryable else BadInput
        else:
            cls = CLASSES[self.kind]
        return cls(
            self.message,
            code=self.code,
            field=self.field,
            retryable=self.retryable,
            retry_after_s=self.retry_after_s,
        )


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
