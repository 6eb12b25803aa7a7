"""pydantic-ai: agents with tools, and typed outputs by its ways."""

import asyncio

from openai import AsyncOpenAI
from probe import (
    KEY,
    REAL,
    RECORDED,
    SYSTEM,
    URL,
    check,
    check_cut,
    check_kept,
    check_weather,
    feature,
    get_weather,
    heard,
    main,
    marker,
)
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    """A person."""

    born: int
    alive: bool


def model(name: str = RECORDED, key: str = KEY) -> OpenAIChatModel:
    client = AsyncOpenAI(base_url=URL, api_key=key, max_retries=0)
    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))


def agent(name: str = RECORDED, **options) -> Agent:
    return Agent(model(name), model_settings={"max_tokens": 300}, **options)


@feature("chat")
async def _() -> None:
    told = heard((await agent().run("Say something.")).output)
    check(told["heard"] == ["Say something."], told)


@feature("stream")
async def _() -> None:
    async with agent().run_stream("count to 20") as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    check(len(pieces) > 10 and "".join(pieces).split()[-1] == "20", pieces)


@feature("system instructions")
async def _() -> None:
    check_kept((await agent(instructions=SYSTEM).run("Hello.")).output, "Hello.")
    check_kept((await agent(system_prompt=SYSTEM).run("Hello.")).output, "Hello.")


@feature("history")
async def _() -> None:
    first = await agent(instructions=SYSTEM).run("First.")
    second = await agent(instructions=SYSTEM).run("Second.", message_history=first.all_messages())
    check_kept(second.output, "First.", "Second.")


@feature("tools")
async def _() -> None:
    made = agent(instructions=SYSTEM, tools=[get_weather])
    check_weather((await made.run("What is the weather in Bern?")).output, "Bern")


@feature("parallel calls")
async def _() -> None:
    made = agent(instructions=SYSTEM, tools=[get_weather])
    told = await made.run("What is the weather in Bern and in Oslo?")
    check(told.usage.requests == 2 if not callable(told.usage) else told.usage().requests == 2, told.usage)
    check_weather(told.output, "Bern", "Oslo")


@feature("structured, strict")
async def _() -> None:
    for name in (RECORDED, REAL):
        told = await agent(name, output_type=NativeOutput(Person, strict=True)).run("Who is Ada?")
        check(isinstance(told.output, Person), told)


@feature("structured, not strict")
async def _() -> None:
    for name in (RECORDED, REAL):
        told = await agent(name, output_type=ToolOutput(Person)).run("Who is Ada?")
        check(isinstance(told.output, Person), told)
    told = await agent(REAL, output_type=NativeOutput(Person)).run("Who is Ada?")
    check(isinstance(told.output, Person), told)


@feature("tools and structured")
async def _() -> None:
    for output in (NativeOutput(Person), ToolOutput(Person)):
        made = agent(instructions=SYSTEM, tools=[get_weather], output_type=output)
        told = await made.run("What is the weather in Bern?")
        check(isinstance(told.output, Person), told)
        check(get_weather("Bern") in str(told.all_messages()), told.all_messages())


@feature("usage")
async def _() -> None:
    told = await agent().run("count to 20")
    used = told.usage() if callable(told.usage) else told.usage
    check(used.output_tokens == 20 and used.input_tokens > 0, used)


@feature("stop")
async def _() -> None:
    text = (await agent().run("count to 20", model_settings={"stop_sequences": ["7"]})).output
    check(text.split()[-1] == "6", text)


@feature("logprobs")
async def _() -> None:
    settings = {"openai_logprobs": True, "openai_top_logprobs": 2, "max_tokens": 4}
    told = await agent(REAL).run("Name a colour.", model_settings=settings)
    check(told.all_messages()[-1].provider_details["logprobs"], told.all_messages())


@feature("penalties")
async def _() -> None:
    settings = {"frequency_penalty": 1.0, "presence_penalty": 1.0, "logit_bias": {"5": -100}, "max_tokens": 4}
    await agent(REAL).run("Say tree.", model_settings=settings)


@feature("context overflow recognised")
async def _() -> None:
    try:
        await agent(REAL).run("word " * 12_000)
    except ModelHTTPError as exc:
        check(exc.status_code == 400 and exc.body["code"] == "context_length_exceeded", exc)
        return
    raise AssertionError("answered")


@feature("bad key recognised")
async def _() -> None:
    try:
        await Agent(model(key="wrong")).run("Hi.")
    except ModelHTTPError as exc:
        check(exc.status_code == 401, exc)
        return
    raise AssertionError("answered")


@feature("cancel in mid-stream")
async def _() -> None:
    prompt = marker()
    async with Agent(model()).run_stream(prompt) as stream:
        pieces = stream.stream_text(delta=True, debounce_by=None)
        for _ in range(5):
            await anext(pieces)
        if hasattr(stream, "cancel"):
            await stream.cancel()
    await asyncio.to_thread(check_cut, prompt)


main()
