"""What a reader is given, example by example; every interleaving is in `test_state_properties`."""

from collections.abc import Callable
from typing import Any

import pytest

from agents.events import Origin, TaskFinished, TaskProgress
from models.content import CallDelta, Delta, Message, TextDelta, text_of
from orchestrator.events import Committed, Decision, ItemClosed, ItemDelta, ItemSnapshot, LogEvent, TurnInput, done_with
from orchestrator.limits import SessionLimits
from orchestrator.sessions.cursor import Cursor
from orchestrator.sessions.state import SessionState

ORIGIN = Origin(agent="writer", task_id="t", turn_id="turn_1", generation=1)


class Writing:
    """A session that is writing a reply."""

    def __init__(self, decision: Decision) -> None:
        self.state = SessionState(SessionLimits(rows=4))
        self.log: list[Committed] = []
        self.state.propose("turn_1", TurnInput(), 0.0)
        self.commit(self.state.plan_accept("turn_1", 1, decision, asked_s=0.0))

    def commit(self, events: tuple[LogEvent, ...]) -> None:
        numbered = enumerate(events, start=self.state.last_seq + 1)
        rows = [Committed(seq=seq, at_ms=0, event=event) for seq, event in numbered]
        self.log += rows
        self.state.apply(rows, 0.0)

    def write(self, delta: Delta, item_id: str = "item_1") -> None:
        event = TaskProgress(origin=ORIGIN, delta=delta)
        if not self.state.take(event, item_id, 0.0):
            self.commit(self.state.plan(event, item_id, 0.0))
            assert self.state.take(event, item_id, 0.0)

    def finish(self) -> None:
        self.commit(self.state.plan(done_with(TaskFinished(origin=ORIGIN, reason="stop")), "item_none", 0.0))


@pytest.fixture
def writing(decision: Decision) -> Writing:
    return Writing(decision)


def given(cursor: Cursor, state: SessionState) -> list[tuple[Any, ...]]:
    """Return what the cursor gives, in short."""
    batch = cursor.advance(state)
    assert batch is not None
    short: list[tuple[Any, ...]] = []
    for event in batch:
        match event:
            case Committed():
                short.append((event.seq, event.event.kind))
            case ItemSnapshot():
                short.append(("snapshot", event.item.item_id, text_of(event.item)))
            case ItemDelta():
                short.append(("delta", event.item_id, event.offset, event.text))
    return short


def test_a_reader_that_keeps_up_gets_a_snapshot_then_deltas_then_the_row(writing: Writing) -> None:
    cursor = Cursor(0)
    assert given(cursor, writing.state) == [(1, "turn_accepted")]
    writing.write(TextDelta(text="one "))
    assert given(cursor, writing.state) == [("snapshot", "item_1", "one ")]
    assert given(cursor, writing.state) == []
    writing.write(TextDelta(text="two "))
    writing.write(TextDelta(text="three"))
    assert given(cursor, writing.state) == [("delta", "item_1", 4, "two three")]
    writing.finish()
    assert given(cursor, writing.state) == [(2, "item_closed"), (3, "task_ended"), (4, "turn_ended")]
    assert given(cursor, writing.state) == []


def test_what_a_reader_lacks_of_an_item_comes_before_its_row(writing: Writing) -> None:
    cursor, late = Cursor(0), Cursor(0)
    writing.write(TextDelta(text="one "))
    given(cursor, writing.state)
    writing.write(TextDelta(text="two"))
    writing.finish()
    assert given(cursor, writing.state) == [
        ("delta", "item_1", 4, "two"),
        (2, "item_closed"),
        (3, "task_ended"),
        (4, "turn_ended"),
    ]
    assert given(late, writing.state) == [
        (1, "turn_accepted"),
        ("snapshot", "item_1", "one two"),
        (2, "item_closed"),
        (3, "task_ended"),
        (4, "turn_ended"),
    ]


def test_offsets_count_characters_whatever_their_size(writing: Writing) -> None:
    cursor = Cursor(1)
    writing.write(TextDelta(text="👩‍🎤"))  # three characters, eleven bytes, five UTF-16 units
    assert given(cursor, writing.state) == [("snapshot", "item_1", "👩‍🎤")]
    writing.write(TextDelta(text="é"))
    assert given(cursor, writing.state) == [("delta", "item_1", 3, "é")]
    writing.write(TextDelta(text="\r\n🎻"))
    writing.finish()
    assert given(cursor, writing.state)[0] == ("delta", "item_1", 4, "\r\n🎻")


def test_an_item_opened_by_nothing_shows_an_empty_snapshot_and_no_empty_deltas(writing: Writing) -> None:
    cursor = Cursor(1)
    writing.write(TextDelta(text=""))
    assert given(cursor, writing.state) == [("snapshot", "item_1", "")]
    writing.write(TextDelta(text=""))
    assert given(cursor, writing.state) == []
    writing.write(TextDelta(text="word"))
    assert given(cursor, writing.state) == [("delta", "item_1", 0, "word")]
    writing.finish()
    assert given(cursor, writing.state) == [(2, "item_closed"), (3, "task_ended"), (4, "turn_ended")]


def test_an_item_that_closes_empty_unseen_is_shown_all_the_same(writing: Writing) -> None:
    cursor = Cursor(1)
    writing.write(TextDelta(text=""))
    writing.finish()
    assert given(cursor, writing.state)[0] == ("snapshot", "item_1", "")


def test_a_reader_in_the_middle_of_one_item_goes_on_to_the_next(writing: Writing) -> None:
    cursor = Cursor(1)
    writing.write(TextDelta(text="Let me "))
    given(cursor, writing.state)
    writing.write(TextDelta(text="see."))
    writing.write(CallDelta(call_id="call_1", name="add", arguments='{"a"'), "item_2")
    assert given(cursor, writing.state) == [
        ("delta", "item_1", 7, "see."),
        (2, "item_closed"),
        ("snapshot", "item_2", '{"a"'),
    ]
    writing.write(CallDelta(call_id="call_1", name="add", arguments=":1}"), "item_3")
    writing.finish()
    assert given(cursor, writing.state)[0] == ("delta", "item_2", 4, ":1}")


def test_a_live_reader_begins_with_a_snapshot_of_what_is_open(writing: Writing) -> None:
    writing.write(TextDelta(text="one "))
    cursor = Cursor(writing.state.last_seq)
    assert given(cursor, writing.state) == [("snapshot", "item_1", "one ")]


def test_a_reader_whose_next_row_has_left_memory_is_told_so_and_goes_on_from_the_log(
    writing: Writing, message: Callable[..., Message]
) -> None:
    cursor = Cursor(0)
    writing.write(TextDelta(text="one "))
    given(cursor, writing.state)
    writing.write(TextDelta(text="two"))
    writing.finish()
    for n in range(2, 5):
        writing.commit(writing.state.plan_add((message(str(n), f"item_{n}"),)))
    assert cursor.advance(writing.state) is None  # its next row is 2; rows 4 to 7 are in memory
    delta, closed, ended = cursor.take_rows(writing.log[1:3])
    assert isinstance(delta, ItemDelta)
    assert (delta.offset, delta.text) == (4, "two")
    assert isinstance(closed, Committed)
    assert isinstance(closed.event, ItemClosed)
    assert isinstance(ended, Committed)
    assert [kind for _, kind in given(cursor, writing.state)] == ["turn_ended", *["items_added"] * 3]


def test_a_reader_exactly_at_the_edge_of_memory_needs_no_log(writing: Writing, message: Callable[..., Message]) -> None:
    cursor = Cursor(1)
    for n in range(2, 6):
        writing.commit(writing.state.plan_add((message(str(n), f"item_{n}"),)))
    assert [seq for seq, _ in given(cursor, writing.state)] == [2, 3, 4, 5]
