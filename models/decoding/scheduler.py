"""Who runs next, and with how many tokens: functions of what is there, without a model or a clock.

A step gives every row that is writing its turn, and what time is left to those whose prompt is still being read.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from models.ports import Priority

_T = TypeVar("_T")

_BEHIND_S: dict[Priority, float] = {"interactive": 0.0, "normal": 5.0, "batch": 30.0}
"""How much later than it came a request counts as having come: it waits for more urgent ones so long, and no longer."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Rank:
    """A request's place in every queue; the smallest goes first.

    Attributes:
        due_s: when it came, and how much its priority lets others go before it. A deadline that is nearer counts instead.
        ticket: the order of coming.
    """

    due_s: float
    ticket: int

    @classmethod
    def of(cls, priority: Priority, came_s: float, deadline_s: float | None, ticket: int) -> "Rank":
        """Rank a request."""
        due_s = came_s + _BEHIND_S[priority]
        return cls(due_s=due_s if deadline_s is None else min(due_s, deadline_s), ticket=ticket)


def chunks(unread: Sequence[tuple[Rank, int]], budget: int) -> list[int]:
    """Divide `budget` tokens among rows that have so many unread, the most urgent first; return each row's share.

    Tokens that a row is given are run in this step. All are given while there are any and rows want them.
    """
    shares = [0] * len(unread)
    for index in sorted(range(len(unread)), key=lambda index: unread[index][0]):
        shares[index] = min(unread[index][1], budget)
        budget -= shares[index]
    return shares


class ChunkSize:
    """How many tokens of prompts a step reads while others are writing, so that their gaps stay bounded.

    A step that reads as well may take `stretch` times as long as one that only writes. The size follows what was
    measured: it shrinks at once by as much as a step took too long, by half at most, and grows by a quarter at most, where
    enough was read to tell that more would fit.
    """

    def __init__(self, *, most: int, least: int = 8, stretch: float = 1.7) -> None:
        """Begin small, since nothing is known yet."""
        self._most = most
        self._least = min(least, most)
        self._stretch = stretch
        self._size = float(min(2 * self._least, most))
        self._writing_ms: float | None = None

    def size(self, writing: int) -> int:
        """Return the tokens of prompts that the next step may read, beside so many rows that write."""
        if not writing:
            return self._most
        if self._writing_ms is None:  # where prompts never cease to arrive, it would never be known
            return 0
        return max(int(self._size), self._least)

    def observe(self, writing: int, read: int, ms: float) -> None:
        """Learn from a step of `writing` rows that read so many tokens of prompts and took `ms`."""
        if not writing:
            return
        if not read:
            self._writing_ms = ms if self._writing_ms is None else 0.9 * self._writing_ms + 0.1 * ms
        elif self._writing_ms is not None and read <= self._size:
            # Of a step's time not all is reading, so that less would fit than this if it was too much, and more if it was not.
            fitting = read * self._stretch * self._writing_ms / max(ms, 1e-6)
            if fitting < read:
                self._size = max(fitting, self._size / 2, self._least)
            elif fitting > self._size:
                self._size = min(fitting, 1.25 * self._size, self._most)


class Lengths:
    """What answers have come to, to predict how long the next may be."""

    def __init__(self, remembered: int = 256) -> None:
        """Remember so many answers."""
        self._recent: deque[int] = deque(maxlen=remembered)
        self._sorted: list[int] = []

    def observe(self, tokens: int) -> None:
        """Learn the length of an answer."""
        if len(self._recent) == self._recent.maxlen:
            self._sorted.remove(self._recent[0])
        self._recent.append(tokens)
        insort(self._sorted, tokens)

    def predict(self, most: int) -> int:
        """Return a length that nine of ten answers do not pass, of those that may have `most` tokens."""
        if len(self._sorted) < 8:
            return most
        return min(most, self._sorted[(9 * len(self._sorted)) // 10] + 1)


class Queue(Generic[_T]):
    """What waits, the most urgent first. Small: it is kept sorted, and what leaves early is searched for."""

    def __init__(self) -> None:
        """Begin empty."""
        self._waiting: list[tuple[Rank, _T]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, rank: Rank, item: _T) -> None:
        """Take one in."""
        insort(self._waiting, (rank, item), key=lambda entry: entry[0])

    def first(self) -> _T | None:
        """Return the most urgent, and leave it there."""
        return self._waiting[0][1] if self._waiting else None

    def remove(self, item: _T) -> bool:
        """Take one out, wherever it is; return whether it was there."""
        for index, (_, waiting) in enumerate(self._waiting):
            if waiting is item:
                del self._waiting[index]
                return True
        return False
