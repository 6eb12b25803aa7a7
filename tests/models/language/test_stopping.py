"""Stop strings in text that comes in pieces."""

from hypothesis import example, given
from hypothesis import strategies as st

from models.language.stopping import StopFilter

_STOPS = st.lists(st.text(alphabet="ab\n", max_size=4), max_size=4).map(tuple)
_PIECES = st.lists(st.text(alphabet="ab\n", max_size=4), max_size=12)


def _through(stops: tuple[str, ...], pieces: list[str]) -> str:
    stopping = StopFilter(stops)
    return "".join([stopping.feed(piece) for piece in pieces]) + stopping.flush()


def test_text_passes_at_once_if_nothing_could_stop_it():
    stopping = StopFilter(("END",))
    assert stopping.feed("the sea ") == "the sea "
    assert not stopping.stopped


def test_only_what_could_become_a_stop_string_is_held_back():
    stopping = StopFilter(("END",))
    assert stopping.feed("the E") == "the "
    assert stopping.feed("N") == ""
    assert stopping.feed("emy") == "ENemy"


def test_a_stop_string_that_spans_pieces_is_never_shown():
    stopping = StopFilter(("END",))
    assert [stopping.feed(piece) for piece in ("sea E", "N", "D and more", " still")] == ["sea ", "", "", ""]
    assert stopping.stopped
    assert stopping.flush() == ""


def test_what_was_held_back_is_shown_when_the_text_ends():
    stopping = StopFilter(("END",))
    assert stopping.feed("the EN") == "the "
    assert stopping.flush() == "EN"
    assert stopping.flush() == ""


def test_an_empty_stop_string_stops_nothing():
    assert _through(("",), ["a", "b"]) == "ab"


def test_a_character_of_several_code_points_may_stop():
    assert _through(("👩‍🚀",), ["go 👩", "‍🚀 up"]) == "go "


@example(stops=("abab", "ba"), pieces=["aba"])  # the second is complete first, inside what might become the first
@example(stops=("ab", "b"), pieces=["a", "b"])  # both end at one place
@given(stops=_STOPS, pieces=_PIECES)
def test_what_passes_is_what_comes_before_the_stop_string_that_is_complete_first(stops, pieces):
    text, passed = "".join(pieces), _through(stops, pieces)
    wanted = [stop for stop in stops if stop]
    assert text.startswith(passed)
    assert not any(stop in passed for stop in wanted)
    if passed != text:
        met = [passed + stop for stop in wanted if text.startswith(passed + stop)]
        assert met
        # Before the last character of the one that was met, none was complete.
        assert not any(stop in min(met, key=len)[:-1] for stop in wanted)


@given(stops=_STOPS, pieces=_PIECES)
def test_how_the_text_is_cut_into_pieces_does_not_matter(stops, pieces):
    assert _through(stops, pieces) == _through(stops, list("".join(pieces)))
