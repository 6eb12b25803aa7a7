"""Bias, penalties and truncation are transformers' own, on a tiny model: however it is batched, guessed and held to a form.

The reference runs transformers' model over the whole text for each token, and transformers' processors over its scores;
frequency and presence, which transformers has not, are written down from OpenAI's formula. What it draws with is the number that
belongs to the seed and the place, as in the engine.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_decoding import END, Ask, RandomPolicy, Tiny, liar, oracle
from support.tiny_llama import make_model, make_tokenizer
from transformers import (
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.errors import BadInput
from models.language.decoding import sampling
from models.language.decoding.constrain import masked
from models.language.decoding.processors import Processors
from models.language.decoding.sampling import Chooser, uniform
from models.ports.generate import Constraint, JsonSchemaConstraint, RegexConstraint, Sampling

VOCABULARY = 340
PROMPTS = ((7, 11, 200, 13, 17), (31, 32, 33, 270) * 6, tuple((37 * at) % 290 + 5 for at in range(45)))


def _make(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the tiny model with no two tokens alike: which of them a nucleus takes is nobody's promise."""
    model = make_model(tokenizer)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny(make=_make)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return _make(make_tokenizer())


class OpenAIPenalties(LogitsProcessor):
    """mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, c over the answer's own tokens."""

    def __init__(self, frequency: float, presence: float, prompt_length: int) -> None:
        self._penalties = frequency, presence
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        frequency, presence = self._penalties
        counts = torch.bincount(input_ids[0, self._prompt_length :], minlength=scores.shape[-1])[None].float()
        return scores - counts * frequency - (counts > 0) * presence


def _processors(ask: Ask) -> LogitsProcessorList:
    made = LogitsProcessorList()
    if ask.logit_bias:
        made.append(SequenceBiasLogitsProcessor({(token,): bias for token, bias in ask.logit_bias}))
    if ask.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(ask.repetition_penalty))
    made.append(OpenAIPenalties(ask.frequency_penalty, ask.presence_penalty, len(ask.prompt)))
    return made


def _warpers(ask: Ask) -> LogitsProcessorList:
    made = LogitsProcessorList([TemperatureLogitsWarper(ask.temperature)])
    if ask.top_k:
        made.append(TopKLogitsWarper(ask.top_k))
    if ask.top_p < 1:
        made.append(TopPLogitsWarper(ask.top_p))
    if ask.min_p:
        made.append(MinPLogitsWarper(ask.min_p))
    return made


def _drawn(ask: Ask, ids: torch.Tensor, scores: torch.Tensor, place: int) -> int:
    if ask.temperature == 0:
        return int(scores.argmax())
    chances = _warpers(ask)(ids, scores).softmax(-1)[0].double()
    if ask.top_p < 1 or ask.top_k or ask.min_p:  # what is truncated is drawn from by its order
        chances, order = chances.sort(descending=True, stable=True)
    else:
        order = torch.arange(len(chances))
    totals = chances.cumsum(0)
    return int(order[torch.searchsorted(totals, uniform(ask.seed, place) * totals[-1], right=True)])


@torch.inference_mode()
def _reference(tiny: Tiny, model: LlamaForCausalLM, ask: Ask) -> list[int]:
    """Return what transformers' processors would have written, the form's masks among them."""
    ids = torch.tensor([ask.prompt])
    guide = None if ask.constraint is None else tiny.constrainer.start(ask.constraint)
    for place in range(ask.limit):
        raw = model(input_ids=ids).logits[:, -1].float()
        scores = _processors(ask)(ids, raw)
        if guide is not None:
            scores = masked(scores, guide.masks())
        token = _drawn(ask, ids, scores, place)
        ids = torch.cat((ids, torch.tensor([[token]])), -1)
        if guide is not None:
            guide.accept([token])
        if token == END:
            break
        if guide is not None and guide.stopped:
            break
    written: list[int] = ids[0, len(ask.prompt) :].tolist()
    return [token for token in written if token != END]


_PENALTIES = st.sampled_from([0.0, 0.0, 0.7, 2.0, -1.5])
_CONSTRAINTS: st.SearchStrategy[Constraint | None] = st.sampled_from(
    [
        None,
        None,
        RegexConstraint(pattern="[a-z ]{3,20}"),
        JsonSchemaConstraint(schema='{"type": "array", "maxItems": 3}'),
    ]
)
asks = st.builds(
    Ask,
    prompt=st.sampled_from(PROMPTS),
    limit=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.0, 0.6, 1.0, 1.8]),
    top_p=st.sampled_from([1.0, 1.0, 0.4, 0.95]),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 1000]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.4, 1.0]),
    seed=st.integers(0, 2**40),
    logit_bias=st.dictionaries(
        st.integers(3, VOCABULARY - 80), st.sampled_from([-100.0, -3.5, 0.5, 4.0, 12.0]), max_size=5
    ).map(lambda biases: tuple(biases.items())),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8, 2.0]),
    frequency_penalty=_PENALTIES,
    presence_penalty=_PENALTIES,
    constraint=_CONSTRAINTS,
)

_slowly = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_slowly
@given(ask=asks)
def test_alone_an_answer_is_what_transformers_own_processors_come_to(
    tiny: Tiny, model: LlamaForCausalLM, ask: Ask
) -> None:
    told = tiny.alone(ask)
    assert told.error is None
    assert [token for token in told.tokens if token != END] == _reference(tiny, model, ask)


@_slowly
@given(asked=st.lists(asks, min_size=1, max_size=4), chance=st.integers(0, 99), errs=st.sampled_from([0.0, 0.2, 0.9]))
def test_so_it_is_beside_others_and_whatever_is_guessed(tiny: Tiny, asked: list[Ask], chance: int, errs: float) -> None:
    rights = {(ask.prompt, ask.limit): tiny.alone(ask).tokens for ask in asked}
    guessing = oracle(lambda context: next(iter(rights.values())), errs=errs, seed=chance)
    bench = tiny.bench(drafters=[guessing, liar(VOCABULARY, seed=chance)], policy=RandomPolicy(chance))
    hints = [replace(ask, hint=tuple(tiny.alone(ask).tokens[: chance % 9])) for ask in asked]
    told = [bench.ask(ask) for ask in hints]
    bench.finish()
    assert [each.tokens for each in told] == [tiny.alone(ask).tokens for ask in asked]
    bench.has_nothing_left()


@_slowly
@given(ask=asks, most=st.integers(0, 20), chance=st.integers(0, 99))
def test_log_probabilities_are_the_models_own_whatever_is_guessed_and_held_back(
    tiny: Tiny, model: LlamaForCausalLM, ask: Ask, most: int, chance: int
) -> None:
    ask = replace(ask, logprobs=most)
    bench = tiny.bench(
        drafters=[oracle(lambda _: tiny.alone(ask).tokens, errs=0.3, seed=chance)], policy=RandomPolicy(chance)
    )
    told = bench.ask(ask)
    bench.ask(Ask(prompt=PROMPTS[1], limit=9))
    bench.finish()
    written = [token for token in told.tokens if token != END and token >= 3]
    assert b"".join(each.chosen.data for each in told.scored).decode(errors="replace").startswith(told.text)
    assert len(told.scored) == len(written)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*ask.prompt, *told.tokens]])).logits[0].float().log_softmax(-1)
    places = [len(ask.prompt) - 1 + at for at, token in enumerate(told.tokens) if token >= 3]
    for scored, token, place in zip(told.scored, written, places, strict=True):
        assert scored.chosen.logprob == pytest.approx(float(logits[place, token]), abs=1e-4)
        best = logits[place].topk(most)
        assert [each.logprob for each in scored.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert told.text == tiny.alone(replace(ask, logprobs=None)).text


def test_what_is_sent_back_goes_on_with_its_penalties(tiny: Tiny) -> None:
    ask = Ask(prompt=PROMPTS[2], limit=60, frequency_penalty=1.0, repetition_penalty=1.2, presence_penalty=0.5)
    bench = tiny.bench(blocks=5)
    bench.foresee_nothing()
    told = [bench.ask(each) for each in (Ask(prompt=PROMPTS[0], limit=80), ask)]
    bench.finish()
    assert told[1].tokens == tiny.alone(ask).tokens


# Place by place


@given(
    scores=st.lists(st.floats(-20, 20, width=32), min_size=12, max_size=12),
    prompt=st.lists(st.integers(0, 11), max_size=8),
    answer=st.lists(st.integers(0, 11), max_size=8),
    draft=st.lists(st.integers(0, 11), max_size=6),
    ask=asks,
)
def test_each_place_of_a_draft_is_penalised_for_what_is_drafted_before_it(
    scores: list[float], prompt: list[int], answer: list[int], draft: list[int], ask: Ask
) -> None:
    ask = replace(ask, prompt=tuple(prompt), logit_bias=tuple((token % 12, bias) for token, bias in ask.logit_bias[:1]))
    processors = Processors(ask.sampling, prompt)
    for token in answer:
        processors.apply(torch.zeros(1, 12), ())
        processors.accept([token])
    given_scores = torch.tensor([[score + place for score in scores] for place in range(len(draft) + 1)])
    untouched = given_scores.clone()
    told = processors.apply(given_scores, draft)
    assert torch.equal(given_scores, untouched)
    for place in range(len(draft) + 1):
        before = torch.tensor([[*prompt, *answer, *draft[:place]]], dtype=torch.int64)
        assert torch.equal(told[place], _processors(ask)(before, given_scores[place : place + 1])[0])


@pytest.mark.parametrize("token", [-1, VOCABULARY, 10**9])
def test_a_bias_on_a_token_that_the_model_has_not_is_refused(token: int) -> None:
    with pytest.raises(BadInput) as refused:
        Processors.of(Sampling(logit_bias=((5, 1.0), (token, 1.0))), (), VOCABULARY)
    assert refused.value.field == "logit_bias"
    assert str(token) in refused.value.message


def test_who_asks_for_nothing_of_it_pays_nothing_for_it() -> None:
    assert Processors.of(Sampling(temperature=1.0, top_p=0.5, top_k=3, min_p=0.1), (1, 2), VOCABULARY) is None


# What is drawn from


@settings(max_examples=60)
@given(data=st.data(), count=st.integers(1, 5))
def test_truncation_is_the_same_where_more_has_to_be_looked_at_and_whoever_else_asks(
    data: st.DataObject, count: int
) -> None:
    chance = random.Random(data.draw(st.integers(0, 999)))
    scores = torch.tensor([[chance.gauss(0, 2) for _ in range(60)] for _ in range(count)])
    banned = data.draw(st.sets(st.integers(0, 59), max_size=58))
    scores[:, list(banned)] = -torch.inf
    choosers = st.builds(
        Chooser,
        temperature=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
        top_p=st.sampled_from([0.3, 0.9, 1.0]),
        seed=st.integers(0, 9),
        top_k=st.sampled_from([0, 1, 3, 8, 20, 99]),
        min_p=st.sampled_from([0.0, 0.001, 0.1, 1.0]),
    )
    asked: Sequence[tuple[Chooser, int]] = [(data.draw(choosers), place) for place in range(count)]
    wide = [each.choose(row, place) for row, (each, place) in zip(scores, asked, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_NUCLEUS_FIRST", 8)
        assert sampling.choose(scores, asked) == wide
    assert not banned & set(wide)


def test_as_likely_as_the_last_of_the_top_may_be_drawn_as_well() -> None:
    scores = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0])
    chooser = Chooser(temperature=5.0, top_p=1.0, seed=1, top_k=2)
    assert {chooser.choose(scores, place) for place in range(200)} == {0, 1, 2, 3}
