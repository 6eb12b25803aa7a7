"""Decides live turns and calls: in a line where nothing is waited for, else by the graph."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from models.content import Item
from models.owner import Owner
from models.placement.fleet import CardView
from orchestrator.decide.decision import CallVerdict, DecisionKey, DecisionState, decision_of, in_line
from orchestrator.decide.inputs import Approval, CallFacts, Inputs, characters_of, decision_inputs
from orchestrator.decide.ports import Asked, Ports
from orchestrator.events import Decision, TurnInput

if TYPE_CHECKING:
    from orchestrator.decide.graph import DecisionGraph


_LOCAL = Owner("local")


class Decider:
    """One for all sessions."""

    def __init__(
        self,
        offer: CardView,
        *,
        max_characters: int,
        agents: Iterable[str] = ("writer",),
        ports: Ports = Ports(),  # noqa: B008  # it is frozen
    ) -> None:
        """Choose from `offer` and `agents`, for inputs of at most `max_characters`."""
        self._offer = offer
        self._max_characters = max_characters
        self._agents = tuple(agents)
        self._ports = ports
        self._graph: DecisionGraph | None = None

    def inputs(self, turn_input: TurnInput, history: Sequence[Item]) -> Inputs:
        """Return what there is to decide from, now."""
        return decision_inputs(turn_input, history, self._offer, self._max_characters, self._agents)

    def is_too_long(self, turn_input: TurnInput) -> bool:
        """Return whether `decide` refuses an input for its length alone."""
        return characters_of(turn_input) > self._max_characters

    async def decide(
        self, turn_input: TurnInput, history: Sequence[Item], *, owner: Owner = _LOCAL, key: DecisionKey = ()
    ) -> Decision:
        """Return the decision for a turn. Once it is made, or given up, nothing of it is left here.

        Raises:
            LimitExceeded: the input is too long, or more than the window of any model that could take it.
            NotFound: the model that was asked for does not exist.
            BadInput: no model can take the turn.
            Unavailable: none that can is up.
        """
        state: DecisionState = {"inputs": self.inputs(turn_input, history)}
        if not self._ports.waits(turn_input):
            return decision_of(in_line(state))
        graph = await self.graph()
        try:
            return decision_of(await graph.run(key, state, Asked(owner=owner, turn_input=turn_input, history=history)))
        finally:
            await graph.forget(key)

    async def judge(self, call: CallFacts, *, key: DecisionKey) -> tuple[CallVerdict, str | None]:
        """Return what becomes of a call, and why. If that is `ask`, go on with `answered`; it is kept until then."""
        if not call["needs_approval"] or call["approval"] is not None:
            state = in_line({"call": call})
        else:
            state = await (await self.graph()).run(key, {"call": call})
        return state["verdict"], state.get("why")

    async def answered(
        self, call: CallFacts, approval: Approval, *, key: DecisionKey
    ) -> tuple[CallVerdict, str | None]:
        """Return what becomes of a call that has waited, also if that was before a restart."""
        graph = await self.graph()
        state = await graph.resume(key, call, approval)
        await graph.forget(key)
        return state["verdict"], state.get("why")

    async def forget(self, key: DecisionKey) -> None:
        """Drop what is kept of a call that waits for nobody any more."""
        if self._graph is not None:
            await self._graph.forget(key)

    async def graph(self) -> "DecisionGraph":
        """Return the graph, made with the first decision that waits."""
        if self._graph is None:
            made = await graph_class()
            if self._graph is None:
                self._graph = made(self._ports)
        return self._graph


async def graph_class() -> "type[DecisionGraph]":
    """Return the graph's class, for whoever needs it. LangGraph is loaded only then: it takes most of a second."""
    return await asyncio.to_thread(_load)


def _load() -> "type[DecisionGraph]":
    from orchestrator.decide.graph import DecisionGraph

    return DecisionGraph
