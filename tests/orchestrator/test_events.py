"""What is logged reads back as it was."""

import json
from dataclasses import fields
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.content import AudioPart, BlobRef, Call, CallResult, FilePart, ImagePart, Message, TextPart, VideoPart
from orchestrator.events import ItemsAdded, LogEvent, PlaybackHeard, canonical, decode, encode

# Every character but lone surrogates, which are not text in UTF-8; the edges refuse those.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

# No deadline and no verdict on speed: building strategies from types takes long on a busy machine.
patient = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

for _type, _strategy in (
    (str, TEXT),
    (BlobRef, st.builds(BlobRef, sha256=TEXT, media_type=TEXT, size_bytes=st.integers(0, 2**40))),
):
    st.register_type_strategy(_type, _strategy)


@patient
@given(st.from_type(LogEvent))
def test_every_event_reads_back_as_it_was_written(event: LogEvent) -> None:
    assert decode(encode(event)) == event


@pytest.mark.parametrize("kind", get_args(LogEvent), ids=lambda kind: kind.__name__)
def test_every_event_says_its_kind_and_all_its_fields(kind: Any) -> None:
    @patient
    @given(st.from_type(kind))
    def written(event: Any) -> None:
        assert set(json.loads(encode(event))) == {field.name for field in fields(event)}
        assert json.loads(encode(event))["kind"] == event.kind

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
    assert decode(encode(event)) == event


@pytest.mark.parametrize(
    "body",
    ['{"kind":"nonesuch"}', '{"kind":"playback_heard"}', '{"kind":"playback_heard","item_id":"i","heard_ms":"x"}', ""],
)
def test_what_is_not_an_event_is_refused(body: str) -> None:
    with pytest.raises(ValidationError):
        decode(body)


def test_the_text_of_a_row_is_stable() -> None:
    # Rows outlive the code that wrote them.
    assert encode(PlaybackHeard(item_id="item_1", heard_ms=7)) == (
        '{"kind":"playback_heard","item_id":"item_1","heard_ms":7}'
    )


@patient
@given(st.dictionaries(TEXT, st.one_of(st.none(), st.booleans(), st.integers(), TEXT, st.lists(TEXT, max_size=3))))
def test_canonical_text_depends_on_the_value_and_not_on_its_order(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert canonical(backwards) == canonical(value)
    assert json.loads(canonical(value)) == value
