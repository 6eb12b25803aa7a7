"""How the processes of `models.language.forms.question_process` answer: a line of JSON with one, within bounds that the system holds them to.

Each question has so much of a processor; then the system ends the process, whatever it is doing. So it also ends by itself
when whoever asked is gone. Its memory is bounded, and so is its stack: it answers in a thread, whose stack is known, where a
process's first is whatever its user is allowed.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

DEFEATED = 12
"""The exit status of a process that a question was too much for: its memory was used up, or native code did not expect it."""

_MEMORY_BYTES = 1 << 30
_CPU_S = 2.0


def serve(answer: Callable[[Any], Any], *, stack_bytes: int = 8 << 20, cpu_s: float = _CPU_S) -> None:
    """Answer until there are no more lines.

    Args:
        answer: makes the answer to a question, both made of JSON's values.
        stack_bytes: what it has for that.
        cpu_s: of a processor for each question.
    """
    with suppress(ImportError, ValueError, OSError):  # where there are such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the whole group; whoever asks decides
    threading.stack_size(stack_bytes)
    thread = threading.Thread(target=_serve, args=(answer, cpu_s))
    thread.start()
    thread.join()


def _serve(answer: Callable[[Any], Any], cpu_s: float) -> None:
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            said = json.dumps(answer(json.loads(line)))
        except BaseException:  # noqa: BLE001  # a panic of native code is no `Exception`; whoever asked chose the question
            traceback.print_exc()
            os._exit(DEFEATED)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
