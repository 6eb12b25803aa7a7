"""The steps of a decision as a LangGraph graph: for decisions in which a step waits, and for replays.

What each step was given and made of it is in its checkpoints, which are kept in memory under the decision's key until they are
forgotten. The log is the truth: a checkpoint that is gone costs only the steps, which are pure, being run again. A call that
has to be allowed waits at `approve`, by LangGraph's interrupt. What a graph costs beside the steps alone, and why a turn that waits
for nothing does without: `benchmarks/decide.py`, docs/adr/0007.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph
from langgraph.types import Command, Interrupt, interrupt

from models.errors import BatonError
from orchestrator.decide.decision import (
    EDGES,
    MAX_REPAIRS,
    STEPS,
    DecisionKey,
    DecisionState,
    Step,
    approve,
    decision_of,
)
from orchestrator.decide.inputs import Approval, CallFacts, Controlled, Inputs, lifted
from orchestrator.decide.ports import Asked, Ports
from orchestrator.events import Decision


class DecisionGraph:
    """The declaration of `decision` as a compiled graph."""

    def __init__(self, ports: Ports = Ports()) -> None:  # noqa: B008  # it is frozen
        """Ask `ports` what steps wait for; a replay asks nobody."""
        self._ports = ports
        self._saver = InMemorySaver(serde=_JsonOnly())
        graph = StateGraph(DecisionState)
        asks = {"recall": self._recall, "control": self._control, "repair": self._control}
        for name, step in STEPS.items():
            # Coroutines: LangGraph would run plain functions in a thread each.
            graph.add_node(name, _approve if name == "approve" else _node(step, asks.get(name)))
        for name, (choose, targets) in EDGES.items():
            graph.add_conditional_edges(name, choose, list(targets))
        self.builder = graph
        self._graph = graph.compile(checkpointer=self._saver)

    async def run(self, key: DecisionKey, state: DecisionState, asked: Asked | None = None) -> DecisionState:
        """Return the state that the steps end with, or in which a call waits to be allowed.

        Args:
            key: names the decision.
            state: what it begins with.
            asked: what the ports are asked about; None asks none.
        """
        config = RunnableConfig(configurable={"thread_id": _thread(key), "asked": asked})
        ended = await self._graph.ainvoke(state, config, durability="exit")
        return cast("DecisionState", ended)

    async def resume(self, key: DecisionKey, call: CallFacts, approval: Approval) -> DecisionState:
        """Return what becomes of a call now that somebody has said so. If it does not wait here any more, it is run anew."""
        config = RunnableConfig(configurable={"thread_id": _thread(key)})
        if (await self._graph.aget_state(config)).next:
            return cast("DecisionState", await self._graph.ainvoke(Command(resume=approval), config, durability="exit"))
        return await self.run(key, {"call": {**call, "approval": approval}})

    async def replay(self, key: DecisionKey, inputs: Mapping[str, Any]) -> Decision:
        """Return the decision that follows from `inputs`, which may come from a log, step by step under `key`.

        Raises:
            BatonError: the decision is to refuse the turn; see `Decider.decide`.
        """
        return decision_of(await self.run(key, {"inputs": lifted(inputs)}))

    async def checkpoint(self, key: DecisionKey) -> DecisionState | None:
        """Return where a decision stands, or None if its checkpoint was dropped."""
        snapshot = await self._graph.aget_state(RunnableConfig(configurable={"thread_id": _thread(key)}))
        return cast("DecisionState", snapshot.values) if snapshot.values else None

    async def forget(self, key: DecisionKey) -> None:
        """Drop a checkpoint; nothing is lost with it."""
        await self._saver.adelete_thread(_thread(key))

    async def _recall(self, asked: Asked, state: DecisionState) -> Inputs:
        inputs = state["inputs"]
        if self._ports.search is None:
            return inputs
        try:
            return {**inputs, "recalled": list(await self._ports.search.search(asked, inputs))}
        except BatonError:
            return {**inputs, "recalled": []}

    async def _control(self, asked: Asked, state: DecisionState) -> Inputs:
        inputs, wanted = state["inputs"], state["inputs"].get("controlled", [])
        if self._ports.controller is None or state["needs"]["model"] is not None or len(wanted) > MAX_REPAIRS:
            return inputs
        try:
            controlled = await self._ports.controller.control(asked, inputs, state.get("fault"))
        except BatonError as exc:
            controlled = Controlled(agent="writer", card=None, reason="", fault=exc.message)
        return {**inputs, "controlled": [*wanted, controlled]}


class _JsonOnly:
    """Serialises checkpoints as JSON, and refuses what is not made of JSON primitives, and of interrupts of them."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if isinstance(obj, list | tuple) and obj and all(isinstance(one, Interrupt) for one in obj):
            return "interrupts", json.dumps([[one.value, one.id] for one in obj], allow_nan=False).encode()
        return "json", json.dumps(obj, allow_nan=False).encode()

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        loaded = json.loads(data[1])
        return tuple(Interrupt(value=value, id=id_) for value, id_ in loaded) if data[0] == "interrupts" else loaded


def _thread(key: DecisionKey) -> str:
    return ":".join(map(str, key))


def _node(step: Step, ask: Any) -> Any:
    async def run(state: DecisionState, config: RunnableConfig) -> DecisionState:
        asked = config.get("configurable", {}).get("asked")
        if ask is None or asked is None:
            return step(state)
        inputs = await ask(asked, state)
        return {"inputs": inputs, **step({**state, "inputs": inputs})}

    return run


async def _approve(state: DecisionState) -> DecisionState:
    call = state["call"]
    if call["approval"] is None:
        call = {**call, "approval": interrupt(dict(call))}
    return {"call": call, **approve({"call": call})}
