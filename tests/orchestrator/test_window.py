"""What of a conversation a model is shown: never more than there is room for, and always its newest part."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.content import Call, CallResult, Item, Message, Role, TextPart, text_of
from models.ports import ToolConstraint, ToolSpec
from models.tokens import EstimatedTokens
from orchestrator.events import TurnInput
from orchestrator.window import ITEM_TOKENS, count_tokens, most_tokens, newest_that_fit, said_now

TOOLS = ToolConstraint(tools=(ToolSpec(name="add", description="Adds.", parameters='{"type":"object"}'),))


class Words:
    """Counts words, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def count(self, text: str) -> int:
        self.asked += 1
        return len(text.split())


def said(role: Role, text: str, n: int = 0) -> Message:
    return Message(item_id=f"item_{n}", role=role, parts=(TextPart(text=text),))


def call(n: int) -> Call:
    return Call(item_id=f"item_{n}", call_id=f"call_{n}", name="add", arguments='{"a": 1}')


def result(n: int) -> CallResult:
    return CallResult(item_id=f"item_{n}", call_id=f"call_{n}", parts=(TextPart(text="4"),))


def tokens(items: Sequence[Item]) -> int:
    return count_tokens([text_of(item) for item in items], Words())


_TEXTS = st.lists(st.sampled_from(("word ", "é ", "longer", " ")), max_size=12).map("".join)
_ITEMS = st.one_of(
    st.builds(said, st.sampled_from(("user", "assistant", "system")), _TEXTS),
    st.builds(call, st.integers(0, 3)),
    st.builds(result, st.integers(0, 3)),
)


@settings(max_examples=400, derandomize=True)
@given(st.lists(_ITEMS, max_size=12), st.integers(0, 160))
def test_what_is_shown_fits_is_the_end_begins_rightly_and_leaves_out_no_more_than_it_has_to(
    history: list[Item], room: int
) -> None:
    shown = newest_that_fit(history, room, Words())
    # Never more than the room, and the end of the history in its order.
    assert tokens(shown) <= room
    assert list(shown) == history[len(history) - len(shown) :]
    if len(shown) == len(history):
        return
    # It begins with what somebody else than the model said.
    if shown:
        assert isinstance(shown[0], Message)
        assert shown[0].role != "assistant"
    # Whatever else could be shown begins wrongly or is too much.
    for longer in range(len(shown) + 1, len(history) + 1):
        more = history[len(history) - longer :]
        begins_wrongly = not isinstance(more[0], Message) or more[0].role == "assistant"
        assert tokens(more) > room or (longer < len(history) and begins_wrongly)


def test_where_everything_fits_it_may_begin_with_the_assistant() -> None:
    history = [said("assistant", "How can I help?"), said("user", "Tell me.")]
    assert newest_that_fit(history, tokens(history), Words()) == history


def test_half_an_exchange_is_left_out() -> None:
    history = [said("user", "one two three", 1), call(2), result(2), said("assistant", "six", 3), said("user", "ok", 4)]
    room = tokens(history) - 1
    assert [item.item_id for item in newest_that_fit(history, room, Words())] == ["item_4"]


def test_nothing_is_shown_where_not_even_the_newest_fits() -> None:
    assert newest_that_fit([said("user", "hello"), said("user", "word " * 50)], 20, Words()) == []


def test_nothing_is_counted_where_the_bytes_fit() -> None:
    history = [said("user", "é" * 10), said("assistant", "hello")]
    counter = Words()
    room = most_tokens([text_of(item) for item in history])
    assert room == 20 + 5 + 2 * ITEM_TOKENS
    assert newest_that_fit(history, room, counter) is history
    assert counter.asked == 0
    assert newest_that_fit(history, room - 1, counter) == history
    assert counter.asked == 2


def test_what_has_no_place_is_not_counted() -> None:
    counter = Words()
    newest_that_fit([said("user", "word " * 20) for _ in range(100)], 60, counter)
    assert counter.asked == 3  # two that fit, and the one that does not


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=5))
def test_the_bound_holds_for_what_counts_within_it(texts: list[str]) -> None:
    assert count_tokens(texts, EstimatedTokens()) <= most_tokens(texts)


def test_what_is_said_now_is_instructions_items_tools_and_the_answers_place() -> None:
    turn_input = TurnInput(instructions="Be brief.", items=(said("user", "hello"), result(1)), tools=TOOLS)
    assert said_now(turn_input) == ["Be brief.", "hello", "4", 'addAdds.{"type":"object"}', ""]


@pytest.mark.parametrize("turn_input", [TurnInput(), TurnInput(instructions="")])
def test_of_nothing_there_are_still_the_marks(turn_input: TurnInput) -> None:
    assert count_tokens(said_now(turn_input), Words()) == 2 * ITEM_TOKENS


def test_the_history_is_taken_as_it_is(message: Callable[..., Message]) -> None:
    assert newest_that_fit((), 0, Words()) == ()
    history = (message("hello", "item_1"),)
    assert newest_that_fit(history, 100, Words()) is history
