"""One budget of threads for all worker processes."""

from hypothesis import given
from hypothesis import strategies as st

from models.placement.budget import available_threads, environment, shares

_BOTH = frozenset({"decoding", "senses"})


@given(st.integers(1, 512))
def test_from_four_threads_on_the_shares_are_the_whole_and_each_has_some(threads: int) -> None:
    split = shares(threads, _BOTH)
    assert min(split.values()) >= 1
    assert split["decoding"] >= split["senses"]
    assert sum(split.values()) == threads if threads >= 4 else split == {"decoding": threads, "senses": 1}


@given(st.integers(1, 512))
def test_who_is_alone_answers_with_all(threads: int) -> None:
    assert shares(threads, frozenset({"decoding"})) == {"decoding": threads}


def test_there_is_at_least_one_thread_and_every_library_is_told() -> None:
    assert available_threads() >= 1
    assert set(environment(3).values()) == {"3"}
    assert {"OMP_NUM_THREADS", "RAYON_NUM_THREADS"} <= environment(3).keys()
