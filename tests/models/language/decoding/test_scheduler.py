"""Who runs next, and with how many tokens."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.language.decoding.scheduler import ChunkSize, Lengths, Queue, Rank, chunks

ranks = st.builds(
    Rank.of,
    st.sampled_from(["interactive", "normal", "batch"]),
    st.floats(0, 100),
    st.none() | st.floats(0, 100),
    st.integers(0, 9),
)


# Ranks


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("interactive", 10.0, None, 2), ("normal", 10.0, None, 1)),
        (("normal", 10.0, None, 2), ("batch", 10.0, None, 1)),
        (("normal", 10.0, None, 1), ("normal", 10.0, None, 2)),
        (("normal", 10.0, None, 1), ("interactive", 16.0, None, 2)),
        (("batch", 10.0, None, 1), ("interactive", 41.0, None, 2)),
        (("batch", 10.0, 11.0, 2), ("normal", 10.0, None, 1)),
        (("batch", 10.0, 90.0, 1), ("interactive", 41.0, None, 2)),
    ],
    ids=[
        "a turn before a request",
        "a request before a batch",
        "equals as they came",
        "a request that has waited before a turn",
        "a batch that has waited before a turn",
        "a near deadline before all that",
        "a far deadline delays nothing",
    ],
)
def test_the_more_urgent_goes_first(first: tuple, second: tuple) -> None:
    assert Rank.of(*first) < Rank.of(*second)


# Sharing a step


@given(unread=st.lists(st.tuples(ranks, st.integers(1, 50)), max_size=8), budget=st.integers(0, 120))
def test_a_step_reads_all_it_may_half_for_the_most_urgent_and_leaves_nobody_out(
    unread: list[tuple[Rank, int]], budget: int
) -> None:
    shares = chunks(unread, budget)
    assert sum(shares) == min(budget, sum(wanted for _, wanted in unread))
    assert all(0 <= share <= wanted for share, (_, wanted) in zip(shares, unread, strict=True))
    if unread:
        fair = budget // 2 // len(unread)
        assert all(share >= min(wanted, fair) for share, (_, wanted) in zip(shares, unread, strict=True))
        first = min(rank for rank, _ in unread)
        assert any(
            share >= min(wanted, budget // 2)
            for share, (rank, wanted) in zip(shares, unread, strict=True)
            if rank == first
        )


def test_a_short_prompt_does_not_wait_for_a_long_one_that_came_before_it() -> None:
    long, short = Rank.of("normal", 0.0, None, 1), Rank.of("normal", 9.0, None, 2)
    left, steps = [6000, 30], 0
    while left[1]:
        shares = chunks([(long, left[0]), (short, left[1])], 8)
        left, steps = [left[0] - shares[0], left[1] - shares[1]], steps + 1
    assert steps <= 15


# How much is read beside those who write


class _Machine:
    """A device whose steps take so long: writing, and each token that is read besides."""

    def __init__(self, chunk: ChunkSize, writing_ms: float, token_ms: float, noise: float = 0.0) -> None:
        self.chunk = chunk
        self._writing_ms = writing_ms
        self._token_ms = token_ms
        self._noise = noise
        self._chance = random.Random(0)

    def step(self, unread: int) -> tuple[int, float]:
        """Run a step that would read `unread` tokens; return how many it read, and its time in steps that only write."""
        read = min(unread, self.chunk.size(8))
        ms = (self._writing_ms + self._token_ms * read) * (1 + self._noise * self._chance.random())
        self.chunk.observe(8, read, 0, ms)
        return read, ms / self._writing_ms

    def read(self, prompt: int) -> list[float]:
        """Read a prompt; return how long each step took."""
        steps: list[float] = []
        while prompt:
            read, took = self.step(prompt)
            prompt -= read
            steps.append(took)
        return steps


@given(
    token_ms=st.floats(0.001, 0.08),
    prompts=st.lists(st.integers(1, 40), max_size=30),
    between=st.integers(1, 5),
)
def test_a_long_prompt_never_doubles_the_time_of_those_who_write_whatever_was_read_before(
    token_ms: float, prompts: list[int], between: int
) -> None:
    machine = _Machine(ChunkSize(most=512), writing_ms=1.0, token_ms=token_ms)
    for prompt in (*prompts, 6000):
        for _ in range(between):
            machine.step(0)
        steps = machine.read(prompt)
        assert max(steps) < 2 or max(steps) <= 1 + 16 * token_ms


@pytest.mark.parametrize("token_ms", [0.002, 0.02, 0.08])
def test_a_long_prompt_gets_all_the_time_there_is(token_ms: float) -> None:
    machine = _Machine(ChunkSize(most=512), writing_ms=1.0, token_ms=token_ms)
    machine.step(0)
    steps = machine.read(6000)
    bound = min(0.7 / token_ms, 512)
    assert len(steps) < 25 + 1.3 * 6000 / bound


def test_an_unsteady_machine_keeps_to_it_all_the_same() -> None:
    machine = _Machine(ChunkSize(most=512), writing_ms=10.0, token_ms=0.2, noise=0.3)
    for _ in range(20):
        machine.step(0)
    steps = sorted(machine.read(6000))
    assert steps[int(0.99 * len(steps))] < 2.6  # twice, and what the machine adds by itself
    assert len(steps) < 6000 / 12


def test_a_machine_that_becomes_slow_is_given_less_at_once() -> None:
    chunk = ChunkSize(most=512)
    fast = _Machine(chunk, writing_ms=1.0, token_ms=0.01)
    fast.step(0)
    fast.read(6000)
    slow = _Machine(chunk, writing_ms=1.0, token_ms=0.08)
    assert [took < 2 for took in slow.read(500)].index(True) <= 3


def test_nobody_waits_for_a_prompt_that_is_read_alone() -> None:
    chunk = ChunkSize(most=512)
    assert chunk.size(0) == 512
    chunk.observe(0, 512, 0, 400.0)
    assert chunk.size(1) == 0  # what a step takes that only writes is measured first
    chunk.observe(1, 0, 0, 1.0)
    assert chunk.size(1) == 16


def test_long_drafts_take_nothing_from_a_prompt() -> None:
    chunk, chance = ChunkSize(most=512), random.Random(0)
    steps = read = 0
    while read < 6000:
        drafted = chance.choice([0, 8, 40])
        piece = chunk.size(8) if steps > 20 else 0
        chunk.observe(8, piece, drafted, 40.0 + 2.0 * (piece + drafted))
        steps, read = steps + 1, read + piece
    usual_ms = 40 + 2 * 16
    assert steps < 25 + 1.2 * 6000 / (0.7 * usual_ms / 2)


def test_what_a_step_takes_is_measured_for_each_load_and_again_after_a_while() -> None:
    chunk = ChunkSize(most=512)
    chunk.observe(1, 0, 0, 1.0)
    assert chunk.size(1)
    assert chunk.size(8) == 0
    chunk.observe(8, 0, 0, 4.0)
    pieces = []
    for _ in range(200):
        pieces.append(chunk.size(8))
        chunk.observe(8, pieces[-1], 0, 4.0 + 0.1 * pieces[-1])
    assert 4 <= pieces.count(0) <= 8


def test_a_prompt_is_read_on_however_slow_that_is() -> None:
    machine = _Machine(ChunkSize(most=512, least=8), writing_ms=1.0, token_ms=50.0)
    machine.step(0)
    assert len(machine.read(800)) <= 100 + 100 // 32 + 1  # some steps show what it takes to write


# Lengths


def test_nothing_is_predicted_of_a_few_answers() -> None:
    lengths = Lengths()
    for _ in range(7):
        lengths.observe(3)
    assert lengths.predict(100) == 100


@given(seen=st.lists(st.integers(0, 50), min_size=8, max_size=40), most=st.integers(1, 60))
def test_nine_of_ten_answers_do_not_pass_what_is_predicted(seen: list[int], most: int) -> None:
    lengths = Lengths(remembered=20)
    for length in seen:
        lengths.observe(length)
    recent = [min(length, most) for length in seen[-20:]]
    predicted = lengths.predict(most)
    assert 1 <= predicted <= most
    assert sum(length <= predicted for length in recent) >= 0.9 * len(recent)


# Waiting


@given(entries=st.lists(ranks, max_size=12), left=st.data())
def test_the_most_urgent_is_first_whoever_else_leaves(entries: list[Rank], left: st.DataObject) -> None:
    queue: Queue[object] = Queue()
    waiting = [(rank, object()) for rank in entries]
    for rank, item in waiting:
        queue.put(rank, item)
    while waiting:
        assert len(queue) == len(waiting)
        first = queue.first()
        assert next(rank for rank, item in waiting if item is first) == min(rank for rank, _ in waiting)
        gone = waiting.pop(left.draw(st.integers(0, len(waiting) - 1)))
        assert queue.remove(gone[1])
        assert not queue.remove(gone[1])
    assert queue.first() is None
