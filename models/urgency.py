"""Who goes first on the processor: a voice before an answer before what is done in bulk.

The scheduler of the system holds the order: on Linux a thread has a niceness of its own, and shares a core by it (each step of
one is a quarter more or less). A process may only become nicer, so whatever is urgent stays as it was started.
"""

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

Urgency = Literal["voice", "answer", "loading", "bulk"]

NICENESS: Mapping[Urgency, int] = {"voice": 0, "answer": 2, "loading": 15, "bulk": 19}
"""By how much each is nicer than the process was started: of a core that a voice and an answer both want, the voice gets three parts
of five; what is loaded beside answers gets a twentieth of one that they want, and bulk a fiftieth."""

_STARTED = os.getpriority(os.PRIO_PROCESS, 0) if sys.platform == "linux" else 0
_NICEST = 19


def be(urgency: Urgency) -> None:
    """Have the calling thread, and every thread that it starts from here on, go by `urgency`. Does nothing but on Linux."""
    if sys.platform == "linux":
        with suppress(OSError):  # it is nicer already, and may not go back
            niceness = min(_STARTED + NICENESS[urgency], _NICEST)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
