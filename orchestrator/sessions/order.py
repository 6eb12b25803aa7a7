"""The order of a conversation's items, as its log says it: one rule for the state, its readers, and whoever folds the log.

An item goes to the end, to the front, or directly after another. The items of a response have their place where the
response began, in the order in which they were begun (their `index`), however they are closed: after what was said by then,
and after what was put there by name since. What is added at the end while they are written comes after them, whenever they
are opened or closed: when they are is not in the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

FRONT: Final = "root"
"""What an item at the front comes after."""


@dataclass(slots=True)
class Order:
    """Ids of items in their order.

    Attributes:
        ids: those that are known here.
        behind: whether there are older ones, which are not.
    """

    ids: list[str] = field(default_factory=list)
    behind: bool = False
    _slot: int | None = None  # where the next item of the response goes, if one is written
    _open_at: dict[int, int] = field(
        default_factory=dict
    )  # where open ones go, by index, if something was put after them
    _taken: dict[int, str] = field(default_factory=dict)  # those of the response that have their place, by index

    def copy(self) -> "Order":
        """Return another one, which begins as this one is."""
        return Order(list(self.ids), self.behind, self._slot, dict(self._open_at), dict(self._taken))

    def begin(self) -> None:
        """A response begins."""
        self.end()
        self._slot = len(self.ids)

    def end(self) -> None:
        """The response has ended."""
        self._slot, self._open_at, self._taken = None, {}, {}

    def add(
        self, ids: Sequence[str], after: str | None = None, *, is_open: bool = False, index: int | None = None
    ) -> int | None:
        """Put items at their place. Return where it is; None if it is among those that are not known here.

        Args:
            ids: the items.
            after: what they come after: an item, `FRONT`, or the last one of all (None).
            is_open: whether `after` is an item of the response that is being written.
            index: which one, if that is known; else the next.
        """
        index = self._next_index() if index is None else index
        at = self._find(after, index, is_open=is_open)
        if at is None:
            return None
        self.ids[at:at] = ids
        if after is None or self._slot is None:
            return at
        own = None
        if is_open and after not in self.ids:
            own, self._slot = index, max(self._slot, at)
        if at <= self._slot:
            self._slot += len(ids)
        self._open_at = {
            one: place + len(ids) if at <= place and one != own else place for one, place in self._open_at.items()
        }
        if own is not None:
            self._open_at[own] = at
        return at

    def take(self, item_id: str, index: int | None = None) -> int:
        """Give an item of the response its place, and return it; `index` says which one it is, if not the next."""
        index = self._next_index() if index is None else index
        at = self.place(index)
        self._open_at.pop(index, None)
        self.ids.insert(at, item_id)
        if self._slot is not None:
            self._slot += 1
            self._open_at = {one: place + (at <= place) for one, place in self._open_at.items()}
            self._taken[index] = item_id
        return at

    def remove(self, gone: Sequence[str]) -> None:
        """Take items out; those that are not known are passed over."""
        leaving = set(gone)

        def moved(place: int) -> int:
            return place - sum(item_id in leaving for item_id in self.ids[:place])

        if self._slot is not None:
            self._slot = moved(self._slot)
            self._open_at = {index: moved(place) for index, place in self._open_at.items()}
        self.ids = [item_id for item_id in self.ids if item_id not in leaving]

    def forget(self, count: int) -> None:
        """Let the oldest go."""
        if count <= 0:
            return
        del self.ids[:count]
        self.behind = True
        if self._slot is not None:
            self._slot = max(0, self._slot - count)
            self._open_at = {index: max(0, place - count) for index, place in self._open_at.items()}

    def before(self, at: int) -> str | None:
        """Return the item before a place."""
        return self.ids[at - 1] if at > 0 else None

    def _next_index(self) -> int:
        return max(self._taken, default=-1) + 1

    def place(self, index: int) -> int:
        """Return where an item of the response goes: before those that were begun after it."""
        if self._slot is None:
            return len(self.ids)
        if index in self._open_at:
            return self._open_at[index]
        later = [place for other, place in self._open_at.items() if other > index]
        for other, item_id in self._taken.items():
            if other > index:
                later.append(self.ids.index(item_id) if item_id in self.ids else 0)
        return min(later, default=self._slot)

    def _find(self, after: str | None, index: int, *, is_open: bool) -> int | None:
        if after is None:
            return len(self.ids)
        if after in self.ids:
            return self.ids.index(after) + 1
        if is_open and self._slot is not None:
            return self.place(index)
        if self.behind:
            return None
        return 0 if after == FRONT else len(self.ids)
