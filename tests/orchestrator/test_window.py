"""What of a conversation a model is shown: what is said now always, of the rest the newest, and calls with their results."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.content import BlobRef, Call, CallResult, ImagePart, Item, Message, Role, TextPart
from models.language.tokens import EstimatedTokens
from models.ports.generate import ToolConstraint, ToolSpec
from orchestrator.events import TurnInput
from orchestrator.window import (
    ITEM_TOKENS,
    Window,
    costs_of,
    count_tokens,
    most_tokens,
    paired,
    places_now,
    said_now,
    shown,
    words_of,
)

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


def call(n: int, call_id: str = "") -> Call:
    return Call(item_id=f"item_c{n}", call_id=call_id or f"call_{n}", name="add", arguments="{}")


def result(n: int, text: str = "4", call_id: str = "") -> CallResult:
    return CallResult(item_id=f"item_r{n}", call_id=call_id or f"call_{n}", parts=(TextPart(text=text),))


def room(tokens: int, answer: int = 1) -> Window:
    """So many tokens for items, if the answer has its one."""
    return Window(tokens=tokens + answer, fixed_tokens=0, answer_tokens=answer, spare_tokens=0)


def ids(items: Sequence[Item]) -> list[str]:
    return [item.item_id for item in items]


def tokens(items: Sequence[Item], window: Window) -> int:
    return sum(costs_of(items, window, Words()))


# What is said now


@pytest.mark.parametrize(
    ("items", "now"),
    [
        ([said("user", "a", 1)], ["item_1"]),
        ([said("user", "a", 1), said("assistant", "b", 2), said("user", "c", 3)], ["item_3"]),
        ([said("user", "a", 1), said("user", "b", 2)], ["item_2"]),
        ([said("user", "a", 1), call(1), result(1)], ["item_1", "item_c1", "item_r1"]),
        ([said("user", "a", 1), call(1), result(1), call(2), result(2)], ["item_1", "item_c2", "item_r2"]),
        (
            [said("user", "a", 1), call(1), call(2), result(2), result(1)],
            ["item_1", "item_c1", "item_c2", "item_r2", "item_r1"],
        ),
        ([said("user", "a", 1), call(1), call(2), result(2)], ["item_1", "item_c1", "item_c2", "item_r2"]),
        (
            [said("user", "a", 1), call(1), result(1), said("system", "b", 2)],
            ["item_1", "item_c1", "item_r1", "item_2"],
        ),
        (
            [said("user", "a", 1), call(1), result(1), said("assistant", "b", 2)],
            ["item_1", "item_c1", "item_r1", "item_2"],
        ),
        ([said("user", "a", 1), said("assistant", "b", 2)], ["item_1", "item_2"]),
        (
            [said("user", "a", 1), call(1), said("user", "b", 2), said("assistant", "c", 3), result(1)],
            ["item_c1", "item_2", "item_r1"],
        ),
        (
            [said("user", "a", 1), call(1, "x"), result(1, call_id="x"), call(2, "x"), result(2, call_id="x")],
            ["item_1", "item_c2", "item_r2"],
        ),
        ([said("system", "a", 1)], ["item_1"]),
        ([], []),
    ],
    ids=[
        "a question",
        "the newest question",
        "several in a row",
        "a call and its result",
        "not what the model has gone on from",
        "calls in parallel",
        "a result that is still missing",
        "instructions in the middle",
        "an answer begun, after a result",
        "an answer begun",
        "a late result brings its call",
        "ids that serve again",
        "instructions alone",
        "nothing",
    ],
)
def test_what_is_said_now_is_the_last_user_message_and_every_open_call_with_its_results(
    items: list[Item], now: list[str]
) -> None:
    assert [items[at].item_id for at in sorted(places_now(items))] == now


def test_beside_it_are_instructions_tools_and_the_answers_place() -> None:
    turn_input = TurnInput(instructions="Be brief.", items=(said("user", "hello"),), tools=TOOLS)
    functions = '{"name": "add", "description": "Adds.", "parameters": {"type":"object"}}'
    assert said_now(turn_input, (said("user", "before"),)) == ["Be brief.", functions, "", "hello"]
    assert said_now(TurnInput(), ()) == ["", ""]


def test_a_call_without_a_result_takes_what_is_said_in_its_place() -> None:
    words = said_now(TurnInput(), (said("user", "hello"), call(1)))
    assert words[2:] == ["hello", words_of(call(1)), "The outcome of this call is unknown."]


# What is shown


def _conversation(shapes: list[tuple[str, int, int]]) -> list[Item]:
    """Turn shapes into items: what is said, calls one after another or at once, results soon, late or never."""
    items: list[Item] = []
    waiting: list[CallResult] = []
    for n, (shape, size, late) in enumerate(shapes):
        words = "word " * size
        match shape:
            case "user" | "assistant" | "system":
                items.append(said(shape, words, n))
            case _:
                made = [n * 10 + each for each in range(2 if shape == "calls" else 1)]
                items += [call(each) for each in made]
                waiting += [result(each, words) for each in made]
        if late == 0:
            items += waiting
            waiting = []
    return [*items, *(waiting if len(shapes) % 2 else ())]


_SHAPES = st.lists(
    st.tuples(st.sampled_from(("user", "assistant", "system", "call", "calls")), st.integers(0, 20), st.integers(0, 2)),
    max_size=14,
)


@settings(max_examples=600, derandomize=True)
@given(_SHAPES, st.integers(1, 400), st.integers(1, 100))
def test_whatever_was_said_what_is_shown_is_whole_in_order_and_fits(
    shapes: list[tuple[str, int, int]], most: int, answer: int
) -> None:
    items, window = paired(_conversation(shapes)), room(most, answer)
    kept = shown(items, window, Words())
    assert kept == shown(items, window, Words())
    now = [items[at] for at in sorted(places_now(items))]
    # What is said now is shown, in the order of all.
    assert [item for item in kept if item in now] == now
    assert ids(kept) == [item_id for item_id in ids(items) if item_id in set(ids(kept))]
    # No result without its call, no call without its result.
    calls = {item.call_id for item in kept if isinstance(item, Call)}
    answered = {item.call_id for item in items if isinstance(item, CallResult)}
    results = {item.call_id for item in kept if isinstance(item, CallResult)}
    assert results == calls & answered
    # It fits, if what is said now does.
    if tokens(now, window) <= window.item_tokens(tokens(now, window)):
        assert tokens(kept, window) <= window.item_tokens(tokens(now, window))
    else:
        assert list(kept) == now
    if len(kept) < len(items):
        # It begins with what somebody else than the model said, or with what is said now.
        first = kept[0]
        assert first in now or (isinstance(first, Message) and first.role != "assistant")
        # What is left out is older than what is kept of the rest.
        rest = [item for item in kept if item not in now]
        if rest:
            at = items.index(rest[0])
            gone = [item for item in items[at:] if item not in kept]
            assert all(isinstance(item, CallResult) for item in gone), "only results whose call is older"
    assert shown(kept, window, Words()) == kept


@settings(max_examples=150, derandomize=True)
@given(st.integers(0, 30), st.integers(1, 30), st.integers(200, 900), st.integers(1, 300))
def test_turn_after_turn_it_begins_with_the_same_item_until_the_window_is_full(
    asked: int, answered: int, most: int, answer: int
) -> None:
    window = room(most, answer)
    items: list[Item] = []
    cuts: list[int] = []
    beginnings: list[tuple[str, int]] = []
    for n in range(120):
        items.append(said("user", "word " * asked, 2 * n))
        kept = shown(items, window, Words())
        first = kept[0].item_id
        if beginnings and beginnings[-1][0] != first:
            assert items.index(kept[0]) > cuts[-1], "what had left came back"
            cuts.append(items.index(kept[0]))
            beginnings.append((first, tokens(kept, window)))
        elif not beginnings:
            cuts.append(0)
            beginnings.append((first, 0))
        items.append(said("assistant", "word " * answered, 2 * n + 1))
    # A step is half of what there is room for: so much is said between two cuts, but for an exchange at either end.
    exchange = asked + answered + 2 * ITEM_TOKENS
    sizes = [sum(costs_of(items[a:b], window, Words())) for a, b in itertools.pairwise(cuts)]
    assert all(size >= window.step_tokens - 2 * exchange for size in sizes)


def test_of_a_loop_of_calls_the_question_and_the_last_result_stay_and_older_pairs_go_whole() -> None:
    pairs = [each for n in range(8) for each in (call(n), result(n, "word " * 1000))]
    items = [said("user", "What is it?", 1), *pairs, call(8), result(8, "The secret is 4711.")]
    kept = shown(items, room(4_000), Words())
    assert ids(kept)[0] == "item_1"
    assert ids(kept)[-2:] == ["item_c8", "item_r8"]
    assert ids(kept)[1:-2] == [
        each for n in range(8 - (len(kept) - 3) // 2, 8) for each in (f"item_c{n}", f"item_r{n}")
    ]
    assert len(kept) > 3


def test_where_everything_fits_it_may_begin_with_the_assistant() -> None:
    history = [said("assistant", "How can I help?", 1), said("user", "Tell me.", 2)]
    assert shown(history, room(100), Words()) == history


def test_of_an_item_no_more_is_counted_than_shows_that_it_does_not_fit() -> None:
    counter = Words()
    shown([said("user", "word " * 40_000, 1), said("user", "hello", 2)], room(60), counter)
    assert counter.asked <= 4


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=5))
def test_the_bound_holds_for_what_counts_within_it(texts: list[str]) -> None:
    assert count_tokens(texts, EstimatedTokens()) <= most_tokens(texts)


def test_a_call_that_was_cut_short_and_a_result_without_its_call_are_not_shown() -> None:
    cut = Call(item_id="item_1", call_id="call_1", name="add", arguments="{", status="incomplete")
    assert paired([result(9), cut, result(1), call(2), result(2)]) == [call(2), result(2)]


def test_pictures_take_their_part_of_the_window() -> None:
    """Five of a telephone's camera once counted as nothing."""
    blob = BlobRef(sha256="0" * 64, media_type="image/jpeg", size_bytes=1)
    pictures = tuple(ImagePart(blob=blob, width_px=4_032, height_px=3_024) for _ in range(5))
    seen = Message(item_id="item_1", role="user", parts=(TextPart(text="look"), *pictures))
    plain = Message(item_id="item_2", role="user", parts=(TextPart(text="look"),))
    window = Window(tokens=100_000, fixed_tokens=0, answer_tokens=100, spare_tokens=0)
    with_pictures, without = costs_of([seen, plain], window, EstimatedTokens())
    assert with_pictures - without == 5 * (85 + 8 * 6 * 170)
