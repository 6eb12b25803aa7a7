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

Urgency = Literal["voice", "answer", "bulk"]

NICENESS: Mapping[Urgency, int] = {"voice": 0, "answer": 2, "bulk": 19}
"""The most that is wanted of each: of a core that all three want, a voice gets three parts of five, and bulk a hundredth."""


def be(urgency: Urgency) -> None:
    """Have the calling thread, and every thread that it starts from here on, go by `urgency`. Does nothing but on Linux."""
    if sys.platform == "linux":
        with suppress(OSError):  # it is nicer already, and may not go back
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS[urgency])
