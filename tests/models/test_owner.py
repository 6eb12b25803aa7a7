"""Whose something is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadInput
from models.owner import MOST_CHARACTERS, Owner, subject_of


@pytest.mark.parametrize(
    "named", ["x" * (MOST_CHARACTERS + 1), " ada", "ada ", "a\nb", "a\0b", "*", "*sess_1", "\ud800", "a\u2028b", "\x7f"]
)
def test_a_subject_that_no_header_could_carry_or_that_looks_like_a_session_is_refused_by_its_field(named: str) -> None:
    with pytest.raises(BadInput) as refused:
        subject_of(named, "safety_identifier")
    assert refused.value.field == "safety_identifier"


@pytest.mark.parametrize("named", ["ada", "ada@example.org", "user 7", "Zoë", "世界", "a*", "x" * MOST_CHARACTERS])
def test_what_applications_call_their_users_is_taken_as_it_is(named: str) -> None:
    assert subject_of(named, "user") == named


@pytest.mark.parametrize("named", [None, ""])
def test_no_name_is_nobody(named: str | None) -> None:
    assert subject_of(named, "user") is None


@given(named=st.text(max_size=200), place=st.text(max_size=40))
def test_nobody_can_be_named_like_a_session_of_the_unnamed(named: str, place: str) -> None:
    own = Owner.unnamed("acme").within(place)
    try:
        subject = subject_of(named, "user")
    except BadInput:
        return
    assert Owner("acme", subject) != own
    assert Owner("acme", subject).within(place) == Owner("acme", subject)


@given(places=st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_of_the_unnamed_each_session_is_another_ones(places: list[str]) -> None:
    one, other = (Owner.unnamed("acme").within(place) for place in places)
    assert one != other
    assert one.within(places[1]) == one
    assert one.name is None
