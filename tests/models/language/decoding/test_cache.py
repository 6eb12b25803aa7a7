"""The cache against what each row wrote: whatever is leased, kept, moved and given up, a row reads its own words.

Keys here are the tokens themselves, so that what lies in a slot says whose it is.
"""

import random

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.language.decoding.arena import Arena
from models.language.decoding.cache import BLOCK_TOKENS, Cache, RowLease
from models.language.decoding.prefixes import Scope
from models.owner import Owner

_BLOCKS = 12
ADA, TERSE, BOB = Scope(owner=Owner("ada")), Scope(owner=Owner("ada"), adapter="terse"), Scope(owner=Owner("bob"))


def _cache(blocks: int = _BLOCKS) -> Cache:
    cpu = torch.device("cpu")
    return Cache(Arena(layers=1, slots=blocks * BLOCK_TOKENS, kv_heads=1, head_size=1, dtype=torch.float32, device=cpu))


def _write(cache: Cache, lease: RowLease, tokens: list[int], begin: int) -> None:
    slots = torch.arange(lease.start + begin, lease.start + len(tokens))
    keys = torch.tensor(tokens[begin:], dtype=torch.float32)[:, None, None]
    cache.arena.write(0, slots, keys, -keys)


def _read(cache: Cache, lease: RowLease, count: int) -> list[int]:
    keys = cache.arena.keys[0][lease.start : lease.start + count, 0, 0]
    assert torch.equal(cache.arena.values[0][lease.start : lease.start + count, 0, 0], -keys)
    return keys.int().tolist()


def _write_and_close(cache: Cache, scope: Scope, tokens: list[int]) -> None:
    opened = cache.open(scope, tokens, len(tokens))
    assert opened is not None
    _write(cache, opened[0], tokens, opened[1])
    cache.close(opened[0], tokens)


@st.composite
def texts(draw: st.DrawFn) -> list[int]:
    """Texts of up to four blocks that often begin alike."""
    runs = draw(st.lists(st.tuples(st.integers(1, 2), st.sampled_from((1, 7, 32, 33))), min_size=1, max_size=4))
    return [token for token, count in runs for _ in range(count)][: 4 * BLOCK_TOKENS]


class Rows(RuleBasedStateMachine):
    """`rows` are those at work: a lease, and what has been written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = _cache()
        self.rows: list[tuple[RowLease, list[int]]] = []
        self.known: dict[Scope, list[list[int]]] = {ADA: [], TERSE: [], BOB: []}

    @rule(scope=st.sampled_from((ADA, TERSE, BOB)), text=texts(), more=st.integers(0, 40))
    def open(self, scope: Scope, text: list[int], more: int) -> None:
        room = len(text) + more
        asked, reused = self.cache.asked_tokens, self.cache.reused_tokens
        opened = self.cache.open(scope, text, room)
        leased = sum(lease.extent.blocks for lease, _ in self.rows)
        assert (opened is None) == (leased + -(-room // BLOCK_TOKENS) > _BLOCKS)
        if opened is None:
            return
        lease, found = opened
        assert found < len(text)
        assert lease.capacity >= room
        assert found == 0 or any(known[:found] == text[:found] for known in self.known[scope])
        assert _read(self.cache, lease, found) == text[:found]
        assert self.cache.asked_tokens - asked == len(text)
        assert self.cache.reused_tokens - reused == found
        _write(self.cache, lease, text, found)
        self.rows.append((lease, list(text)))

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0, 99), more=st.lists(st.integers(1, 2), min_size=1, max_size=70))
    def grow(self, which: int, more: list[int]) -> None:
        lease, text = self.rows[which % len(self.rows)]
        before = lease.capacity
        if self.cache.grow(lease, len(text) + len(more)):
            text += more
            _write(self.cache, lease, text, len(text) - len(more))
        else:
            assert len(text) + len(more) > before == lease.capacity
        assert lease.capacity >= len(text)

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0, 99), cut=st.sampled_from((0, 0, 0, 1, 40)), forget=st.booleans())
    def close(self, which: int, cut: int, forget: bool) -> None:
        lease, text = self.rows.pop(which % len(self.rows))
        kept = [] if forget else text[: max(len(text) - cut, 0)]
        self.cache.close(lease, kept)
        self.known[lease.scope].append(kept)

    @rule(scope=st.sampled_from((ADA, BOB)))
    def forget(self, scope: Scope) -> None:
        self.cache.forget(scope.owner.tenant, None)
        for known, texts in self.known.items():
            if known.owner == scope.owner:
                texts.clear()

    @invariant()
    def every_row_reads_what_it_wrote(self) -> None:
        for lease, text in self.rows:
            assert _read(self.cache, lease, len(text)) == text

    @invariant()
    def every_block_is_leased_kept_or_free(self) -> None:
        extents = [lease.extent for lease, _ in self.rows] + [kept.extent for kept in self.cache._prefixes]
        owned = [block for extent in extents for block in range(extent.start, extent.end)]
        assert len(set(owned)) == len(owned)
        assert self.cache.leased_blocks == sum(lease.extent.blocks for lease, _ in self.rows)
        assert self.cache.kept_blocks == self.cache._prefixes.blocks
        assert self.cache._blocks.free_blocks == _BLOCKS - len(owned)


TestRows = Rows.TestCase
TestRows.settings = settings(max_examples=40, stateful_step_count=30)


def test_the_next_turn_of_a_conversation_goes_on_where_the_last_one_lies() -> None:
    cache = _cache()
    _write_and_close(cache, ADA, [1] * 50)
    [kept] = cache._prefixes
    place = kept.extent.start
    opened = cache.open(ADA, [1] * 50 + [2] * 30, 100)
    assert opened is not None
    lease, reused = opened
    assert (reused, lease.extent.start, lease.capacity) == (50, place, 128)
    assert cache.kept_blocks == 0


def test_several_conversations_under_one_beginning_each_get_a_copy_of_it() -> None:
    cache = _cache()
    _write_and_close(cache, ADA, [1] * 60 + [3])
    for last in (4, 5):
        opened = cache.open(ADA, [1] * 60 + [last], 64)
        assert opened is not None
        lease, reused = opened
        assert reused == 60
        assert _read(cache, lease, 60) == [1] * 60
    assert (cache.kept_blocks, cache.leased_blocks) == (2, 4)


def test_the_last_token_of_a_prompt_is_always_read_again() -> None:
    cache = _cache()
    _write_and_close(cache, ADA, [1, 2, 3])
    opened = cache.open(ADA, [1, 2, 3], 3)
    assert opened is not None
    assert opened[1] == 2


def test_neither_another_owner_nor_another_adapter_finds_what_is_kept() -> None:
    cache = _cache()
    _write_and_close(cache, ADA, [1] * 40)
    for other in (BOB, TERSE, Scope(owner=Owner("ada", "eve")), Scope(owner=Owner("bob"), adapter="terse")):
        opened = cache.open(other, [1] * 41, 41)
        assert opened is not None
        assert opened[1] == 0
    assert cache.reused_tokens == 0


def test_what_is_kept_gives_way_to_rows_the_least_recently_used_first() -> None:
    cache = _cache(blocks=3)
    for token in (1, 2, 3):
        _write_and_close(cache, ADA, [token] * 20)
    opened = cache.open(ADA, [1] * 21, 21)  # now the most recently used
    assert opened is not None
    cache.close(opened[0], [1] * 20)
    assert cache.open(BOB, [9] * 20, 64) is not None
    [left] = cache._prefixes
    assert left.tokens == 20
    assert cache.open(ADA, [1] * 21, 21) is not None
    assert cache.reused_tokens == 2 * 20


def test_a_row_that_cannot_be_helped_costs_nobody_what_is_kept() -> None:
    cache = _cache(blocks=4)
    _write_and_close(cache, ADA, [1] * 20)
    opened = cache.open(BOB, [2] * 90, 90)
    assert opened is not None
    assert cache.open(BOB, [3], 64) is None
    assert not cache.grow(opened[0], 5 * BLOCK_TOKENS)
    assert cache.kept_blocks == 1


def test_a_cache_that_is_full_of_what_was_kept_gives_that_up_and_moves_next_to_nothing() -> None:
    cache, chance, moved = _cache(400), random.Random(0), 0
    move = cache.arena.move

    def counted(source: int, target: int, count: int) -> None:
        nonlocal moved
        moved += count
        move(source, target, count)

    cache.arena.move = counted  # type: ignore[method-assign]
    working: list[tuple[RowLease, list[int]]] = []
    opened = 0
    for number in range(600):
        if len(working) == 4:
            lease, tokens = working.pop(chance.randrange(4))
            cache.close(lease, tokens)
        text = [1000 * number + token for token in range(chance.randint(100, 1500))]
        found = cache.open(ADA, text, len(text) + 60)
        if found is not None:
            working.append((found[0], text))
            opened += len(text)
    assert opened > 20 * 400 * BLOCK_TOKENS
    assert moved < 0.01 * opened
