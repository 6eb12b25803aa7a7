"""What steps cost, learned from noisy measurements."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.language.decoding.costs import Costs, Curve

MEASURED = st.lists(st.tuples(st.integers(1, 400), st.floats(0.1, 100)), min_size=1, max_size=40)


def _learned(measured):
    curve = Curve()
    for size, ms in measured:
        curve.observe(size, ms)
    return curve


@given(measured=MEASURED, size=st.integers(1, 200), more=st.integers(0, 200))
def test_a_ramp_is_what_its_sizes_cost_one_by_one(measured, size, more):
    # Distinct sizes up to 15 and coarse ones beyond lie exactly on knots; a mean of sizes may lie between two.
    curve = _learned([(n if n < 16 else 32, ms) for n, ms in measured])
    assert curve.ramp(size, more) == pytest.approx([curve.at(n) for n in range(size, size + more + 1)])


@given(measured=MEASURED, size=st.integers(1, 200), more=st.integers(1, 200))
def test_no_token_is_cheaper_than_the_least_slope(measured, size, more):
    curve = _learned([(n if n < 16 else 32, ms) for n, ms in measured])
    ramp = curve.ramp(size, more)
    slopes = [(ms - ramp[0]) / count for count, ms in enumerate(ramp) if count]
    assert curve.least_slope(size, more) == pytest.approx(min(slopes), rel=1e-6, abs=1e-6)


@given(measured=MEASURED, size=st.floats(1, 10_000))
def test_whatever_was_measured_nothing_costs_less_than_nothing(measured, size):
    assert _learned(measured).at(size) >= 0


def test_a_curve_is_learned_through_noise_and_outliers():
    rng, costs = random.Random(1), Costs()
    for _ in range(3000):
        tokens = rng.choice((1, 2, 4, 8, 16, 32))
        ms = (10 + tokens) * rng.gauss(1, 0.05) + (200 if rng.random() < 0.02 else 0)
        costs.observe_step(tokens, 1, ms)
    for tokens in (1, 3, 8, 20, 32):
        assert costs.step_ms(tokens, 1) == pytest.approx(10 + tokens, rel=0.12)


def test_what_rows_cost_beside_their_tokens_is_told_apart():
    rng, costs = random.Random(2), Costs()
    for _ in range(4000):
        rows = rng.choice((1, 2, 4, 8))
        tokens = rows + rng.choice((0, 4, 8))
        costs.observe_step(tokens, rows, (10 + 0.5 * tokens + 1.0 * rows) * rng.gauss(1, 0.02))
    assert costs.step_ms(12, 8) - costs.step_ms(12, 4) == pytest.approx(4.0, abs=1.0)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_requests_that_come_and_go_do_not_lead_it_astray(seed):
    rng, costs = random.Random(seed), Costs()
    for _ in range(1500):
        rows, drafted = rng.choice((8, 8, 8, 8, 7, 7, 6)), rng.choice((0, 0, 0, 4, 12, 25))
        tokens = rows + drafted
        costs.observe_step(tokens, rows, (20 + 3 * tokens) * rng.choice((1, 1, 1, 1.1, 1.3, 1.8)))
    assert 40 < costs.step_ms(8, 8) < 65


def test_a_machine_that_becomes_slower_is_noticed():
    costs = Costs()
    for _ in range(100):
        costs.observe_step(4, 4, 10)
    for _ in range(60):
        costs.observe_step(4, 4, 30)
    assert costs.step_ms(4, 4) == pytest.approx(30, rel=0.1)


def test_a_size_that_was_measured_long_ago_weighs_little():
    curve = Curve()
    for _ in range(50):
        curve.observe(8, 10)
    for _ in range(128):
        curve.observe(1, 5)
    curve.observe(8, 18)
    assert curve.at(8) == pytest.approx(14)


def test_a_size_that_was_not_measured_for_very_long_is_forgotten():
    curve = Curve()
    curve.observe(2, 1000)
    for _ in range(5000):
        curve.observe(1, 1)
    assert curve.at(2) < 2


def test_what_was_never_measured_costs_nothing_yet():
    costs = Costs()
    assert costs.step_ms(3, 3) == 0
    assert costs.round_ms("pair", 2) == 0


def test_a_drafter_costs_by_the_round():
    costs = Costs()
    for _ in range(5):
        costs.observe_draft("pair", 4, 16, 8.0)
    assert costs.round_ms("pair", 4) == pytest.approx(2.0)
