"""Sound beside the text: in order, never twice, and what a slow reader has missed is said."""

from collections.abc import Callable

from support.sessions import Steps

from models.content import AudioDelta, TextDelta
from orchestrator.events import AudioChunk, Committed, SessionEvent
from orchestrator.sessions.cursor import Cursor
from orchestrator.sessions.sound import SoundRing


def pcm(samples: int, first: int = 0) -> bytes:
    return b"".join(n.to_bytes(2, "little") for n in range(first, first + samples))


def chunks(events: list[SessionEvent] | None) -> list[tuple[int, int, bytes]]:
    return [(event.offset, event.missed, event.pcm) for event in events or [] if isinstance(event, AudioChunk)]


def speak(steps: Steps, samples: int, first: int) -> None:
    assert steps.take(AudioDelta(pcm=pcm(samples, first), rate_hz=1_000))


def test_a_reader_who_keeps_up_is_given_every_sample_before_the_row_that_closes_its_item(steps: Steps) -> None:
    cursor = Cursor(0)
    steps.accept()
    given = []
    for first in range(0, 100, 10):
        speak(steps, 10, first)
        if first % 40 == 0:
            given += cursor.advance(steps.state) or []
    steps.take(TextDelta(text="as it is written"))
    steps.end()
    last = cursor.advance(steps.state)
    assert last is not None
    assert b"".join(sound for _, _, sound in chunks([*given, *last])) == pcm(100)
    assert {missed for _, missed, _ in chunks([*given, *last])} == {0}
    kinds = [event.event.kind if isinstance(event, Committed) else event.kind for event in last]
    assert kinds.index("item_closed") > kinds.index("audio_chunk")


def test_a_slow_reader_is_told_what_it_has_missed_and_holds_up_nobody(new_steps: Callable[..., Steps]) -> None:
    steps = new_steps(sound_bytes=40)  # twenty samples
    slow, quick = Cursor(0), Cursor(0)
    steps.accept()
    speak(steps, 10, 0)
    assert chunks(slow.advance(steps.state)) == chunks(quick.advance(steps.state)) == [(0, 0, pcm(10))]
    for first in range(10, 100, 10):
        speak(steps, 10, first)
        assert chunks(quick.advance(steps.state)) == [(first, 0, pcm(10, first))]
    assert chunks(slow.advance(steps.state)) == [(80, 70, pcm(10, 80)), (90, 0, pcm(10, 90))]
    assert chunks(slow.advance(steps.state)) == []


def test_a_reader_who_comes_late_is_given_what_is_there_and_told_what_is_not(new_steps: Callable[..., Steps]) -> None:
    steps = new_steps(sound_bytes=40)
    steps.accept()
    for first in range(0, 50, 10):
        speak(steps, 10, first)
    assert chunks(Cursor(0).advance(steps.state)) == [(30, 30, pcm(10, 30)), (40, 0, pcm(10, 40))]
    steps.end()
    assert chunks(Cursor(0).advance(steps.state)) == [(30, 30, pcm(10, 30)), (40, 0, pcm(10, 40))]


def test_nobody_is_given_sound_of_a_turn_that_was_interrupted(steps: Steps) -> None:
    cursor = Cursor(0)
    steps.accept()
    speak(steps, 10, 0)
    cursor.advance(steps.state)
    speak(steps, 10, 10)
    generation = steps.propose(turn_id="turn_2")
    steps.write(steps.state.plan_accept("turn_2", generation, steps.decision, asked_s=steps.now_s, interrupts="turn_1"))
    assert chunks(cursor.advance(steps.state)) == []


def test_it_is_bounded_by_bytes_whatever_comes() -> None:
    sound = SoundRing(1_000_000)
    sound.append("a", 0, 24_000, bytes(3_000_000))
    kept = sound.since("a", 0)
    assert 900_000 < sum(len(piece.pcm) for piece in kept) <= 1_000_000
    assert kept[-1].end == 1_500_000
    sound.append("b", 0, 24_000, bytes(1_000_000))
    assert sound.since("a", 0) == []
