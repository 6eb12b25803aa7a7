"""Calls of tools that the server runs: each is judged, somebody is asked if that is needed, and it is run.

A call that does something to the world runs only in a generation that is committed, and behind its row in the ledger of
effects, which was written when it was made. One that has to be allowed is asked for by an item of the log, and answered by one.
"""

from collections.abc import AsyncGenerator

from agents.events import AgentEvent, Origin, TaskFinished, TaskItem, TaskStarted
from agents.tools.python import PythonTool, ToolCall, Tools
from models.clock import Clock
from models.content import ApprovalRequest, ApprovalResponse, CallResult, Part, TextPart
from models.errors import BatonError
from models.ids import new_id
from orchestrator.act.work import Made, Work
from orchestrator.decide.decider import Decider
from orchestrator.decide.decision import CallVerdict
from orchestrator.decide.inputs import Approval, CallFacts

EXPIRED = "Nobody has allowed it in time."

_NOT_HERE = "It does something to the world, and this response is not kept, so nobody could tell what it did."
_IN_DOUBT = "The server was restarted while this ran: its outcome is unknown. It may have happened."


class Calls:
    """Settles them; one for all generations."""

    def __init__(self, tools: Tools, decider: Decider, clock: Clock, *, approval_s: float) -> None:
        """Run `tools`, and let somebody who is asked have `approval_s` to answer."""
        self._tools = tools
        self._decider = decider
        self._clock = clock
        self._approval_s = approval_s

    async def settle(self, work: Work) -> AsyncGenerator[AgentEvent, None]:
        """Yield what is done about the calls that have no result. Afterwards each has one, or `work.wants` says what is missing."""
        for made in work.made.values():
            if made.result is not None or (made.waits and not self._is_expired(made)):
                continue
            if work.is_kept and not work.is_committed and self._needs_commit(made):
                work.wants = "commit"
                return
            if made.run_id is None:
                made.run_id = work.next_task_id()
                yield TaskStarted(origin=_origin(work, made), card="", output=made.call.name)
            verdict, why = await self._judge(work, made)
            if verdict == "ask":
                made.request = self._request(made)
                yield TaskItem(origin=_origin(work, made), item=made.request)
                continue
            if made.request is not None and why == EXPIRED:
                refused = ApprovalResponse(
                    item_id=new_id("item"), request_id=made.request.item_id, approve=False, reason=EXPIRED
                )
                yield TaskItem(origin=_origin(work, made), item=refused)
            parts = await self._run(work, made) if verdict == "run" else _told(f"This call was not made. {why}")
            result = CallResult(item_id=new_id("item"), call_id=made.call.call_id, parts=parts)
            yield TaskItem(origin=_origin(work, made), item=result)
            yield TaskFinished(origin=_origin(work, made), reason="stop")
            work.take_result(result)
        if any(made.waits for made in work.made.values()):
            work.wants = "approval"

    async def forget(self, work: Work) -> None:
        """Drop what is kept of calls that wait, when their generation ends."""
        for made in work.made.values():
            if made.request is not None:
                await self._decider.forget(_key(work, made))

    def deadline_s(self, work: Work) -> float:
        """Return when the first request that waits expires."""
        wall_s = self._clock.wall_s()
        left_s = [
            made.request.expires_ms / 1000 - wall_s
            for made in work.made.values()
            if made.waits and made.request is not None and made.request.expires_ms is not None
        ]
        return self._clock.now_s() + max(min(left_s, default=0.0), 0.0)

    def _tool(self, made: Made) -> PythonTool | None:
        return None if made.spec is None else self._tools.get(made.call.name)

    def _needs_commit(self, made: Made) -> bool:
        tool = self._tool(made)
        return tool is not None and (tool.spec.effect != "pure" or tool.needs_approval)

    def _is_expired(self, made: Made) -> bool:
        if made.request is None or made.request.expires_ms is None:
            return False
        return self._clock.wall_s() * 1000 >= made.request.expires_ms

    async def _judge(self, work: Work, made: Made) -> tuple[CallVerdict, str | None]:
        tool = self._tool(made)
        facts = CallFacts(
            tool=made.call.name,
            effect=None if tool is None else tool.spec.effect,
            needs_approval=tool is not None and tool.needs_approval,
            fault=None if tool is None else tool.fault(made.call.arguments),
            approval=None,
        )
        if made.request is not None:
            approval = made.approval or Approval(approve=False, reason=EXPIRED)
            return await self._decider.answered(facts, approval, key=_key(work, made))
        if not work.is_kept and self._needs_commit(made):
            return "denied", _NOT_HERE
        return await self._decider.judge(facts, key=_key(work, made))

    def _request(self, made: Made) -> ApprovalRequest:
        return ApprovalRequest(
            item_id=new_id("item"),
            call_id=made.call.call_id,
            name=made.call.name,
            arguments=made.call.arguments,
            expires_ms=int((self._clock.wall_s() + self._approval_s) * 1000),
        )

    async def _run(self, work: Work, made: Made) -> tuple[Part, ...]:
        if made.is_in_doubt and made.spec is not None and made.spec.effect == "effectful":
            return _told(_IN_DOUBT)
        call = ToolCall(key=made.key, tenant=work.owner.tenant, subject=work.owner.name, turn_id=work.turn_id)
        try:
            return await self._tools.run(made.call.name, made.call.arguments, call, self._clock, work.deadline_s)
        except BatonError as exc:
            return _told(f"Error: {exc.message}")


def _told(text: str) -> tuple[Part, ...]:
    return (TextPart(text=text, source="tool"),)


def _origin(work: Work, made: Made) -> Origin:
    return Origin(agent="tools", task_id=made.run_id or "", turn_id=work.turn_id, generation=work.generation)


def _key(work: Work, made: Made) -> tuple[str | int, ...]:
    """Return what names the decision on a call: turn, generation, revision and call."""
    return work.turn_id, work.generation, 0, made.call.call_id
