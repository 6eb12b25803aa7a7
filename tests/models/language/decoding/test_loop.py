"""The loop, step by step: who is let in, what is reused, and who pays for what goes wrong."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_decoding import Ask, Bench, RandomPolicy, Spy, Tiny, Told, liar, oracle

from models.content import DraftUsage, UsageDelta
from models.errors import Internal, Overloaded
from models.language.decoding.rows import Prompt
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


# What is told


def test_a_request_is_told_its_prompt_first_and_what_it_used_before_the_end(tiny: Tiny) -> None:
    told = tiny.alone(Ask(prompt=SHORT, limit=5))
    assert told.deltas[0] == UsageDelta(input_tokens=7, output_tokens=0)
    assert told.deltas[-2] == UsageDelta(input_tokens=0, output_tokens=5)
    assert told.reason == "length"


def test_what_each_drafter_did_is_in_the_usage(tiny: Tiny) -> None:
    ask = Ask(prompt=SHORT, limit=9)
    bench = tiny.bench(drafters=[oracle(lambda _: tiny.alone(ask).tokens, errs=0)], policy=FixedPolicy("pair", 3))
    told = bench.ask(ask)
    bench.finish()
    # The prompt's last token gives one; then three and one more, twice; and what is drafted leaves room for the last.
    assert told.usages[-1].drafts == (DraftUsage(drafter="pair", drafted=6, accepted=6),)
    assert told.usages[-1].output_tokens == 9


def test_a_draft_that_is_right_saves_its_steps(tiny: Tiny) -> None:
    ask = Ask(prompt=SHORT, limit=16)
    guesser = oracle(lambda _: tiny.alone(ask).tokens, errs=0)
    bench = tiny.bench(drafters=[guesser], policy=FixedPolicy("pair", 4))
    bench.ask(ask)
    assert bench.finish() == 1 + 15 // 5


# Prefixes


def _cached(bench: Bench, ask: Ask, prompt: Prompt | None = None) -> int:
    told = bench.ask(ask, prompt=prompt)
    bench.finish()
    return told.usages[0].cached_tokens


def test_the_next_turn_of_a_conversation_reads_only_what_is_new(tiny: Tiny) -> None:
    bench, turn = tiny.bench(), Ask(prompt=LONG, limit=8)
    first = bench.ask(turn)
    bench.finish()
    answered = LONG + tuple(first.tokens)
    later = Ask(prompt=(*answered, *SHORT), limit=8)
    second = bench.ask(later)
    bench.finish()
    # The last token was written, but never run.
    assert second.usages[0] == UsageDelta(
        input_tokens=len(later.prompt), output_tokens=0, cached_tokens=len(answered) - 1
    )
    assert second.tokens == tiny.alone(later).tokens


def test_a_prompt_that_begins_alike_is_read_from_where_it_differs(tiny: Tiny) -> None:
    bench = tiny.bench()
    _cached(bench, Ask(prompt=LONG, limit=2))
    assert _cached(bench, Ask(prompt=(*LONG[:70], 5, 6), limit=2)) == 70
    assert _cached(bench, Ask(prompt=LONG, limit=2)) == len(LONG) - 1


@pytest.mark.parametrize("other", [{"tenant": "bob"}, {"subject": "eve"}, {"tenant": "bob", "subject": "eve"}], ids=str)
def test_another_owner_finds_nothing(tiny: Tiny, other: dict[str, str]) -> None:
    bench = tiny.bench()
    _cached(bench, Ask(prompt=LONG))
    assert _cached(bench, Ask(prompt=LONG, **other)) == 0
    assert _cached(bench, Ask(prompt=LONG, **other)) == len(LONG) - 1


@settings(max_examples=25)
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from([("ada", None), ("ada", "eve"), ("ada", "fay"), ("bob", "eve")]), st.integers(1, len(LONG))
        ),
        min_size=2,
        max_size=10,
    )
)
def test_nobody_finds_more_of_a_prompt_than_the_same_owner_has_brought(
    tiny: Tiny, asked: list[tuple[tuple[str, str | None], int]]
) -> None:
    bench = tiny.bench()
    brought: dict[tuple[str, str | None], int] = {}
    for owner, length in asked:
        cached = _cached(bench, Ask(prompt=LONG[:length], limit=1, tenant=owner[0], subject=owner[1]))
        known = brought.get(owner, 0)
        assert cached <= known, "somebody else's prompt was found"
        assert cached >= min(known, length - 1) - 1, "the owner's own prompt was not found"
        brought[owner] = max(known, length)


def test_what_was_read_of_a_cancelled_request_is_kept_as_well(tiny: Tiny) -> None:
    bench = tiny.bench(prefill_tokens=40)
    told = bench.ask(Ask(prompt=LONG))
    bench.loop.step()
    bench.cancel(told)
    assert _cached(bench, Ask(prompt=LONG)) == 40


def test_a_prompt_in_embeddings_neither_finds_nor_leaves_anything(tiny: Tiny) -> None:
    bench, seen = tiny.bench(), Prompt(tokens=LONG, embeddings=tiny.decoder.embed(torch.tensor(LONG)))
    assert _cached(bench, Ask(prompt=LONG), seen) == 0
    assert bench.cache.kept_blocks == 0
    assert _cached(bench, Ask(prompt=LONG)) == 0
    assert _cached(bench, Ask(prompt=LONG), seen) == 0


def test_a_prompt_at_positions_of_its_own_neither_finds_nor_leaves_anything(tiny: Tiny) -> None:
    bench, apart = tiny.bench(), Prompt(tokens=LONG, positions=2 * torch.arange(len(LONG)))
    assert _cached(bench, Ask(prompt=LONG), apart) == 0
    assert _cached(bench, Ask(prompt=LONG)) == 0
    assert _cached(bench, Ask(prompt=LONG), apart) == 0


# Reading ahead


def test_what_is_read_ahead_is_found_by_the_request_that_comes_and_nothing_is_written(tiny: Tiny) -> None:
    bench = tiny.bench()
    told = bench.ask(Ask(prompt=LONG, ahead=True))
    bench.finish()
    assert told.usages == [UsageDelta(input_tokens=count, output_tokens=0) for count in (64, 26)]
    assert (told.tokens, told.reason) == ([], "stop")
    asked = Ask(prompt=(*LONG, *SHORT), limit=8)
    assert _cached(bench, asked) == len(LONG)
    bench.has_nothing_left()
    again = bench.ask(Ask(prompt=(*LONG, *SHORT), ahead=True))
    bench.finish()
    assert sum(used.input_tokens for used in again.usages) <= len(SHORT)


def test_it_is_read_in_pieces_and_whoever_has_work_goes_before_the_next(tiny: Tiny) -> None:
    bench = tiny.bench()
    ahead = bench.ask(Ask(prompt=LONG, ahead=True))
    bench.step()
    assert bench.cache.leased_blocks == 0, "it holds room while others may want it"
    told = bench.ask(Ask(prompt=SHORT, limit=5))
    while told.reason is None:
        assert bench.step()
        assert ahead.reason is None
    assert told.tokens == tiny.alone(Ask(prompt=SHORT, limit=5)).tokens
    bench.finish()
    assert ahead.reason == "stop"


def test_what_was_read_ahead_until_it_was_cancelled_is_found(tiny: Tiny) -> None:
    bench = tiny.bench()
    told = bench.ask(Ask(prompt=LONG, ahead=True))
    bench.step()
    bench.cancel(told)
    assert not bench.step()
    assert _cached(bench, Ask(prompt=LONG, limit=2)) == 64


def test_it_goes_on_while_a_reader_that_is_behind_holds_up_its_own_answer(tiny: Tiny) -> None:
    bench = tiny.bench()
    bench.ask(Ask(prompt=SHORT), stalled=lambda: True)
    ahead = bench.ask(Ask(prompt=LONG, ahead=True))
    while bench.step():
        pass
    assert ahead.reason == "stop"


def test_so_many_may_wait_to_be_read_ahead_and_the_next_is_refused(tiny: Tiny) -> None:
    bench = tiny.bench()
    told = [bench.ask(Ask(prompt=LONG, ahead=True)) for _ in range(65)]
    assert [isinstance(each.error, Overloaded) for each in told] == [False] * 64 + [True]


def test_what_goes_wrong_in_reading_ahead_fails_it_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = tiny.bench()
    told = bench.ask(Ask(prompt=LONG, ahead=True))
    with monkeypatch.context() as patched:
        patched.setattr(tiny.decoder, "run", lambda *_, **__: 1 / 0)
        bench.step()
    assert isinstance(told.error, Internal)
    assert _cached(bench, Ask(prompt=LONG, limit=2)) == 0
    bench.has_nothing_left()


# Pictures


def test_embeddings_of_words_are_answered_as_the_words_are(tiny: Tiny) -> None:
    ask, other = Ask(prompt=LONG, limit=12, temperature=1.0), Ask(prompt=SHORT, limit=20)
    bench = tiny.bench(drafters=[liar(300)], policy=RandomPolicy(0))
    words = bench.ask(other)
    # What stands in their place may be any token.
    seen = Prompt(tokens=(0,) * len(LONG), embeddings=tiny.decoder.embed(torch.tensor(LONG)))
    told = bench.ask(replace(ask, prompt=seen.tokens), prompt=seen)
    bench.finish()
    assert told.tokens == tiny.alone(ask).tokens
    assert words.tokens == tiny.alone(other).tokens


@pytest.mark.parametrize("shape", [(1,), (3, 1)], ids=["one axis", "three"])
def test_rotary_positions_go_on_from_where_a_prompts_end(tiny: Tiny, shape: tuple[int, ...]) -> None:
    # Only differences of positions matter, so that all of them may be moved.
    ask = Ask(prompt=LONG, limit=12, temperature=1.0)
    away = (torch.arange(len(LONG)) + 100).expand(*shape[:-1], -1)
    bench = tiny.bench(drafters=[liar(300)], policy=RandomPolicy(0))
    plain, moved, apart = (
        bench.ask(ask, prompt=prompt)
        for prompt in (
            None,
            Prompt(tokens=LONG, positions=away, offset=100),
            Prompt(tokens=LONG, positions=away, offset=0),
        )
    )
    bench.finish()
    assert moved.tokens == plain.tokens == tiny.alone(ask).tokens
    assert apart.tokens[0] == plain.tokens[0]
    assert apart.tokens != plain.tokens


def test_a_picture_that_is_sent_back_is_seen_again(tiny: Tiny) -> None:
    ask = Ask(prompt=LONG, limit=60, temperature=1.0)
    bench = tiny.bench(blocks=6)
    bench.foresee_nothing()
    urgent = bench.ask(Ask(prompt=SHORT, limit=80))
    positions = (torch.arange(len(LONG)) + 9).expand(3, -1)
    seen = Prompt(
        tokens=(0,) * len(LONG), embeddings=tiny.decoder.embed(torch.tensor(LONG)), positions=positions, offset=9
    )
    told = bench.ask(replace(ask, prompt=seen.tokens), prompt=seen)
    assert _sent_back(bench, told)
    assert told.tokens == tiny.alone(ask).tokens
    assert urgent.reason == "length"


# Room


def _sent_back(bench: Bench, told: Told) -> bool:
    """Step to the end; return whether a request that had begun had to wait again."""
    waited = False
    while bench.loop.step():
        waited |= bool(told.deltas) and not told.over and bench.rows[told].lease is None
    return waited


def test_who_is_sent_back_writes_the_same_and_is_told_nothing_twice(tiny: Tiny) -> None:
    bench = tiny.bench(blocks=5)
    bench.foresee_nothing()
    asks = [Ask(prompt=LONG[:20], limit=70), Ask(prompt=LONG[30:50], limit=70, temperature=1.0, seed=3)]
    first, second = [bench.ask(ask) for ask in asks]
    assert _sent_back(bench, second)
    assert [first.tokens, second.tokens] == [tiny.alone(ask).tokens for ask in asks]
    assert len(second.usages) == 2
    bench.has_nothing_left()


def test_a_row_alone_that_outgrows_its_place_comes_again_by_itself(tiny: Tiny) -> None:
    bench = tiny.bench(blocks=4)
    bench.foresee_nothing()
    bench.ask(Ask(prompt=SHORT, limit=2))  # which lies at the arena's beginning
    ask = Ask(prompt=LONG[:30], limit=90)
    told = bench.ask(ask)
    assert _sent_back(bench, told)
    assert told.tokens == tiny.alone(ask).tokens


def test_load_makes_requests_wait_and_fails_none(tiny: Tiny) -> None:
    bench = tiny.bench(blocks=4)
    asks = [Ask(prompt=LONG[at : at + 40], limit=20, tenant=str(at)) for at in range(12)]
    told = [bench.ask(ask) for ask in asks]
    bench.loop.step()
    assert (bench.loop.running, bench.loop.waiting) == (2, 10)
    bench.finish()
    assert [each.tokens for each in told] == [tiny.alone(ask).tokens for ask in asks]
    bench.has_nothing_left()


def test_an_answer_may_fill_the_cache_to_its_last_slot(tiny: Tiny) -> None:
    ask = Ask(prompt=SHORT, limit=64 - len(SHORT))
    bench = tiny.bench(blocks=2, drafters=[liar(300)], policy=RandomPolicy(0))
    told = bench.ask(ask)
    bench.finish()
    assert told.tokens == tiny.alone(ask).tokens


@pytest.mark.parametrize("steps", [0, 1, 4], ids=["waiting", "reading", "writing"])
def test_a_cancelled_request_frees_its_room_at_once_and_is_told_nothing_more(tiny: Tiny, steps: int) -> None:
    bench = tiny.bench(prefill_tokens=60)
    told = bench.ask(Ask(prompt=LONG))
    for _ in range(steps):
        bench.loop.step()
    said = len(told.deltas)
    bench.cancel(told)
    bench.has_nothing_left()
    assert not bench.loop.step()
    assert len(told.deltas) == said
    bench.cancel(told)  # harmless


# Turns


def _order(bench: Bench, asks: Sequence[Ask]) -> list[int]:
    told = [bench.ask(ask) for ask in asks]
    order: list[int] = []
    while bench.loop.step():
        order += [at for at, each in enumerate(told) if each.over and at not in order]
    return order


def test_the_more_urgent_is_served_first(tiny: Tiny) -> None:
    asks = [
        Ask(prompt=SHORT, limit=2, priority=priority, deadline_s=deadline)
        for priority, deadline in (("batch", None), ("normal", None), ("interactive", None), ("batch", -1.0))
    ]
    assert _order(tiny.bench(rows=1), asks) == [3, 2, 1, 0]


def test_a_turn_does_not_wait_for_batch_jobs_at_work_which_lose_nothing_by_it(tiny: Tiny) -> None:
    bench = tiny.bench(rows=2)
    asks = [Ask(prompt=(token, *SHORT), limit=90, priority="batch") for token in (5, 6)]
    jobs = [bench.ask(ask) for ask in asks]
    while min(len(job.tokens) for job in jobs) < 40:
        bench.step()
    turn = bench.ask(Ask(prompt=SHORT, limit=3, priority="interactive", came_s=100.0))
    for _ in range(3):
        bench.step()
    assert turn.tokens
    bench.finish()
    assert [job.tokens for job in jobs] == [tiny.alone(ask).tokens for ask in asks]
    bench.has_nothing_left()


def test_turns_that_never_cease_leave_a_batch_job_its_slices(tiny: Tiny) -> None:
    bench = tiny.bench(rows=1)
    job = bench.ask(Ask(prompt=SHORT, limit=90, priority="batch"))
    for second in range(400):
        bench.ask(Ask(prompt=SHORT, limit=2, priority="interactive", came_s=float(second)))
        for _ in range(4):
            bench.step()
        if job.over:
            break
    assert job.over


def test_a_batch_job_gets_its_turn_under_a_constant_stream_of_urgent_ones(tiny: Tiny) -> None:
    bench = tiny.bench(rows=1)
    job = bench.ask(Ask(prompt=SHORT, limit=2, priority="batch"))
    for second in range(60):
        bench.ask(Ask(prompt=SHORT, limit=2, priority="interactive", came_s=float(second)))
        bench.loop.step()
        bench.loop.step()
        if job.over:
            break
    assert job.over
    assert second <= 32


def test_a_step_reads_no_more_of_a_prompt_than_it_may_and_everybody_writes_meanwhile(tiny: Tiny, spy: Spy) -> None:
    bench = tiny.bench(rows=9, prefill_tokens=12)
    writers = [bench.ask(Ask(prompt=(token,) * 3, limit=60)) for token in range(5, 13)]
    while not all(told.tokens for told in writers):
        bench.loop.step()
    late = bench.ask(Ask(prompt=LONG, limit=2))
    spy.batches.clear()
    written = [len(told.tokens) for told in writers]
    while not late.over:
        bench.loop.step()
    for batch in spy.batches:
        assert sum(span.count for span in batch.spans if span.count > 1) <= 12
    assert [len(told.tokens) for told in writers] == [count + len(spy.batches) for count in written]


def test_who_is_not_read_rests_while_others_go_on_and_goes_on_himself_later(tiny: Tiny) -> None:
    bench, behind = tiny.bench(), [False]
    asks = [Ask(prompt=SHORT, limit=30), Ask(prompt=LONG[:9], limit=10)]
    slow, other = bench.ask(asks[0], stalled=lambda: behind[0]), bench.ask(asks[1])
    for _ in range(5):
        bench.loop.step()
    behind[0], said = True, len(slow.tokens)
    bench.finish()  # which ends, since there is nothing to do but wait
    assert other.tokens == tiny.alone(asks[1]).tokens
    assert len(slow.tokens) == said < 30
    assert bench.loop.running == 1
    behind[0] = False
    bench.finish()
    assert slow.tokens == tiny.alone(asks[0]).tokens


# Hints


@pytest.mark.parametrize(("right", "accepted"), [(16, 15), (10, 10), (3, 3), (0, 0)])
def test_an_answer_begun_by_another_is_kept_as_far_as_it_is_right(tiny: Tiny, right: int, accepted: int) -> None:
    plain = tiny.alone(Ask(prompt=SHORT, limit=16)).tokens
    hint = plain[:right] + [5] * (20 - right)
    assert plain[right : right + 1] != [5]
    bench = tiny.bench()
    told = bench.ask(Ask(prompt=SHORT, limit=16, hint=tuple(hint)))
    steps = bench.finish()
    assert told.tokens == plain
    assert told.usages[-1].drafts == (DraftUsage(drafter="hint", drafted=15, accepted=accepted),)
    assert steps == 16 - accepted


class _Account(FixedPolicy):
    """Notes what it is told of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int, bool]] = []

    def observe_step(self, rows: int, drafted: int, ms: float, *, reading: bool = False) -> None:
        self.steps.append((rows, drafted, reading))


def test_what_the_policy_did_not_choose_is_not_to_its_account(tiny: Tiny) -> None:
    policy = _Account()
    bench = tiny.bench(policy=policy)
    hint = tiny.alone(Ask(prompt=SHORT, limit=150)).tokens
    bench.ask(Ask(prompt=SHORT, limit=150, hint=tuple(hint)))
    bench.finish()
    assert policy.steps == [(1, 0, True)] * 2


def test_a_hint_longer_than_a_step_is_taken_piece_by_piece(tiny: Tiny) -> None:
    plain = tiny.alone(Ask(prompt=SHORT, limit=150)).tokens
    bench = tiny.bench()
    told = bench.ask(Ask(prompt=SHORT, limit=150, hint=tuple(plain)))
    assert bench.finish() == 3
    assert told.tokens == plain


def test_a_hint_that_a_grammar_refuses_is_dropped(tiny: Tiny) -> None:
    ask = Ask(prompt=SHORT, limit=16, constraint=RegexConstraint(pattern="[0-9]{12}"), hint=tiny.words("one two three"))
    bench = tiny.bench()
    told = bench.ask(ask)
    bench.loop.step()
    assert not bench.rows[told].hint
    bench.finish()
    assert told.tokens == tiny.alone(ask).tokens
    assert told.usages[-1].drafts == ()
