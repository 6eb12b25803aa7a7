"""The order of a conversation's items, as its log says it: one rule for the state, its readers, and whoever folds the log.

An item goes to the end, to the front, or directly after another. The items of a response have their place where the
response began: after what was said by then, and after what was put there by name since. What is added at the end while
it is written comes after it, whenever its items are opened or closed: when they are is not in the log.
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
    _open_at: int | None = None  # where its open item goes, if something was put after that

    def copy(self) -> "Order":
        """Return another one, which begins as this one is."""
        return Order(list(self.ids), self.behind, self._slot, self._open_at)

    def begin(self) -> None:
        """A response begins."""
        self._slot, self._open_at = len(self.ids), None

    def end(self) -> None:
        """The response has ended."""
        self._slot = self._open_at = None

    def add(self, ids: Sequence[str], after: str | None = None, *, is_open: bool = False) -> int | None:
        """Put items at their place. Return where it is; None if it is among those that are not known here.

        Args:
            ids: the items.
            after: what they come after: an item, `FRONT`, or the last one of all (None).
            is_open: whether `after` is the item of the response that is being written.
        """
        at = self._find(after, is_open=is_open)
        if at is None:
            return None
        self.ids[at:at] = ids
        if after is None or self._slot is None:
            return at
        if is_open and after not in self.ids:
            self._open_at, self._slot = at, max(self._slot, at) + len(ids)
            return at
        if at <= self._slot:
            self._slot += len(ids)
        if self._open_at is not None and at <= self._open_at:
            self._open_at += len(ids)
        return at

    def take(self, item_id: str) -> int:
        """Give an item of the response its place, and return it."""
        at = len(self.ids) if self._slot is None else self._slot
        if self._open_at is not None:
            at, self._open_at = self._open_at, None
        self.ids.insert(at, item_id)
        if self._slot is not None:
            self._slot += 1
        return at

    def remove(self, gone: Sequence[str]) -> None:
        """Take items out; those that are not known are passed over."""
        leaving = set(gone)
        if self._slot is not None:
            self._slot -= sum(item_id in leaving for item_id in self.ids[: self._slot])
        if self._open_at is not None:
            self._open_at -= sum(item_id in leaving for item_id in self.ids[: self._open_at])
        self.ids = [item_id for item_id in self.ids if item_id not in leaving]

    def forget(self, count: int) -> None:
        """Let the oldest go."""
        if count <= 0:
            return
        del self.ids[:count]
        self.behind = True
        if self._slot is not None:
            self._slot = max(0, self._slot - count)
        if self._open_at is not None:
            self._open_at = max(0, self._open_at - count)

    def before(self, at: int) -> str | None:
        """Return the item before a place."""
        return self.ids[at - 1] if at > 0 else None

    def _find(self, after: str | None, *, is_open: bool) -> int | None:
        if after is None:
            return len(self.ids)
        if after in self.ids:
            return self.ids.index(after) + 1
        if is_open and self._slot is not None:
            return self._slot if self._open_at is None else self._open_at
        if self.behind:
            return None
        return 0 if after == FRONT else len(self.ids)
