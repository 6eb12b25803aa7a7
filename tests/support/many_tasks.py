"""A conductor that has three tasks of each turn run at once, where today's has one after another: two answer, one works for them."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from agents.events import AgentEvent, TaskFailed, TaskFinished, TaskItem, TaskOutput
from agents.port import Agent, Task
from models.content import BlobRef, CallResult, ImagePart, Message, OutputRole, TextPart, text_of
from models.ids import new_id
from orchestrator.act.execute import Executor
from orchestrator.act.work import Work
from orchestrator.events import GenerationEvent, PlanMade, PlannedTask, done_with

ROLES: tuple[OutputRole, ...] = ("answer", "answer", "work")

KINDS = ("quick", "slow", "call", "break", "think")

PICTURE = ImagePart(blob=BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1), width_px=1, height_px=1)


def run_three_at_once(executor: Executor) -> None:
    """Have `executor` do so. What the tasks do is drawn from the word that the user says last."""
    executor.run = _Three(executor._agents["writer"]).run  # type: ignore[method-assign]


class _Three:
    def __init__(self, writer: Agent) -> None:
        self._writer = writer

    async def run(self, work: Work) -> AsyncGenerator[GenerationEvent, None]:
        assert work.task is not None
        tasks = [_task(work.task, number, role) for number, role in enumerate(ROLES, start=1)]
        at: dict[str, Any] = {"turn_id": work.turn_id, "generation": work.generation}
        planned = tuple(
            PlannedTask(task_id=task.origin.task_id, agent="writer", card=task.card, role=task.origin.role)
            for task in tasks
        )
        yield PlanMade(**at, tasks=planned)
        left = {task.origin.task_id for task in tasks if task.origin.role == "answer"}
        async for event in _merged([self._run(task) for task in tasks]):
            if not isinstance(event, TaskFinished | TaskFailed):
                yield event
                continue
            left.discard(event.origin.task_id)
            if not left:  # whatever works on for others is cancelled
                yield done_with(event)
                return
            yield event

    async def _run(self, task: Task) -> AsyncGenerator[AgentEvent, None]:
        """Write; what the working one calls is run here, and its result is an item; the first one paints as well."""
        called = []
        async for event in self._writer.run(task):
            if isinstance(event, TaskFinished):
                if task.origin.role == "work":
                    for call_id in called:
                        result = CallResult(
                            item_id=new_id("item"),
                            call_id=call_id,
                            parts=(TextPart(text="done", source="tool"),),
                            output="work",
                        )
                        yield TaskItem(origin=event.origin, item=result)
                yield TaskOutput(origin=event.origin, name="picture", parts=(PICTURE,))
            elif event.kind == "task_progress" and event.delta.kind == "call" and event.delta.call_id not in called:
                called.append(event.delta.call_id)
            yield event


def _task(task: Task, number: int, role: OutputRole) -> Task:
    asked = task.messages[-1]
    assert isinstance(asked, Message)
    kind, _, word = text_of(asked).rpartition(" ")
    kind = KINDS[(KINDS.index(kind) + (number - 1) * sum(map(ord, word))) % len(KINDS)] if number > 1 else kind
    said = replace(asked, parts=(TextPart(text=f"{kind} {word}"),))
    origin = replace(task.origin, task_id=f"{task.origin.turn_id}.{number}", role=role)
    return replace(task, origin=origin, messages=(*task.messages[:-1], said))


async def _merged(sources: list[AsyncGenerator[AgentEvent, None]]) -> AsyncGenerator[AgentEvent, None]:
    """Yield what each yields as it comes; closing it closes them."""
    coming = {asyncio.ensure_future(anext(source)): source for source in sources}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for one in sorted(done, key=lambda one: sources.index(coming[one])):
                source = coming.pop(one)
                try:
                    event = one.result()
                except StopAsyncIteration:
                    continue
                yield event
                coming[asyncio.ensure_future(anext(source))] = source
    finally:
        for one in coming:
            one.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        for source in sources:
            await source.aclose()
