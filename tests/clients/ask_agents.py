"""openai-agents: agents on the chat completions model, a handoff between two, and a realtime session in text."""

import asyncio

import openai
from agents.realtime import RealtimeAgent, RealtimeRunner
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
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

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)

set_tracing_disabled(True)
weather = function_tool(get_weather)


class Person(BaseModel, extra="forbid"):
    born: int
    alive: bool


def model(name: str = RECORDED, key: str = KEY) -> OpenAIChatCompletionsModel:
    return OpenAIChatCompletionsModel(name, AsyncOpenAI(base_url=URL, api_key=key, max_retries=0))


def agent(**options) -> Agent:
    return Agent(**{"name": "Quill", "instructions": SYSTEM, "model": model(), **options})


@feature("chat")
async def _() -> None:
    told = heard((await Runner.run(agent(), "Say something.")).final_output)
    check(told["heard"] == ["Say something."], told)


@feature("stream")
async def _() -> None:
    pieces = []
    async for event in Runner.run_streamed(agent(), "count to 20").stream_events():
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
            pieces.append(event.data.delta)
    check(len(pieces) > 10 and "".join(pieces).split()[-1] == "20", pieces)


@feature("system instructions")
async def _() -> None:
    check_kept((await Runner.run(agent(), "Hello.")).final_output, "Hello.")


@feature("history")
async def _() -> None:
    first = await Runner.run(agent(), "First.")
    said = [*first.to_input_list(), {"role": "user", "content": "Second."}]
    check_kept((await Runner.run(agent(), said)).final_output, "First.", "Second.")


@feature("tools")
async def _() -> None:
    told = await Runner.run(agent(tools=[weather]), "What is the weather in Bern?")
    check_weather(told.final_output, "Bern")
    streamed = Runner.run_streamed(agent(tools=[weather]), "What is the weather in Rome?")
    async for _event in streamed.stream_events():
        pass
    check_weather(streamed.final_output, "Rome")


@feature("parallel calls")
async def _() -> None:
    told = await Runner.run(agent(tools=[weather]), "What is the weather in Bern and in Oslo?")
    check(len(told.raw_responses) == 2, told.raw_responses)
    check_weather(told.final_output, "Bern", "Oslo")


@feature("handoff")
async def _() -> None:
    other = agent(name="Weather", tools=[weather])
    first = agent(instructions="Hand over what is asked.", handoffs=[other])
    told = await Runner.run(first, "What is the weather in Bern?")
    check(told.last_agent.name == "Weather", told.last_agent)
    check_weather(told.final_output, "Bern")


@feature("structured, strict")
async def _() -> None:
    for name in (RECORDED, REAL):
        made = agent(model=model(name), output_type=Person, model_settings=ModelSettings(max_tokens=100))
        told = await Runner.run(made, "Who is Ada?")
        check(isinstance(told.final_output, Person), told)


@feature("tools and structured")
async def _() -> None:
    told = await Runner.run(agent(tools=[weather], output_type=Person), "What is the weather in Bern?")
    check(isinstance(told.final_output, Person), told)
    check(get_weather("Bern") in str(told.to_input_list()), told.to_input_list())


@feature("usage")
async def _() -> None:
    used = (await Runner.run(agent(), "count to 20")).context_wrapper.usage
    check(used.output_tokens == 20 and used.input_tokens > 0, used)


@feature("penalties")
async def _() -> None:
    settings = ModelSettings(frequency_penalty=1, presence_penalty=1, max_tokens=4)
    await Runner.run(agent(model=model(REAL), model_settings=settings), "Say tree.")


@feature("context overflow recognised")
async def _() -> None:
    try:
        await Runner.run(agent(model=model(REAL)), "word " * 12_000)
    except openai.BadRequestError as exc:
        check(exc.code == "context_length_exceeded", exc)
        return
    raise AssertionError("answered")


@feature("bad key recognised")
async def _() -> None:
    try:
        await Runner.run(agent(model=model(key="wrong")), "Hi.")
    except openai.AuthenticationError:
        return
    raise AssertionError("answered")


@feature("cancel in mid-stream")
async def _() -> None:
    prompt = marker()
    run = Runner.run_streamed(agent(), prompt)
    seen = 0
    async for event in run.stream_events():
        seen += event.type == "raw_response_event"
        if seen == 8:
            run.cancel()
    await asyncio.to_thread(check_cut, prompt)


# A realtime session


async def converse(made: RealtimeAgent, *said: str) -> str:
    """Say each, and return the last answer that is text."""
    settings = {"model_name": RECORDED, "output_modalities": ["text"], "modalities": ["text"]}
    runner = RealtimeRunner(made, config={"model_settings": settings})
    url = f"{URL.replace('http', 'ws')}/realtime?model={RECORDED}"
    async with await runner.run(model_config={"api_key": KEY, "url": url}) as session:
        for words in said:
            await session.send_message(words)
            text = ""
            async for event in session:
                check(event.type != "error", event)
                if event.type != "raw_model_event" or event.data.type != "raw_server_event":
                    continue
                raw = event.data.data
                if raw["type"] == "response.output_text.delta":
                    text += raw["delta"]
                if raw["type"] == "response.done":
                    check(raw["response"]["status"] == "completed", raw)
                    if text:
                        break
    return text


@feature("realtime: text")
async def _() -> None:
    text = await converse(RealtimeAgent(name="Quill"), "count to 20")
    check(text.split()[-1] == "20", text)


@feature("realtime: instructions")
async def _() -> None:
    check_kept(await converse(RealtimeAgent(name="Quill", instructions=SYSTEM), "Hello."), "Hello.")


@feature("realtime: tools")
async def _() -> None:
    made = RealtimeAgent(name="Quill", instructions=SYSTEM, tools=[weather])
    check_weather(await converse(made, "What is the weather in Bern?"), "Bern")


@feature("realtime: history")
async def _() -> None:
    told = heard(await converse(RealtimeAgent(name="Quill"), "First.", "Second."))
    check(told["heard"] == ["First.", "Second."] and len(told["answers"]) == 1, told)


@feature("realtime: handoff")
async def _() -> None:
    other = RealtimeAgent(name="Weather", instructions=SYSTEM, tools=[weather])
    first = RealtimeAgent(name="Desk", instructions="Hand over what is asked.", handoffs=[other])
    check_weather(await converse(first, "What is the weather in Bern?"), "Bern")


main()
