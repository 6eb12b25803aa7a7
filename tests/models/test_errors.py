"""Errors are data: whatever crosses from a worker is what was raised there."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import errors
from models.errors import BatonError, context_overflow, too_long

_CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BatonError)]

_RETRYABLE = {"DeadlineExceeded", "Overloaded", "Unavailable", "Internal", "WorkerDied", "FetchFailed"}

_every_class = pytest.mark.parametrize("kind", _CLASSES, ids=lambda kind: kind.__name__)


def _fields(error: BatonError) -> tuple[object, ...]:
    return type(error), error.message, str(error), error.code, error.field, error.retryable, error.retry_after_s


@_every_class
@given(
    message=st.text(),
    code=st.none() | st.text(),
    field=st.none() | st.text(),
    retryable=st.none() | st.booleans(),
    retry_after_s=st.none() | st.floats(min_value=0),
)
def test_an_error_is_the_same_after_pickling(kind, message, code, field, retryable, retry_after_s):
    error = kind(message, code=code, field=field, retryable=retryable, retry_after_s=retry_after_s)
    assert _fields(pickle.loads(pickle.dumps(error))) == _fields(error)


@_every_class
def test_an_error_without_a_code_of_its_own_has_that_of_its_class(kind):
    assert kind("what is wrong").code == kind.code


@_every_class
def test_a_code_of_its_own_stays_with_one_error(kind):
    assert kind("what is wrong", code="special").code == "special"
    assert kind("what is wrong").code != "special"


@_every_class
def test_only_what_may_succeed_later_is_retryable(kind):
    assert kind.retryable is (kind.__name__ in _RETRYABLE)


def test_two_kinds_of_error_share_no_code_except_a_fault_of_ours_and_its_base():
    codes = [kind.code for kind in _CLASSES if kind is not BatonError]
    assert sorted(codes) == sorted(set(codes))


def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_look_for():
    """In those of litellm's `ExceptionCheckers` and of LangChain's `_handle_openai_bad_request`."""
    for error in (context_overflow(8192, 9000), context_overflow(8192, 9000, or_more=True), too_long("an item", 2, 1)):
        assert error.code == "context_length_exceeded"
        assert "prompt is too long" in error.message
        assert "reduce the length of the messages" in error.message
    assert "This model's maximum context length is 8192 tokens" in context_overflow(8192, 9000).message
    assert "your messages resulted in 9000 tokens" in context_overflow(8192, 9000).message
