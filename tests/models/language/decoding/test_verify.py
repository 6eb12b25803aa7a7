"""Accepting drafts: what is written is what plain decoding writes, whatever was guessed."""

from hypothesis import given
from hypothesis import strategies as st

from models.language.decoding.verify import verified

tokens = st.integers(0, 2)


def _answer(written: list[int]) -> int:
    """Stand for a model: the next token depends on all that was written before it."""
    return (7 * len(written) + 3 * sum(written) + 1) % 3


def _plain(count: int) -> list[int]:
    written: list[int] = []
    while len(written) < count:
        written.append(_answer(written))
    return written


def _asked(draft: list[int]) -> list[int]:
    return [_answer(draft[:after]) for after in range(len(draft) + 1)]


@given(draft=st.lists(tokens, max_size=8))
def test_what_is_written_is_what_would_be_written_without_a_draft(draft: list[int]) -> None:
    written = verified(draft, _asked(draft))
    assert written == _plain(len(written))


@given(draft=st.lists(tokens, max_size=8))
def test_a_draft_is_accepted_as_far_as_it_is_right_and_one_token_more_is_written(draft: list[int]) -> None:
    right = next((at for at, pair in enumerate(zip(draft, _plain(8), strict=False)) if pair[0] != pair[1]), len(draft))
    assert len(verified(draft, _asked(draft))) == right + 1


def test_what_is_tolerated_stays_until_something_is_not() -> None:
    assert verified([1, 2, 3, 4], [0] * 5, lambda place, guess: guess < 3) == [1, 2, 0]
    assert verified([1, 2], [0] * 3, lambda place, guess: True) == [1, 2, 0]


def test_nothing_is_tolerated_unless_that_is_asked_for() -> None:
    assert verified([1], [0, 2]) == [0]
