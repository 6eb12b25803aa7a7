"""The writer: answers in words, with one engine."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from agents.events import AgentEvent, Fault, TaskFailed, TaskFinished, TaskProgress, TaskStarted
from agents.port import Task
from models.content import CallDelta, FinishDelta, Message, Part, Said, TextPart
from models.errors import BatonError, Internal, NotFound
from models.ids import new_id
from models.ports.generate import Engine, GenerateRequest


class Writer:
    """Writes the reply to a conversation, or the calls that it needs first."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        """Take the engines by card name; the caller owns them."""
        self._engines = engines

    async def run(self, task: Task) -> AsyncGenerator[AgentEvent, None]:
        """Yield the reply as it is written; see `Agent.run`."""
        # An engine's call ids are unique within its answer; the ledger's have to be unique within the session.
        call_ids: defaultdict[str, str] = defaultdict(lambda: new_id("call"))
        yield TaskStarted(origin=task.origin, card=task.card, output=task.output)
        try:
            engine = self._engines.get(task.card)
            if engine is None:
                raise NotFound(f"The card {task.card!r} has no engine here.")
            async with aclosing(engine.generate(_request(task))) as deltas:
                async for delta in deltas:
                    if isinstance(delta, FinishDelta):
                        yield TaskFinished(origin=task.origin, reason=delta.reason)
                        return
                    if isinstance(delta, CallDelta):
                        delta = replace(delta, call_id=call_ids[delta.call_id])
                    yield TaskProgress(origin=task.origin, delta=delta)
            raise Internal("The model's answer broke off. Try again.")
        except BatonError as exc:
            yield TaskFailed(origin=task.origin, fault=Fault.of(exc))


def _request(task: Task) -> GenerateRequest:
    most = min(task.sampling.max_output_tokens, task.budget.output_tokens)
    return GenerateRequest(
        messages=_given(task),
        sampling=replace(task.sampling, max_output_tokens=most),
        constraint=task.constraint,
        adapter=task.adapter,
        priority=task.priority,
        reads_ahead=task.reads_ahead,
        deadline=task.budget.deadline_s,
        tenant=task.owner.tenant,
        subject=task.owner.subject,
        logprobs=task.logprobs,
        fork=task.fork,
        continues=task.continues,
        raw=task.raw,
    )


def _given(task: Task) -> tuple[Said, ...]:
    """Return what the model is shown: the messages, and at the end of what is asked the inputs, each under its name."""
    if not task.inputs:
        return task.messages
    parts: list[Part] = []
    for name, content in task.inputs.items():
        parts += [TextPart(text=f"\n\n{name}:\n", source="generated"), *content]
    asked = next((item for item in reversed(task.messages) if isinstance(item, Message) and item.role == "user"), None)
    if asked is None:
        return (*task.messages, Message(item_id=new_id("item"), role="user", parts=tuple(parts)))
    whole = replace(asked, parts=(*asked.parts, *parts))
    return tuple(whole if item is asked else item for item in task.messages)
