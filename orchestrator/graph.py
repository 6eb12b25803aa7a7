"""The decision graph: gate, perceive, recall, control. It decides; it does not carry.

Each node is a pure function of JSON primitives, so that a decision can be replayed from the inputs that are logged with
it. `ainvoke` returns the decision; no token passes through here.

Checkpoints are kept in memory, one per decision, under (session, turn, generation), until the generation ends: the log
is the truth, and recovery never reads them. What they cost: `benchmarks/decide.py`, docs/adr/0004.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from models.catalog import Card
from models.content import Call, Item, text_of
from models.errors import BadInput, LimitExceeded, NotFound
from orchestrator.events import Decision, RefusedCard, TurnInput, canonical
from orchestrator.router import CardFacts, Needs, Route, card_facts, choose, explain

GenerationKey = tuple[str, str, int]
"""Session, turn, generation."""


class Inputs(TypedDict):
    """What a decision is made from."""

    characters: int
    max_characters: int
    input_kinds: list[str]
    history_kinds: list[str]
    history_items: int
    tools: int
    model: str | None
    cards: list[CardFacts]


class Refusal(TypedDict):
    """Why a turn cannot be taken."""

    code: Literal["limit_exceeded", "unknown_model", "no_model"]
    message: str
    field: str


class DecisionState(TypedDict, total=False):
    """What the nodes hand on; JSON primitives throughout."""

    inputs: Inputs
    refusal: Refusal
    needs: Needs
    recalled: list[str]
    route: Route
    agent: str


def decision_inputs(
    turn_input: TurnInput, history: Sequence[Item], cards: Sequence[Card], max_characters: int
) -> Inputs:
    """Return what there is to decide from."""
    return Inputs(
        characters=sum(len(text_of(item)) for item in turn_input.items) + len(turn_input.instructions or ""),
        max_characters=max_characters,
        input_kinds=_kinds(turn_input.items),
        history_kinds=_kinds(history),
        history_items=len(history),
        tools=len(turn_input.tools.tools) if turn_input.tools else 0,
        model=turn_input.model,
        cards=[card_facts(card) for card in cards],
    )


def gate(state: DecisionState) -> DecisionState:
    """Refuse what passes a limit."""
    inputs = state["inputs"]
    if inputs["characters"] > inputs["max_characters"]:
        return {
            "refusal": Refusal(
                code="limit_exceeded",
                message=f"The input has {inputs['characters']} characters, over the limit of "
                f"{inputs['max_characters']}. Send a shorter one.",
                field="input",
            )
        }
    return {}


def perceive(state: DecisionState) -> DecisionState:
    """Say what the task asks of a model: every modality in sight, tools, a name."""
    inputs = state["inputs"]
    reads = sorted({*inputs["input_kinds"], *inputs["history_kinds"]})
    return {"needs": Needs(model=inputs["model"], reads=reads, tools=inputs["tools"] > 0)}


def recall(state: DecisionState) -> DecisionState:
    """Name what is recalled; so far the conversation itself, which the session holds."""
    return {"recalled": ["conversation"] if state["inputs"]["history_items"] else []}


def control(state: DecisionState) -> DecisionState:
    """Choose agent and card."""
    inputs, needs = state["inputs"], state["needs"]
    names = sorted(card["name"] for card in inputs["cards"])
    if needs["model"] is not None and needs["model"] not in names:
        return {
            "refusal": Refusal(
                code="unknown_model",
                message=f"There is no model {needs['model']!r}. Known models: {', '.join(names)}.",
                field="model",
            )
        }
    route = choose(inputs["cards"], needs)
    if route["card"] is None:
        message = f"No model here can take this turn ({explain(route['refused'])})."
        return {"refusal": Refusal(code="no_model", message=message, field="input")}
    return {"agent": "writer", "route": route}


class DecisionGraph:
    """The compiled graph; one for all sessions."""

    def __init__(self, cards: Sequence[Card], *, max_characters: int) -> None:
        self._cards = tuple(cards)
        self._max_characters = max_characters
        self._saver = InMemorySaver(serde=_JsonOnly())
        graph = StateGraph(DecisionState)
        for node in (gate, perceive, recall, control):
            # Coroutines: LangGraph would run plain functions in a thread each.
            graph.add_node(node.__name__, _as_coroutine(node))
        graph.add_edge(START, "gate")
        graph.add_conditional_edges("gate", lambda state: "refusal" in state, {True: END, False: "perceive"})
        graph.add_edge("perceive", "recall")
        graph.add_edge("recall", "control")
        graph.add_edge("control", END)
        self.builder = graph
        self._graph = graph.compile(checkpointer=self._saver)

    async def decide(self, key: GenerationKey, turn_input: TurnInput, history: Sequence[Item]) -> Decision:
        """Return the decision for one generation; see `decide_from` for what it raises."""
        return await self.decide_from(key, decision_inputs(turn_input, history, self._cards, self._max_characters))

    async def decide_from(self, key: GenerationKey, inputs: Inputs) -> Decision:
        """Return the decision that follows from `inputs`, which may come from a log.

        Raises:
            LimitExceeded: the input is too long.
            NotFound: the model that was asked for does not exist.
            BadInput: no model can take the turn.
        """
        config = RunnableConfig(configurable={"thread_id": _thread(key)})
        state = await self._graph.ainvoke({"inputs": inputs}, config, durability="exit")
        if (refusal := state.get("refusal")) is not None:
            raise _error(refusal)
        route: Route = state["route"]
        return Decision(
            agent=state["agent"],
            card=str(route["card"]),
            reasons=tuple(route["reasons"]),
            refused=tuple(RefusedCard(card=card, reason=reason) for card, reason in sorted(route["refused"].items())),
            inputs=canonical(dict(inputs)),
        )

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


def _error(refusal: Refusal) -> BadInput | NotFound:
    match refusal["code"]:
        case "limit_exceeded":
            return LimitExceeded(refusal["message"], field=refusal["field"])
        case "unknown_model":
            return NotFound(refusal["message"], code="model_not_found", field=refusal["field"])
        case "no_model":
            return BadInput(refusal["message"], code="no_capable_model", field=refusal["field"])


def _kinds(items: Sequence[Item]) -> list[str]:
    return sorted({part.kind for item in items if not isinstance(item, Call) for part in item.parts})
