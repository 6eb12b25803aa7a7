"""Who owns which blocks of the arena: an allocator of extents.

A row's keys and values lie in one contiguous *extent* of whole blocks, so that attention reads them as one slice and an
extent that grows is not copied. The price is fragmentation. It is kept low by best fit, and mended by moving extents
together (`Blocks.compact`), which copies no more than it has to.

Pure accounting: whoever owns the arena does the copying.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A run of blocks that one row, or one kept prefix, owns."""

    start: int
    blocks: int

    @property
    def end(self) -> int:
        """The first block behind it."""
        return self.start + self.blocks

    def moved(self, moves: Iterable["Move"]) -> "Extent":
        """Return where the extent lies after `moves`."""
        for move in moves:
            if move.source <= self.start < move.source + move.blocks:
                return Extent(start=self.start - move.source + move.target, blocks=self.blocks)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Copy `blocks` blocks from `source` to `target`, which lies to the left and may overlap the source."""

    source: int
    target: int
    blocks: int


class Blocks:
    """The free runs of an arena of `total_blocks` blocks; everything else is owned by somebody.

    Free runs are few (at most one more than there are extents), so that they lie in plain sorted lists.
    """

    def __init__(self, total_blocks: int) -> None:
        self.total_blocks = total_blocks
        self._starts = [0] if total_blocks else []
        self._ends = [total_blocks] if total_blocks else []
        self._free = total_blocks

    @property
    def free_blocks(self) -> int:
        """How many blocks nobody owns, in one run or in many."""
        return self._free

    @property
    def largest_run(self) -> int:
        """The most blocks that `allocate` can give now."""
        return max((end - start for start, end in zip(self._starts, self._ends, strict=True)), default=0)

    def allocate(self, blocks: int) -> int | None:
        """Give the first `blocks` of the smallest run that has them (of equals the leftmost), or None where there is none."""
        if blocks < 1:
            raise ValueError(f"An extent has at least one block, not {blocks}.")
        best, best_size = -1, self.total_blocks + 1
        for index, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if blocks <= end - start < best_size:
                best, best_size = index, end - start
        if best < 0:
            return None
        first = self._starts[best]
        self._take(best, blocks)
        return first

    def extend(self, start: int, old: int, new: int) -> bool:
        """Grow the extent of `old` blocks at `start` to `new` blocks in place; False, and no change, if it cannot."""
        if new < old:
            raise ValueError(f"To shrink an extent from {old} to {new} blocks, free its end.")
        if new == old:
            return True
        index = bisect_left(self._starts, start + old)
        if index == len(self._starts) or self._starts[index] != start + old:
            return False
        if self._ends[index] - self._starts[index] < new - old:
            return False
        self._take(index, new - old)
        return True

    def free(self, start: int, blocks: int) -> None:
        """Give back an extent, or a part of one."""
        end = start + blocks
        index = bisect_right(self._starts, start)
        before, behind = index > 0, index < len(self._starts)
        if (
            blocks < 1
            or start < 0
            or end > self.total_blocks
            or (before and self._ends[index - 1] > start)
            or (behind and self._starts[index] < end)
        ):
            raise ValueError(f"Blocks {start} to {end} are free already, or none of the {self.total_blocks} blocks.")
        self._free += blocks
        joins_left = before and self._ends[index - 1] == start
        joins_right = behind and self._starts[index] == end
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends.pop(index)
            del self._starts[index]
        elif joins_left:
            self._ends[index - 1] = end
        elif joins_right:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)

    def compact(self, blocks: int) -> list[Move]:
        """Make one free run of at least `blocks` blocks; return the copying that this takes, as little as possible.

        It counts as done from now on: the caller copies, move after move in the order given, before it writes to the
        arena again, and asks `Extent.moved` where each extent went. A move goes to the left and never overwrites what a
        later one reads; one that overlaps itself has to be copied as `memmove` does.

        Raises:
            ValueError: there are fewer than `blocks` free blocks in all.
        """
        if blocks > self._free:
            raise ValueError(f"{blocks} blocks in one run need as many free ones; there are {self._free}.")
        first, last = self._cheapest(blocks)
        if first == last:
            return []
        moves, target = [], self._starts[first]
        for index in range(first, last):
            source = self._ends[index]
            owned = self._starts[index + 1] - source
            moves.append(Move(source=source, target=target, blocks=owned))
            target += owned
        # What was owned between the free runs now lies before them, and they are one.
        self._starts[first : last + 1] = [target]
        self._ends[first : last + 1] = [self._ends[last]]
        return moves

    def _cheapest(self, blocks: int) -> tuple[int, int]:
        """The neighbouring free runs, from first to last, that have `blocks` together and the least owned between them."""
        best, best_owned = (0, 0), self.total_blocks + 1
        first = free = 0
        for last, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            free += end - start
            while free - (self._ends[first] - self._starts[first]) >= blocks and first < last:
                free -= self._ends[first] - self._starts[first]
                first += 1
            owned = end - self._starts[first] - free
            if free >= blocks and owned < best_owned:
                best, best_owned = (first, last), owned
        return best

    def _take(self, index: int, blocks: int) -> None:
        self._free -= blocks
        self._starts[index] += blocks
        if self._starts[index] == self._ends[index]:
            del self._starts[index], self._ends[index]
