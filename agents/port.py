"""The task that an agent is given, and the one method by which it is given it."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agents.events import AgentEvent, Origin
from models.content import Part, Said
from models.owner import Owner
from models.ports.generate import Constraint, Priority, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a task may spend.

    Attributes:
        deadline_s: absolute time in seconds of the injected clock.
        output_tokens: the most tokens that may be written.
    """

    deadline_s: float
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One node of a plan: who does it, on which card, from what, within which budget.

    The answer keeps within `sampling.max_output_tokens` and within the budget, whichever is less. A task that `reads_ahead`
    has none: its messages are only read, for one that is expected. `adapter`, `priority`, `logprobs`, `fork`, `continues` and
    `raw` are a `GenerateRequest`'s.

    Attributes:
        origin: who, for which turn, and whether what it writes answers or is work for others.
        inputs: what other tasks have put out that this one works from, by the names that it knows them by; each is text
            or media, tagged with its source.
        output: the name that what it writes has for the tasks that read it.
    """

    origin: Origin
    owner: Owner
    card: str
    messages: tuple[Said, ...]
    constraint: Constraint | None
    sampling: Sampling
    budget: Budget
    inputs: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    output: str = "answer"
    adapter: str | None = None
    priority: Priority = "interactive"
    reads_ahead: bool = False
    logprobs: int | None = None
    fork: str | None = None
    continues: bool = False
    raw: bool = False


class Agent(Protocol):
    """Turns one task into a stream of events."""

    def run(self, task: Task) -> AsyncGenerator[AgentEvent, None]:
        """Yield `TaskStarted`, progress, outputs and items, and last `TaskFinished` or `TaskFailed`: the end of the task, of no turn.

        A `BatonError` becomes a `TaskFailed`; anything else is a defect and is raised. Closing the iterator stops the
        work within one step of its engine.
        """
        ...
