"""Whatever is served beside it, and whoever guesses, a request is written what it would be written alone.

Schedules are drawn: who asks what and when, who is cancelled, who rests, how large the cache is, who drafts. What is asked is
drawn from few prompts and few ways of choosing, so that prefixes are shared and what each writes alone is worked out once.
"""

import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from support.chances import chi_square_passes, nucleus
from support.tiny_decoding import Ask, Bench, Guesser, RandomPolicy, Tiny, Told, liar, oracle
from support.tiny_llama import make_model, make_tokenizer

from models.language.decoding.adapters import load_adapters
from models.language.decoding.decoder import Batch, Decoder, Span
from models.language.decoding.drafters import Context, Drafter, DrafterName
from models.language.decoding.drafters import trained as trained_drafters
from models.language.decoding.drafters.suffix import SuffixDrafter
from models.language.decoding.drafters.trained import TrainedDrafter
from models.language.decoding.drafters.weights import StopHead
from models.language.decoding.speculation import FixedPolicy
from models.owner import Owner
from models.ports.generate import JsonSchemaConstraint, RegexConstraint

# What peft asks a model as it wraps it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

_SYSTEM = tuple((37 * at) % 290 + 5 for at in range(45))
PROMPTS = (
    (7, 11, 200, 13, 17),
    (*_SYSTEM, 60, 61, 62),
    (*_SYSTEM, 60, 90, 91, 92, 93),
    (*_SYSTEM, *_SYSTEM[::-1], 8, 9),
    (31, 32, 33, 270) * 6,
)
ADAPTERS = (None, "terse", "warm")
VOICES = ((0.0, 1.0), (0.0, 1.0), (0.7, 1.0), (1.3, 0.8))
"""Temperature and top-p."""
FORMS = (
    *(None,) * 6,
    RegexConstraint(pattern="(one|two|three)( [a-z]{2,9}){1,4}"),
    JsonSchemaConstraint(
        schema='{"type": "object", "properties": {"sea": {"enum": ["calm", "high"]}}, "required": ["sea"]}'
    ),
)
DRAFTERS = (
    ("suffix",),
    ("pair",),
    ("early_exit",),
    ("oracle",),
    ("liar",),
    ("suffix", "oracle", "liar"),
    ("suffix", "pair", "early_exit"),
)
STOPS = ((), (), ("th", "in"))
ENDS = frozenset({2, 270, 280, 290, 300, 310, 320, 330})
"""Tokens that may end an answer: some of those the model likes to write."""


@pytest.fixture(scope="module")
def trained() -> PeftModel:
    """Return the tiny model with two adapters, neither of which leaves it as it was."""
    configs = [LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "o_proj", "up_proj"]) for _ in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(make_model(make_tokenizer()), configs[0], adapter_name="terse")
        model.add_adapter("warm", configs[1])
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.2)
    assert isinstance(model, PeftModel)
    return model.eval()


@pytest.fixture(autouse=True, scope="module")
def _short_memories() -> Iterator[None]:
    """Have the trained drafters forget within these short texts what they forget within long ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_drafters, "PLACE_TOKENS", 80)
        patch.setattr(trained_drafters, "READ_TOKENS", 56)
        yield


@pytest.fixture(scope="module")
def tiny(trained: PeftModel, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("adapters")
    trained.save_pretrained(str(folder), save_embedding_layers=False)
    folders = {name: str(folder / name) for name in ("terse", "warm")}
    return Tiny(lambda decoder: load_adapters(folders, decoder))


# Alone


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_alone_and_greedy_it_writes_what_transformers_writes(
    tiny: Tiny, trained: PeftModel, prompt: tuple[int, ...], adapter: str | None
) -> None:
    def generated() -> list[int]:
        written = trained.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
        )
        return written[0, len(prompt) :].tolist()

    if adapter is None:
        with trained.disable_adapter():
            expected = generated()
    else:
        trained.set_adapter(adapter)
        expected = generated()
    assert tiny.alone(Ask(prompt=prompt, limit=24, adapter=adapter)).tokens == expected


# Together


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A request of a schedule.

    Attributes:
        after: how many steps after the visit before it comes.
        patience: after how many steps it is cancelled; None if never.
        rests: whether its reader is behind from time to time.
        hinted: of the hint that it brings, how many tokens are right; None if it brings none.
        foreseen: its prompt is read ahead as well, unless it is answered before.
    """

    ask: Ask
    after: int
    patience: int | None
    rests: bool
    hinted: int | None
    foreseen: bool


@st.composite
def visits(draw: st.DrawFn) -> Visit:
    temperature, top_p = draw(st.sampled_from(VOICES))
    ask = Ask(
        prompt=draw(st.sampled_from(PROMPTS)),
        limit=draw(st.sampled_from((5, 24))),
        temperature=temperature,
        top_p=top_p,
        seed=draw(st.sampled_from((1, 2))) if temperature else 0,
        stop=draw(st.sampled_from(STOPS)),
        ends=draw(st.sampled_from((frozenset({2}), ENDS))),
        adapter=draw(st.sampled_from((None, *ADAPTERS))),
        constraint=draw(st.sampled_from(FORMS)),
        tenant=draw(st.sampled_from(("ada", "ada", "bob"))),
        subject=draw(st.sampled_from((None, None, "ada", "eve"))),
        priority=draw(st.sampled_from(("interactive", "normal", "batch"))),
    )
    return Visit(
        ask=ask,
        after=draw(st.integers(0, 3)),
        patience=draw(st.none() | st.none() | st.integers(0, 12)),
        rests=draw(st.sampled_from((False, False, True))),
        hinted=draw(st.none() | st.none() | st.integers(0, 8)),
        foreseen=draw(st.sampled_from((False, False, True))),
    )


def _serve(tiny: Tiny, bench: Bench, schedule: Sequence[Visit]) -> list[tuple[Visit, Told]]:
    """Serve a schedule to its end; return what each visit was told."""
    told: list[tuple[Visit, Told]] = []
    ahead: list[Told] = []
    arrivals = deque(zip(accumulate(visit.after for visit in schedule), schedule, strict=True))
    while arrivals or bench.loop.running or bench.loop.waiting:
        while arrivals and arrivals[0][0] <= bench.steps:
            visit = arrivals.popleft()[1]
            ask = replace(visit.ask, came_s=float(bench.steps))
            if visit.foreseen:
                ahead.append(bench.ask(replace(ask, constraint=None, ahead=True)))
            if visit.hinted is not None:
                ask = replace(ask, hint=(*tiny.alone(ask).tokens[: visit.hinted], 40, 41))
            told.append((visit, bench.ask(ask, stalled=partial(_behind, visit, bench, bench.steps))))
        bench.step()
        for visit, each in told:
            if visit.patience == bench.steps and not each.over:
                bench.cancel(each)
        if bench.steps % 7 == 0 and ahead and not ahead[-1].over:
            bench.cancel(ahead.pop())
        assert bench.steps < 3000, "somebody is never served"
    while bench.step():
        pass
    assert all(each.reason == "stop" for each in ahead)
    return told


def _behind(visit: Visit, bench: Bench, since: int) -> bool:
    return visit.rests and (bench.steps - since) % 5 < 2


def _alike(tiny: Tiny, visit: Visit, told: Told) -> None:
    alone = tiny.alone(visit.ask)
    assert told.error is None
    if told.over:
        assert (told.tokens, told.text, told.reason) == (alone.tokens, alone.text, alone.reason)
    else:
        assert visit.patience is not None
        assert told.tokens == alone.tokens[: len(told.tokens)]


def _drafter(name: str, tiny: Tiny, asks: Sequence[Ask]) -> Drafter:
    """Return a drafter: a real one, one that knows what greedy requests are answered and errs, or one that lies.

    Of those that are trained, the pair has all of the model's layers, and is right wherever it may be; the early exit has the
    first one, and hardly ever is.
    """
    match name:
        case "suffix":
            return SuffixDrafter()
        case "pair":
            return _of_layers(tiny, name, 2)
        case "early_exit":
            return _of_layers(tiny, name, 1)
        case "oracle":
            answers = {
                (Owner(ask.tenant, ask.subject), ask.prompt): ask
                for ask in sorted(asks, key=lambda ask: -ask.temperature)
            }
            return oracle(lambda context: tiny.alone(answers[context.owner, _prompt(context)]).tokens, errs=0.3)
        case _:
            return liar(tiny.decoder.shape.vocabulary)


def _prompt(context: Context) -> tuple[int, ...]:
    return tuple(context.tokens[: context.prompt_length])


def _of_layers(tiny: Tiny, name: DrafterName, layers: int) -> TrainedDrafter:
    whole = tiny.decoder
    decoder = Decoder(
        shape=whole.shape,
        layers=whole.layers[:layers],
        embedding=whole.embedding,
        head=whole.head,
        norm=whole.norm,
        frequencies=whole._frequencies,
    )
    stop = StopHead(weight=torch.zeros(whole.shape.hidden_size + 1), bias=torch.tensor(-2.0))
    return TrainedDrafter(name, decoder, torch.arange(whole.shape.vocabulary), stop, rows=8)


def _check(tiny: Tiny, bench: Bench, schedule: Sequence[Visit]) -> None:
    for visit, told in _serve(tiny, bench, schedule):
        _alike(tiny, visit, told)
    bench.has_nothing_left()


@settings(max_examples=40, derandomize=True)
@given(
    schedule=st.lists(visits(), min_size=4, max_size=10),
    names=st.sampled_from(DRAFTERS),
    luck=st.integers(0, 99),
    blocks=st.sampled_from((4, 7, 40)),
    rows=st.sampled_from((2, 4, 8)),
    prefill=st.sampled_from((5, 16, 128)),
    foreseen=st.booleans(),
)
def test_whoever_is_served_beside_it_a_request_is_written_what_it_is_written_alone(
    tiny: Tiny,
    schedule: list[Visit],
    names: Sequence[str],
    luck: int,
    blocks: int,
    rows: int,
    prefill: int,
    foreseen: bool,
) -> None:
    bench = tiny.bench(
        blocks=blocks,
        rows=rows,
        prefill_tokens=prefill,
        drafters=[_drafter(name, tiny, [visit.ask for visit in schedule]) for name in names],
        policy=RandomPolicy(luck),
    )
    if not foreseen:
        bench.foresee_nothing()
    _check(tiny, bench, schedule)


# Chances

FEW = (259, 265, 270, 283, 300, 312, 325)
"""The tokens that may be written where chances are counted."""

_DRAWS = 400


@pytest.fixture
def terse(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Return the tiny model with a vocabulary of few tokens."""
    head, refused = tiny.decoder.head, torch.ones(tiny.decoder.shape.vocabulary, dtype=torch.bool)
    refused[list(FEW)] = False
    monkeypatch.setattr(tiny.decoder, "head", lambda hidden: head(hidden).masked_fill(refused, -1e4))
    return tiny


@torch.inference_mode()
def _scores(tiny: Tiny, tokens: Sequence[int]) -> list[float]:
    """Return the model's scores of what follows, of a text that is read at once."""
    count = len(tokens)
    batch = Batch(
        tokens=torch.tensor(tokens),
        positions=torch.arange(count),
        slots=torch.arange(count),
        spans=(Span(offset=0, count=count, start=0, length=count),),
    )
    hidden = tiny.decoder.run(batch, tiny.decoder.arena(count))
    scores: list[float] = tiny.decoder.logits(hidden[-1:])[0].tolist()
    return scores


@pytest.mark.parametrize(("temperature", "top_p"), [(0.5, 1.0), (1.0, 1.0), (0.8, 0.8), (3.0, 0.5)])
def test_what_was_guessed_comes_as_often_as_the_model_means_it(terse: Tiny, temperature: float, top_p: float) -> None:
    def chances(*tokens: int) -> dict[int, float]:
        return nucleus(_scores(terse, tokens), temperature, top_p)

    def pairs(*tokens: int) -> dict[tuple[int, int], float]:
        first = chances(*tokens)
        return {(one, two): first[one] * chance for one in first for two, chance in chances(*tokens, one).items()}

    luck = random.Random(0)

    def guess(pairs: dict[tuple[int, int], float]) -> tuple[int, int]:
        return luck.choices(list(pairs), list(pairs.values()))[0]

    prompt = PROMPTS[0]
    begun = pairs(*prompt)
    first = max(begun, key=lambda pair: begun[pair])[0]
    later = pairs(*prompt, first)
    # A hint guesses the answer's first two tokens, a drafter the two behind the likeliest first one; each draws its guess.
    guesser = Guesser("pair", lambda _, most: [*guess(later)][:most])
    bench = terse.bench(blocks=80, rows=64, drafters=[guesser], policy=FixedPolicy("pair", 2))
    ask = Ask(prompt=prompt, temperature=temperature, top_p=top_p)
    hinted = [bench.ask(replace(ask, limit=3, seed=seed, hint=guess(begun))) for seed in range(_DRAWS)]
    drafted = [bench.ask(replace(ask, limit=4, seed=_DRAWS + seed)) for seed in range(_DRAWS)]
    bench.finish()
    followed = [told for told in drafted if told.tokens[0] == first]
    assert chi_square_passes(Counter(told.tokens[0] for told in hinted + drafted), chances(*prompt))
    assert chi_square_passes(Counter((told.tokens[0], told.tokens[1]) for told in hinted), begun)
    assert chi_square_passes(Counter((told.tokens[1], told.tokens[2]) for told in followed), later)
    for some in (hinted, followed):
        accepted = {sum(usage.accepted for usage in told.usages[-1].drafts) for told in some}
        assert accepted >= {0, 1, 2}, "some guesses were wrong, some half right, some right"
