"""What an agent yields: a model's deltas, wrapped with who yields them, for which task, in which generation."""

from dataclasses import dataclass
from typing import Literal

from models.content import Delta, Item, OutputRole, Part
from models.errors import CLASSES, BadInput, BatonError, ErrorKind, Internal


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an event comes from, and what its output is to the turn: it answers, comments, or is work for other tasks."""

    agent: str
    task_id: str
    turn_id: str
    generation: int
    role: OutputRole = "answer"


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
    """The task's work has begun; `output` is the name that what it writes has for the tasks that read it."""

    kind: Literal["task_started"] = "task_started"
    origin: Origin
    card: str
    output: str = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgress:
    """A delta of the task's model."""

    kind: Literal["task_progress"] = "task_progress"
    origin: Origin
    delta: Delta


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutput:
    """A whole output of the task under a name of its own, beside what it writes: a number, a table, a picture."""

    kind: Literal["task_output"] = "task_output"
    origin: Origin
    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItem:
    """A whole item of the task: the result of a tool that was run here, an approval that is asked for, a hosted call."""

    kind: Literal["task_item"] = "task_item"
    origin: Origin
    item: Item


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFinished:
    """The task is done, which ends no turn; `reason` is the engine's."""

    kind: Literal["task_finished"] = "task_finished"
    origin: Origin
    reason: Literal["stop", "length", "calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed:
    """The task ended in an error, which ends no turn. What it yielded before stands."""

    kind: Literal["task_failed"] = "task_failed"
    origin: Origin
    fault: Fault


AgentEvent = TaskStarted | TaskProgress | TaskOutput | TaskItem | TaskFinished | TaskFailed
