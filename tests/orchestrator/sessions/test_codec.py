"""What is logged reads back as it was; what is not known is one clear error; contents are in items and documents alone."""

import json
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory.log import LogRow
from models.content import (
    AudioPart,
    BlobRef,
    Call,
    CallResult,
    FilePart,
    ImagePart,
    Message,
    OtherItem,
    TextPart,
    VideoPart,
)
from models.errors import Internal
from models.ports.generate import JsonSchemaConstraint, ToolConstraint, ToolSpec
from orchestrator.decide.inputs import lifted
from orchestrator.events import (
    AnswerControl,
    Decision,
    DelegateControl,
    ItemClosed,
    ItemsAdded,
    LogEvent,
    PlaybackHeard,
    SessionSettings,
    SettingsChanged,
    SingleRoute,
    TurnAccepted,
    TurnInput,
    canonical,
    items_of,
)
from orchestrator.sessions import codec
from orchestrator.sessions.tombstones import without
from streaming.wire.items import wire_item

# Every character but lone surrogates, which are not text in UTF-8; the edges refuse those.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

# No deadline and no verdict on speed: building strategies from types takes long on a busy machine.
patient = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

for _type, _strategy in (
    (str, TEXT),
    (BlobRef, st.builds(BlobRef, sha256=TEXT, media_type=TEXT, size_bytes=st.integers(0, 2**40))),
):
    st.register_type_strategy(_type, _strategy)


def _row(kind: str, v: int, body: str) -> LogRow:
    return LogRow(seq=3, turn_id=None, kind=kind, v=v, body=body, at_ms=1)


def _again(event: LogEvent) -> LogEvent:
    entry, documents = codec.encode(event)
    loaded = {digest: codec.load(body) for digest, body in documents.items()}
    return codec.whole(codec.parse(_row(entry.kind, entry.v, entry.body)), loaded)


@patient
@given(st.from_type(LogEvent))
def test_every_event_reads_back_as_it_was_written(event: LogEvent) -> None:
    assert _again(event) == event


@pytest.mark.parametrize("kind", get_args(LogEvent), ids=lambda kind: kind.__name__)
def test_every_event_says_its_kind_and_all_its_fields(kind: Any) -> None:
    @patient
    @given(st.from_type(kind))
    def written(event: Any) -> None:
        body = json.loads(codec.encode(event)[0].body)
        body = body.get("event", body)
        assert set(body) == {field.name for field in fields(event)}
        assert body["kind"] == event.kind

    written()


@patient
@given(
    st.lists(
        st.one_of(*(st.from_type(part) for part in (TextPart, ImagePart, AudioPart, VideoPart, FilePart))), max_size=4
    ).map(tuple),
    st.sampled_from((Message, CallResult)),
)
def test_parts_of_every_kind_survive_within_an_item(parts: Any, kind: Any) -> None:
    more = {"role": "user"} if kind is Message else {"call_id": "call_1"}
    call = Call(item_id="item_2", call_id="call_1", name="add", arguments="{}")
    event = ItemsAdded(items=(call, kind(item_id="item_1", parts=parts, **more)))
    assert _again(event) == event
    blobs = [("item_1", part.blob.sha256) for part in parts if not isinstance(part, TextPart)]
    assert codec.blobs_of(event.items) == blobs


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("playback_heard", '{"kind":"playback_heard"}'),
        ("playback_heard", '{"kind":"playback_heard","item_id":"i","heard_ms":"x"}'),
        ("playback_heard", ""),
        ("items_added", '{"kind":"playback_heard","item_id":"i","heard_ms":1}'),
        ("turn_accepted", "{}"),
        ("turn_accepted", "[]"),
    ],
)
def test_what_is_not_what_was_written_is_damage(kind: str, body: str) -> None:
    with pytest.raises(Internal) as refused:
        codec.parse(_row(kind, 1, body))
    assert refused.value.code == "storage_corrupt"


@pytest.mark.parametrize(
    ("kind", "v"), [("nonesuch", 1), ("playback_heard", 99), ("turn_accepted", 99), ("turn_accepted", 0)]
)
def test_a_row_of_an_unknown_kind_or_version_is_one_clear_error(kind: str, v: int) -> None:
    with pytest.raises(Internal) as refused:
        codec.parse(_row(kind, v, "what a newer one writes"))
    assert refused.value.code == "unknown_row"
    assert f"of kind {kind!r}, version {v}" in refused.value.message
    assert not refused.value.retryable


def test_an_item_of_a_kind_that_a_newer_server_wrote_is_kept_as_it_came() -> None:
    hologram = {"kind": "hologram", "item_id": "item_2", "depth": 3, "output": "work", "parts": [{"kind": "ray"}]}
    body = json.dumps({"kind": "item_closed", "turn_id": "turn_1", "generation": 1, "item": hologram})
    event = codec.parse(_row("item_closed", 1, body)).event
    assert isinstance(event, ItemClosed)
    assert isinstance(event.item, OtherItem)
    assert (event.item.item_id, event.item.type, event.item.output) == ("item_2", "hologram", "work")
    assert json.loads(event.item.body) == {"depth": 3, "parts": [{"kind": "ray"}]}
    assert _again(event) == event
    shown = wire_item(event.item, "completed")
    assert (shown["type"], shown["depth"], shown["id"]) == ("hologram", 3, "item_2")


@pytest.mark.parametrize("kind", ["null", "7", '"message"'])
def test_an_item_that_says_no_kind_or_is_not_what_its_kind_is_is_damage(kind: str) -> None:
    body = f'{{"kind":"items_added","items":[{{"kind":{kind},"item_id":"item_1"}}]}}'
    with pytest.raises(Internal) as refused:
        codec.parse(_row("items_added", 1, body))
    assert refused.value.code == "storage_corrupt"


def test_the_text_of_a_row_is_stable() -> None:
    # Rows outlive the code that wrote them.
    entry, documents = codec.encode(PlaybackHeard(item_id="item_1", heard_ms=7, heard_characters=3))
    assert (entry.v, entry.body) == (
        1,
        '{"kind":"playback_heard","item_id":"item_1","heard_ms":7,"heard_characters":3,"is_over":false}',
    )
    assert documents == {}


# Contents

INPUTS = {"characters": 2, "cards": [], "aliases": {}, "input_kinds": ["text"], "history_kinds": ["image"]}
DECISION = Decision(
    control=AnswerControl(), route=SingleRoute(card="scripted"), reasons=(), refused=(), inputs=canonical(INPUTS)
)


def _said(text: str, item_id: str) -> Message:
    return Message(item_id=item_id, role="user", parts=(TextPart(text=text),))


def _accepted(**told: Any) -> TurnAccepted:
    return TurnAccepted(turn_id="turn_1", generation=1, decision=DECISION, input=TurnInput(**told))


TOOLS = ToolConstraint(
    tools=tuple(ToolSpec(name=f"tool_{n}", description="secret", parameters='{"type":"object"}') for n in range(20))
)


def test_what_turns_say_alike_is_in_no_row_but_in_documents_by_their_digests() -> None:
    form = JsonSchemaConstraint(schema='{"title":"secret"}')
    accepted = _accepted(items=(_said("hi", "item_1"),), instructions="A secret.", tools=TOOLS, form=form)
    changed = SettingsChanged(settings=SessionSettings(title="A secret.", instructions="A secret.", model="m"))
    entries = [codec.encode(event) for event in (accepted, replace(accepted, turn_id="turn_2"), changed)]
    assert all("secret" not in entry.body for entry, _ in entries)
    assert len(entries[0][0].body) < 1_500
    assert entries[0][1] == entries[1][1]  # the same words, the same documents
    assert len(entries[0][1].keys() & entries[2][1].keys()) == 1  # the instructions; a title is another document
    assert _again(accepted) == accepted
    assert _again(changed) == changed


def test_a_title_that_was_taken_out_is_none_and_other_documents_may_not_be_missing() -> None:
    changed = SettingsChanged(settings=SessionSettings(title="Secret"))
    entry, _ = codec.encode(changed)
    bare = codec.whole(codec.parse(_row(entry.kind, entry.v, entry.body)), {})
    assert bare == SettingsChanged(settings=SessionSettings())
    entry, _ = codec.encode(_accepted(instructions="Be brief."))
    with pytest.raises(Internal) as refused:
        codec.whole(codec.parse(_row(entry.kind, entry.v, entry.body)), {})
    assert refused.value.code == "storage_corrupt"


@patient
@given(st.from_type(LogEvent), st.data())
def test_contents_are_in_item_bodies_and_documents_alone(event: LogEvent, data: Any) -> None:
    """Whatever an event's items and settings say, a row without its items' contents has none of it."""
    mark = "·what people wrote·"
    items = tuple(
        _marked(item, mark)
        for item in data.draw(st.just(items_of(event)))  # each item says it
    )
    match event:
        case TurnAccepted():
            event = replace(event, input=replace(event.input, items=items, instructions=mark, tools=_tools(mark)))
        case SettingsChanged():
            event = replace(event, settings=replace(event.settings, title=mark, instructions=mark))
        case ItemsAdded():
            event = replace(event, items=items)
        case _ if items:
            event = replace(event, item=items[0])  # type: ignore[call-arg]  # the one kind that has one
    entry, _ = codec.encode(without(event, {item.item_id for item in items}))
    assert mark not in entry.body


CONTENT = {"text": str, "arguments": str, "reason": str, "tools": str, "result": str, "error": str, "body": str}


def _marked(item: Any, mark: str) -> Any:
    """Return an item that says it wherever it has content."""
    said = {field.name: mark for field in fields(item) if field.name in CONTENT}
    if any(field.name == "parts" for field in fields(item)):
        said["parts"] = (TextPart(text=mark),)  # type: ignore[assignment]
    assert said, "an item of a kind whose content is not known here"
    return replace(item, **said)


def _tools(mark: str) -> ToolConstraint:
    return ToolConstraint(tools=(ToolSpec(name="t", description=mark, parameters="{}"),))


# Earlier versions


@pytest.mark.parametrize(
    ("agent", "control"), [("writer", AnswerControl()), ("painter", DelegateControl(agent="painter"))]
)
def test_rows_of_the_first_version_are_lifted_when_they_are_read(agent: str, control: Any) -> None:
    inline = {
        "kind": "turn_accepted",
        "turn_id": "turn_1",
        "generation": 1,
        "input": {"items": [], "instructions": "Be brief.", "tools": None},
        "decision": {"agent": agent, "card": "c", "reasons": [], "refused": [], "inputs": canonical(INPUTS)},
    }
    stored = codec.parse(_row("turn_accepted", 1, json.dumps(inline)))
    assert isinstance(stored.event, TurnAccepted)
    assert stored.event.input == TurnInput(instructions="Be brief.")
    assert (stored.event.decision.control, stored.event.decision.route) == (control, SingleRoute(card="c"))
    assert (stored.event.decision.agent, stored.event.decision.card) == (agent, "c")
    # Before there were forms, decisions were made without one.
    assert json.loads(stored.event.decision.inputs) == lifted(INPUTS)
    assert json.loads(stored.event.decision.inputs)["form"] is None
    settings = {"kind": "settings_changed", "settings": {"title": "T", "instructions": "I", "model": None}}
    changed = codec.parse(_row("settings_changed", 1, json.dumps(settings)))
    assert changed.event == SettingsChanged(settings=SessionSettings(title="T", instructions="I"))
