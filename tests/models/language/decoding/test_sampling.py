"""Choosing tokens, against the chances that temperature and top-p leave, worked out by hand."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chances import chi_square_passes, nucleus

from models.language.decoding import sampling
from models.language.decoding.sampling import Chooser, uniform
from models.ports.generate import Sampling

scores_of = st.lists(st.integers(-40, 40).map(lambda tenths: tenths / 10), min_size=1, max_size=20, unique=True)


def _chooser(temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> Chooser:
    return Chooser(temperature=temperature, top_p=top_p, seed=seed)


def _drawn(chooser: Chooser, scores: Sequence[float], count: int) -> Counter[int]:
    given = torch.tensor(scores)
    return Counter(chooser.choose(given, place) for place in range(count))


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-6])
@given(scores=scores_of)
def test_without_temperature_the_likeliest_is_taken(temperature: float, scores: list[float]) -> None:
    assert _chooser(temperature).greedy
    assert _chooser(temperature).choose(torch.tensor(scores), 3) == scores.index(max(scores))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.3, 0.8, 1.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float, top_p: float) -> None:
    scores = [1.5, -0.5, 0.0, 2.0, 1.9, -3.0, 0.7]
    chances = nucleus(scores, temperature, top_p)
    for seed in (1, 2):
        drawn = _drawn(_chooser(temperature, top_p, seed), scores, 2000)
        assert chi_square_passes(drawn, chances)


def test_the_seeds_of_many_requests_draw_as_well_as_the_places_of_one() -> None:
    scores = [0.0, 1.0, 0.5, 0.2]
    drawn = Counter(_chooser(seed=seed).choose(torch.tensor(scores), 0) for seed in range(2000))
    assert chi_square_passes(drawn, nucleus(scores, 1.0, 1.0))


def test_neighbouring_places_and_seeds_have_nothing_to_do_with_each_other() -> None:
    quarters = {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}
    pairs = {(a, b): 1 / 16 for a in quarters for b in quarters}
    places = Counter((int(4 * uniform(9, at)), int(4 * uniform(9, at + 1))) for at in range(0, 8000, 2))
    seeds = Counter((int(4 * uniform(seed, 0)), int(4 * uniform(seed + 1, 0))) for seed in range(0, 8000, 2))
    assert chi_square_passes(places, pairs)
    assert chi_square_passes(seeds, pairs)


@given(seed=st.integers(0, 2**64 - 1), place=st.integers(0, 10**6))
def test_randomness_is_a_number_below_one_that_belongs_to_seed_and_place(seed: int, place: int) -> None:
    assert 0 <= uniform(seed, place) < 1
    assert uniform(seed, place) == uniform(seed, place)


@given(scores=scores_of, top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999]), place=st.integers(0, 99))
def test_nothing_outside_the_nucleus_is_ever_drawn(scores: list[float], top_p: float, place: int) -> None:
    assert _chooser(1.0, top_p).choose(torch.tensor(scores), place) in nucleus(scores, 1.0, top_p)


@given(
    scores=scores_of, place=st.integers(0, 99), top_p=st.sampled_from([0.7, 1.0]), banned=st.sets(st.integers(0, 19))
)
def test_what_a_mask_excludes_is_never_drawn(scores: list[float], place: int, top_p: float, banned: set[int]) -> None:
    masked = torch.tensor([-math.inf if token in banned else score for token, score in enumerate(scores)])
    if masked.isfinite().any():
        assert _chooser(1.0, top_p).choose(masked, place) not in banned


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), top_p=st.sampled_from([0.2, 0.6, 0.95]))
def test_a_nucleus_wider_than_what_is_looked_at_first_is_found_all_the_same(seed: int, top_p: float) -> None:
    chance = random.Random(seed)
    scores = torch.tensor([chance.gauss(0, 1) for _ in range(60)])
    wide = [_chooser(1.0, top_p).choose(scores, place) for place in range(50)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_NUCLEUS_FIRST", 2)
        assert [_chooser(1.0, top_p).choose(scores, place) for place in range(50)] == wide


@settings(max_examples=30)
@given(data=st.data())
def test_what_is_drawn_for_one_does_not_depend_on_who_else_is_asked_for(data: st.DataObject) -> None:
    chance = random.Random(data.draw(st.integers(0, 99)))
    scores = torch.tensor([[chance.gauss(0, 2) for _ in range(60)] for _ in range(5)])
    settings_of = st.tuples(st.sampled_from([0.0, 0.5, 1.0, 4.0]), st.sampled_from([0.3, 0.9, 1.0]), st.integers(0, 9))
    asked = [(_chooser(*data.draw(settings_of)), data.draw(st.integers(0, 9))) for _ in scores]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_NUCLEUS_FIRST", 8)  # so that some are found there, and some are not
        together = sampling.choose(scores, asked)
        assert together == [each.choose(row, place) for row, (each, place) in zip(scores, asked, strict=True)]


def test_a_request_without_a_seed_gets_one_of_its_own_and_a_negative_one_is_one() -> None:
    assert Chooser.of(Sampling(temperature=1.0)).seed != Chooser.of(Sampling(temperature=1.0)).seed
    assert Chooser.of(Sampling(temperature=1.0, seed=-1)).seed == 2**64 - 1
