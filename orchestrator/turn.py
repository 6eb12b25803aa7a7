"""One generation at work: decide, then act, and hold what comes until it is committed.

A proposal may be a guess. It works ahead in memory only: its events wait in a bounded queue, a full queue holds its
engine up, and a generation that is dropped leaves nothing behind.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from agents.events import AgentEvent, Fault, Origin, TaskFailed, TaskFinished
from agents.port import Agent, Budget, Task
from models.clock import Clock
from models.content import Call, CallResult, Item, Message, TextPart
from models.errors import BatonError, Conflict, DeadlineExceeded, Internal
from models.ids import new_id
from orchestrator.events import Decision, TurnInput
from orchestrator.graph import DecisionGraph

_log = logging.getLogger(__name__)

_HELD_EVENTS = 256
"""Events that wait for a commit, or for the session to take them; then the engine waits."""


class Band:
    """What a generation needs to work: the graph that decides, the agents that act, the budget of each turn."""

    def __init__(
        self,
        graph: DecisionGraph,
        agents: Mapping[str, Agent],
        clock: Clock,
        *,
        turn_timeout_s: float,
        max_output_tokens: int,
    ) -> None:
        self.graph = graph
        self.agents = agents
        self.clock = clock
        self.turn_timeout_s = turn_timeout_s
        self.max_output_tokens = max_output_tokens


class Attempt:
    """One generation of a turn. `run` owns the work; the session owns the task that runs it."""

    def __init__(
        self,
        band: Band,
        *,
        tenant: str,
        session_id: str,
        turn_id: str,
        generation: int,
        turn_input: TurnInput,
        history: Sequence[Item],
    ) -> None:
        self.turn_id = turn_id
        self.generation = generation
        self._band = band
        self._tenant = tenant
        self._key = (session_id, turn_id, generation)
        self._input = turn_input
        self._history = tuple(history)
        self._deadline_s = band.clock.now_s() + band.turn_timeout_s
        self._decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._events: asyncio.Queue[AgentEvent | None] = asyncio.Queue(_HELD_EVENTS)

    async def decision(self) -> Decision:
        """Return the decision once it is made.

        Raises:
            BatonError: the turn was refused, or the generation was dropped meanwhile.
        """
        return await asyncio.shield(self._decided)

    async def events(self) -> AsyncGenerator[AgentEvent, None]:
        """Yield what the generation has done and does, to one consumer."""
        while (event := await self._events.get()) is not None:
            yield event

    async def run(self) -> None:
        """Decide and act. Ends with the last event, or when cancelled; what goes wrong is an event too."""
        try:
            async with self._band.clock.timeout_at(self._deadline_s):
                decision = await self._decide()
                if decision is not None:
                    await self._act(decision)
        except TimeoutError:
            await self._fail(DeadlineExceeded("The turn took longer than it may. Ask for less, or try again."))
        except Exception:  # noqa: BLE001  # a defect fails its turn, and the log says so
            _log.exception("turn %s failed", self.turn_id)
            await self._fail(Internal("The turn failed on our side. Try again; the server's log has the cause."))
        finally:
            await self._band.graph.forget(self._key)
        await self._events.put(None)

    def abandon(self) -> None:
        """Tell whoever waits for the decision that there will be none."""
        self._refuse(Conflict("The proposal was dropped meanwhile. Propose it again.", code="not_proposed"))

    async def _decide(self) -> Decision | None:
        try:
            decision = await self._band.graph.decide(self._key, self._input, self._history)
        except BatonError as exc:
            self._refuse(exc)
            return None
        if not self._decided.done():
            self._decided.set_result(decision)
        return decision

    def _refuse(self, error: BatonError) -> None:
        if not self._decided.done():
            self._decided.set_exception(error)
            self._decided.exception()  # retrieved here: a proposal that nobody commits is nobody's error

    async def _act(self, decision: Decision) -> None:
        agent = self._band.agents[decision.agent]
        event: AgentEvent | None = None
        async with aclosing(agent.run(self._task(decision))) as events:
            async for event in events:
                await self._events.put(event)
        if not isinstance(event, TaskFinished | TaskFailed):
            await self._fail(Internal(f"The {decision.agent} stopped without an end. Try again."))

    async def _fail(self, error: BatonError) -> None:
        self._refuse(error)
        await self._events.put(TaskFailed(origin=self._origin("conductor"), fault=Fault.of(error)))

    def _task(self, decision: Decision) -> Task:
        asked = self._input.max_output_tokens
        limit = self._band.max_output_tokens
        return Task(
            origin=self._origin(decision.agent),
            tenant=self._tenant,
            card=decision.card,
            messages=messages(self._input, self._history),
            tools=self._input.tools,
            budget=Budget(deadline_s=self._deadline_s, output_tokens=limit if asked is None else min(asked, limit)),
        )

    def _origin(self, agent: str) -> Origin:
        return Origin(agent=agent, task_id=f"{self.turn_id}.1", turn_id=self.turn_id, generation=self.generation)


def messages(turn_input: TurnInput, history: Sequence[Item]) -> tuple[Item, ...]:
    """Return what a model is shown: instructions, history, input.

    A call that was cut short is left out, and so is a result whose call has left the history; a call whose outcome is
    not known is said to be so, since it may have happened.
    """
    shown: list[Item] = []
    if turn_input.instructions:
        shown.append(Message(item_id=new_id("item"), role="system", parts=(TextPart(text=turn_input.instructions),)))
    items = (*history, *turn_input.items)
    answered = {item.call_id for item in items if isinstance(item, CallResult)}
    called: set[str] = set()
    for item in items:
        if isinstance(item, Call):
            if item.status == "incomplete":
                continue
            called.add(item.call_id)
        if isinstance(item, CallResult) and item.call_id not in called:
            continue
        shown.append(item)
        if isinstance(item, Call) and item.call_id not in answered:
            unknown = TextPart(text="The outcome of this call is unknown.", source="tool")
            shown.append(CallResult(item_id=new_id("item"), call_id=item.call_id, parts=(unknown,)))
    return tuple(shown)
