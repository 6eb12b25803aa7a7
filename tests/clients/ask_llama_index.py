"""LlamaIndex, with OpenAILike."""

import asyncio

import openai
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
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


class Person(BaseModel):
    """A person."""

    born: int
    alive: bool


def made(name: str = RECORDED, **options) -> OpenAILike:
    options = {"api_key": KEY, "is_chat_model": True, "is_function_calling_model": True, "max_retries": 0, **options}
    return OpenAILike(model=name, api_base=URL, **options)


llm = made()
weather = FunctionTool.from_defaults(get_weather)


@feature("chat")
def _() -> None:
    told = heard(llm.chat([ChatMessage("Say something.")]).message.content)
    check(told["heard"] == ["Say something."], told)


@feature("stream")
def _() -> None:
    pieces = [piece.delta for piece in llm.stream_chat([ChatMessage("count to 20")])]
    check(len(pieces) > 10 and "".join(pieces).split()[-1] == "20", pieces)


@feature("system instructions")
def _() -> None:
    check_kept(llm.chat([ChatMessage(SYSTEM, role="system"), ChatMessage("Hello.")]).message.content, "Hello.")


@feature("history")
def _() -> None:
    said = [ChatMessage("First."), ChatMessage("Second.", role="assistant"), ChatMessage("Third.")]
    told = heard(llm.chat(said).message.content)
    check(told["heard"] == ["First.", "Third."] and told["answers"] == ["Second."], told)


async def agent(question: str) -> str:
    worker = FunctionAgent(tools=[weather], llm=llm, system_prompt=SYSTEM)
    return str(await worker.run(question))


@feature("tools")
async def _() -> None:
    check_weather(await agent("What is the weather in Bern?"), "Bern")


@feature("parallel calls")
async def _() -> None:
    told = llm.chat_with_tools([weather], "What is the weather in Bern and in Oslo?", allow_parallel_tool_calls=True)
    check(len(llm.get_tool_calls_from_response(told)) == 2, told)
    check_weather(await agent("What is the weather in Bern and in Oslo?"), "Bern", "Oslo")


@feature("structured, strict")
def _() -> None:
    for name in (RECORDED, REAL):
        told = made(name, should_use_structured_outputs=True, max_tokens=100).as_structured_llm(Person)
        check(isinstance(told.chat([ChatMessage("Who is Ada?")]).raw, Person), told)


@feature("structured, not strict")
def _() -> None:
    for name in (RECORDED, REAL):
        told = made(name, max_tokens=100).as_structured_llm(Person).chat([ChatMessage("Who is Ada?")])
        check(isinstance(told.raw, Person), told)


@feature("usage")
def _() -> None:
    used = llm.chat([ChatMessage("count to 20")]).raw.usage
    check(used.completion_tokens == 20, used)


@feature("stop")
def _() -> None:
    text = llm.chat([ChatMessage("count to 20")], stop=["7"]).message.content
    check(text.split()[-1] == "6", text)


@feature("logprobs")
def _() -> None:
    told = made(REAL, logprobs=True, top_logprobs=2, max_tokens=4).chat([ChatMessage("Name a colour.")])
    check(told.logprobs, told)


@feature("context overflow recognised")
def _() -> None:
    try:
        made(REAL).chat([ChatMessage("word " * 12_000)])
    except openai.BadRequestError as exc:
        check(exc.code == "context_length_exceeded", exc)
        return
    raise AssertionError("answered")


@feature("bad key recognised")
def _() -> None:
    try:
        made(api_key="wrong").chat([ChatMessage("Hi.")])
    except openai.AuthenticationError:
        return
    raise AssertionError("answered")


@feature("cancel in mid-stream")
async def _() -> None:
    prompt = marker()
    stream = await llm.astream_chat([ChatMessage(prompt)])
    for _ in range(5):
        await anext(stream)
    await stream.aclose()
    await asyncio.to_thread(check_cut, prompt)


@feature("legacy completions")
def _() -> None:
    told = made(REAL, is_chat_model=False, max_tokens=5).complete("The capital of France is")
    check(told.text, told)


main()
