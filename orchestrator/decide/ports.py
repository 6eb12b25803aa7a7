"""What a decision may wait for. Each answer is JSON, and becomes part of the decision's inputs.

A port that fails with a `BatonError` fails no turn: the decision is made without it, and says so. How long it may take is the
turn's own deadline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.content import Item
from models.owner import Owner
from orchestrator.decide.inputs import Controlled, Inputs, Recalled
from orchestrator.events import TurnInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is decided, as it was said; the facts of it are `inputs`."""

    owner: Owner
    turn_input: TurnInput
    history: Sequence[Item]


class Search(Protocol):
    """A search of memory."""

    async def search(self, asked: Asked, inputs: Inputs) -> Sequence[Recalled]:
        """Return what was found, the best first."""
        ...


class Controller(Protocol):
    """A model that says who does it."""

    async def control(self, asked: Asked, inputs: Inputs, fault: str | None) -> Controlled:
        """Return what it wants; `fault` is why what it wanted before cannot be done."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What there is to wait for; None is not asked."""

    search: Search | None = None
    controller: Controller | None = None

    def waits(self, turn_input: TurnInput) -> bool:
        """Return whether a decision on this input waits for something. Who names a model has decided already."""
        return self.search is not None or (self.controller is not None and turn_input.model is None)
