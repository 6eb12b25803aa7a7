"""What a client of the websocket is told of a turn of many tasks. Every interleaving is in `test_one_order`."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from agents.events import Fault
from memory.keys import RequestDefaults
from models.content import EvidencePart, Message, OutputRole, Reasoning, TextPart
from orchestrator.events import (
    AnswerControl,
    Committed,
    Decision,
    ItemClosed,
    ItemDelta,
    ItemSnapshot,
    LogEvent,
    PartAdded,
    PlanMade,
    PlannedTask,
    PlanRevised,
    SessionEvent,
    SessionSettings,
    SingleRoute,
    TaskEnded,
    TaskInput,
    TaskResult,
    TurnAccepted,
    TurnEnded,
    TurnInput,
    Usage,
)
from orchestrator.sessions.order import Order
from streaming.realtime.options import Options
from streaming.realtime.protocol import RealtimeProtocol, Received, Respond

_DECISION = Decision(control=AnswerControl(), route=SingleRoute(card="scripted"), reasons=(), refused=(), inputs="{}")
_TURN: dict[str, Any] = {"turn_id": "turn_1", "generation": 1}
_SETTINGS = SessionSettings()


def _protocol(*, baton_events: bool) -> RealtimeProtocol:
    return RealtimeProtocol(
        "sess_1",
        0,
        options=Options(),
        baton_events=baton_events,
        defaults=RequestDefaults(),
        settings=_SETTINGS,
        order=Order(),
    )


def _told(*events: SessionEvent | LogEvent, baton_events: bool = True) -> list[dict[str, Any]]:
    """Return what a client is told, without what says how far it has come."""
    protocol = _protocol(baton_events=baton_events)
    accepted = TurnAccepted(**_TURN, input=TurnInput(), decision=_DECISION)
    out: list[dict[str, Any]] = []
    for seq, event in enumerate((accepted, *events), start=1):
        live = isinstance(event, ItemSnapshot | ItemDelta | PartAdded)
        out += protocol.session_event(event if live else Committed(seq=seq, at_ms=1, event=event))
    return [one for one in out if one["type"] not in {"baton.sequence", "baton.turn.routed"}]


def _kinds(told: Iterable[dict[str, Any]]) -> list[str]:
    return [one["type"] for one in told]


def _message(text: str, *, item_id: str = "item_1", output: OutputRole = "answer") -> Message:
    parts = (TextPart(text=text, source="generated"),) if text else ()
    return Message(item_id=item_id, role="assistant", parts=parts, output=output)


@pytest.mark.parametrize(
    "item", [Reasoning(item_id="item_1", text="so so"), _message("so so", output="work")], ids=["thoughts", "work"]
)
def test_thoughts_and_work_are_told_to_who_asks_for_extensions_and_are_no_output(item: Any) -> None:
    empty = _message("", output="work") if isinstance(item, Message) else Reasoning(item_id="item_1", text="")
    events = (
        ItemSnapshot(**_TURN, item=empty, task_id="turn_1.2"),
        ItemDelta(**_TURN, item_id="item_1", offset=0, text="so so"),
        ItemClosed(**_TURN, item=item, task_id="turn_1.2"),
        TurnEnded(**_TURN, state="finished", reason="stop"),
    )
    told = _told(*events)
    assert _kinds(told)[1:4] == ["baton.item.added", "baton.item.delta", "baton.item.done"]
    assert (told[1]["task_id"], told[2]["delta"], told[3]["item"]["id"]) == ("turn_1.2", "so so", "item_1")
    assert told[-1]["response"]["output"] == []
    plain = _told(*events, baton_events=False)
    assert _kinds(plain) == ["response.created", "response.done"]


def test_what_is_said_while_it_is_worked_on_is_a_message_that_says_so() -> None:
    item = _message("One moment.", output="commentary")
    told = _told(ItemSnapshot(**_TURN, item=item, index=0), ItemClosed(**_TURN, item=item, index=0))
    assert told[-1]["item"]["phase"] == "commentary"
    assert "phase" not in _told(ItemSnapshot(**_TURN, item=_message("x"), index=0))[1]["item"]


def test_evidence_has_its_place_among_the_words() -> None:
    evidence = EvidencePart(source="rec_1", title="Notes", quote="as it was said", at_ms=7)
    parts = (TextPart(text="It was. ", source="generated"), evidence, TextPart(text="Yes.", source="generated"))
    told = _told(
        ItemSnapshot(**_TURN, item=_message("It was. "), index=0),
        PartAdded(**_TURN, item_id="item_1", offset=8, number=0, part=evidence),
        ItemDelta(**_TURN, item_id="item_1", offset=8, text="Yes."),
        ItemClosed(**_TURN, item=Message(item_id="item_1", role="assistant", parts=parts), index=0),
    )
    places = [(one["type"].removeprefix("response."), one["content_index"]) for one in told if "content_index" in one]
    assert places == [
        ("content_part.added", 0),
        ("output_text.delta", 0),
        ("output_text.done", 0),
        ("content_part.done", 0),
        ("content_part.added", 1),
        ("content_part.done", 1),
        ("content_part.added", 2),
        ("output_text.delta", 2),
        ("output_text.done", 2),
        ("content_part.done", 2),
    ]
    said = {"type": "evidence", "source": "rec_1", "title": "Notes", "quote": "as it was said", "at_ms": 7}
    assert told[-1]["item"]["content"] == [
        {"type": "output_text", "text": "It was. "},
        said,
        {"type": "output_text", "text": "Yes."},
    ]


def test_a_plan_its_revision_and_the_end_of_a_task_are_told_as_extensions() -> None:
    sums = PlannedTask(task_id="turn_1.1", agent="writer", card="small", output="sum", role="work")
    answer = PlannedTask(
        task_id="turn_1.2",
        agent="writer",
        card="big",
        inputs=(TaskInput(name="total", task_id="turn_1.1", output="sum"),),
    )
    ended = TaskEnded(
        **_TURN,
        task_id="turn_1.1",
        agent="writer",
        card="small",
        role="work",
        state="finished",
        reason="stop",
        outputs=(TaskResult(name="sum", item_id="item_1"),),
        usage=Usage(input_tokens=3, output_tokens=2),
        started_ms=10,
        ended_ms=30,
    )
    fault = Fault(kind="overloaded", code="overloaded", message="No room.", retryable=True)
    failed = TaskEnded(
        **_TURN, task_id="turn_1.2", agent="writer", card="big", state="failed", fault=fault, ended_ms=31
    )
    told = _told(
        PlanMade(**_TURN, tasks=(sums, answer)),
        ended,
        failed,
        PlanRevised(**_TURN, revision=1, reason="the second failed", dropped=("turn_1.2",)),
    )
    planned, first, second, revised = told[1:]
    assert planned["type"] == "baton.turn.planned"
    assert planned["tasks"][1]["inputs"] == [{"name": "total", "task_id": "turn_1.1", "output": "sum"}]
    assert (first["type"], first["state"], first["role"]) == ("baton.task.ended", "finished", "work")
    assert first["outputs"] == [{"name": "sum", "item_id": "item_1"}]
    assert (first["output_tokens"], first["started_ms"], first["ended_ms"]) == (2, 10, 30)
    assert second["error"] == {"type": "server_error", "code": "overloaded", "message": "No room."}
    assert (revised["type"], revised["reason"], revised["dropped"]) == (
        "baton.turn.replanned",
        "the second failed",
        ["turn_1.2"],
    )


def _ask(**response: Any) -> Received:
    return _protocol(baton_events=False).receive(
        json.dumps({"type": "response.create", "response": response}), _SETTINGS
    )


@pytest.mark.parametrize("on_leave", ["cancel", "grace", "background"])
def test_what_becomes_of_a_response_when_its_client_goes_is_said_with_it(on_leave: str) -> None:
    command = _ask(baton={"on_leave": on_leave}).command
    assert isinstance(command, Respond)
    assert command.turn_input.on_leave == on_leave


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"baton": {"on_leave": "never"}}, "response.baton.on_leave"),
        ({"baton": {"leave": "grace"}}, "response.baton.leave"),
        ({"baton": {"on_leave": "background"}, "conversation": "none"}, "response.baton.on_leave"),
    ],
)
def test_what_cannot_be_said_of_leaving_is_refused_by_name(response: dict[str, Any], param: str) -> None:
    (refused,) = _ask(**response).replies
    assert (refused["type"], refused["error"]["param"]) == ("error", param)
