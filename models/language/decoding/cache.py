"""What of the arena belongs to whom: leases of rows at work, and prefixes kept for whoever comes with the same words.

A finished row's keys and values stay where they are until their room is needed. A request of the same tenant and adapter whose
prompt begins alike adopts them in place if it goes on where they ended, as the next turn of a conversation does, and else
copies the part that is alike, as several conversations under one system prompt do.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from models.language.decoding.arena import Arena
from models.language.decoding.blocks import Blocks, Extent
from models.language.decoding.prefixes import Kept, Prefixes, Scope

BLOCK_TOKENS = 32
"""The slots of a block. Extents are whole blocks."""


@dataclass(slots=True, eq=False, kw_only=True)
class RowLease:
    """An extent that a row owns.

    Attributes:
        scope: who may read what it leaves behind.
        extent: where it lies; it may be moved between two steps.
    """

    scope: Scope
    extent: Extent

    @property
    def start(self) -> int:
        """The first slot."""
        return self.extent.start * BLOCK_TOKENS

    @property
    def capacity(self) -> int:
        """How many tokens there is room for."""
        return self.extent.blocks * BLOCK_TOKENS


class Cache:
    """Leases out the arena. Used by one thread.

    Attributes:
        arena: what is leased.
        reused_tokens: how many tokens were found and did not have to be read again.
        asked_tokens: how many were asked for.
    """

    def __init__(self, arena: Arena) -> None:
        """Take the arena; nobody else may write to it."""
        self.arena = arena
        self.reused_tokens = 0
        self.asked_tokens = 0
        self._blocks = Blocks(arena.slots // BLOCK_TOKENS)
        self._prefixes = Prefixes()
        self._leases: set[RowLease] = set()

    @property
    def capacity(self) -> int:
        """The most tokens that one row can have."""
        return self._blocks.total_blocks * BLOCK_TOKENS

    @property
    def leased_blocks(self) -> int:
        """The blocks of rows at work."""
        return sum(lease.extent.blocks for lease in self._leases)

    @property
    def kept_blocks(self) -> int:
        """The blocks of prefixes that are kept."""
        return self._blocks.total_blocks - self._blocks.free_blocks - self.leased_blocks

    def open(self, scope: Scope, tokens: Sequence[int], room: int) -> tuple[RowLease, int] | None:
        """Lease room for `room` tokens, the first of them `tokens`.

        Returns:
            The lease, and how many of `tokens` are in it already, never all of them; or None if there is no room now.
        """
        blocks = _blocks(room)
        if blocks > self._blocks.total_blocks - self.leased_blocks:
            return None
        self.asked_tokens += len(tokens)
        match = self._prefixes.match(scope, tokens)
        reused = 0 if match is None else min(match.tokens, len(tokens) - 1)
        lease: RowLease | None = None
        if match is not None and reused:
            take = self._adopted if match.whole else self._copied
            lease = take(match.kept, reused, blocks)
        if lease is None:
            reused, start = 0, self._allocate(blocks)
            assert start is not None  # there is room, if everything kept is given up
            lease = RowLease(scope=scope, extent=Extent(start=start, blocks=blocks))
        self._leases.add(lease)
        self.reused_tokens += reused
        return lease, reused

    def fork(self, lease: RowLease, tokens: int, room: int) -> RowLease | None:
        """Lease room for `room` tokens, the first `tokens` of them copied from a lease at work; None if there is no room now."""
        blocks = _blocks(room)
        start = self._allocate(blocks)
        if start is None:
            return None
        self.arena.move(lease.start, start * BLOCK_TOKENS, tokens)  # which may have been moved to make room
        forked = RowLease(scope=lease.scope, extent=Extent(start=start, blocks=blocks))
        self._leases.add(forked)
        self.asked_tokens += tokens
        self.reused_tokens += tokens
        return forked

    def grow(self, lease: RowLease, room: int) -> bool:
        """Make room in a lease for `room` tokens; return whether there was any. It may move.

        If not, the row has to give its lease back and come again: there may be room for it, but not beside its old place.
        """
        blocks, old = _blocks(room), lease.extent
        if blocks <= old.blocks:
            return True
        if not self._blocks.extend(old.start, old.blocks, blocks):
            start = self._allocate(blocks)
            if start is None:
                return False
            old = lease.extent  # it may have been moved to make room
            self.arena.move(lease.start, start * BLOCK_TOKENS, lease.capacity)
            self._blocks.free(old.start, old.blocks)
            old = Extent(start=start, blocks=blocks)
        lease.extent = Extent(start=old.start, blocks=blocks)
        return True

    def close(self, lease: RowLease, tokens: Sequence[int]) -> None:
        """Take a lease back, and keep what it holds: the keys and values of `tokens`, and of nothing else."""
        self._leases.remove(lease)
        used = _blocks(len(tokens))
        if lease.extent.blocks > used:
            self._blocks.free(lease.extent.start + used, lease.extent.blocks - used)
        if used:
            kept = Extent(start=lease.extent.start, blocks=used)
            if (spare := self._prefixes.keep(lease.scope, tokens, kept)) is not None:
                self._blocks.free(spare.start, spare.blocks)

    def forget(self, tenant: str, subject: str | None) -> None:
        """Let go of all that is kept of a tenant, or of one subject of it. What rows at work hold stays theirs."""
        for kept in [kept for kept in self._prefixes if kept.scope.owner.is_of(tenant, subject)]:
            self._give_up(kept)

    # Inside

    def _adopted(self, kept: Kept, tokens: int, blocks: int) -> RowLease | None:
        """Make a kept prefix a lease where it lies, if it can grow there; else copy it; None if there is no room for that."""
        extent = kept.extent
        if not self._blocks.extend(extent.start, extent.blocks, max(blocks, extent.blocks)):
            return self._copied(kept, tokens, blocks)
        self._prefixes.take(kept)
        return RowLease(scope=kept.scope, extent=Extent(start=extent.start, blocks=max(blocks, extent.blocks)))

    def _copied(self, kept: Kept, tokens: int, blocks: int) -> RowLease | None:
        start = self._allocate(blocks, spared=kept)
        if start is None:
            return None
        self.arena.move(kept.extent.start * BLOCK_TOKENS, start * BLOCK_TOKENS, tokens)
        return RowLease(scope=kept.scope, extent=Extent(start=start, blocks=blocks))

    def _allocate(self, blocks: int, spared: Kept | None = None) -> int | None:
        """Return the first of so many free blocks; what is kept makes room, the least recently used first, but `spared`."""
        held = self.leased_blocks + (0 if spared is None else spared.extent.blocks)
        if blocks > self._blocks.total_blocks - held:
            return None  # and nothing is given up in vain
        start = self._blocks.allocate(blocks)
        if start is None:
            for kept in self._least_used_run(blocks, spared):
                self._give_up(kept)
            start = self._blocks.allocate(blocks)
        if start is None:  # leases are everywhere in the way
            while self._blocks.free_blocks < blocks:
                self._give_up(next(kept for kept in self._prefixes if kept is not spared))
            start = self._allocate_compacted(blocks)
        return start

    def _give_up(self, kept: Kept) -> None:
        extent = self._prefixes.take(kept)
        self._blocks.free(extent.start, extent.blocks)

    def _least_used_run(self, blocks: int, spared: Kept | None) -> list[Kept]:
        """Return what has to be given up for one free run of so many blocks: what nobody has used for the longest time.

        Nothing is moved for it, which takes longer than to read most prompts again. Empty if leases leave no such run.
        """
        ages = {kept: age for age, kept in enumerate(self._prefixes) if kept is not spared}
        walls = [lease.extent for lease in self._leases] + ([] if spared is None else [spared.extent])
        entries: list[tuple[Extent, Kept | None]] = [(extent, None) for extent in walls]
        entries += [(kept.extent, kept) for kept in ages]
        entries.sort(key=lambda entry: entry[0].start)
        entries.append((Extent(start=self._blocks.total_blocks, blocks=0), None))
        best: list[Kept] = []
        begin, between = 0, deque[Kept]()
        for extent, kept in entries:
            while between and extent.start - between[0].extent.end >= blocks:
                begin = between.popleft().extent.end
            if between and extent.start - begin >= blocks:
                best = min((list(between), best or list(between)), key=lambda run: max(ages[kept] for kept in run))
            if kept is None:
                begin = extent.end
                between.clear()
            else:
                between.append(kept)
        return best

    def _allocate_compacted(self, blocks: int) -> int | None:
        for move in self._blocks.compact(blocks):
            self.arena.move(move.source * BLOCK_TOKENS, move.target * BLOCK_TOKENS, move.blocks * BLOCK_TOKENS)
            for owner in (*self._leases, *self._prefixes):
                owner.extent = owner.extent.moved([move])
        return self._blocks.allocate(blocks)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
