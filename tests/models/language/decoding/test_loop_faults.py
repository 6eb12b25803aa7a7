"""What goes wrong in the loop costs only whom it concerns, and of many requests nothing is left."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.tiny_decoding import Ask, Guesser, RandomPolicy, Spy, Tiny, Told, liar, oracle

from models.errors import BadInput, BatonError, Internal, Overloaded
from models.language.decoding.constrain import Guide
from models.language.decoding.drafters.suffix import SuffixDrafter
from models.language.decoding.speculation import FixedPolicy
from models.ports.generate import RegexConstraint

SHORT = tuple(range(10, 17))
LONG = tuple(random.Random(6).randrange(3, 300) for _ in range(90))


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def spy(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(tiny.decoder, monkeypatch)


class _Faulty:
    """A guide that fails after some steps."""

    def __init__(self, guide: Guide, fault: Exception, *, steps: int, choosing: bool) -> None:
        self._guide, self._fault, self._steps, self._choosing = guide, fault, steps, choosing

    @property
    def stopped(self) -> bool:
        return self._guide.stopped

    def masks(self, drafts: Sequence[int] = ()) -> NDArray[np.int32]:
        self._steps -= 1
        if self._steps < 0 and not self._choosing:
            raise self._fault
        return self._guide.masks(drafts)

    def accept(self, tokens: Sequence[int]) -> None:
        if self._steps < 0:
            raise self._fault
        self._guide.accept(tokens)

    def forced(self) -> list[int]:
        return self._guide.forced()


@pytest.mark.parametrize("choosing", [False, True], ids=["before the model runs", "afterwards"])
@pytest.mark.parametrize("fault", [BadInput("It is at fault."), ZeroDivisionError()], ids=["at fault", "a defect"])
def test_a_grammar_that_fails_costs_nobody_else(tiny: Tiny, fault: Exception, choosing: bool) -> None:
    bench = tiny.bench()
    ask, other = Ask(prompt=SHORT, constraint=RegexConstraint(pattern="[a-z ]{60}")), Ask(prompt=LONG[:9], limit=20)
    beside = bench.ask(other)
    told = Told()
    row = bench.row(ask, told)
    assert row.guide is not None
    row.guide = _Faulty(row.guide, fault, steps=3, choosing=choosing)  # type: ignore[assignment]
    bench.loop.submit(row)
    bench.finish()
    assert told.error is fault if isinstance(fault, BatonError) else isinstance(told.error, Internal)
    assert len(told.tokens) == 3
    assert beside.tokens == tiny.alone(other).tokens
    bench.has_nothing_left()


@pytest.mark.parametrize(
    ("fault", "error"), [(RuntimeError("a kernel"), Internal), (torch.OutOfMemoryError(), Overloaded)]
)
def test_a_step_that_fails_fails_its_requests_and_those_that_waited_are_served(
    tiny: Tiny, spy: Spy, fault: Exception, error: type[BatonError]
) -> None:
    bench = tiny.bench(rows=2)
    first, second, third = [bench.ask(Ask(prompt=SHORT, limit=limit)) for limit in (4, 5, 6)]
    bench.loop.step()
    spy.fault = fault
    assert bench.loop.step()
    assert isinstance(first.error, error)
    assert isinstance(second.error, error)
    spy.fault = None
    bench.finish()
    assert third.tokens == tiny.alone(Ask(prompt=SHORT, limit=6)).tokens
    bench.has_nothing_left()


def test_a_drafter_that_fails_does_not_stop_the_loop(tiny: Tiny) -> None:
    def fails(*_: object) -> list[int]:
        raise ZeroDivisionError

    bench = tiny.bench(rows=1, drafters=[Guesser("pair", fails)], policy=FixedPolicy("pair", 2))
    first, second = bench.ask(Ask(prompt=SHORT, limit=4)), bench.ask(Ask(prompt=SHORT, limit=1))
    bench.finish()
    assert isinstance(first.error, Internal)
    assert second.reason == "length"
    bench.has_nothing_left()


def test_of_a_thousand_requests_each_is_served_or_cancelled_and_nothing_is_left_of_them(tiny: Tiny) -> None:
    chance = random.Random(0)
    guessers = [oracle(lambda context: context.tokens[context.prompt_length :], errs=0.5), liar(300)]
    bench = tiny.bench(blocks=12, prefill_tokens=48, drafters=[SuffixDrafter(), *guessers], policy=RandomPolicy(0))
    bench.foresee_nothing()
    asked: list[Told] = []
    cancelled: set[Told] = set()
    steps = 0
    while len(asked) < 1000 or bench.loop.running or bench.loop.waiting:
        for _ in range(min(chance.randint(0, 4), 1000 - len(asked))):
            begin, length = chance.randrange(40), chance.randint(1, 50)
            ask = Ask(
                prompt=LONG[begin : begin + length],
                limit=chance.randint(1, 12),
                temperature=chance.choice((0.0, 1.0)),
                seed=len(asked),
                tenant=chance.choice(("ada", "bob")),
                priority=chance.choice(("interactive", "normal", "batch")),
                came_s=float(steps),
            )
            asked.append(bench.ask(ask))
        if chance.random() < 0.3 and asked and not (told := chance.choice(asked[-30:])).over:
            bench.cancel(told)
            cancelled.add(told)
        bench.loop.step()
        steps += 1
        assert steps < 5000
    assert len(cancelled) > 50
    assert all(told.over != (told in cancelled) for told in asked)
    assert all(told.error is None for told in asked)
    assert not any(guesser.here for guesser in guessers)
    bench.has_nothing_left()
