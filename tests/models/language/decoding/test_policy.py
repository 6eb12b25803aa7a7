"""The policy in a made-up engine: curves of what a step costs, drafts whose chances are known, and time that is added up."""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from models.language.decoding.drafters import DrafterName
from models.language.decoding.policy import DraftChoice, Policy, RowState

ANSWER_TOKENS = 128


def _lines(*points: tuple[int, float]) -> Callable[[int], float]:
    def ms(tokens: int) -> float:
        at = min(max(1, bisect_left(points, (tokens, 0.0))), len(points) - 1)
        (left, low), (right, high) = points[at - 1], points[at]
        return low + (high - low) * (tokens - left) / (right - left)

    return ms


# Milliseconds of a step by its tokens.
STEPS: dict[str, Callable[[int], float]] = {
    "measured on a CPU": _lines((1, 12.0), (4, 14.0), (8, 18.0), (16, 28.0), (32, 50.0), (64, 94.0)),
    "flat": lambda tokens: 4 + 0.002 * tokens,
    "linear": lambda tokens: 1 + 3 * tokens,
    "flat, then linear": lambda tokens: 4 + max(0, tokens - 48) * 0.08,
    "in stairs of eight": lambda tokens: 4.0 * (1 + (tokens - 1) // 8),
}

# The chance that a draft token is accepted, by the answer's length so far, the request, and the place in the draft.
ACCEPTED: dict[str, Callable[[int, int, int], float]] = {
    "never": lambda length, request, place: 0.0,
    "seldom": lambda length, request, place: 0.3,
    "often": lambda length, request, place: 0.6,
    "mostly": lambda length, request, place: 0.9,
    "well until the middle": lambda length, request, place: 0.9 if length < ANSWER_TOKENS / 2 else 0.02,
    "well from the middle on": lambda length, request, place: 0.02 if length < ANSWER_TOKENS / 2 else 0.9,
    "in every second request": lambda length, request, place: 0.9 * (request % 2),
    "in bursts": lambda length, request, place: 0.95 * (length // 30 % 2),
    "in its first token": lambda length, request, place: 0.9 * (place == 0),
}

# Milliseconds of a round of a drafter for so many rows.
ROUNDS: dict[DrafterName, Callable[[int], float]] = {
    "suffix": lambda rows: 0.01 * rows,
    "pair": lambda rows: 1.5 + 0.1 * rows,
}


@dataclass
class Engine:
    """Runs steps as the policy chooses, and counts the time they take and the time plain steps would have taken."""

    step_ms: Callable[[int], float]
    accepted: Callable[[int, int, int], float]
    rows: int
    offers: Callable[[random.Random], dict[DrafterName, list[float] | None]] = lambda rng: {"suffix": None}
    noise: float = 0.05
    answer_tokens: int = ANSWER_TOKENS
    policy: Policy = field(default_factory=Policy)
    rng: random.Random = field(default_factory=lambda: random.Random(3))
    ms: float = 0.0
    plain_ms: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.requests = list(range(self.rows))
        self.lengths = [self.rng.randrange(self.answer_tokens) for _ in self.requests]

    def run(self, steps: int) -> float:
        """Return how much faster these steps were than plain ones."""
        begun = self.ms, self.plain_ms
        for _ in range(steps):
            self.step()
        return (self.plain_ms - begun[1]) / (self.ms - begun[0])

    def step(self) -> list[DraftChoice]:
        states = [
            RowState(key=request, limit=self.answer_tokens - length - 1, offers=self.offers(self.rng))
            for request, length in zip(self.requests, self.lengths, strict=True)
        ]
        choices = self.policy.choose(states)
        self.reasons.update(choice.reason for choice in choices)
        for name in ROUNDS:
            lengths = [choice.length for choice in choices if choice.drafter == name]
            if lengths:
                ms = max(lengths) * ROUNDS[name](len(lengths))
                self.ms += ms
                self.policy.observe_draft(name, len(lengths), sum(lengths), ms)
        drafted = sum(choice.length for choice in choices)
        ms = self.step_ms(self.rows + drafted)
        self.ms += ms
        held_up = 60 if self.rng.random() < 0.01 else 0  # by something else; the policy sees it, and must not mind
        seen = ms * max(0.5, self.rng.gauss(1, self.noise)) + held_up
        self.policy.observe_step(self.rows, drafted, seen)
        for row, choice in enumerate(choices):
            self.advance(row, choice)
        return choices

    def advance(self, row: int, choice: DraftChoice) -> None:
        accepted = 0
        if choice.drafter is not None:
            while accepted < choice.length and self.rng.random() < self.accepted(
                self.lengths[row], self.requests[row], accepted
            ):
                accepted += 1
            self.policy.observe(self.requests[row], choice.drafter, choice.length, accepted)
        self.plain_ms += (1 + accepted) * self.step_ms(self.rows) / self.rows
        self.lengths[row] += 1 + accepted
        if self.lengths[row] >= self.answer_tokens:
            self.policy.forget(self.requests[row])
            self.requests[row], self.lengths[row] = max(self.requests) + 1, 0


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("accepted", ACCEPTED)
@pytest.mark.parametrize("steps", STEPS)
def test_drafts_never_make_it_five_percent_slower(steps, accepted, rows):
    engine = Engine(STEPS[steps], ACCEPTED[accepted], rows)
    assert engine.run(600) > 0.95


@pytest.mark.parametrize("accepted", ["never", "often", "in bursts"])
@pytest.mark.parametrize("steps", STEPS)
def test_nor_do_two_drafters_of_which_one_boasts(steps, accepted):
    def offers(rng: random.Random) -> dict[DrafterName, list[float] | None]:
        return {"suffix": [0.9] * 8 if rng.random() < 0.5 else [], "pair": None}

    assert Engine(STEPS[steps], ACCEPTED[accepted], 4, offers, noise=0.15).run(600) > 0.95


def _best_of_fixed(step_ms: Callable[[int], float], chance: float, rows: int) -> float:
    """The speed-up of the best draft length, the same for every row and step."""
    return max(
        sum(chance**place for place in range(length + 1))
        * step_ms(rows)
        / (step_ms(rows * (1 + length)) + length * ROUNDS["suffix"](rows))
        for length in range(17)
    )


@pytest.mark.parametrize(("accepted", "chance"), [("seldom", 0.3), ("often", 0.6), ("mostly", 0.9)])
@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("steps", ["measured on a CPU", "flat", "flat, then linear", "linear"])
def test_it_comes_near_the_best_fixed_length_without_being_told(steps, accepted, chance, rows):
    engine = Engine(STEPS[steps], ACCEPTED[accepted], rows, answer_tokens=2000)
    engine.run(100)
    assert engine.run(500) > 0.8 * _best_of_fixed(STEPS[steps], chance, rows)


def test_a_drafter_that_was_bad_comes_back_when_it_becomes_good():
    engine = Engine(STEPS["measured on a CPU"], ACCEPTED["never"], 2)
    engine.run(1500)
    engine.accepted = ACCEPTED["mostly"]
    engine.run(300)
    assert engine.run(300) > 1.5


def test_trying_again_what_is_bad_costs_at_most_two_percent():
    for steps in STEPS.values():
        engine = Engine(steps, ACCEPTED["never"], 1)
        engine.run(200)
        assert engine.run(2000) > 0.98


def test_only_the_requests_that_gain_by_it_draft():
    engine = Engine(STEPS["measured on a CPU"], ACCEPTED["in every second request"], 8)
    engine.run(200)
    drafted: Counter[int] = Counter()
    for _ in range(200):
        requests = list(engine.requests)
        drafted.update(
            {
                request % 2: choice.length
                for request, choice in zip(requests, engine.step(), strict=True)
                if choice.length
            }
        )
    assert drafted[1] > 4 * drafted[0]


def test_of_two_drafters_each_row_uses_the_one_that_pays():
    policy = _warm(Policy(), STEPS["flat"], rows=2)
    policy.observe_draft("pair", 2, 2, 0.1)
    rows = [
        RowState(key=1, limit=8, offers={"suffix": [0.95] * 8, "pair": [0.6] * 8}),
        RowState(key=2, limit=8, offers={"suffix": [], "pair": [0.6] * 8}),
    ]
    assert [choice.drafter for choice in policy.choose(rows)] == ["suffix", "pair"]


def test_a_drafter_whose_rounds_cost_more_than_they_save_is_left_alone():
    policy = _warm(Policy(), STEPS["flat"], rows=1)
    policy.choose([])
    policy.observe_draft("pair", 1, 1, 3.9)
    policy.observe_step(1, 0, 4.0)
    (choice,) = policy.choose([RowState(key=1, limit=8, offers={"pair": [0.9] * 8})])
    assert (choice.drafter, choice.reason) == (None, "dear")


def test_a_draft_is_no_longer_than_the_row_can_take_nor_than_the_offer():
    policy = _warm(Policy(longest=6), STEPS["flat"], rows=3)
    rows = [
        RowState(key=1, limit=2, offers={"suffix": [0.97] * 9}),
        RowState(key=2, limit=9, offers={"suffix": [0.97] * 4}),
        RowState(key=3, limit=9, offers={"suffix": [0.97] * 9}),
    ]
    choices = policy.choose(rows)
    assert [choice.length for choice in choices] == [2, 4, 6]
    assert choices[0].expected == pytest.approx(0.97 + 0.97**2)


def test_a_row_that_nobody_has_a_guess_for_writes_plainly():
    policy = _warm(Policy(), STEPS["flat"], rows=1)
    (choice,) = policy.choose([RowState(key=1, limit=8, offers={"suffix": []})])
    assert choice == DraftChoice(drafter=None, length=0, expected=0.0, reason="no_guess")


def test_on_a_machine_without_time_to_spare_no_offers_need_be_made():
    policy = _warm(Policy(), lambda tokens: 3.0 * tokens, rows=8)
    assert not policy.may_pay(8)
    assert {choice.reason for choice in policy.choose([RowState(key=key, limit=8, offers={}) for key in range(8)])} == {
        "dear"
    }
    assert _warm(Policy(), STEPS["flat"], rows=8).may_pay(8)


def test_a_step_that_reads_a_prompt_is_made_hardly_longer_by_drafts():
    rows = [RowState(key=key, limit=16, offers={"suffix": [0.97] * 16}) for key in range(4)]
    policy = _warm(Policy(), STEPS["measured on a CPU"], rows=4)
    alone, beside = (sum(choice.length for choice in policy.choose(rows, reading=reading)) for reading in (False, True))
    assert STEPS["measured on a CPU"](4 + beside) <= 1.2 * 14 < STEPS["measured on a CPU"](4 + alone)
    policy = _warm(Policy(), STEPS["flat"], rows=4)
    alone, beside = (sum(choice.length for choice in policy.choose(rows, reading=reading)) for reading in (False, True))
    assert beside == alone == 64


def test_no_step_is_made_longer_than_three_plain_ones():
    policy = _warm(Policy(longest=64), STEPS["measured on a CPU"], rows=4)
    rows = [RowState(key=key, limit=64, offers={"suffix": [0.98] * 64}) for key in range(4)]
    tokens = 4 + sum(choice.length for choice in policy.choose(rows))
    assert 2.5 * 14 < STEPS["measured on a CPU"](tokens) <= 3 * 14


def test_what_a_prompt_takes_is_not_what_drafts_cost():
    policy = _warm(Policy(), STEPS["flat"], rows=2)
    for _ in range(50):
        policy.choose([])
        policy.observe_step(2, 4, 400.0, reading=True)
    assert policy.costs.step_ms(6, 2) < 5
    assert policy.balance_ms >= 0


def test_a_plain_step_now_and_then_keeps_the_measure_true():
    engine = Engine(STEPS["flat"], ACCEPTED["mostly"], 1)
    engine.run(640)
    assert 10 <= engine.reasons["measuring"] <= 16
    assert engine.reasons["pays"] > 550


def test_while_more_time_was_lost_than_may_be_nothing_drafts():
    policy = _warm(Policy(), STEPS["flat"], rows=1)
    row = RowState(key=1, limit=8, offers={"suffix": [0.9] * 8})
    steps = 0
    while policy.choose([row])[0].drafter:
        policy.observe_step(1, 8, 8.0)  # twice as long as it was thought to be
        steps += 1
    assert steps <= 4
    assert policy.balance_ms < 0
    assert policy.choose([row])[0].reason == "overdrawn"


def test_a_request_that_is_finished_leaves_nothing_behind():
    engine = Engine(STEPS["flat"], ACCEPTED["often"], 4)
    engine.run(400)
    for request in engine.requests:
        engine.policy.forget(request)
    assert not engine.policy._rows
    assert not engine.policy._asked


def test_without_rows_there_is_nothing_to_choose():
    assert Policy().choose([]) == []


def _warm(policy: Policy, step_ms: Callable[[int], float], *, rows: int) -> Policy:
    """Let the policy see what steps cost at this load."""
    for tokens in (*range(1, 17), 24, 32, 48, 64):
        for _ in range(3):
            policy.costs.observe_step(rows * tokens, rows, step_ms(rows * tokens))
    for _ in range(3):
        policy.observe_step(rows, 0, step_ms(rows))
    return policy
