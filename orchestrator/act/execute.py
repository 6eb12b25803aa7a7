"""What a generation does: it has its turn decided, and runs the task that the decision names, and the tools that this calls."""

from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from agents.events import Fault, Origin, TaskFailed, TaskFinished, TaskProgress
from agents.port import Agent, Budget, Task
from agents.tools.python import Tools
from models.clock import Clock
from models.content import Item, UsageDelta
from models.errors import Internal
from models.owner import Owner
from models.placement.fleet import CardView
from models.shares import share_of
from orchestrator.act.admission import Admission
from orchestrator.act.calls import Calls
from orchestrator.act.context import Contexts, constraint, messages
from orchestrator.act.work import Work, Written
from orchestrator.decide.decider import Decider
from orchestrator.events import GenerationEvent, TurnInput, done_with

MAX_ROUNDS = 8
"""How often a model may write and have tools of the server run; then it has to answer in words."""

_AHEAD = 16
"""Prompts that are read ahead at a time."""

_AHEAD_S = 60.0
"""How long one may wait until nobody has work, and be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """Bounds of turns.

    Attributes:
        turn_timeout_s: how long a turn may take.
        max_output_tokens: of an answer; a turn may ask for fewer.
        turns: that run at a time; the next is refused and may be retried.
        tenant_turns: likewise, of one tenant.
        guesses: at what may be said next, that are worked on at a time; a tenant has its share of them.
        approval_s: how long somebody has to allow a call.
    """

    turn_timeout_s: float = 120.0
    max_output_tokens: int = 1024
    turns: int = 512
    tenant_turns: int = 256
    guesses: int = 128
    approval_s: float = 3600.0


class Executor:
    """One for all tenants and sessions."""

    def __init__(
        self,
        decider: Decider,
        offer: CardView,
        agents: Mapping[str, Agent],
        clock: Clock,
        limits: TurnLimits,
        tools: Tools | None = None,
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.admission = Admission(clock, turns=limits.turns, tenant_turns=limits.tenant_turns, guesses=limits.guesses)
        self._decider = decider
        self.calls = Calls(tools or Tools(), decider, clock, approval_s=limits.approval_s)
        self._contexts = Contexts(offer, max_output_tokens=limits.max_output_tokens)
        self._agents = agents
        self._ahead: Counter[str] = Counter()
        self._cannot_read_ahead: set[str] = set()

    async def decide(
        self,
        *,
        owner: Owner,
        turn_id: str,
        generation: int,
        turn_input: TurnInput,
        history: Sequence[Item],
        deadline_s: float | None = None,
        is_kept: bool = False,
    ) -> Work:
        """Decide who answers a turn, from what, and within which budget.

        Args:
            owner: whose turn it is.
            turn_id: the turn.
            generation: which of its generations.
            turn_input: what is answered.
            history: the conversation before it.
            deadline_s: until when the turn may take; None is `turn_timeout_s` from now.
            is_kept: whether there is a log, without which nothing is done to the world.

        Raises:
            BatonError: the turn is refused; see `Decider.decide`.
        """
        if deadline_s is None:
            deadline_s = self.clock.now_s() + self.limits.turn_timeout_s
        if not self._decider.is_too_long(turn_input):
            await self._contexts.count_ahead(turn_input, history)
        decision = await self._decider.decide(turn_input, history, owner=owner, key=(turn_id, generation))
        work = Work(
            owner=owner,
            turn_id=turn_id,
            generation=generation,
            decision=decision,
            turn_input=turn_input,
            before=(*history, *turn_input.items),
            deadline_s=deadline_s,
            is_kept=is_kept,
        )
        work.task, note = await self._next_task(work)
        if note is not None:
            work.decision = replace(decision, notes=(note,))
        return work

    async def run(self, work: Work) -> AsyncGenerator[GenerationEvent, None]:
        """Yield what agents and tools do, and last `TurnDone`; or nothing more, if `work.wants` something first: then go on.

        A model writes; what it calls of the server's tools is run, and it writes again, with the results; until it calls
        nothing, or something that the client runs.
        """
        work.wants = None
        while True:
            if work.made:
                async with aclosing(self._settled(work)) as settled:
                    async for settling in settled:
                        yield settling
                if work.is_over or work.wants is not None:
                    return
            task = await self._take_task(work)
            written = Written(task) if work.runs_tools else None
            end: TaskFinished | TaskFailed | None = None
            async with aclosing(self._agents[work.decision.agent].run(task)) as events:
                async for event in events:
                    if isinstance(event, TaskFinished | TaskFailed):
                        end = event
                        break
                    if written is not None and isinstance(event, TaskProgress):
                        written.take(event.delta)
                    yield event
            end = end or TaskFailed(origin=task.origin, fault=_broken_off(work))
            if written is None or not _is_made(end) or not work.take(written):
                yield done_with(end)
                return
            yield end

    async def _settled(self, work: Work) -> AsyncGenerator[GenerationEvent, None]:
        async with aclosing(self.calls.settle(work)) as events:
            async for event in events:
                yield event
        if work.wants is None and work.last_origin is not None and work.calls_of_client:
            work.is_over = True
            yield done_with(TaskFinished(origin=work.last_origin, reason="calls"))

    async def _take_task(self, work: Work) -> Task:
        if work.task is None:
            work.task, _ = await self._next_task(work)
        task, work.task = work.task, None
        work.rounds += 1
        return task

    async def _next_task(self, work: Work) -> tuple[Task, str | None]:
        """Return the task of having the model write, and what people should know of what it is shown."""
        turn_input, decision = work.turn_input, work.decision
        if work.rounds:
            turn_input = _again(turn_input, is_last=work.rounds >= MAX_ROUNDS)
        fitting = await self._contexts.fit(decision.card, turn_input, (*work.before, *work.said))
        origin = Origin(
            agent=decision.agent, task_id=work.next_task_id(), turn_id=work.turn_id, generation=work.generation
        )
        task = Task(
            origin=origin,
            owner=work.owner,
            card=decision.card,
            messages=messages(turn_input, fitting.items),
            constraint=constraint(turn_input),
            sampling=self._contexts.sampling(decision.card, turn_input, fitting.output_tokens),
            budget=Budget(deadline_s=work.deadline_s, output_tokens=fitting.output_tokens),
            adapter=self._contexts.adapter(decision.card, turn_input),
            logprobs=turn_input.logprobs,
            continues=turn_input.continues,
            raw=turn_input.raw,
        )
        return task, fitting.note

    async def read_ahead(
        self, last: Task, turn_input: TurnInput, history: Sequence[Item], *, coming: int | None = None
    ) -> AsyncGenerator[UsageDelta, None]:
        """Have read what the prompts of coming turns will begin with, if that is going to be another item: see `foreseen`.

        The engine does it while nobody has work. Where it cannot, or so many are at it already, nothing is done.

        Args:
            last: the task of the turn that has ended.
            turn_input: what was asked then; the next turn is taken to have the same instructions and functions.
            history: the conversation, as far as it is going to be shown.
            coming: how many items are added before it is shown so; None if it is shown so now.

        Yields:
            What was read, as it is read.
        """
        if (
            last.card in self._cannot_read_ahead
            or self.admission.draining
            or self._ahead.total() >= _AHEAD
            or self._ahead[last.owner.tenant] >= share_of(_AHEAD)
        ):
            return
        turn_input = replace(turn_input, items=())
        beginning = await self._contexts.foreseen(last.card, turn_input, history, coming)
        if not beginning or any(item.item_id == beginning[0].item_id for item in last.messages[:2]):
            return  # nothing is going to be cut, or it has been
        task = replace(
            last,
            origin=replace(last.origin, task_id=f"{last.origin.turn_id}.ahead"),
            messages=messages(turn_input, beginning),
            budget=replace(last.budget, deadline_s=self.clock.now_s() + _AHEAD_S),
            priority="batch",
            reads_ahead=True,
        )
        self._ahead[last.owner.tenant] += 1
        try:
            async with aclosing(self._agents[task.origin.agent].run(task)) as events:
                async for event in events:
                    match event:
                        case TaskProgress(delta=UsageDelta() as used):
                            yield used
                        case TaskFailed(fault=fault) if fault.code == "unsupported":
                            self._cannot_read_ahead.add(task.card)
                        case _:
                            pass
        finally:
            self._ahead[last.owner.tenant] -= 1


def _is_made(end: TaskFinished | TaskFailed) -> bool:
    """Return whether a task has ended with calls, which are whole."""
    return isinstance(end, TaskFinished) and end.reason == "calls"


def _broken_off(work: Work) -> Fault:
    return Fault.of(Internal(f"The {work.decision.agent} stopped without an end. Try again."))


def _again(turn_input: TurnInput, *, is_last: bool) -> TurnInput:
    """Return what is asked of a model once its calls have their results: what had to be called was called."""
    tools = turn_input.tools
    if tools is not None:
        tools = replace(tools, choice="none" if is_last or tools.choice == "none" else "auto", function=None)
    return replace(turn_input, tools=tools, continues=False)
