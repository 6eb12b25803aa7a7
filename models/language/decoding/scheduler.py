"""Who runs next, and with how many tokens: functions of what is there, without a model or a clock.

A step gives every row that is writing its turn, and what time is left to those whose prompt is still being read.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from models.ports.generate import Priority

_T = TypeVar("_T")

_BEHIND_S: dict[Priority, float] = {"interactive": 0.0, "normal": 5.0, "batch": 30.0}
"""How much later than it came a request counts as having come: it waits for more urgent ones so long, and no longer."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Rank:
    """A request's place in every queue; the smallest goes first.

    Attributes:
        due_s: when it came, and how much its priority lets others go before it. A deadline that is nearer counts instead.
        ticket: the order of coming.
        priority: what it was given.
    """

    due_s: float
    ticket: int
    priority: Priority = field(compare=False)

    @classmethod
    def of(cls, priority: Priority, came_s: float, deadline_s: float | None, ticket: int) -> "Rank":
        """Rank a request."""
        due_s = came_s + _BEHIND_S[priority]
        return cls(due_s=due_s if deadline_s is None else min(due_s, deadline_s), ticket=ticket, priority=priority)


def chunks(unread: Sequence[tuple[Rank, int]], budget: int) -> list[int]:
    """Divide `budget` tokens among rows that have so many unread; return each row's share.

    Half is the most urgent row's. The rest is divided equally, and what one does not need is the others': so a short prompt is
    soon read although a long one came before it. All tokens are given while there are any and rows want them.
    """
    shares = [0] * len(unread)
    if not unread:
        return shares
    first = min(range(len(unread)), key=lambda index: unread[index][0])
    shares[first] = min(unread[first][1], budget - budget // 2)
    budget -= shares[first]
    fewest_first = sorted(range(len(unread)), key=lambda index: unread[index][1] - shares[index])
    for others, index in zip(range(len(unread), 0, -1), fewest_first, strict=True):
        share = min(unread[index][1] - shares[index], -(-budget // others))
        shares[index] += share
        budget -= share
    return shares


_REMEASURED_AFTER = 32
"""So many steps that read are followed by one that does not, so that it stays known what that takes."""

_NEWEST = 0.1, 0.4
"""The weight of the newest measurement: of a step, and of what reading a token adds to it."""


class ChunkSize:
    """How many tokens of prompts a step reads while others are writing, so that their gaps stay bounded.

    A step that reads as well may take `stretch` times as long as one that only writes, drafts included, at the same load.
    What a token adds to a step was measured, whether it was read or drafted. The size falls by half at most from step to step,
    and grows by a quarter at most, where enough was read to tell that more would fit.
    """

    def __init__(self, *, most: int, least: int = 2, stretch: float = 1.8) -> None:
        """Begin small, since nothing is known yet."""
        self._most = most
        self._least = min(least, most)
        self._stretch = stretch
        self._size = float(min(16, most))
        self._usual_ms: dict[int, float] = {}  # by the bits of the number of rows
        self._plain_ms: dict[int, float] = {}  # likewise, without drafts
        self._token_ms: float | None = None
        self._read_on_end = 0

    def size(self, writing: int) -> int:
        """Return the tokens of prompts that the next step may read, beside so many rows that write."""
        if not writing:
            return self._most
        # Where prompts never cease to arrive, it would never be known what a step takes without them.
        if writing.bit_length() not in self._usual_ms or self._read_on_end >= _REMEASURED_AFTER:
            return 0
        return max(int(self._size), self._least)

    def observe(self, writing: int, read: int, drafted: int, ms: float) -> None:
        """Learn from a step of `writing` rows that read and drafted so many tokens and took `ms`."""
        load = writing.bit_length()
        if not read or load not in self._usual_ms:
            self._read_on_end = 0
            if writing and not read:
                self._usual_ms[load] = _mixed(self._usual_ms.get(load), ms, _NEWEST[0])
                if not drafted:
                    self._plain_ms[load] = _mixed(self._plain_ms.get(load), ms, _NEWEST[0])
            return
        self._read_on_end += 1
        usual_ms = self._usual_ms[load]
        added_ms = max(0.0, ms - self._plain_ms.get(load, usual_ms)) / (read + drafted)
        self._token_ms = _mixed(self._token_ms, added_ms, _NEWEST[1])
        fitting = (self._stretch - 1) * usual_ms / max(self._token_ms, 1e-6)
        if fitting < self._size:
            self._size = max(fitting, self._size / 2, self._least)
        elif read >= int(self._size):
            self._size = min(fitting, 1.25 * self._size, self._most)


def _mixed(known: float | None, newest: float, weight: float) -> float:
    return newest if known is None else known + weight * (newest - known)


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

    def first(self, priority: Priority | None = None) -> _T | None:
        """Return the most urgent, of those of a priority if one is given, and leave it there."""
        return next((item for rank, item in self._waiting if priority in (None, rank.priority)), None)

    def remove(self, item: _T) -> bool:
        """Take one out, wherever it is; return whether it was there."""
        for index, (_, waiting) in enumerate(self._waiting):
            if waiting is item:
                del self._waiting[index]
                return True
        return False
