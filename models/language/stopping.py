"""Stop strings in text that arrives in pieces."""


class StopFilter:
    """Lets text through up to the first stop string, which may span pieces.

    The first is the one that is complete first, so that the cut does not depend on how the text was cut into pieces; of two
    that end at one place, the longer. Only what may still become a stop string is held back. Empty strings stop nothing.

    Attributes:
        stopped: whether a stop string was met; nothing more comes out then.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Take the next piece; return what is certain to come before any stop string."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, end = min(found)
        else:
            end = len(self._held) - max((_overlap(self._held, stop) for stop in self._stops), default=0)
        passed, self._held = self._held[:end], self._held[end:]
        return passed

    def flush(self) -> str:
        """Return what was held back, at the end of the text."""
        passed, self._held = ("" if self.stopped else self._held), ""
        return passed


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
