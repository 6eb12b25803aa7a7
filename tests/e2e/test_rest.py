"""The official client, unchanged, against the running server: REST, sync and async."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from support.rules import RULES, WEATHER
from support.server import Server, count, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    home = tmp_path_factory.mktemp("server") / "home"
    async with serving(home, rules=RULES, environment={"BATON_MAX_TENANT_TURNS": "8"}) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.address}/v1", api_key="placeholder", max_retries=0) as client:
        yield client


@pytest.fixture
def blocking(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.address}/v1", api_key="placeholder", max_retries=0) as client:
        yield client


def _said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_an_answer_in_one_piece(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="scripted", messages=_said("count to 5"))
    assert answer.choices[0].message.content == count(5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.model == "scripted"
    assert abs(answer.created - time.time()) < 60


async def test_an_answer_as_it_is_written(client: AsyncOpenAI) -> None:
    text, usage = "", None
    stream = await client.chat.completions.create(
        model="scripted", messages=_said("count to 50"), stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
        usage = chunk.usage
    assert text == count(50)
    assert usage is not None
    assert usage.completion_tokens == 50


async def test_the_blocking_client_does_both(blocking: OpenAI) -> None:
    def both() -> tuple[str | None, str]:
        whole = blocking.chat.completions.create(model="scripted", messages=_said("count to 5"))
        stream = blocking.chat.completions.create(model="scripted", messages=_said("count to 6"), stream=True)
        return whole.choices[0].message.content, "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(both) == (count(5), count(6))


async def test_the_clients_own_accumulator_takes_the_stream(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="scripted", messages=_said("count to 4")) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == (count(4), "stop")


async def test_a_function_is_called_and_its_result_is_answered(client: AsyncOpenAI) -> None:
    messages = _said("What is the weather in Bern?")
    asked: Any = {"model": "scripted", "tools": [WEATHER]}
    async with client.chat.completions.stream(messages=messages, **asked) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Bern"})
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    answer = await client.chat.completions.create(messages=messages, **asked)
    assert answer.choices[0].message.content == "The sun shines."


async def test_models_are_listed_and_shown(client: AsyncOpenAI, blocking: OpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["scripted"]
    assert (await client.models.retrieve("scripted")).owned_by == "baton"
    assert [model.id for model in await asyncio.to_thread(lambda: list(blocking.models.list()))] == ["scripted"]


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "nonesuch"}, openai.NotFoundError, "model_not_found", "model"),
        ({"n": 2, "store": True}, openai.BadRequestError, "unsupported", "n"),
        ({"temperature": 5}, openai.BadRequestError, "invalid_input", "temperature"),
        ({"messages": []}, openai.BadRequestError, "invalid_input", "messages"),
        ({"messages": _said("fail at once")}, openai.InternalServerError, "internal", None),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_the_clients_own(
    client: AsyncOpenAI,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
    param: str | None,
    stream: bool,
) -> None:
    asked: Any = {"model": "scripted", "messages": _said("count to 2"), "stream": stream, **fields}
    with pytest.raises(error) as raised:
        await client.chat.completions.create(**asked)
    assert (raised.value.code, raised.value.param) == (code, param)


async def test_a_fault_in_the_middle_of_an_answer_is_raised_there(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="scripted", messages=_said("fail"), stream=True)
    text = ""
    with pytest.raises(openai.APIError) as raised:
        text = await _read(stream)
    assert raised.value.code == "internal"
    assert text == ""


async def _read(stream: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_the_client_waits_and_tries_again_when_there_are_too_many_turns(server: Server) -> None:
    async with AsyncOpenAI(base_url=f"{server.address}/v1", api_key="placeholder", max_retries=5) as client:
        asked: Any = {"model": "scripted", "messages": _said("slowly count to 20")}
        answers = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(16)))
    assert {answer.choices[0].message.content for answer in answers} == {count(20)}


async def test_a_client_that_goes_stops_the_work_within_a_second(server: Server, client: AsyncOpenAI) -> None:
    async def running() -> float:
        async with httpx.AsyncClient() as http:
            lines = (await http.get(f"{server.address}/metrics")).text.splitlines()
        (value,) = (line.split()[1] for line in lines if line.startswith("baton_worker_requests "))
        return float(value)

    stream = await client.chat.completions.create(
        model="scripted", messages=_said("slowly count to 5000"), stream=True, max_tokens=1000
    )
    await anext(stream.__aiter__())
    assert await running() == 1
    await stream.close()
    async with asyncio.timeout(1):
        while await running():  # noqa: ASYNC110  # another process sets no event
            await asyncio.sleep(0.02)


async def test_what_is_stored_survives_a_restart(tmp_path: Any) -> None:
    server = Server(tmp_path / "home", rules=RULES)
    await server.start()
    async with AsyncOpenAI(base_url=f"{server.address}/v1", api_key="placeholder") as client:
        asked: Any = {"model": "scripted", "messages": _said("count to 5")}
        await client.chat.completions.create(store=True, **asked)
        await client.chat.completions.create(**asked)
    await server.kill()
    await server.start()
    async with httpx.AsyncClient(base_url=server.address) as http:
        (kept,) = (await http.get("/v1/sessions")).json()["data"]
        items = (await http.get(f"/v1/sessions/{kept['id']}")).json()["items"]
    assert kept["title"] == "count to 5"
    assert [item["content"][0]["text"] for item in items] == ["count to 5", count(5)]
    assert await server.stop() == 0


async def test_many_requests_at_once_leave_nothing_behind(server: Server, client: AsyncOpenAI) -> None:
    async def one(n: int) -> str | None:
        asked: Any = {"model": "scripted", "messages": _said(f"count to {n}")}
        return (await client.chat.completions.create(**asked)).choices[0].message.content

    process = psutil.Process(server.pid)
    await asyncio.gather(*(one(n) for n in range(1, 9)))
    files = process.num_fds()
    for _ in range(10):
        assert await asyncio.gather(*(one(n) for n in range(1, 9))) == [count(n) for n in range(1, 9)]
    assert process.num_fds() <= files + 8
