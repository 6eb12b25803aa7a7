"""The protocol core, without a socket: random sessions told to a client, held against the specification."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.realtime import confirmed
from support.wire import OrderChecker, check_event

from agents.events import Fault
from memory.keys import RequestDefaults
from models.content import Call, CallResult, Message, TextPart
from orchestrator.events import (
    AnswerControl,
    Committed,
    Decision,
    ItemClosed,
    ItemDelta,
    ItemsAdded,
    ItemSnapshot,
    ItemsRemoved,
    PlaybackHeard,
    RefusedCard,
    SessionEvent,
    SessionSettings,
    SettingsChanged,
    SingleRoute,
    TurnAccepted,
    TurnEnded,
    TurnInput,
    Usage,
)
from orchestrator.sessions.order import Order
from streaming.realtime.events import SUPPORTED, UNSUPPORTED
from streaming.realtime.options import ANYTHING, Bounds, Options
from streaming.realtime.protocol import AddItem, Cancel, RealtimeProtocol, Received, RemoveItem, Respond

_DECISION = Decision(
    control=AnswerControl(),
    route=SingleRoute(card="scripted"),
    reasons=("why",),
    refused=(RefusedCard(card="big", reason="dear"),),
    inputs="{}",
)
_ENDS = [
    {"state": "finished", "reason": "stop"},
    {"state": "finished", "reason": "length"},
    {"state": "finished", "reason": "calls"},
    {"state": "interrupted", "reason": "client_cancelled"},
    {"state": "interrupted", "reason": "server_restarted"},
    {"state": "failed", "fault": Fault(code="internal", message="It broke.", retryable=True)},
]


class _Protocol(RealtimeProtocol):
    """A connection to a session whose settings stay as they are."""

    def __init__(
        self,
        *,
        baton_events: bool = False,
        bounds: Bounds = ANYTHING,
        defaults: RequestDefaults | None = None,
        settings: SessionSettings | None = None,
        order: Order | None = None,
    ) -> None:
        self._set = settings or SessionSettings()
        super().__init__(
            "sess_1",
            0,
            options=Options(),
            baton_events=baton_events,
            bounds=bounds,
            defaults=defaults or RequestDefaults(),
            settings=self._set,
            order=order or Order(),
        )

    def receive(self, text: str, settings: SessionSettings | None = None) -> Received:
        return confirmed(self, super().receive(text, settings or self._set), settings or self._set)


@st.composite
def _turn(draw: st.DrawFn, number: int, first_seq: int) -> list[SessionEvent]:
    """One turn as a session yields it to a reader who was there from its beginning."""
    turn = f"turn_{number}"
    metadata = draw(st.none() | st.just({"a": "b"}))
    accepted = TurnAccepted(turn_id=turn, generation=1, input=TurnInput(metadata=metadata), decision=_DECISION)
    events: list[SessionEvent] = [Committed(seq=first_seq, at_ms=1, event=accepted)]
    rows = [first_seq + 1]
    for index in range(draw(st.integers(0, 3))):
        item_id = f"item_{number}_{index}"
        chunks = draw(st.lists(st.text(min_size=1, max_size=5), max_size=4))
        shown = draw(st.integers(0, len(chunks)))
        status = draw(st.sampled_from(["completed", "incomplete"]))
        call = draw(st.booleans())

        def item(text: str, status: str, item_id: str = item_id, call: bool = call) -> Message | Call:
            if call:
                return Call(item_id=item_id, call_id=f"c{item_id}", name="f", arguments=text, status=status)
            parts = (TextPart(text=text, source="generated"),) if text else ()
            return Message(item_id=item_id, role="assistant", parts=parts, status=status)

        given_text = "".join(chunks[:shown])
        events.append(ItemSnapshot(turn_id=turn, generation=1, item=item(given_text, "incomplete")))
        for chunk in chunks[shown:]:
            events.append(ItemDelta(turn_id=turn, generation=1, item_id=item_id, offset=len(given_text), text=chunk))
            given_text += chunk
        closed = ItemClosed(turn_id=turn, generation=1, item=item(given_text, status))
        events.append(Committed(seq=rows[-1], at_ms=1, event=closed))
        rows.append(rows[-1] + 1)
    ended = TurnEnded(
        turn_id=turn, generation=1, usage=Usage(input_tokens=1, output_tokens=2), **draw(st.sampled_from(_ENDS))
    )
    events.append(Committed(seq=rows[-1], at_ms=1, event=ended))
    return events


@given(data=st.data(), join=st.integers(0, 6))
def test_whatever_a_session_yields_is_told_in_the_strict_order_also_from_the_middle(
    data: st.DataObject, join: int
) -> None:
    checker, protocol = OrderChecker(), _Protocol()
    for event in protocol.opening():
        checker.feed(event)
    on = json.dumps({"type": "session.update", "session": {"type": "realtime", "baton": {"events": True}}})
    for event in protocol.receive(on).replies:
        checker.feed(event)
    seq = 1
    for number in range(data.draw(st.integers(1, 3))):
        events = data.draw(_turn(number, seq))
        last = events[-1]
        assert isinstance(last, Committed)
        seq = last.seq + 1
        if number == 0:
            # Whoever comes in the middle of a turn is first told of an item that is open by a snapshot.
            from_here = [n for n, e in enumerate(events) if n >= join and not isinstance(e, ItemDelta)]
            events = events[from_here[0] :] if from_here else events
            if isinstance(events[0], Committed) and isinstance(events[0].event, ItemClosed):
                item = events[0].event.item
                events.insert(0, ItemSnapshot(turn_id="turn_0", generation=1, item=item))
        for event in events:
            for told in protocol.session_event(event):
                checker.feed(told)
    assert len(checker.done) >= 1
    assert all(response["status"] != "in_progress" for response in checker.done)


@given(
    message=st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["type", "item", "session", "response"]), inner)
        ),
    ).map(json.dumps)
    | st.sampled_from(SUPPORTED).map(lambda kind: json.dumps({"type": kind}))
)
def test_no_message_breaks_the_protocol_and_each_bad_one_gets_one_valid_error(message: str) -> None:
    received = _Protocol().receive(message)
    assert (received.command is None) == bool(received.replies)
    for reply in received.replies:
        check_event(reply)


@pytest.mark.parametrize("kind", sorted(UNSUPPORTED))
def test_an_event_that_is_known_and_not_served_says_what_to_do_instead(kind: str) -> None:
    (reply,) = _Protocol().receive(json.dumps({"type": kind, "event_id": "mine", "anything": 1})).replies
    check_event(reply)
    assert reply["error"]["code"] == "unsupported"
    assert reply["error"]["event_id"] == "mine"
    assert UNSUPPORTED[kind] in reply["error"]["message"]


def test_a_client_event_becomes_the_command_it_stands_for() -> None:
    protocol = _Protocol()
    item = {"id": "mine", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    added = protocol.receive(json.dumps({"type": "conversation.item.create", "item": item})).command
    assert added == AddItem(item=Message(item_id="mine", role="user", parts=(TextPart(text="hi"),)))
    output = {"id": "out", "type": "function_call_output", "call_id": "c", "output": "42"}
    answered = protocol.receive(json.dumps({"type": "conversation.item.create", "item": output})).command
    assert answered == AddItem(item=CallResult(item_id="out", call_id="c", parts=(TextPart(text="42", source="tool"),)))
    assert protocol.receive('{"type": "response.cancel", "response_id": "resp_7"}').command == Cancel(turn_id="turn_7")
    assert protocol.receive('{"type": "response.create"}').command == Respond(turn_input=TurnInput())


def test_a_responses_own_options_go_before_the_sessions_and_leave_them_as_they_are() -> None:
    protocol = _Protocol()
    session = {"type": "realtime", "instructions": "Be brief.", "max_output_tokens": 9}
    protocol.receive(json.dumps({"type": "session.update", "session": session}))
    response = {"instructions": "", "max_output_tokens": "inf", "metadata": {"a": "b"}}
    own = protocol.receive(json.dumps({"type": "response.create", "response": response})).command
    assert own == Respond(turn_input=TurnInput(instructions="", max_output_tokens=None, metadata={"a": "b"}))
    next_ = protocol.receive('{"type": "response.create"}').command
    assert next_ == Respond(turn_input=TurnInput(instructions="Be brief.", max_output_tokens=9))


def test_each_item_names_the_one_before_it() -> None:
    protocol = _Protocol()
    items = tuple(Message(item_id=name, role="user", parts=(TextPart(text=name),)) for name in "ab")
    told = protocol.session_event(Committed(seq=1, at_ms=1, event=ItemsAdded(items=items)))
    assert [(e["type"].split(".")[-1], e["item"]["id"], e["previous_item_id"]) for e in told] == [
        ("added", "a", None),
        ("done", "a", None),
        ("added", "b", "a"),
        ("done", "b", "a"),
    ]


def test_a_client_that_connected_for_batons_events_is_told_from_the_first_row_on() -> None:
    protocol = _Protocol(baton_events=True)
    opening = ["session.created", "baton.session.attached", "baton.session.updated"]
    assert [event["type"] for event in protocol.opening()] == opening
    accepted = TurnAccepted(turn_id="turn_1", generation=1, input=TurnInput(), decision=_DECISION)
    told = protocol.session_event(Committed(seq=1, at_ms=1, event=accepted))
    assert [event["type"] for event in told] == ["response.created", "baton.turn.routed", "baton.sequence"]
    assert told[1]["refused"] == [{"model": "big", "reason": "dear"}]


def test_what_json_cannot_say_in_utf8_is_refused_and_not_sent_back() -> None:
    received = _Protocol().receive('{"type": "response.cancel", "event_id": "\\ud800"}')
    (reply,) = received.replies
    assert reply["error"]["code"] == "invalid_json"
    json.dumps(reply, ensure_ascii=False).encode()


def _update(**session: object) -> str:
    return json.dumps({"type": "session.update", "session": {"type": "realtime", **session}})


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_a_number_that_json_has_no_word_for_is_refused(number: str) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"a": 5}}
    reply, updated = _Protocol().receive(_update(tools=[tool]).replace("5", number)).replies
    assert updated["session"]["tools"] == []
    assert reply["error"]["param"] == "session.tools[0].parameters"


def test_a_function_that_has_to_be_called_has_to_be_on_offer() -> None:
    protocol = _Protocol()
    tool = {"type": "function", "name": "none", "parameters": {}}
    protocol.receive(_update(tools=[tool]))
    wanted = {"tool_choice": {"type": "function", "name": "other"}}
    (reply,) = protocol.receive(json.dumps({"type": "response.create", "response": wanted})).replies
    assert reply["error"]["param"] == "response.tool_choice"
    wanted = {"tool_choice": {"type": "function", "name": "none"}}
    command = protocol.receive(json.dumps({"type": "response.create", "response": wanted})).command
    assert isinstance(command, Respond)
    assert command.turn_input.tools is not None
    assert (command.turn_input.tools.choice, command.turn_input.tools.function) == ("required", "none")


# Items that leave, settings that change


def _added(seq: int, *names: str) -> Committed:
    items = tuple(Message(item_id=name, role="user", parts=(TextPart(text=name),)) for name in names)
    return Committed(seq=seq, at_ms=1, event=ItemsAdded(items=items))


def _removed(seq: int, *names: str) -> Committed:
    return Committed(seq=seq, at_ms=1, event=ItemsRemoved(item_ids=names))


def _links(told: tuple[dict[str, Any], ...]) -> list[tuple[str, str | None]]:
    return [(e["item"]["id"], e["previous_item_id"]) for e in told if e["type"] == "conversation.item.added"]


def test_a_client_takes_an_item_out_by_its_id() -> None:
    received = _Protocol().receive('{"type": "conversation.item.delete", "item_id": "a", "event_id": "mine"}')
    assert received == Received(command=RemoveItem(item_id="a"), event_id="mine")
    (reply,) = _Protocol().receive('{"type": "conversation.item.delete"}').replies
    assert reply["error"]["param"] == "item_id"


def test_an_item_that_left_is_told_once_and_nothing_comes_after_it_any_more() -> None:
    protocol = _Protocol()
    assert _links(protocol.session_event(_added(1, "a", "b", "c"))) == [("a", None), ("b", "a"), ("c", "b")]
    told = protocol.session_event(_removed(2, "c"))
    for event in told:
        check_event(event)
    assert [(e["type"], e["item_id"]) for e in told] == [("conversation.item.deleted", "c")]
    assert _links(protocol.session_event(_added(3, "d"))) == [("d", "b")]
    protocol.session_event(_removed(4, "a", "b", "d"))
    assert _links(protocol.session_event(_added(5, "e"))) == [("e", None)]


@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=30),
    before=st.integers(0, 3),
)
def test_an_item_always_comes_after_the_last_that_is_still_there(steps: list[tuple[bool, int]], before: int) -> None:
    there = [f"old_{n}" for n in range(before)]
    protocol = _Protocol(order=Order(list(there)))
    for seq, (is_removal, pick) in enumerate(steps, start=1):
        if is_removal and there:
            gone = there.pop(pick % len(there))
            protocol.session_event(_removed(seq, gone))
        else:
            name = f"new_{seq}"
            assert _links(protocol.session_event(_added(seq, name))) == [(name, there[-1] if there else None)]
            there.append(name)


def test_where_an_item_is_to_go_is_for_the_session_to_check_in_order_of_arrival() -> None:
    protocol = _Protocol(order=Order(["a", "b"]))
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    for previous in (None, "root", "a", "b", "sent_a_moment_ago"):
        event = {"type": "conversation.item.create", "previous_item_id": previous, "item": item}
        command = protocol.receive(json.dumps(event)).command
        assert isinstance(command, AddItem)
        assert command.after == previous


def test_an_item_is_told_at_its_place() -> None:
    protocol = _Protocol(order=Order(["a", "b"]))

    def added(seq: int, name: str, after: str | None) -> list[tuple[str, str | None]]:
        item = Message(item_id=name, role="user", parts=(TextPart(text=name),))
        return _links(protocol.session_event(Committed(seq=seq, at_ms=1, event=ItemsAdded(items=(item,), after=after))))

    assert added(1, "c", "a") == [("c", "a")]
    assert added(2, "d", "root") == [("d", None)]
    assert added(3, "e", None) == [("e", "b")]
    assert added(4, "f", "d") == [("f", "d")]
    assert added(5, "g", None) == [("g", "e")]


def test_an_item_among_those_that_a_client_was_never_told_of_comes_after_what_its_row_says() -> None:
    protocol = _Protocol(order=Order(["a"], behind=True))
    item = Message(item_id="b", role="user", parts=())
    there = Committed(seq=1, at_ms=1, event=ItemsAdded(items=(item,), after="long_ago"))
    assert _links(protocol.session_event(there)) == [("b", "long_ago")]
    at_the_front = Committed(seq=2, at_ms=1, event=ItemsAdded(items=(replace(item, item_id="c"),), after="root"))
    assert _links(protocol.session_event(at_the_front)) == [("c", None)]
    assert _links(protocol.session_event(_added(3, "d"))) == [("d", "a")]


def test_who_asked_for_batons_events_is_told_what_holds_and_what_changes() -> None:
    protocol = _Protocol(baton_events=True, settings=SessionSettings(instructions="Be kind."))
    *_, attached = protocol.opening()
    fields = {"session_id": "sess_1", "title": None, "instructions": "Be kind.", "model": None}
    assert {**attached, "event_id": ""} == {"event_id": "", "type": "baton.session.updated", **fields}
    named, _ = (e for e in protocol.session_event(_added(1, "hello")) if e["type"].startswith("baton."))
    check_event(named)
    assert (named["type"], named["title"], named["instructions"]) == ("baton.session.updated", "hello", "Be kind.")
    assert len(protocol.session_event(_added(2, "again"))) == 3, "it has its name"
    changed = SettingsChanged(settings=SessionSettings(title="Mine", model="m"))
    told, sequence = protocol.session_event(Committed(seq=3, at_ms=1, event=changed))
    check_event(told)
    assert (told["title"], told["instructions"], told["model"]) == ("Mine", None, "m")
    assert sequence["seq"] == 3
    cleared = SettingsChanged(settings=SessionSettings())
    protocol.session_event(Committed(seq=4, at_ms=1, event=cleared))
    assert protocol.session_event(_added(5, "anew"))[2]["title"] == "anew"


def test_a_row_that_says_nothing_to_a_client_still_counts() -> None:
    protocol = _Protocol(baton_events=True)
    heard = Committed(seq=1, at_ms=1, event=PlaybackHeard(item_id="a", heard_ms=5))
    assert [e["type"] for e in protocol.session_event(heard)] == ["baton.sequence"]
    assert _Protocol().session_event(heard) == ()


def test_what_holds_is_the_responses_then_the_connections_then_the_sessions_then_the_keys() -> None:
    defaults = RequestDefaults(instructions="key", model="key", max_output_tokens=1)
    settings = SessionSettings(instructions="session", model="session")

    def asked(protocol: _Protocol, **response: object) -> TurnInput:
        command = protocol.receive(json.dumps({"type": "response.create", "response": response})).command
        assert isinstance(command, Respond)
        return command.turn_input

    turn = asked(_Protocol(defaults=defaults))
    assert (turn.instructions, turn.model, turn.max_output_tokens) == ("key", "key", 1)
    turn = asked(_Protocol(defaults=defaults, settings=settings))
    assert (turn.instructions, turn.model, turn.max_output_tokens) == ("session", "session", 1)
    protocol = _Protocol(defaults=defaults, settings=settings)
    (updated,) = protocol.receive(_update(instructions="connection", model="connection", max_output_tokens=2)).replies
    assert (updated["session"]["instructions"], updated["session"]["model"]) == ("connection", "connection")
    turn = asked(protocol)
    assert (turn.instructions, turn.model, turn.max_output_tokens) == ("connection", "connection", 2)
    turn = asked(protocol, instructions="response", max_output_tokens=3)
    assert (turn.instructions, turn.max_output_tokens) == ("response", 3)
    assert asked(protocol, instructions="").instructions == ""
    protocol.receive(_update(instructions=None))
    assert asked(protocol).instructions == "session"


def test_what_a_session_says_now_holds_also_for_a_client_that_has_not_heard_of_it() -> None:
    protocol = _Protocol(settings=SessionSettings(instructions="old"))
    now = SessionSettings(instructions="new")
    command = protocol.receive('{"type": "response.create"}', now).command
    assert command == Respond(turn_input=TurnInput(instructions="new"))
