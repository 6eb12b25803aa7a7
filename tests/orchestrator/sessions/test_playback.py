"""From milliseconds of playback to the words that were heard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.content import AudioPart, BlobRef, Call, ImagePart, Message, TextPart, text_of
from orchestrator.events import PlaybackHeard
from orchestrator.sessions.playback import CUT_OFF, Mark, Playback, cut_off, heard_characters, word_end

BLOB = BlobRef(sha256="0" * 64, media_type="audio/pcm", size_bytes=2)
TEXT = TextPart(text="one two", source="generated")


def said(text: str) -> Message:
    return Message(item_id="a", role="assistant", parts=(TextPart(text=text, source="generated"),))


@pytest.mark.parametrize(
    ("text", "at", "end"),
    [
        ("one two three", 7, "one two"),
        ("one two three", 6, "one"),
        ("one two three", 4, "one"),
        ("one two three", 2, ""),
        ("one two three", 0, ""),
        ("one, two", 3, "one"),
        ("it costs 3.14 euros", 11, "it costs"),
        ("it\u2019s not", 3, ""),
        ("a well-known fact", 6, "a"),
        ("write to a@b.example now", 12, "write to"),
        ("the end.", 7, "the end."),  # nobody says the stop
        ("cafe\u0301 au lait", 4, ""),
        ("go \U0001f469\u200d\U0001f3a4 now", 5, "go"),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d", 2, "\u4eca\u5929"),
        ("\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49", 3, "\u0e27\u0e31\u0e19"),
    ],
)
def test_what_was_heard_ends_with_a_whole_word(text: str, at: int, end: str) -> None:
    assert text[: word_end(text, at)] == end


@given(st.text(max_size=60), st.integers(0, 60))
def test_the_end_of_a_word_is_not_behind_what_was_heard_unless_nothing_is_left_to_hear(text: str, at: int) -> None:
    at = min(at, len(text))
    end = word_end(text, at)
    if end > at:
        assert end == len(text)
        assert not any(character.isalnum() for character in text[at:])
    else:
        assert word_end(text, end) in (end, len(text)), "cut again, it is another one"


@given(
    st.text(alphabet="ab .\u0301\u4eca", max_size=60),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 99)), max_size=12),
)
def test_who_hears_longer_hears_no_less_and_to_the_end_everything_that_was_spoken(
    text: str, steps: list[tuple[int, int]]
) -> None:
    marks, at = [], Mark(0, 0)
    for characters, ms in steps:
        at = Mark(min(at.characters + characters, len(text)), at.ms + ms)
        marks.append(at)
    heard = [heard_characters(text, marks, 500, ms) for ms in range(0, (at.ms or 500) + 1)]
    assert heard == sorted(heard)
    assert heard[-1] == word_end(text, at.characters if marks else len(text))
    assert heard[0] in (0, word_end(text, 0))


def test_between_marks_and_without_any_words_are_taken_to_be_spoken_evenly() -> None:
    text = "one two three four"
    assert text[: heard_characters(text, (), 1800, 800)] == "one two"
    marks = (Mark(7, 1000), Mark(7, 2000), Mark(18, 3000))  # a pause in the middle
    for ms, words in ((400, ""), (500, "one"), (1999, "one two"), (2500, "one two"), (2700, "one two three")):
        assert text[: heard_characters(text, marks, 0, ms)] == words


def test_of_a_silence_only_its_ends_are_kept() -> None:
    playback = Playback()
    for ms in range(1, 1000):
        playback.speak("a", ((3, ms),), 3)
    playback.speak("a", tuple((3, ms) for ms in range(1000, 2000)), 3)
    assert playback.marks["a"] == [Mark(3, 1), Mark(3, 1999)]


def test_the_cut_keeps_pictures_and_leaves_sound_and_words_behind_it_out() -> None:
    picture = ImagePart(blob=BLOB, width_px=1, height_px=1)
    sound = AudioPart(blob=BLOB, rate_hz=1, samples=1)
    message = Message(item_id="a", role="assistant", parts=(TEXT, picture, TEXT, sound, TEXT))
    cut = cut_off(message, 10)
    assert text_of(cut) == "one twoone" + CUT_OFF
    assert [part.kind for part in cut.parts] == ["text", "image", "text", "text"]
    assert cut.status == "incomplete"
    assert text_of(cut_off(message, 0)) == CUT_OFF.lstrip()


def test_only_what_the_assistant_says_is_cut() -> None:
    playback = Playback()
    playback.logged(PlaybackHeard(item_id="a", heard_ms=0, heard_characters=0))
    call = Call(item_id="a", call_id="c", name="f", arguments="{}")
    user = Message(item_id="a", role="user", parts=(TEXT,))
    assert (playback.as_heard(call), playback.as_heard(user)) == (call, user)
    assert text_of(playback.as_heard(said("one two"))) == CUT_OFF.lstrip()


def test_a_row_of_when_characters_were_not_told_cuts_nothing() -> None:
    playback = Playback(sounds_ms={"a": 1000})
    playback.logged(PlaybackHeard(item_id="a", heard_ms=300))
    assert playback.as_heard(said("one two")) == said("one two")


def test_playback_goes_forward_until_it_stops_and_is_logged_once() -> None:
    playback = Playback(sounds_ms={"a": 100})
    playback.hear("a", 60)
    playback.hear("a", 40)
    row = playback.row("a", "one two", 100)
    assert (row.heard_ms, row.heard_characters) == (60, 3)
    playback.hear("a", 80)  # while that is being written
    playback.logged(row)
    assert playback.coming["a"].ms == 80
    playback.stop("a", 50)  # less than was thought
    playback.hear("a", 90)
    row = playback.row("a", "one two", 100)
    assert (row.heard_ms, row.is_over) == (50, True)
    playback.logged(row)
    playback.hear("a", 90)
    assert not playback.coming
    assert playback.heard["a"].ms == 50
