"""Who goes first on the processor."""

import os
import sys
import threading

import pytest

from models.urgency import NICENESS, Urgency, be


def test_a_voice_goes_before_an_answer_before_what_is_loaded_before_bulk() -> None:
    order = ("voice", "answer", "loading", "bulk")
    assert sorted(NICENESS, key=NICENESS.__getitem__) == list(order)
    assert len(set(NICENESS.values())) == len(order)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux alone")
def test_a_thread_becomes_nicer_alone_and_by_as_much_as_the_process_was_already() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found: dict[Urgency, int] = {}

    def run(urgency: Urgency) -> None:
        be(urgency)
        found[urgency] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    for urgency in NICENESS:
        thread = threading.Thread(target=run, args=(urgency,))
        thread.start()
        thread.join()
    assert found == {urgency: min(before + niceness, 19) for urgency, niceness in NICENESS.items()}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
