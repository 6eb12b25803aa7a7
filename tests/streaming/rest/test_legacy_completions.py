"""`POST /v1/completions`, as the official client has it, by a real local engine and by the scripted one."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from support.app import Served, WatchedEngine, serving_app
from support.rules import RULES
from support.tiny_llama import make_tokenizer, save_tiny_llama

from memory.keys import RequestDefaults
from models.catalog import EngineSpec
from models.clock import SystemClock
from models.language.transformers import build
from models.ports.context import EngineContext
from streaming.limits import SurfaceLimits

pytestmark = pytest.mark.asyncio(loop_scope="module")

_PROMPT = "Who goes there? A friend, he said; " * 6
_LEFT_OUT: Any = object()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("texts")
    options = json.dumps({"threads": 1, "cache_tokens": 8192})
    engine = build(
        EngineSpec(name="transformers", options=options, folder=str(save_tiny_llama(folder))),
        EngineContext(clock=SystemClock()),
    )
    try:
        async with serving_app(folder, limits=SurfaceLimits(drain_s=1), rules=RULES) as running:
            engines: Any = running.conductor.fleet.engines
            engines["scripted"] = running.engine = WatchedEngine(engine)
            yield running
    finally:
        await engine.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scripted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("scripted")
    async with serving_app(folder, limits=SurfaceLimits(drain_s=1), rules=RULES) as running:
        yield running


def _client(served: Served, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://{served.address}/v1", api_key=key, max_retries=0)


async def _asked(served: Served, **fields: Any) -> Any:
    asked = {"model": "scripted", "prompt": _PROMPT, "max_tokens": 8, "temperature": 1.0, "seed": 5, **fields}
    asked = {name: value for name, value in asked.items() if value is not _LEFT_OUT}
    async with _client(served) as client:
        return await client.completions.create(**asked)


async def _streamed(served: Served, **fields: Any) -> tuple[dict[int, str], dict[int, str], list[Any]]:
    """Return texts and reasons by index, and the chunks."""
    asked = {"model": "scripted", "prompt": _PROMPT, "max_tokens": 8, "temperature": 1.0, "seed": 5, **fields}
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    chunks = []
    async with _client(served) as client:
        async for chunk in await client.completions.create(stream=True, **asked):
            chunks.append(chunk)
            assert chunk.object == "text_completion"
            for choice in chunk.choices:
                assert choice.index not in reasons
                texts[choice.index] = texts.get(choice.index, "") + choice.text
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
    return texts, reasons, chunks


async def test_a_text_goes_on_without_a_template(served: Served) -> None:
    answer = await _asked(served)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.text
    assert answer.usage.prompt_tokens == len(make_tokenizer()(_PROMPT)["input_ids"])
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (8, answer.usage.prompt_tokens + 8)
    assert answer.baton["model"] == "scripted"


async def test_without_max_tokens_sixteen_are_written(served: Served) -> None:
    assert (await _asked(served, max_tokens=_LEFT_OUT)).usage.completion_tokens == 16


@pytest.mark.parametrize("n", [1, 3])
async def test_prompts_times_n_are_answered_in_the_apis_order(served: Served, n: int) -> None:
    prompts = ["one two three", "the sea and the sky", "Who goes there?"]
    alone = [await _asked(served, prompt=prompt, n=n) for prompt in prompts]
    answer = await _asked(served, prompt=prompts, n=n, best_of=n)
    assert [choice.index for choice in answer.choices] == list(range(3 * n))
    assert [choice.text for choice in answer.choices] == [choice.text for one in alone for choice in one.choices]
    assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone) == 3 * n * 8


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"prompt": ["one two", "the sea"], "n": 2, "echo": True}])
async def test_what_is_streamed_is_what_is_given_whole(served: Served, fields: dict[str, Any]) -> None:
    whole = await _asked(served, **fields)
    texts, reasons, chunks = await _streamed(served, stream_options={"include_usage": True}, **fields)
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    used = chunks[-1].usage
    assert (used.prompt_tokens, used.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert len({chunk.id for chunk in chunks}) == 1
    _, _, without = await _streamed(served, **fields)
    assert all(chunk.choices and chunk.usage is None for chunk in without)


async def test_a_stream_ends_with_done(scripted: Served) -> None:
    async with scripted.http() as client:
        answer = await client.post("/v1/completions", json={"prompt": "count to 3", "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_an_echo_says_the_prompt_first(scripted: Served) -> None:
    prompt = "count to 3"
    assert (await _asked(scripted, prompt=prompt, echo=True)).choices[0].text == "count to 31 2 3 "
    assert (await _asked(scripted, prompt="nothing", echo=True)).choices[0].text == "nothing"
    texts, _, _ = await _streamed(scripted, prompt=[prompt, "nothing"], echo=True)
    assert texts == {0: "count to 31 2 3 ", 1: "nothing"}
    assert (await _streamed(scripted, prompt="nothing"))[0] == {0: ""}


@pytest.mark.parametrize("most", [0, 2, 5])
@pytest.mark.parametrize("n", [1, 2])
async def test_log_probabilities_have_the_older_shape_whole_and_streamed(served: Served, n: int, most: int) -> None:
    fields: dict[str, Any] = {"logprobs": most, "n": n, "max_tokens": 30, "temperature": 2.0}
    whole = await _asked(served, **fields)
    _, _, chunks = await _streamed(served, **fields)
    for choice in whole.choices:
        told = choice.logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
        for at, (token, logprob, top) in enumerate(
            zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True)
        ):
            assert top[token] == logprob <= 0
            assert most <= len(top) <= most + 1
            if not token.startswith("bytes:"):
                assert choice.text[told.text_offset[at] :].startswith(token)
        streamed = [each.logprobs for chunk in chunks for each in chunk.choices if each.index == choice.index]
        for name in ("tokens", "token_logprobs", "text_offset"):
            values = [value for some in streamed if some for value in getattr(some, name)]
            expected = getattr(told, name)
            assert values == (pytest.approx(expected, abs=1e-4) if name == "token_logprobs" else expected)


async def test_part_of_a_character_is_told_in_bytes_and_takes_no_place(served: Served) -> None:
    # A penalty that wins over the bias brings one token after the other.
    tokens = make_tokenizer()("\u20ac", add_special_tokens=False)["input_ids"]
    bias = {str(token): value for token, value in zip(tokens, (100, 99.5, 99), strict=True)}
    fields: dict[str, Any] = {
        "logit_bias": bias,
        "frequency_penalty": 2,
        "logprobs": 1,
        "max_tokens": 4,
        "stop": "\u20ac!",
    }
    choice = (await _asked(served, temperature=0, **fields)).choices[0]
    assert "bytes:\\xe2" in choice.logprobs.tokens
    assert choice.logprobs.text_offset[:3] == [0, 0, 0]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stop": " 4"}, "1 2 3"),
        ({"stop": ["9", "3"]}, "1 2 "),
        ({"max_tokens": 2}, "1 2 "),
        ({"user": "somebody", "suffix": "", "n": None, "best_of": None, "logprobs": None}, "1 2 3 4 5 6 "),
    ],
)
async def test_the_scripted_engine_answers_the_text(scripted: Served, fields: dict[str, Any], text: str) -> None:
    answer = await _asked(scripted, prompt="count to 6", **fields)
    assert answer.choices[0].text == text
    assert (await _streamed(scripted, prompt="count to 6", **fields))[0] == {0: text}


async def test_ways_of_choosing_reach_the_engine(served: Served) -> None:
    (token,) = make_tokenizer()(" the", add_special_tokens=False)["input_ids"]
    assert (await _asked(served, logit_bias={str(token): 100}, max_tokens=3)).choices[0].text == " the" * 3
    likeliest = (await _asked(served, temperature=0)).choices[0].text
    for only in ({"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}, {"top_p": 0}):
        assert (await _asked(served, **only)).choices[0].text == likeliest
    punished = await _asked(served, temperature=0, max_tokens=40, frequency_penalty=2, presence_penalty=2)
    assert punished.choices[0].text != (await _asked(served, temperature=0, max_tokens=40)).choices[0].text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt[0]"),
        ({"prompt": [[1, 2], [3]]}, "prompt[0]"),
        ({"prompt": ["one", 2]}, "prompt[1]"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["one", None]}, "prompt[1]"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": ["x"] * 9, "n": 8}, "prompt"),
        ({"prompt": "x " * 600}, "prompt"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"temperature": 3}, "temperature"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"extra_body": {"messages": []}}, "messages"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_what_cannot_be_is_refused_by_name(
    served: Served, fields: dict[str, Any], param: str, is_streamed: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await _asked(served, **({"stream": True} if is_streamed else {}), **fields)
    assert refused.value.param == param


async def test_what_is_too_long_is_said_in_the_words_by_which_clients_know_it(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens") as refused:
        await _asked(served, prompt="one " * 700)
    assert refused.value.code == "context_length_exceeded"


async def test_a_model_that_is_not_there_is_not_found(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await _asked(served, model="gpt")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


async def test_a_turn_that_fails_is_an_error_whole_and_streamed(scripted: Served) -> None:
    with pytest.raises(openai.InternalServerError):
        await _asked(scripted, prompt=["count to 2", "fail"])
    with pytest.raises(openai.APIError):
        await _streamed(scripted, prompt=["count to 2", "fail"])


async def test_who_goes_frees_all_places(served: Served) -> None:
    async with _client(served) as client:
        fields: dict[str, Any] = {"prompt": ["one", "two"], "n": 2, "max_tokens": 300, "stream": True}
        stream = await client.completions.create(model="scripted", **fields)
        async for _ in stream:
            break
        assert served.sample("baton_turns_running") == 4
        await stream.close()
    await served.until(lambda: served.engine.running == 0, timeout_s=10)
    await served.until(lambda: served.sample("baton_turns_running") == 0)


async def test_a_keys_defaults_hold_but_its_instructions_have_no_place(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    async with serving_app(folder, limits=SurfaceLimits(drain_s=1), rules=RULES) as running:
        defaults = RequestDefaults(instructions="Be brief.", max_output_tokens=2)
        key = await running.key("acme", defaults=defaults)
        async with _client(running, key) as client:
            answer = await client.completions.create(model="scripted", prompt="count to 6")
        assert answer.choices[0].text == "1 2 "
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 3
