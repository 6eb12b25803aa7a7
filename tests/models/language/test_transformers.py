"""What the transformers engine writes, whichever of the two runs the model: the decoding engine, or transformers' own code.

On a tiny model with random weights, and on the embedded one where quality counts.
"""

import asyncio
import json
import math
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from support.asking import ALL, LONG, asks, collect, says, text_of, tokens_of
from support.sequential import build_sequential
from transformers import (
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from models.catalog import EngineSpec
from models.clock import ManualClock
from models.content import BlobRef, FinishDelta, ImagePart, Message, TextDelta, TextPart, UsageDelta
from models.errors import BadInput, Internal, LimitExceeded, Unsupported
from models.language.decoding.engine import DecodingEngine
from models.language.prompts import PromptWriter
from models.language.sequential import SequentialEngine
from models.language.transformers import build
from models.ports.context import EngineContext
from models.ports.generate import Engine, ToolConstraint

Building = Callable[..., AbstractAsyncContextManager[Engine]]


@pytest.fixture(params=["decoding", "sequential"])
def building(request: pytest.FixtureRequest, tiny_llama: Path) -> Building:
    factory = {"decoding": build, "sequential": build_sequential}[request.param]

    @asynccontextmanager
    async def run(folder: Path = tiny_llama, **options: object) -> AsyncIterator[Engine]:
        spec = EngineSpec(name="transformers", options=json.dumps({"threads": 1, **options}), folder=str(folder))
        engine = factory(spec, EngineContext(clock=ManualClock()))
        try:
            yield engine
        finally:
            await engine.aclose()

    return run


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


def _changed(source: Path, target: Path, change: dict[str, object]) -> Path:
    """Copy a model with another configuration."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | change))
    return target


# What is written


@pytest.mark.parametrize("prefill_tokens", [1, 16, 512])
async def test_greedy_tokens_are_those_of_the_model_however_the_prompt_is_read(
    building, reference, tokenizer, prefill_tokens
):
    async with building(prefill_tokens=prefill_tokens) as engine:
        deltas = await collect(engine, asks(LONG, signals=ALL))
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": LONG}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        written = reference.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :]
    assert tokens_of(deltas) == written.tolist()
    assert text_of(deltas) == tokenizer.decode(written)
    assert deltas[0] == UsageDelta(input_tokens=prompt.shape[1], output_tokens=0)


async def test_characters_that_span_tokens_come_whole(building, tokenizer):
    async with building() as engine:
        for seed in range(8):
            # So hot that single bytes of many characters are drawn.
            deltas = await collect(engine, asks(temperature=50.0, seed=seed, limit=64, signals=ALL))
            whole = tokenizer.decode(tokens_of(deltas), skip_special_tokens=True)
            assert whole.startswith(text_of(deltas))
            assert whole[len(text_of(deltas)) :].strip("\ufffd") == ""


async def test_an_answer_ends_at_a_token_that_ends_answers_without_showing_it(building, tiny_llama, tmp_path):
    async with building() as engine:
        first = tokens_of(await collect(engine, asks(signals=ALL)))
    end = next(token for at, token in enumerate(first) if at >= 2 and token not in first[:at])
    folder = shutil.copytree(tiny_llama, tmp_path / "ends")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, end]}))
    async with building(folder) as engine:
        deltas = await collect(engine, asks(signals=ALL))
    assert tokens_of(deltas) == first[: first.index(end)]
    assert deltas[-2].output_tokens == first.index(end)
    assert deltas[-1] == FinishDelta(reason="stop")


async def test_seeds_differ_and_no_seed_is_a_new_one(building):
    async with building() as engine:
        texts = [text_of(await collect(engine, asks(temperature=1.0, seed=seed))) for seed in (1, 2, -1, None, None)]
    assert len(set(texts)) == 5


async def test_a_nucleus_of_one_token_is_greedy(building):
    async with building() as engine:
        assert text_of(await collect(engine, asks(temperature=1.0, top_p=1e-9))) == text_of(
            await collect(engine, asks())
        )


async def test_a_temperature_of_next_to_nothing_is_greedy(building):
    async with building() as engine:
        assert text_of(await collect(engine, asks(temperature=1e-300))) == text_of(await collect(engine, asks()))


# What is told of each token


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"min_p": 1.0}, {"top_k": 1, "min_p": 0.2, "top_p": 0.5}])
async def test_what_leaves_one_token_is_greedy(building, fields):
    async with building() as engine:
        greedy = text_of(await collect(engine, asks("Hello")))
        assert text_of(await collect(engine, asks("Hello", temperature=1.5, seed=3, **fields))) == greedy


async def test_bias_and_penalties_are_transformers_own(building, reference, tokenizer):
    penalties = {"repetition_penalty": 1.4, "frequency_penalty": 1.5, "presence_penalty": 2.0}
    bias = ((70, 5.0), (71, -100.0))
    async with building() as engine:
        request = asks("Hello", limit=20, logit_bias=bias, signals=frozenset({"token_ids"}), **penalties)
        written = tokens_of(await collect(engine, request))
    prompt = PromptWriter(tokenizer).tokens(request.messages)
    tokens = torch.tensor([prompt])
    own = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor({(token,): value for token, value in bias}),
            RepetitionPenaltyLogitsProcessor(penalties["repetition_penalty"]),
        ]
    )
    for _ in range(20):
        with torch.inference_mode():
            scores = own(tokens, reference(input_ids=tokens).logits[:, -1])
        counts = torch.bincount(tokens[0, len(prompt) :], minlength=scores.shape[-1])
        scores = scores - counts * penalties["frequency_penalty"] - (counts > 0) * penalties["presence_penalty"]
        tokens = torch.cat((tokens, scores.argmax(-1, keepdim=True)), -1)
    assert written == tokens[0, len(prompt) :].tolist()
    assert len(set(written)) > 10


async def test_an_answer_goes_on_where_the_last_message_stops(building, tokenizer, reference):
    request = asks(
        says("Hello"), says("one two", "assistant"), limit=5, continues=True, signals=frozenset({"token_ids"})
    )
    prompt = tokenizer("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\none two", add_special_tokens=False)[
        "input_ids"
    ]
    async with building() as engine:
        written = tokens_of(await collect(engine, request))
        with pytest.raises(BadInput, match="assistant"):
            await collect(engine, asks("Hello", continues=True))
    tokens = torch.tensor([prompt])
    for _ in range(5):
        with torch.inference_mode():
            tokens = torch.cat((tokens, reference(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)), -1)
    assert written == tokens[0, len(prompt) :].tolist()


async def test_a_raw_prompt_reaches_the_model_token_for_token(building, tokenizer, reference):
    words = "<|im_start|>one two\nthe sea  <|im_end|> and"
    prompt = tokenizer(words)["input_ids"]
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id} < set(prompt)
    async with building() as engine:
        deltas = await collect(engine, asks(words, limit=8, raw=True, signals=frozenset({"token_ids"})))
        for contradicting in ({"continues": True}, {"constraint": ToolConstraint(tools=())}):
            with pytest.raises(BadInput, match="as it is"):
                await collect(engine, asks(words, raw=True, **contradicting))
        with pytest.raises(BadInput, match="as it is"):
            await collect(engine, asks(words, words, raw=True))
        with pytest.raises(BadInput, match="empty"):
            await collect(engine, asks("", raw=True))
        with pytest.raises(LimitExceeded):
            await collect(engine, asks("one " * 600, raw=True))
    tokens = torch.tensor([prompt])
    for _ in range(8):
        with torch.inference_mode():
            tokens = torch.cat((tokens, reference(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)), -1)
    assert tokens_of(deltas) == tokens[0, len(prompt) :].tolist()
    assert sum(delta.input_tokens for delta in deltas if isinstance(delta, UsageDelta)) == len(prompt)


async def test_a_bias_on_a_token_that_the_model_has_not_is_refused(building):
    async with building() as engine:
        with pytest.raises(BadInput, match="no token 340") as refused:
            await collect(engine, asks("Hello", logit_bias=((340, 1.0),)))
    assert refused.value.field == "logit_bias"


async def test_statistics_are_of_the_models_own_distribution(building, reference, tokenizer):
    async with building() as engine:
        deltas = await collect(engine, asks(temperature=0.5, top_p=0.5, seed=1, signals=ALL))
        prompt = PromptWriter(tokenizer).tokens((says("Hello"),))
        tokens = tokens_of(deltas)
        with torch.inference_mode():
            scores = reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    told = [delta for delta in deltas if isinstance(delta, TextDelta)]
    logprobs = scores.log_softmax(-1)
    top = logprobs.exp().topk(2).values
    assert [delta.logprobs[0] for delta in told] == pytest.approx(
        logprobs[range(len(tokens)), tokens].tolist(), abs=1e-4
    )
    assert [delta.margins[0] for delta in told] == pytest.approx((top[:, 0] - top[:, 1]).tolist(), abs=1e-4)
    entropies = torch.distributions.Categorical(logits=scores).entropy().tolist()
    assert [delta.entropies[0] for delta in told] == pytest.approx(entropies, abs=1e-4)
    assert all(0 <= entropy <= math.log(len(tokenizer)) for entropy in entropies)


async def test_only_the_statistics_that_were_asked_for_are_given(building):
    async with building() as engine:
        deltas = await collect(engine, asks(signals=frozenset({"margins"})))
    for delta in (delta for delta in deltas if isinstance(delta, TextDelta)):
        assert (len(delta.token_ids), len(delta.margins), delta.logprobs, delta.entropies) == (1, 1, (), ())


# The window


async def test_a_conversation_that_fills_the_window_is_refused_with_both_numbers(building, tokenizer):
    async with building(context_tokens=64) as engine:
        with pytest.raises(LimitExceeded) as caught:
            await anext(engine.generate(asks(LONG)))
    tokens = len(PromptWriter(tokenizer).tokens((says(LONG),)))
    assert caught.value.code == "context_length_exceeded"
    assert f"{tokens} tokens" in caught.value.message
    assert "64" in caught.value.message


async def test_an_answer_gets_what_the_conversation_leaves_of_the_window(building, tokenizer):
    tokens = len(PromptWriter(tokenizer).tokens((says(LONG),)))
    async with building(context_tokens=tokens + 3) as engine:
        deltas = await collect(engine, asks(LONG))
    assert deltas[-2].output_tokens == 3
    assert deltas[-1] == FinishDelta(reason="length")


async def test_no_more_are_written_at_a_time_than_may_be(building):
    async with building(max_requests=1) as engine:
        first = engine.generate(asks())
        await anext(first)
        second = asyncio.create_task(collect(engine, asks()))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not second.done()
        await first.aclose()
        assert isinstance((await second)[-1], FinishDelta)


async def test_an_engine_that_is_closed_fails_what_runs_and_takes_nothing_more(building):
    async with building() as engine:
        answer = engine.generate(asks(limit=400))
        await anext(answer)
        await engine.aclose()
        for late in (answer, engine.generate(asks())):
            with pytest.raises(Internal, match="closed"):
                async for _ in late:
                    pass


async def test_a_picture_is_refused_on_the_first_step(building):
    picture = ImagePart(blob=BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1), width_px=1, height_px=1)
    message = Message(item_id="item_1", role="user", parts=(TextPart(text="What is this?"), picture))
    async with building() as engine:
        with pytest.raises(Unsupported, match="image"):
            await anext(engine.generate(asks(message)))


async def test_a_template_is_given_what_the_card_says(building, tokenizer, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "thinks")
    (folder / "chat_template.jinja").write_text("{{ 'no' if enable_thinking is false else 'yes, by all means' }}")
    for options, said in (({}, "yes, by all means"), ({"template": {"enable_thinking": False}}, "no")):
        async with building(folder, **options) as engine:
            usage = await anext(engine.generate(asks()))
        assert usage == UsageDelta(input_tokens=len(tokenizer(said)["input_ids"]), output_tokens=0)


# What is loaded


@pytest.mark.parametrize(("change", "kind"), [({}, DecodingEngine), ({"hidden_act": "gelu"}, SequentialEngine)])
async def test_the_decoding_engine_runs_what_it_knows_and_the_other_one_the_rest(tiny_llama, tmp_path, change, kind):
    folder = _changed(tiny_llama, tmp_path / "changed", change)
    engine = build(EngineSpec(name="transformers", folder=str(folder)), EngineContext(clock=ManualClock()))
    try:
        assert isinstance(engine, kind)
        assert isinstance((await collect(engine, asks()))[-1], FinishDelta)
    finally:
        await engine.aclose()


@pytest.mark.parametrize(
    "options", [{"devise": "cpu"}, {"prefill_tokens": 0}, {"prefill_tokens": 513}, {"dtype": "int3"}]
)
def test_options_that_do_not_fit_are_refused(tiny_llama, options):
    with pytest.raises(BadInput, match="options"):
        build(
            EngineSpec(name="transformers", options=json.dumps(options), folder=str(tiny_llama)),
            EngineContext(clock=ManualClock()),
        )


def test_a_card_without_weights_is_refused():
    with pytest.raises(BadInput, match="weights"):
        build(EngineSpec(name="transformers"), EngineContext(clock=ManualClock()))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", [Path.unlink, partial(Path.write_bytes, data=b"{")], ids=["missing", "damaged"])
@pytest.mark.parametrize("change", [{}, {"hidden_act": "gelu"}], ids=["decoding", "sequential"])
def test_weights_that_are_not_whole_name_their_folder(tiny_llama, tmp_path, name, damage, change):
    folder = _changed(tiny_llama, tmp_path / "broken", change)
    damage(folder / name)
    with pytest.raises(Internal, match="broken"):
        build(EngineSpec(name="transformers", folder=str(folder)), EngineContext(clock=ManualClock()))


def test_a_pickle_is_not_loaded(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Internal, match="pickled"):
        build(EngineSpec(name="transformers", folder=str(folder)), EngineContext(clock=ManualClock()))


def test_a_model_without_a_chat_template_is_refused(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match="chat template"):
        build(EngineSpec(name="transformers", folder=str(folder)), EngineContext(clock=ManualClock()))


# The embedded model


@pytest.mark.timeout(600)  # the first run on a machine fetches and converts it
@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
@pytest.mark.parametrize("building", ["decoding"], indirect=True)
async def test_the_embedded_model_knows_the_capital_of_france(building, smollm2_folder, system):
    items = (
        *([says(system, "system")] if system else []),
        says("What is the capital of France? Answer in one sentence."),
    )
    async with building(smollm2_folder) as engine:
        deltas = await collect(engine, asks(*items, limit=40))
    assert text_of(deltas) == "The capital of France is Paris."
    assert deltas[-1] == FinishDelta(reason="stop")
