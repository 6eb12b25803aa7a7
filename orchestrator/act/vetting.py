"""Whether any turn could honour what is set for turns to come: told when it is set, rather than with each of them.

Instructions and functions that no window holds, functions that no model here calls, and schemas that are none: what of that is
certain without knowing what is going to be said. Outages pass, so nothing is refused for one. Callers' schemas are looked at in
a process that may die (docs/adr/0010).
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from models.catalog import Card
from models.clock import Clock
from models.errors import BadInput, BatonError, LimitExceeded, NotFound, Unavailable
from models.language.forms.planning import PlanningApart
from models.owner import Owner
from models.placement.engines import makes_grammars
from models.placement.fleet import CardView
from orchestrator.act.context import Contexts
from orchestrator.decide.decider import Decider
from orchestrator.decide.decision import decision_of, in_line
from orchestrator.events import TurnInput

_log = logging.getLogger(__name__)

_COMING_UP = frozenset({"waiting", "fetching", "converting", "loading"})


class Vetting:
    """Says so; one for all sessions."""

    def __init__(self, offer: CardView, decider: Decider, contexts: Contexts, clock: Clock) -> None:
        """Ask `decider` which card of `offer` would answer; its processes are started with the first schema."""
        self._offer = offer
        self._decider = decider
        self._contexts = contexts
        self._here = PlanningApart(clock)
        self._elsewhere = PlanningApart(clock, remote=True)

    async def room(self, turn_input: TurnInput) -> None:
        """Check that there is room for an answer beside what every turn like this one is shown, whatever else is said.

        Raises:
            LimitExceeded: there is none in the window of any model that could take it.
            BadInput: no model here can take it.
        """
        refused = await self._refusal(turn_input)
        if isinstance(refused, LimitExceeded):
            told = f"Instructions and functions leave no room for anything else. {refused.message}"
            is_tools = turn_input.tools is not None and await self._refusal(replace(turn_input, tools=None)) is None
            raise LimitExceeded(told, code=refused.code, field="tools" if is_tools else "instructions")
        if refused is not None:
            raise refused

    async def faults(self, turn_input: TurnInput, owner: Owner) -> Mapping[int, BatonError]:
        """Return what is wrong with the functions on offer, by their places among them: why no answer could ever call them.

        Raises:
            LimitExceeded: finding out takes too long, or too much memory.
        """
        if turn_input.tools is None or not turn_input.tools.tools:
            return {}
        try:
            card = await self._card(replace(turn_input, instructions=None))
        except BatonError:
            return {}  # `room` says what is wrong, if it is wrong for good
        planning = self._here if card in self._grammarians else self._elsewhere
        try:
            return await planning.faults(replace(turn_input.tools, form=None), owner)
        except Unavailable:
            _log.warning("functions could not be looked at; who calls them is told what is wrong", exc_info=True)
            return {}

    async def aclose(self) -> None:
        """End the processes. Idempotent."""
        await self._here.aclose()
        await self._elsewhere.aclose()

    @property
    def _grammarians(self) -> frozenset[str]:
        return frozenset(card.name for card in self._offer.cards if makes_grammars(card.engine.name))

    async def _refusal(self, turn_input: TurnInput) -> BadInput | None:
        try:
            await self._card(turn_input)
        except LimitExceeded as exc:
            return None if any(self._is_coming_up(card) for card in self._offer.cards) else exc
        except BadInput as exc:
            return exc
        except (NotFound, Unavailable):
            return None
        return None

    def _is_coming_up(self, card: Card) -> bool:
        """Return whether a card's tokens are an estimate yet: its vocabulary comes with its weights."""
        return bool(card.sources) and self._offer.standing(card.name).state in _COMING_UP

    async def _card(self, turn_input: TurnInput) -> str:
        if not self._decider.is_too_long(turn_input):
            await self._contexts.count_ahead(turn_input, ())
        return decision_of(in_line({"inputs": self._decider.inputs(turn_input, ())})).card
