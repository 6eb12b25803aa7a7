"""A decision as a LangGraph graph, for replays: what each step was given and made of it is in its checkpoints.

They are kept in memory, under (session, turn, generation), until they are forgotten. What a graph costs beside the steps
alone, and why live turns do without: `benchmarks/decide.py`, docs/adr/0007.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from orchestrator.decide.decision import STEPS, DecisionState, decision_of, lifted
from orchestrator.events import Decision

GenerationKey = tuple[str, str, int]
"""Session, turn, generation."""


class DecisionGraph:
    """The steps of a decision as a compiled graph."""

    def __init__(self) -> None:
        self._saver = InMemorySaver(serde=_JsonOnly())
        graph = StateGraph(DecisionState)
        for step in STEPS:
            # Coroutines: LangGraph would run plain functions in a thread each.
            graph.add_node(step.__name__, _as_coroutine(step))
        graph.add_edge(START, "gate")
        graph.add_conditional_edges("gate", lambda state: "refusal" in state, {True: END, False: "perceive"})
        graph.add_edge("perceive", "recall")
        graph.add_edge("recall", "control")
        graph.add_edge("control", END)
        self.builder = graph
        self._graph = graph.compile(checkpointer=self._saver)

    async def replay(self, key: GenerationKey, inputs: Mapping[str, Any]) -> Decision:
        """Return the decision that follows from `inputs`, which may come from a log, step by step under `key`.

        Raises:
            BatonError: the decision is to refuse the turn; see `Decider.decide`.
        """
        config = RunnableConfig(configurable={"thread_id": _thread(key)})
        return decision_of(await self._graph.ainvoke({"inputs": lifted(inputs)}, config, durability="exit"))

    async def checkpoint(self, key: GenerationKey) -> DecisionState | None:
        """Return where a decision stands, or None if its checkpoint was dropped."""
        snapshot = await self._graph.aget_state(RunnableConfig(configurable={"thread_id": _thread(key)}))
        return cast("DecisionState", snapshot.values) if snapshot.values else None

    async def forget(self, key: GenerationKey) -> None:
        """Drop a checkpoint; nothing is lost with it."""
        await self._saver.adelete_thread(_thread(key))


class _JsonOnly:
    """Serialises checkpoints as JSON, and refuses what is not made of JSON primitives."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "json", json.dumps(obj, allow_nan=False).encode()

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return json.loads(data[1])


def _thread(key: GenerationKey) -> str:
    return ":".join(map(str, key))


def _as_coroutine(node: Any) -> Any:
    async def run(state: DecisionState) -> DecisionState:
        update: DecisionState = node(state)
        return update

    return run
