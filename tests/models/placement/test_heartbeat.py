"""When a process that lives is taken for hung: not when it is busy, nor when we did not listen."""

from hypothesis import given
from hypothesis import strategies as st

from models.placement.heartbeat import BEAT_S, LOADING_SILENCE_S, SILENCE_S, STALL_S, Heartbeat


def _silent_for(seconds: float) -> Heartbeat:
    heartbeat = Heartbeat(0.0)
    for beat in range(1, round(seconds / BEAT_S) + 1):
        heartbeat.beat(beat * BEAT_S)
    return heartbeat


def test_a_process_that_says_nothing_for_long_is_in_trouble():
    assert _silent_for(SILENCE_S).trouble(loading=False) is None
    assert _silent_for(SILENCE_S + BEAT_S).trouble(loading=False) is not None


def test_one_that_was_stopped_for_two_seconds_is_not():
    heartbeat = _silent_for(2.0)
    assert heartbeat.trouble(loading=False) is None
    heartbeat.heard()
    assert heartbeat.silent_s == 0


def test_while_a_model_is_loaded_silence_may_last_longer():
    heartbeat = _silent_for(SILENCE_S + BEAT_S)
    assert heartbeat.trouble(loading=True) is None
    assert _silent_for(LOADING_SILENCE_S + BEAT_S).trouble(loading=True) is not None


@given(slept_s=st.floats(0, 1e6))
def test_time_in_which_we_did_not_listen_does_not_count(slept_s):
    heartbeat = Heartbeat(0.0)
    heartbeat.beat(slept_s)
    assert heartbeat.silent_s <= 2 * BEAT_S
    assert heartbeat.trouble(loading=False) is None


def test_an_engine_that_stands_still_in_a_process_that_answers_is_trouble():
    heartbeat = Heartbeat(0.0)
    heartbeat.heard(STALL_S)
    assert heartbeat.trouble(loading=False) is None
    heartbeat.heard(STALL_S + 1)
    assert heartbeat.trouble(loading=False) is not None
    heartbeat.heard(0.0)
    assert heartbeat.trouble(loading=False) is None
