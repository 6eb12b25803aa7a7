"""The suffix drafter, its automaton and its store of answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.language.decoding.drafters import Context
from models.language.decoding.drafters.answers import RUN_TOKENS, EarlierAnswers
from models.language.decoding.drafters.automaton import Automaton
from models.language.decoding.drafters.suffix import SuffixDrafter
from models.owner import Owner

TEXTS = st.lists(st.integers(0, 2), max_size=60)
ANSWER = list(range(100, 140))


ADA = Owner("ada")
OTHERS = (
    Owner("bob"),
    Owner(""),
    Owner("ada "),
    Owner("ada", "eve"),
    Owner("ada", "ada"),
    Owner.unnamed("ada").within("call_1"),
)


def _context(tokens: list[int], *, owner: Owner = ADA, prompt_length: int | None = None) -> Context:
    return Context(
        owner=owner, tokens=list(tokens), prompt_length=len(tokens) if prompt_length is None else prompt_length
    )


def _answered(drafter: SuffixDrafter, prompt: list[int], answer: list[int], *, owner: Owner = ADA) -> None:
    """Have a request of the past leave its answer behind."""
    context = _context(prompt, owner=owner)
    drafter.join(context)
    context.tokens.extend(answer)
    drafter.leave(context)
    drafter.work([], 10_000)


def _longest_repeated_ending(text: list[int]) -> int:
    places = [tuple(text[at:]) for at in range(len(text))]
    joined = [tuple(text[at : at + len(ending)]) for ending in places for at in range(len(text) - len(ending))]
    return max((len(ending) for ending in places if ending in joined), default=0)


@settings(max_examples=60)
@given(text=TEXTS)
def test_the_automaton_knows_the_longest_ending_that_occurred_before_and_where(text):
    automaton = Automaton()
    for size in range(1, len(text) + 1):
        automaton.feed(text[size - 1 : size])
        so_far = text[:size]
        assert automaton.matched == _longest_repeated_ending(so_far)
        if automaton.matched:
            end = automaton.place + 1
            assert end < size
            assert so_far[end - automaton.matched : end] == so_far[size - automaton.matched :]


@given(text=TEXTS, cut=st.integers(0, 60))
def test_how_a_text_is_fed_does_not_matter_to_the_automaton(text, cut):
    at_once, in_parts = Automaton(), Automaton()
    at_once.feed(text)
    in_parts.feed(text[:cut])
    in_parts.feed(text[cut:])
    assert (at_once.matched, at_once.place, at_once.size) == (in_parts.matched, in_parts.place, in_parts.size)


def test_the_newest_place_of_an_ending_is_preferred():
    automaton = Automaton()
    automaton.feed([1, 2, 7, 1, 2, 8, 1, 2])
    assert automaton.place + 1 == 5


def test_a_draft_copies_what_followed_the_ending():
    drafter, context = SuffixDrafter(), _context([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])
    drafter.join(context)
    assert drafter.draft([(context, 2), (context, 0)]) == [[4, 5], []]


def test_a_draft_is_at_most_four_times_as_long_as_its_match():
    drafter, context = SuffixDrafter(), _context([1, *range(10, 40), 1])
    drafter.join(context)
    assert drafter.draft([(context, 16)]) == [[10, 11, 12, 13]]


def test_a_text_that_repeats_itself_is_drafted_beyond_its_end():
    drafter, context = SuffixDrafter(), _context([7, 1, 2, 3, 1, 2, 3, 1, 2])
    drafter.join(context)
    assert drafter.draft([(context, 8)]) == [[3, 1, 2, 3, 1, 2, 3, 1]]


def test_what_was_accepted_leads_to_the_next_draft():
    drafter, context = SuffixDrafter(), _context([1, 2, 3, 4, 5, 6, 9, 1, 2])
    drafter.join(context)
    assert drafter.draft([(context, 2)]) == [[3, 4]]
    context.tokens.extend([3, 4, 5])
    drafter.observe(context, 2, 2)
    assert drafter.draft([(context, 1)]) == [[6]]


def test_a_text_in_which_nothing_occurs_twice_gives_no_draft():
    drafter, context = SuffixDrafter(), _context(list(range(50)))
    drafter.join(context)
    assert drafter.draft([(context, 8)]) == [[]]
    assert drafter.forecast([(context, 8)]) == [[]]


def test_matches_shorter_than_the_least_give_no_draft():
    drafter, context = SuffixDrafter(least_match=2), _context([1, 5, 6, 1])
    drafter.join(context)
    assert drafter.draft([(context, 8)]) == [[]]


def test_a_forecast_is_as_long_as_the_draft_and_grows_surer_within_it():
    drafter, context = SuffixDrafter(), _context([*range(20), *range(3)])
    drafter.join(context)
    (chances,) = drafter.forecast([(context, 10)])
    assert chances == sorted(chances)
    assert len(chances) == len(drafter.draft([(context, 10)])[0]) == 10


@pytest.mark.parametrize("right", [True, False])
def test_a_forecast_learns_from_what_became_of_drafts(right):
    drafter, context = SuffixDrafter(), _context([*range(20), 0])
    drafter.join(context)
    (before,) = drafter.forecast([(context, 1)])
    for _ in range(20):
        drafter.draft([(context, 1)])
        drafter.observe(context, 1, int(right))
    (after,) = drafter.forecast([(context, 1)])
    assert (after > before) is right
    for somebody in OTHERS:
        other = _context([*range(20), 0], owner=somebody)
        drafter.join(other)
        assert drafter.forecast([(other, 1)]) == [before]  # what ada's text taught serves nobody else


def test_a_long_prompt_is_read_in_pieces_and_serves_drafts_afterwards():
    drafter, context = SuffixDrafter(), _context([*range(3000), *range(3000)])
    drafter.join(context)
    steps = 0
    while not drafter.forecast([(context, 4)])[0]:
        assert drafter._rows[context].automaton.size <= 128 * (steps + 1)
        steps += 1
    assert steps == 6000 // 128
    assert len(drafter.forecast([(context, 4)])[0]) == 4


def test_while_a_long_prompt_is_read_the_others_go_on():
    drafter, long, short = SuffixDrafter(), _context([*range(3000)]), _context([1, 2, 3, 1, 2])
    drafter.join(long)
    drafter.join(short)
    assert drafter.draft([(long, 2), (short, 2)]) == [[], [3, 1]]


def test_an_earlier_answer_drafts_the_same_answer_from_its_first_token_on():
    drafter, prompt = SuffixDrafter(), list(range(20))
    _answered(drafter, prompt, ANSWER)
    again = _context(prompt)
    drafter.join(again)
    assert drafter.draft([(again, 4)]) == [ANSWER[:4]]
    again.tokens.extend(ANSWER[:30])
    assert drafter.draft([(again, 16)]) == [ANSWER[30:]]


@given(text=st.lists(st.integers(0, 3), min_size=20, max_size=60), owner=st.sampled_from(OTHERS))
def test_nobody_is_ever_shown_what_another_was_answered(text, owner):
    drafter = SuffixDrafter()
    _answered(drafter, [1, 2], [*text, 77])
    other = _context([*range(200, 210), *text], owner=owner)
    drafter.join(other)
    (draft,) = drafter.draft([(other, 16)])
    assert 77 not in draft
    assert drafter._rows[other].answer is None


def test_a_request_that_wrote_hardly_anything_is_not_stored():
    answers = EarlierAnswers()
    drafter = SuffixDrafter(answers=answers)
    _answered(drafter, list(range(100)), [1, 2, 3])
    assert len(answers) == 0


def test_a_request_that_left_is_forgotten():
    drafter, context = SuffixDrafter(), _context([1, 2, 3])
    drafter.join(context)
    drafter.leave(context)
    assert not drafter._rows


WRITERS = (Owner("a"), Owner("a", "x"), Owner("a", "y"), Owner("b"))


@given(
    added=st.lists(
        st.tuples(st.sampled_from(WRITERS), st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 40)),
        max_size=20,
    )
)
def test_the_store_keeps_its_bounds_and_leaves_nothing_of_what_it_drops(added):
    answers = EarlierAnswers(tenant_tokens=40, total_tokens=60)
    kept: dict[Owner, list[tuple[int, ...]]] = {}  # whoever was here last at the end

    def size(tenant: str | None = None) -> int:
        return sum(len(text) for owner, texts in kept.items() for text in texts if tenant in {None, owner.tenant})

    for owner, tokens, work in added:
        answers.add(owner, tokens)
        assert answers.work(work) <= work
        if RUN_TOKENS < len(tokens) <= 40:
            kept[owner] = [text for text in kept.pop(owner, []) if text != tuple(tokens)] + [tuple(tokens)]
            while size(owner.tenant) > 40:
                next(texts for one, texts in kept.items() if texts and one.tenant == owner.tenant).pop(0)
            others = [texts for one, texts in kept.items() if one.tenant != owner.tenant]
            while size() > 60:
                next(texts for texts in (*others, *kept.values()) if texts).pop(0)
    while answers.work(100):
        pass
    assert len(answers) == size()
    for owner, texts in kept.items():
        told = answers._text(owner)
        index = {} if told is None else told.index
        indexed = {answer.tokens for places in index.values() for answer, _ in places}
        assert indexed <= set(texts)
        for text in texts:
            found = answers.find(owner, text[:-1])
            assert found is not None or len(texts) > 1 or max(map(text.count, set(text))) > 1


@given(
    added=st.lists(st.tuples(st.sampled_from((ADA, *OTHERS)), st.integers(0, 9)), max_size=20),
    tenant=st.sampled_from(("ada", "bob", "nobody")),
    subject=st.sampled_from((None, "eve", "ada")),
    read=st.integers(0, 400),
)
def test_what_is_forgotten_is_found_by_nobody_and_all_else_stays(added, tenant, subject, read):
    answers = EarlierAnswers()
    texts = {(owner, first): [first * 100 + n for n in range(20)] for owner, first in added}
    for (owner, _), tokens in texts.items():
        answers.add(owner, tokens)
    answers.work(read)  # perhaps not all of it
    answers.forget(tenant, subject)
    answers.work(10_000)
    gone = {owner for owner, _ in texts if owner.is_of(tenant, subject)}
    for (owner, _), tokens in texts.items():
        assert (answers.find(owner, tokens[:10]) is None) == (owner in gone)
    assert len(answers) == sum(len(tokens) for (owner, _), tokens in texts.items() if owner not in gone)
    for (owner, _), tokens in texts.items():
        answers.add(owner, tokens)  # and what comes later is kept as before
    answers.work(10_000)
    assert all(answers.find(owner, tokens[:10]) is not None for (owner, _), tokens in texts.items())


def test_the_longest_match_in_the_store_is_found():
    answers = EarlierAnswers()
    answers.add(ADA, [9, 1, 2, 3, 4, 5, 50])
    answers.add(ADA, [8, 8, 2, 3, 4, 5, 60])
    answers.work(100)
    found = answers.find(ADA, [9, 1, 2, 3, 4, 5])
    assert found is not None
    assert (found.answer.tokens[found.next], found.matched) == (50, 6)
    newest = answers.find(ADA, [7, 2, 3, 4, 5])
    assert newest is not None
    assert newest.answer.tokens[newest.next] == 60


def test_an_answer_that_was_of_use_is_dropped_later():
    answers = EarlierAnswers(tenant_tokens=20)
    answers.add(ADA, range(10))
    answers.add(ADA, range(10, 20))
    answers.work(100)
    found = answers.find(ADA, range(5))
    assert found is not None
    answers.use(found.answer)
    answers.add(ADA, range(20, 30))
    answers.work(100)
    assert answers.find(ADA, range(5)) is not None
    assert answers.find(ADA, range(10, 15)) is None
