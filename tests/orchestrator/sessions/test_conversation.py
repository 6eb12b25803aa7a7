"""The items that are kept for a model, whatever comes and goes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.content import Call, CallResult, Item, Message, TextPart, text_of
from models.errors import BadInput, Conflict, LimitExceeded, NotFound
from orchestrator.sessions.conversation import Conversation
from orchestrator.sessions.order import FRONT


def said(item_id: str, text: str = "hello") -> Message:
    return Message(item_id=item_id, role="user", parts=(TextPart(text=text),))


def call(call_id: str, item_id: str = "item_call") -> Call:
    return Call(item_id=item_id, call_id=call_id, name="pay", arguments="{}")


def result(call_id: str, item_id: str = "item_result") -> CallResult:
    return CallResult(item_id=item_id, call_id=call_id, parts=(TextPart(text="paid"),))


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(items=4, characters=20, item_characters=10)


@settings(max_examples=200, derandomize=True)
@given(st.lists(st.integers(0, 65_535), max_size=60))
def test_it_stays_within_its_bounds_and_its_books_agree_with_its_items(steps: list[int]) -> None:
    conversation = Conversation(items=4, characters=20, item_characters=100)
    kept: list[Item] = []
    has_left = False
    for n, number in enumerate(steps):
        chance = random.Random(number)
        if kept and chance.random() < 0.3:
            gone = [item.item_id for item in chance.sample(kept, chance.randint(1, len(kept)))]
            conversation.remove([*gone, "item_that_left_before"])
            kept = [item for item in kept if item.item_id not in gone]
        else:
            item = said(f"item_{n}", "x" * chance.randint(0, 30))
            if chance.random() < 0.3:
                conversation.take(item, audio_ms=chance.choice((0, 7)))
                kept.append(item)
            else:
                at = chance.randint(0, len(kept))
                conversation.add((item,), kept[at - 1].item_id if at else "root")
                if at or not has_left:  # what comes before all that has left is not here
                    kept.insert(at, item)
            if item in kept:
                conversation.playback.hear(item.item_id, 3)
            while len(kept) > 4 or (sum(len(text_of(item)) for item in kept) > 20 and len(kept) > 1):
                kept.pop(0)
                has_left = True
            conversation.trim()
        assert conversation.items == kept
        known = {item.item_id for item in kept}
        assert conversation._characters == sum(len(text_of(item)) for item in kept)
        assert set(conversation.playback.coming) == known
        assert set(conversation.playback.sounds_ms) <= known


def test_it_is_full_from_when_older_items_would_have_no_place(conversation: Conversation) -> None:
    for n in range(3):
        conversation.add((said(str(n), ""),))
        assert (conversation.trim(), conversation.full) == (0, False)
    conversation.add((said("3", ""),))
    assert (conversation.trim(), conversation.full) == (0, True)
    conversation.add((said("4", ""), said("5", "")))
    assert (conversation.trim(), conversation.full) == (2, True)
    conversation.remove(["4", "5"])
    assert (conversation.trim(), conversation.full) == (0, True)  # what left then does not come back


def test_the_newest_item_stays_however_long_it_is(conversation: Conversation) -> None:
    conversation.add((said("old"), said("new", "x" * 50)))
    assert conversation.trim() == 1
    assert [item.item_id for item in conversation.items] == ["new"]


def test_an_item_that_is_too_long_is_refused_with_the_limit(conversation: Conversation) -> None:
    conversation.check_new((said("a", "x" * 10),))
    with pytest.raises(
        LimitExceeded, match="too long: an item has 11 characters, and the maximum here is 10"
    ) as refused:
        conversation.check_new((said("a", "x" * 11),))
    assert refused.value.field == "item"


@pytest.mark.parametrize(
    ("there", "new", "error"),
    [
        ((said("a"),), (said("a"),), Conflict),
        ((), (said("a"), said("a")), Conflict),
        ((), (result("call_1"),), NotFound),
        ((), (result("call_1"), call("call_1")), NotFound),
        ((call("call_1"),), (call("call_1", "item_again"),), Conflict),
        ((), (call("call_1"), call("call_1", "item_again")), Conflict),
        ((call("call_1"),), (result("call_1"), result("call_1", "item_again")), Conflict),
        ((call("call_1"), result("call_1")), (result("call_1", "item_again"),), Conflict),
    ],
    ids=[
        "id taken",
        "id twice",
        "no call",
        "call comes later",
        "call taken",
        "call twice",
        "answered twice at once",
        "answered before",
    ],
)
def test_what_would_break_it_is_refused(
    conversation: Conversation, there: tuple[Item, ...], new: tuple[Item, ...], error: type[Exception]
) -> None:
    conversation.add(there)
    with pytest.raises(error):
        conversation.check_new(new)
    assert conversation.items == list(there)


@pytest.mark.parametrize("after", [FRONT, "a"])
def test_a_result_has_no_place_before_its_call(conversation: Conversation, after: str) -> None:
    conversation.add((said("a"), call("call_1"), said("b")))
    with pytest.raises(BadInput) as refused:
        conversation.check_place((result("call_1"),), after, left=False, open_indexes={})
    assert refused.value.field == "previous_item_id"
    for good in ("item_call", "b", None):
        conversation.check_place((result("call_1"),), good, left=False, open_indexes={})


def test_there_has_to_be_what_an_item_is_to_come_after(conversation: Conversation) -> None:
    conversation.add((said("a"),))
    with pytest.raises(NotFound) as refused:
        conversation.check_place((said("b"),), "gone", left=False, open_indexes={"open": 0})
    assert (refused.value.code, refused.value.field) == ("item_not_found", "previous_item_id")
    for good in (None, FRONT, "a", "open"):
        conversation.check_place((said("b"),), good, left=False, open_indexes={"open": 0})
    conversation.check_place((said("b"),), "long_ago", left=True, open_indexes={})


def test_a_call_may_come_together_with_its_result(conversation: Conversation) -> None:
    conversation.check_new((call("call_1"), result("call_1")))
