"""Plans made here, where a test can count what they take."""

from models.language.forms.plan import Level, Plan, plan
from models.language.forms.planning_process import holds
from models.owner import Owner
from models.ports.generate import Constraint


class PlanningHere:
    """See `models.language.forms.planning.Planning`."""

    def __init__(self, *, remote: bool = False) -> None:
        self._remote = remote

    async def plan(self, constraint: Constraint, level: Level, owner: Owner) -> Plan:
        return plan(constraint, (lambda _: True) if self._remote else holds, level, remote=self._remote)

    async def aclose(self) -> None:
        return
