"""Several answers, log-probabilities and ways of choosing over REST, as the official client has them, by a real local engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from support.app import Served, WatchedEngine, serving_app
from support.rules import RULES
from support.tiny_llama import make_tokenizer, save_tiny_llama

from models.catalog import EngineSpec
from models.clock import SystemClock
from models.language.transformers import build
from models.ports.context import EngineContext
from streaming.limits import SurfaceLimits

pytestmark = pytest.mark.asyncio(loop_scope="module")

_MESSAGES: Any = [{"role": "user", "content": "Who goes there? " * 12}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("choices")
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


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"http://{served.address}/v1", api_key="none", max_retries=0) as made:
        yield made


async def _asked(client: openai.AsyncOpenAI, **fields: Any) -> Any:
    asked = {"model": "scripted", "messages": _MESSAGES, "max_tokens": 12, "temperature": 1.0, "seed": 5, **fields}
    return await client.chat.completions.create(**asked)


async def test_each_of_several_answers_has_its_own_words_and_the_prompt_is_counted_once(
    client: openai.AsyncOpenAI,
) -> None:
    one = await _asked(client)
    many = await _asked(client, n=4)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    words = [choice.message.content for choice in many.choices]
    assert words[0] == one.choices[0].message.content
    assert len(set(words)) == 4
    assert {choice.finish_reason for choice in many.choices} == {"length"}
    assert many.usage.prompt_tokens == one.usage.prompt_tokens
    assert many.usage.completion_tokens == 48
    assert [choice.message.content for choice in (await _asked(client, n=4)).choices] == words


async def test_several_answers_are_streamed_as_they_come_each_under_its_index(client: openai.AsyncOpenAI) -> None:
    whole = await _asked(client, n=3)
    said, order, reasons, usage = ["", "", ""], [], {}, None
    stream = await _asked(client, n=3, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            order.append(choice.index)
            if choice.finish_reason:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    assert said == [choice.message.content for choice in whole.choices]
    assert order != sorted(order), "the answers came one after another"
    assert reasons == {0: "length", 1: "length", 2: "length"}
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 36)


async def test_who_goes_frees_all_answers_and_all_places(served: Served, client: openai.AsyncOpenAI) -> None:
    stream = await _asked(client, n=4, stream=True, max_tokens=300)
    async for _ in stream:
        break
    assert served.sample("baton_turns_running") == 4
    await stream.close()
    await served.until(lambda: served.engine.running == 0, timeout_s=10)
    await served.until(lambda: served.sample("baton_turns_running") == 0)


@pytest.mark.parametrize("fields", [{"n": 0}, {"n": 17}, {"n": 2, "store": True}, {"top_logprobs": 3}, {"n": True}])
async def test_what_cannot_be_is_refused_by_name(client: openai.AsyncOpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await _asked(client, **fields)
    assert refused.value.param == next(iter(fields))


def _logprobs(tokens: list[Any]) -> list[float]:
    return [each.logprob for token in tokens for each in (token, *token.top_logprobs)]


@pytest.mark.parametrize("n", [1, 3])
async def test_log_probabilities_are_of_the_words_whole_and_streamed(client: openai.AsyncOpenAI, n: int) -> None:
    fields: dict[str, Any] = {"n": n, "logprobs": True, "top_logprobs": 2, "stop": ["the"], "max_tokens": 20}
    whole = await _asked(client, **fields)
    streamed: list[list[Any]] = [[] for _ in range(n)]
    async for chunk in await _asked(client, stream=True, **fields):
        for choice in chunk.choices:
            streamed[choice.index] += choice.logprobs.content if choice.logprobs else []
    for choice in whole.choices:
        tokens = choice.logprobs.content if choice.logprobs else []
        data = bytes(byte for token in tokens for byte in token.bytes)
        assert data.decode(errors="replace").startswith(choice.message.content)
        assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
        assert [token.bytes for token in streamed[choice.index]] == [token.bytes for token in tokens]
        # Sums of floats may differ by how rows are batched.
        assert _logprobs(streamed[choice.index]) == pytest.approx(_logprobs(tokens), abs=1e-4)
    assert any(choice.logprobs for choice in whole.choices)


async def test_a_bias_holds_for_every_answer_and_one_on_no_token_is_refused(client: openai.AsyncOpenAI) -> None:
    (token,) = make_tokenizer()(" the", add_special_tokens=False)["input_ids"]
    answer = await _asked(client, n=2, logit_bias={str(token): 100}, max_tokens=4)
    assert [choice.message.content for choice in answer.choices] == [" the" * 4] * 2
    with pytest.raises(openai.BadRequestError, match="no token 99999") as refused:
        await _asked(client, logit_bias={"99999": 1})
    assert refused.value.param == "logit_bias"


async def test_what_fails_of_several_answers_that_are_streamed_is_said_as_it_is(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no token 99999"):
        await _asked(client, n=3, stream=True, logit_bias={"99999": 1})


async def test_many_requests_of_many_answers_get_along(client: openai.AsyncOpenAI) -> None:
    alone = [await _asked(client, n=3, seed=seed) for seed in range(3)]
    together = await asyncio.gather(*(_asked(client, n=3, seed=seed) for seed in range(3)))
    for one, other in zip(alone, together, strict=True):
        assert [each.message.content for each in one.choices] == [each.message.content for each in other.choices]


async def test_an_answer_goes_on_where_the_assistants_last_message_stops(client: openai.AsyncOpenAI) -> None:
    begun = "one two three"
    messages = [*_MESSAGES, {"role": "assistant", "content": begun}]
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 5, "messages": messages}
    gone_on = {"continue_final_message": True, "add_generation_prompt": False}
    answer = await _asked(client, extra_body=gone_on, **fields)
    again = await _asked(client, **fields)
    # Behind an ended message come its end, a line break and the beginning of the next: five tokens and a role.
    assert answer.usage.prompt_tokens < again.usage.prompt_tokens
    assert answer.choices[0].message.content != again.choices[0].message.content
    for extra in ({**gone_on, "add_generation_prompt": True}, {"add_generation_prompt": False}):
        with pytest.raises(openai.BadRequestError) as refused:
            await _asked(client, extra_body=extra, **fields)
        assert refused.value.param == "add_generation_prompt"
    with pytest.raises(openai.BadRequestError) as refused:
        await _asked(client, extra_body=gone_on)
    assert refused.value.param == "continue_final_message"
