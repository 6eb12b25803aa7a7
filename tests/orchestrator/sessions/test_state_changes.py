"""Items that are taken out of a conversation, and settings that change: examples for the pure session."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.sessions import Steps

from models.content import AudioDelta, Call, CallResult, Item, Message, TextPart
from models.errors import Conflict, NotFound
from orchestrator.events import (
    Committed,
    ItemsAdded,
    ItemsRemoved,
    LogEvent,
    PlaybackHeard,
    SessionSettings,
    SettingsChanged,
    title_of,
)
from orchestrator.sessions.playback import Playback
from orchestrator.sessions.state import SessionState

CALL = Call(item_id="item_call", call_id="call_1", name="pay", arguments="{}")
RESULT = CallResult(item_id="item_result", call_id="call_1", parts=(TextPart(text="paid", source="tool"),))


@pytest.fixture
def add(message: Callable[..., Message]) -> Callable[..., None]:
    """Return what adds messages, each under its text as its id."""
    return lambda steps, *texts: steps.add(*(message(text, text) for text in texts))


def ids(state: SessionState) -> list[str]:
    return [item.item_id for item in state.items]


def fold(steps: Steps, *events: LogEvent) -> SessionState:
    """Return a state that takes all of a log at once."""
    state = SessionState(steps.state.limits)
    state.apply([Committed(seq=seq, at_ms=0, event=event) for seq, event in enumerate(events, start=1)], 0.0)
    return state


# Removing


def test_what_is_removed_is_gone_and_the_rest_keeps_its_order(steps: Steps, add: Callable[..., None]) -> None:
    add(steps, "a", "b", "c", "d")
    assert steps.write(steps.state.plan_remove(("c", "a"))) == (
        ItemsRemoved(item_ids=("c", "a"), redacted=("c", "a"), untitled=True),
    )
    assert ids(steps.state) == ["b", "d"]


def test_removing_nothing_needs_no_row(steps: Steps) -> None:
    assert steps.state.plan_remove(()) == ()


def test_an_item_that_is_not_there_is_not_removed_and_neither_are_the_others(
    steps: Steps, add: Callable[..., None]
) -> None:
    add(steps, "a")
    with pytest.raises(NotFound) as refused:
        steps.state.plan_remove(("a", "z"))
    assert (refused.value.code, refused.value.field) == ("item_not_found", "item_id")
    assert "'z'" in refused.value.message
    assert ids(steps.state) == ["a"]


def test_nothing_is_removed_from_under_a_turn_that_was_shown_it(steps: Steps, add: Callable[..., None]) -> None:
    add(steps, "a")
    generation = steps.propose()
    rows = steps.state.plan_accept("turn_1", generation, steps.decision, asked_s=steps.now_s)
    for when in ("being accepted", "running"):
        with pytest.raises(Conflict) as refused:
            steps.state.plan_remove(("a",))
        assert refused.value.code == "turn_active", when
        steps.write(rows)
        rows = ()
    steps.end()
    steps.write(steps.state.plan_remove(("a",)))
    assert ids(steps.state) == []


def test_an_id_that_was_removed_may_be_used_again(
    steps: Steps, add: Callable[..., None], message: Callable[..., Message]
) -> None:
    add(steps, "a")
    steps.write(steps.state.plan_remove(("a",)))
    steps.add(message("said otherwise", "a"))
    assert steps.state.items == [message("said otherwise", "a")]


def test_a_call_that_was_removed_can_no_longer_be_answered(steps: Steps) -> None:
    steps.add(CALL)
    steps.write(steps.state.plan_remove((CALL.item_id,)))
    with pytest.raises(NotFound) as refused:
        steps.state.plan_add((RESULT,))
    assert refused.value.field == "call_id"


def test_an_answer_that_was_removed_may_be_given_anew(steps: Steps) -> None:
    steps.add(CALL, RESULT)
    steps.write(steps.state.plan_remove((RESULT.item_id,)))
    steps.add(RESULT)
    assert steps.state.items == [CALL, RESULT]


def test_what_had_left_before_does_not_come_back_into_the_room_of_what_was_removed(
    new_steps: Callable[..., Steps], message: Callable[..., Message]
) -> None:
    steps = new_steps(items=2)
    events: list[LogEvent] = [ItemsAdded(items=(message(text, text),)) for text in ("a", "b", "c")]
    events.append(ItemsRemoved(item_ids=("c",)))
    for event in events:
        steps.write((event,))
    assert ids(steps.state) == ["b"]
    assert ids(fold(steps, *events)) == ["b"]


def test_the_removal_of_what_has_left_is_folded_without_a_word(
    new_steps: Callable[..., Steps], add: Callable[..., None]
) -> None:
    steps = new_steps(items=1)
    add(steps, "a", "b")
    steps.write((ItemsRemoved(item_ids=("a",)),))
    assert ids(steps.state) == ["b"]


def test_removed_characters_make_room_for_others(
    new_steps: Callable[..., Steps], message: Callable[..., Message]
) -> None:
    steps = new_steps(history_characters=10)
    steps.add(message("12345", "a"), message("12345", "b"))
    steps.write(steps.state.plan_remove(("a",)))
    steps.add(message("12345", "c"))
    assert ids(steps.state) == ["b", "c"]


def test_the_playback_of_what_was_removed_meanwhile_is_not_logged(steps: Steps) -> None:
    steps.accept()
    steps.take(AudioDelta(pcm=b"\0\0" * 300, rate_hz=1_000), "item_spoken")
    steps.end()
    rows = steps.state.plan_remove(("item_spoken",))
    steps.state.heard("item_spoken", 100)  # while that is being written
    steps.write(rows)
    assert steps.state._plan_heard() == ()
    with pytest.raises(NotFound):
        steps.state.heard("item_spoken", 200)


def test_the_playback_of_what_leaves_with_the_same_rows_leaves_nothing_behind(
    new_steps: Callable[..., Steps],
) -> None:
    steps = new_steps(items=1)
    steps.accept()
    steps.take(AudioDelta(pcm=b"\0\0" * 300, rate_hz=1_000), "item_first")
    steps.end()
    steps.accept(turn_id="turn_2")
    steps.take(AudioDelta(pcm=b"\0\0" * 300, rate_hz=1_000), "item_second")
    steps.state.heard("item_first", 100)
    closed, _, heard, _ = steps.end()
    assert closed.kind == "item_closed"
    assert heard == PlaybackHeard(item_id="item_first", heard_ms=100, heard_characters=0)
    assert ids(steps.state) == ["item_second"]
    assert steps.state._conversation.playback == Playback(sounds_ms={"item_second": 300})


# Settings


def test_a_session_is_called_after_its_first_message_until_somebody_renames_it(
    steps: Steps, message: Callable[..., Message]
) -> None:
    assert steps.state.settings == SessionSettings()
    steps.add(replace(message("You are terse.", "item_0"), role="system"))
    assert steps.state.settings.title is None
    steps.accept(message("Hello,\n  world!", "item_1"))
    assert steps.state.settings.title == "Hello, world!"
    steps.end()
    steps.add(message("And now?", "item_2"))
    assert steps.state.settings.title == "Hello, world!"
    steps.change(title="Greetings")
    steps.add(message("And then?", "item_3"))
    assert steps.state.settings.title == "Greetings"


def test_a_session_whose_title_was_taken_away_is_called_after_its_next_message(
    steps: Steps, message: Callable[..., Message]
) -> None:
    steps.add(message("One", "item_1"))
    steps.change(title=None)
    assert steps.state.settings.title is None
    steps.add(message("Two", "item_2"))
    assert steps.state.settings.title == "Two"


def test_a_title_that_came_before_the_first_message_stays(steps: Steps, message: Callable[..., Message]) -> None:
    steps.change(title="Plans")
    steps.add(message("Hello", "item_1"))
    assert steps.state.settings.title == "Plans"


def test_a_title_goes_with_the_message_whose_words_it_has_and_the_next_one_names_the_session(
    steps: Steps, message: Callable[..., Message]
) -> None:
    steps.add(message("Hello", "item_1"), message("and this", "item_2"))
    steps.write(steps.state.plan_remove(("item_2",)))
    assert steps.state.settings.title == "Hello"
    steps.write(steps.state.plan_remove(("item_1",)))
    assert steps.state.settings.title is None
    steps.add(message("Anew", "item_3"))
    assert steps.state.settings.title == "Anew"


def test_a_title_of_other_words_stays_when_the_first_message_goes(
    steps: Steps, message: Callable[..., Message]
) -> None:
    steps.add(message("Hello", "item_1"))
    steps.change(title="Plans")
    steps.write(steps.state.plan_redact(("item_1",)))
    assert steps.state.settings.title == "Plans"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ("word " * 20, ("word " * 20)[:59].rstrip() + "…"),
        (" \n\t ", None),
        ("", None),
    ],
)
def test_a_title_is_one_short_line(text: str, title: str | None, message: Callable[..., Message]) -> None:
    assert title_of(ItemsAdded(items=(message(text, "item_1"),))) == title


@pytest.mark.parametrize(
    "item",
    [CALL, RESULT, Message(item_id="item_1", role="assistant", parts=(TextPart(text="Hello"),))],
    ids=lambda item: item.kind,
)
def test_only_words_of_the_user_name_a_session(item: Item) -> None:
    assert title_of(ItemsAdded(items=(item,))) is None


def test_settings_that_hold_already_need_no_row_unless_one_is_wanted(steps: Steps) -> None:
    assert steps.state.plan_change(SessionSettings()) == ()
    assert steps.state.plan_change(SessionSettings(), always=True) == (SettingsChanged(settings=SessionSettings()),)
    brief = SessionSettings(instructions="Be brief.", model="small")
    assert steps.write(steps.state.plan_change(brief)) == (SettingsChanged(settings=brief),)
    assert steps.state.settings == brief
    assert steps.state.plan_change(brief) == ()


def test_settings_may_change_while_a_turn_runs(steps: Steps) -> None:
    steps.accept()
    steps.change(model="large")
    assert steps.state.turn is not None
    assert steps.state.settings.model == "large"
