"""Planning what is held of a form, in a process of its own: how much work that is, its caller chooses.

Schemas are walked, their choices compared, and of each expression and bound a grammar is tried. An owner's plans are
remembered by what they were made of, and cost that one nothing again: how soon an answer begins tells no end user what another has
asked.
"""

import base64
import pickle
from collections import OrderedDict
from typing import Protocol

from models.clock import Clock
from models.errors import BatonError, LimitExceeded
from models.language.forms.plan import Level, Plan
from models.language.forms.question_process import LineProcess, TooMuch
from models.owner import Owner
from models.ports.generate import Constraint, ToolConstraint

_REMEMBERED = 512


class Planning(Protocol):
    """Makes plans."""

    async def plan(self, constraint: Constraint, level: Level, owner: Owner) -> Plan:
        """Return what is to be held of `constraint`; see `models.language.forms.plan.plan`.

        Raises:
            BadInput: a schema is none, or is strict and cannot be held.
            LimitExceeded: planning takes too long, or too much memory.
            Unavailable: it cannot be planned now.
        """
        ...

    async def aclose(self) -> None:
        """End what it needs. Idempotent."""
        ...


class PlanningApart:
    """Makes plans in a process that may die; see `Planning`."""

    def __init__(self, clock: Clock, *, remote: bool = False) -> None:
        """Wait by `clock`; `remote` is as `models.language.forms.plan.plan` has it. The process is started with the first plan."""
        self._process = LineProcess("models.language.forms.planning_process", clock)
        self._remote = remote
        self._known: OrderedDict[tuple[Owner, Constraint, Level], Plan | BatonError] = OrderedDict()

    async def plan(self, constraint: Constraint, level: Level, owner: Owner) -> Plan:
        """Return what is to be held of `constraint`."""
        key = (owner, constraint, level)
        if key in self._known:
            self._known.move_to_end(key)
        else:
            self._known[key] = await self._made(constraint, level, owner.tenant)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        made = self._known[key]
        if isinstance(made, BatonError):
            raise type(made)(made.message, code=made.code, field=made.field)
        return made

    async def _made(self, constraint: Constraint, level: Level, tenant: str) -> Plan | BatonError:
        asked = base64.b64encode(pickle.dumps((constraint, level, self._remote))).decode()
        try:
            said: str = await self._process.ask(asked, tenant=tenant)
        except TooMuch:
            return LimitExceeded(
                "Finding out what can be held of this schema takes too long, or too much memory. Make it simpler.",
                field="tools" if isinstance(constraint, ToolConstraint) else "constraint.json_schema",
            )
        made: Plan | BatonError = pickle.loads(base64.b64decode(said))
        return made

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        await self._process.aclose()
