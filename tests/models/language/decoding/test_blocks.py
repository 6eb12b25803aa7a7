"""The allocator of extents, against an arena in which every block has a name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.language.decoding.blocks import Blocks, Extent, Move

TOTAL = 16
SIZES = st.integers(1, 6)


class Arena(RuleBasedStateMachine):
    """`cells` says who owns each block, and what was written there; the allocator has to agree with it at every moment."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Blocks(TOTAL)
        self.cells: list[tuple[int, int] | None] = [None] * TOTAL
        self.extents: dict[int, Extent] = {}
        self.named = 0

    def runs(self) -> list[tuple[int, int]]:
        """The free runs as (size, start), found by looking at each block."""
        found, size = [], 0
        for index, cell in enumerate([*self.cells, (-1, 0)]):
            if cell is None:
                size += 1
            elif size:
                found.append((size, index - size))
                size = 0
        return found

    def write(self, owner: int, extent: Extent) -> None:
        self.extents[owner] = extent
        for offset in range(extent.blocks):
            assert self.cells[extent.start + offset] in (None, (owner, offset))
            self.cells[extent.start + offset] = (owner, offset)

    @rule(size=SIZES)
    def allocate(self, size: int) -> None:
        fitting = [run for run in self.runs() if run[0] >= size]
        start = self.blocks.allocate(size)
        assert start == (min(fitting)[1] if fitting else None)
        if start is not None:
            self.write(self.named, Extent(start=start, blocks=size))
            self.named += 1

    @precondition(lambda self: self.extents)
    @rule(data=st.data(), size=SIZES)
    def extend(self, data: st.DataObject, size: int) -> None:
        owner = data.draw(st.sampled_from(sorted(self.extents)))
        extent = self.extents[owner]
        behind = self.cells[extent.end : extent.end + size]
        room = len(behind) == size and not any(behind)
        assert self.blocks.extend(extent.start, extent.blocks, extent.blocks + size) is room
        if room:
            self.write(owner, Extent(start=extent.start, blocks=extent.blocks + size))

    @precondition(lambda self: self.extents)
    @rule(data=st.data())
    def free_the_end_or_the_whole(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.extents)))
        extent = self.extents.pop(owner)
        kept = data.draw(st.integers(0, extent.blocks - 1))
        self.blocks.free(extent.start + kept, extent.blocks - kept)
        self.cells[extent.start + kept : extent.end] = [None] * (extent.blocks - kept)
        if kept:
            self.write(owner, Extent(start=extent.start, blocks=kept))

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        wanted = data.draw(st.integers(0, self.blocks.free_blocks))
        least = self.least_copying(wanted)
        moves = self.blocks.compact(wanted)
        assert sum(move.blocks for move in moves) == least
        for move in moves:
            assert move.target < move.source
            moved = self.cells[move.source : move.source + move.blocks]
            self.cells[move.source : move.source + move.blocks] = [None] * move.blocks
            self.cells[move.target : move.target + move.blocks] = moved
        self.extents = {owner: extent.moved(moves) for owner, extent in self.extents.items()}
        assert self.blocks.largest_run >= wanted

    def least_copying(self, wanted: int) -> int:
        """Over all windows that hold so many free blocks: the fewest owned ones strictly between free ones."""
        windows = [
            self.cells[start:end]
            for start in range(TOTAL + 1)
            for end in range(start, TOTAL + 1)
            if self.cells[start:end].count(None) >= wanted
        ]
        return min(len(window) - window.count(None) for window in windows)

    @invariant()
    def nothing_overlaps_and_nothing_leaks(self) -> None:
        assert self.blocks.free_blocks == self.cells.count(None)
        assert self.blocks.largest_run == max((size for size, _ in self.runs()), default=0)
        for owner, extent in self.extents.items():
            assert self.cells[extent.start : extent.end] == [(owner, offset) for offset in range(extent.blocks)]
        assert sum(extent.blocks for extent in self.extents.values()) == TOTAL - self.blocks.free_blocks


TestArena = Arena.TestCase
TestArena.settings = settings(max_examples=60, stateful_step_count=40)


@given(start=st.integers(-2, 9), size=st.integers(0, 9))
def test_what_is_free_already_or_no_block_at_all_cannot_be_freed(start, size):
    blocks = Blocks(8)
    assert blocks.allocate(4) == 0  # 4 to 8 are free
    if size and start >= 0 and start + size <= 4:
        blocks.free(start, size)
        assert blocks.free_blocks == 4 + size
    else:
        with pytest.raises(ValueError, match="free already"):
            blocks.free(start, size)
        assert blocks.free_blocks == 4


def test_no_run_is_made_of_more_blocks_than_are_free():
    blocks = Blocks(4)
    blocks.allocate(3)
    with pytest.raises(ValueError, match="there are 1"):
        blocks.compact(2)


def test_an_arena_without_blocks_gives_none():
    assert Blocks(0).allocate(1) is None
    assert Blocks(0).largest_run == 0


def test_an_extent_that_did_not_move_stays_what_it_is():
    extent = Extent(start=2, blocks=2)
    assert extent.moved([Move(source=5, target=4, blocks=3)]) is extent
