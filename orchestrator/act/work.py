"""What a generation has to do, and how far it has come: enough to go on from, also after a restart (`resume`)."""

from dataclasses import dataclass, field, replace
from typing import Literal

from agents.events import Origin
from agents.port import Task
from models.content import (
    ApprovalRequest,
    ApprovalResponse,
    Call,
    CallDelta,
    CallResult,
    Delta,
    Item,
    Message,
    TextDelta,
    TextPart,
)
from models.ids import new_id
from models.owner import Owner
from models.ports.generate import ToolSpec
from orchestrator.decide.inputs import Approval
from orchestrator.events import Decision, TurnInput, effect_key

Wants = Literal["commit", "approval"]
"""What a generation cannot go on without: that it is committed, or that somebody allows a call."""


@dataclass(slots=True, kw_only=True)
class Made:
    """A call that was made in this turn, of a tool that the server runs, and what has come of it.

    Attributes:
        call: the call, whole.
        key: of its effect, as the ledger has it.
        spec: the tool; None if there is none of that name.
        run_id: the task that runs it; None before it is looked at.
        request: the item that asks for it to be allowed.
        approval: what was said to that.
        is_in_doubt: whether it may have run before a restart.
        result: what it returned.
    """

    call: Call
    key: str
    spec: ToolSpec | None
    run_id: str | None = None
    request: ApprovalRequest | None = None
    approval: Approval | None = None
    is_in_doubt: bool = False
    result: CallResult | None = None

    @property
    def waits(self) -> bool:
        """Whether somebody is asked and has not answered."""
        return self.request is not None and self.approval is None and self.result is None


@dataclass(slots=True, kw_only=True)
class Work:
    """A decision, and what was done about it so far.

    Attributes:
        owner: whose turn it is.
        turn_id: the turn.
        generation: which of its generations.
        decision: who does it, on which card.
        turn_input: what is answered.
        before: the conversation as it was decided on, with what is said now.
        deadline_s: until when it may take; while somebody is asked, that stands still.
        task: the next task, if it is made already.
        said: the items of the reply so far, as a model is shown them.
        made: calls of tools that the server runs, by their ids.
        tasks: how many were begun.
        rounds: how often a model has written.
        is_committed: whether what does something to the world may be done.
        is_kept: whether there is a log, without which nothing is done to the world.
        calls_of_client: whether something was called that the client runs: the turn ends with it.
        last_origin: of the task that wrote last.
        wants: what it cannot go on without; None while it goes on, and once it is done.
        is_over: whether it has ended with calls of the client's.
    """

    owner: Owner
    turn_id: str
    generation: int
    decision: Decision
    turn_input: TurnInput
    before: tuple[Item, ...]
    deadline_s: float
    task: Task | None = None
    said: list[Item] = field(default_factory=list)
    made: dict[str, Made] = field(default_factory=dict)
    tasks: int = 0
    rounds: int = 0
    is_committed: bool = False
    is_kept: bool = False
    calls_of_client: bool = False
    last_origin: Origin | None = None
    wants: Wants | None = None
    is_over: bool = False

    @property
    def runs_tools(self) -> bool:
        """Whether any tool on offer is run here."""
        tools = self.turn_input.tools
        return tools is not None and any(tool.runner == "server" for tool in tools.tools)

    def next_task_id(self) -> str:
        """Return the id of one more task."""
        self.tasks += 1
        return f"{self.turn_id}.{self.tasks}"

    def take(self, written: "Written") -> bool:
        """Take in what a task has written. Return whether any of its calls is run here, so that it is to go on."""
        self.last_origin = written.origin
        self.said += written.items
        calls = [item for item in written.items if isinstance(item, Call)]
        for ordinal, call in enumerate(calls):
            self.take_call(call, effect_key(self.turn_id, written.origin.task_id, ordinal))
        return any(call.call_id in self.made for call in calls)

    def take_call(self, call: Call, key: str) -> None:
        """Take in that a task has made a call, which is in `said`; the ledger has its effect under `key`."""
        tools = self.turn_input.tools.tools if self.turn_input.tools else ()
        spec = next((tool for tool in tools if tool.name == call.name), None)
        if spec is not None and spec.runner == "client":
            self.calls_of_client = True
        else:
            self.made[call.call_id] = Made(call=call, key=key, spec=spec)

    def take_result(self, result: CallResult) -> None:
        """Take in what a call has returned."""
        self.said.append(result)
        if (made := self.made.get(result.call_id)) is not None:
            made.result = result

    def approve(self, response: ApprovalResponse) -> bool:
        """Take in what somebody said to a request. Return False if nothing of it is asked, or it was answered."""
        for made in self.made.values():
            if made.request is not None and made.request.item_id == response.request_id and made.waits:
                made.approval = Approval(approve=response.approve, reason=response.reason)
                return True
        return False

    def forked(self, fork: str | None) -> "Work":
        """Return it as one of several answers to one prompt."""
        return self if fork is None or self.task is None else replace(self, task=replace(self.task, fork=fork))


class Written:
    """What a task writes, put together: words, and calls in the order in which they were begun."""

    def __init__(self, task: Task) -> None:
        """Begin with nothing."""
        self.origin = task.origin
        self._text: list[str] = []
        self._calls: dict[str, list[str]] = {}
        self._names: dict[str, str] = {}

    def take(self, delta: Delta) -> None:
        """Take a delta."""
        match delta:
            case TextDelta():
                self._text.append(delta.text)
            case CallDelta():
                self._calls.setdefault(delta.call_id, []).append(delta.arguments)
                self._names.setdefault(delta.call_id, delta.name)
            case _:
                pass

    @property
    def items(self) -> list[Item]:
        """The items, as a model is shown them."""
        text = "".join(self._text)
        said = Message(
            item_id=new_id("item"), role="assistant", parts=(TextPart(text=text, source="generated"),) if text else ()
        )
        calls = [
            Call(item_id=new_id("item"), call_id=call_id, name=self._names[call_id], arguments="".join(fragments))
            for call_id, fragments in self._calls.items()
        ]
        return [*([said] if text else []), *calls]
