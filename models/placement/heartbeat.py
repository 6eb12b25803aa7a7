"""Whether a worker process that lives also answers. Pure: who listens says when.

A process is asked for a sign of life every `BEAT_S`, and whatever it sends is one. It is taken for hung when it has been
silent for `SILENCE_S` of the time in which *we* listened: a machine that slept, or a gateway that was stopped or had too much
to do, heard nothing either, and says nothing of the process. While an engine is built, which imports what holds the
interpreter for seconds, silence may last `LOADING_SILENCE_S`.

The process answers from its event loop; its engines work in threads of their own. So it also says for how long one of them
has been at the same step, which may be long (a large model reads a prompt on a slow processor), but not `STALL_S`.
"""

BEAT_S = 1.0
SILENCE_S = 10.0
LOADING_SILENCE_S = 60.0
STALL_S = 300.0

UNSURE_S = 5.0
"""Silence after which nobody is told any more that the process is ready."""


class Heartbeat:
    """How long one process has said nothing."""

    def __init__(self, now_s: float) -> None:
        """Begin to listen."""
        self.silent_s = 0.0
        self.stalled_s = 0.0
        self._beat_s = now_s

    def heard(self, stalled_s: float | None = None) -> None:
        """Note a sign of life; `stalled_s` is how long an engine has been at one step, if it says so."""
        self.silent_s = 0.0
        if stalled_s is not None:
            self.stalled_s = stalled_s

    def beat(self, now_s: float) -> None:
        """Note that we listened until now. What was missed because we were late counts as one beat."""
        self.silent_s += min(now_s - self._beat_s, 2 * BEAT_S)
        self._beat_s = now_s

    def trouble(self, *, loading: bool) -> str | None:
        """Return why the process is to be ended, or None."""
        if self.silent_s > (LOADING_SILENCE_S if loading else SILENCE_S):
            return f"has not answered for {self.silent_s:.0f} s"
        if self.stalled_s > STALL_S:
            return f"has been at one step for {self.stalled_s:.0f} s"
        return None
