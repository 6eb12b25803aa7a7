"""Run a Python module as a program of its own, watch what it does, and end it when nobody waits for it any more.

`python -m models.supply.subprocess_module MODULE ARGUMENT…` is that program: it runs MODULE as `python -m MODULE ARGUMENT…` would, and
ends with whoever started it, however that one ended. Its standard input is the leash: it says nothing, and closes.
"""

import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from models.clock import Clock, SystemClock

BEAT_S = 0.1
"""How often a watcher says how far something is, and may be stopped."""

_GRACE_S = 5.0


class ProgramFailed(Exception):
    """A program ended with another status than 0.

    Attributes:
        said: what it wrote to its standard error.
    """

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said

    @property
    def last_line(self) -> str:
        """What it said last, which is where programs say why they end."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        return lines[-1] if lines else "it ended without a word."


def run_module(
    *arguments: str,
    folder: Path,
    measure: Callable[[], int],
    stalled_s: float | None = None,
    clock: Clock | None = None,
    **environment: str,
) -> Generator[int, None, str]:
    """Run `python -m` with `arguments`; yield what `measure` returns, every `BEAT_S`; return what was printed.

    Closing the generator ends the program, by force after a few seconds.

    Args:
        arguments: the module's name, and what it is told.
        folder: its working directory.
        measure: says how much it has done.
        stalled_s: for how long it may do nothing, by `measure`, before it is ended; None is without end.
        clock: of `stalled_s`; the host's by default.
        environment: what it finds in its environment besides what this process finds in its own.

    Raises:
        ProgramFailed: it ended with another status than 0, or stood still for `stalled_s`.
        OSError: it could not be started.
    """
    leash, held = os.pipe()
    clock = clock or SystemClock()
    done, moved_s = 0, clock.now_s()
    try:
        process = subprocess.Popen(
            # -P: a module is the environment's, never one that happens to lie in the working directory.
            (sys.executable, "-P", "-m", "models.supply.subprocess_module", *arguments),
            stdin=leash,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            cwd=folder,
            text=True,
            errors="replace",
        )
        with process:
            try:
                while True:
                    try:
                        printed, said = process.communicate(timeout=BEAT_S)
                        break
                    except subprocess.TimeoutExpired:
                        before, done = done, measure()
                        if done != before:
                            moved_s = clock.now_s()
                        elif stalled_s is not None and clock.now_s() - moved_s >= stalled_s:
                            raise ProgramFailed(f"nothing has come for {stalled_s:g} s.") from None
                        yield done
            finally:
                _end(process)
    finally:
        os.close(leash)
        os.close(held)
    if process.returncode != 0:
        raise ProgramFailed(said)
    return printed


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with_the_leash() -> None:
    os.read(0, 1)
    os._exit(1)  # at once, from a thread, and whatever the module is doing


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_leash, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
