"""Planning what is held of a form, in a process of its own: how much work that is, its caller chooses.

Schemas are walked, their choices compared, and of each expression and bound a grammar is tried. An owner's plans are
remembered by what they were made of, and cost that one nothing again: how soon an answer begins tells no end user what another has
asked.
"""

import base64
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from models.clock import Clock
from models.errors import BatonError, LimitExceeded
from models.language.forms.plan import Level, Plan
from models.language.forms.question_process import LineProcess, TooMuch
from models.language.tool_format import offered
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
        self._known: OrderedDict[tuple[Owner, Constraint, Level | None], Any] = OrderedDict()

    async def plan(self, constraint: Constraint, level: Level, owner: Owner) -> Plan:
        """Return what is to be held of `constraint`."""
        made: Plan = await self._answer(constraint, level, owner)
        return made

    async def faults(self, tools: ToolConstraint, owner: Owner) -> Mapping[int, BatonError]:
        """Return what is wrong with functions, each looked at alone, by their places: why none of them could ever be held.

        Raises:
            LimitExceeded: finding out takes too long, or too much memory.
            Unavailable: it cannot be found out now.
        """
        found: Mapping[int, BatonError] = await self._answer(tools, None, owner)
        return {at: _anew(fault) for at, fault in found.items()}

    async def _answer(self, constraint: Constraint, level: Level | None, owner: Owner) -> Any:
        key = (owner, constraint, level)
        if key in self._known:
            self._known.move_to_end(key)
        else:
            self._known[key] = await self._made(constraint, level, owner.tenant)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        made = self._known[key]
        if isinstance(made, BatonError):
            raise _anew(made)
        return made

    async def _made(self, constraint: Constraint, level: Level | None, tenant: str) -> Any:
        try:
            return await self._asked(constraint, level, tenant)
        except TooMuch:
            return LimitExceeded(
                "Finding out what can be held of this schema takes too long, or too much memory. Make it simpler.",
                field=await self._place_of_too_much(constraint, level, tenant),
            )

    async def _asked(self, constraint: Constraint, level: Level | None, tenant: str) -> Any:
        asked = base64.b64encode(pickle.dumps((constraint, level, self._remote))).decode()
        said: str = await self._process.ask(asked, tenant=tenant)
        return pickle.loads(base64.b64decode(said))

    async def _place_of_too_much(self, constraint: Constraint, level: Level | None, tenant: str) -> str:
        """Return the place of what is too much by itself: of the form beside functions, of one of these, or of all of them.

        Of functions it is found by halves.
        """
        if not isinstance(constraint, ToolConstraint):
            return "constraint.json_schema"
        if constraint.form is not None and await self._is_too_much(constraint.form, level, tenant):
            return "constraint.json_schema"
        tools = offered(constraint)
        while len(tools) > 1:
            middle = len(tools) // 2
            for half in (tools[:middle], tools[middle:]):
                if await self._is_too_much(ToolConstraint(tools=half), level, tenant):
                    tools = half
                    break
            else:
                return "tools"
        return constraint.place_of(tools[0].name) if tools else "tools"

    async def _is_too_much(self, constraint: Constraint, level: Level | None, tenant: str) -> bool:
        try:
            await self._asked(constraint, level, tenant)
        except TooMuch:
            return True
        return False

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        await self._process.aclose()


def _anew(error: BatonError) -> BatonError:
    """Return an error that is remembered, to be raised: what is raised is changed on its way."""
    return type(error)(error.message, code=error.code, field=error.field)
