"""Several answers to one prompt: it is read once, and each is written as it would be alone."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_decoding import Ask, RandomPolicy, Spy, Tiny, liar

from models.ports.generate import RegexConstraint

PROMPT = tuple((37 * at) % 290 + 5 for at in range(90))
ASK = Ask(prompt=PROMPT, limit=12, temperature=1.2, fork="one")


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def spy(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(tiny.decoder, monkeypatch)


def _read(spy: Spy) -> int:
    return sum(span.count for batch in spy.batches for span in batch.spans if span.count > 1)


@pytest.mark.parametrize("answers", [2, 8])
def test_the_prompt_of_many_answers_is_read_once(tiny: Tiny, spy: Spy, answers: int) -> None:
    bench = tiny.bench()
    asks = [replace(ASK, seed=seed) for seed in range(answers)]
    told = [bench.ask(ask) for ask in asks]
    bench.finish()
    tokens = sum(len(batch.tokens) for batch in spy.batches)
    assert tokens == len(PROMPT) + (answers - 1) + answers * (ASK.limit - 1)
    assert [each.usages[0].cached_tokens for each in told] == [0] + [len(PROMPT) - 1] * (answers - 1)
    assert len({tuple(each.tokens) for each in told}) == answers
    spy.batches.clear()
    assert [each.tokens for each in told] == [tiny.alone(ask).tokens for ask in asks]
    bench.has_nothing_left()


def test_another_owner_reads_for_itself_and_so_does_another_prompt(tiny: Tiny, spy: Spy) -> None:
    bench = tiny.bench()
    told = [
        bench.ask(ask)
        for ask in (ASK, replace(ASK, tenant="bob"), replace(ASK, subject="eve"), replace(ASK, prompt=PROMPT[::-1]))
    ]
    bench.finish()
    assert [each.usages[0].cached_tokens for each in told] == [0, 0, 0, 0]


@pytest.mark.parametrize("steps", [0, 1, 3, 6, 9])
def test_where_the_one_that_reads_is_cancelled_another_reads_on(tiny: Tiny, steps: int) -> None:
    bench = tiny.bench(prefill_tokens=16)
    asks = [replace(ASK, seed=seed) for seed in range(4)]
    told = [bench.ask(ask) for ask in asks]
    for _ in range(steps):
        bench.step()
    bench.cancel(told[0])
    bench.cancel(told[2])
    bench.finish()
    for at in (1, 3):
        assert told[at].tokens == tiny.alone(asks[at]).tokens
    bench.has_nothing_left()


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    limits=st.lists(st.integers(1, 20), min_size=6, max_size=6),
    blocks=st.sampled_from([5, 8, 64]),
    rows=st.sampled_from([1, 3, 8]),
    chance=st.integers(0, 99),
    held=st.booleans(),
    cancelled=st.dictionaries(st.integers(0, 5), st.integers(0, 12), max_size=3),
)
def test_each_answer_is_what_it_would_be_alone(
    tiny: Tiny,
    seeds: list[int],
    limits: list[int],
    blocks: int,
    rows: int,
    chance: int,
    held: bool,
    cancelled: dict[int, int],
) -> None:
    bench = tiny.bench(blocks=blocks, rows=rows, drafters=[liar(300, seed=chance)], policy=RandomPolicy(chance))
    bench.foresee_nothing()
    form = RegexConstraint(pattern="[a-z ]{3,20}") if held else None
    asks = [
        replace(ASK, seed=seed, limit=limit, constraint=form, frequency_penalty=0.5)
        for seed, limit in zip(seeds, limits, strict=False)
    ]
    told = [bench.ask(ask) for ask in asks]
    other = bench.ask(Ask(prompt=PROMPT[:40], limit=30))
    for step in range(13):
        for at, when in cancelled.items():
            if when == step and at < len(told):
                bench.cancel(told[at])
        bench.step()
    bench.finish()
    for at, (ask, each) in enumerate(zip(asks, told, strict=True)):
        if at not in cancelled or each.over:
            assert each.tokens == tiny.alone(ask).tokens
    assert other.tokens == tiny.alone(Ask(prompt=PROMPT[:40], limit=30)).tokens
    bench.has_nothing_left()


def test_a_step_that_fails_fails_whoever_was_in_it_and_the_next_reads(tiny: Tiny, spy: Spy) -> None:
    bench = tiny.bench()
    told = [bench.ask(replace(ASK, seed=seed)) for seed in range(3)]
    spy.fault = RuntimeError("broken")
    bench.step()
    spy.fault = None
    bench.finish()
    assert told[0].error is not None
    assert [each.reason for each in told[1:]] == ["length", "length"]
    bench.has_nothing_left()
