"""OpenAI's own client for Python, over REST and over the realtime websocket."""

import json
from typing import Literal

import openai
from openai import AsyncOpenAI, OpenAI
from probe import (
    KEY,
    REAL,
    RECORDED,
    SYSTEM,
    URL,
    WEATHER,
    NotOfferedError,
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

client = OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=100)


class Person(BaseModel, extra="forbid"):
    name: Literal["Ada", "Grace"]
    born: int
    alive: bool


def ask(*messages: dict, model: str = RECORDED, **options):
    return client.chat.completions.create(model=model, messages=list(messages), **options)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


@feature("chat")
def _() -> None:
    told = heard(ask(user("Say something.")).choices[0].message.content)
    check(told["heard"] == ["Say something."], told)


@feature("stream")
def _() -> None:
    pieces = [c.choices[0].delta.content or "" for c in ask(user("count to 20"), stream=True) if c.choices]
    check(len(pieces) > 10 and "".join(pieces).split() == [str(n) for n in range(1, 21)], pieces)


@feature("system instructions")
def _() -> None:
    check_kept(ask({"role": "system", "content": SYSTEM}, user("Hello.")).choices[0].message.content, "Hello.")
    check_kept(ask({"role": "developer", "content": SYSTEM}, user("Hello.")).choices[0].message.content, "Hello.")


@feature("history")
def _() -> None:
    told = heard(
        ask(user("First."), {"role": "assistant", "content": "Second."}, user("Third.")).choices[0].message.content
    )
    check(told["heard"] == ["First.", "Third."] and told["answers"] == ["Second."], told)


def loop(question: str, **options) -> tuple[int, str]:
    messages: list = [{"role": "system", "content": SYSTEM}, user(question)]
    most = 0
    for _ in range(5):
        message = ask(*messages, tools=[WEATHER], **options).choices[0].message
        if not message.tool_calls:
            return most, message.content
        most = max(most, len(message.tool_calls))
        messages.append(message)
        for call in message.tool_calls:
            result = get_weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    raise AssertionError("the calls never end")


@feature("tools")
def _() -> None:
    check_weather(loop("What is the weather in Bern?")[1], "Bern")


@feature("parallel calls")
def _() -> None:
    most, text = loop("What is the weather in Bern and in Oslo?")
    check(most == 2, most)
    check_weather(text, "Bern", "Oslo")
    most, text = loop("What is the weather in Bern and in Oslo?", parallel_tool_calls=False)
    check(most == 1, most)
    check_weather(text, "Bern", "Oslo")


@feature("structured, strict")
def _() -> None:
    for model in (REAL, RECORDED):
        answer = client.chat.completions.parse(
            model=model, messages=[user("Who is Ada?")], response_format=Person, max_tokens=100
        )
        check(answer.choices[0].message.parsed.name in ("Ada", "Grace"), answer)


@feature("structured, not strict")
def _() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": Person.model_json_schema()}}
    Person.model_validate_json(
        ask(user("Who is Ada?"), model=REAL, response_format=form, max_tokens=100).choices[0].message.content
    )
    form = {"type": "json_object"}
    text = ask(user("Say JSON."), response_format=form).choices[0].message.content
    check(isinstance(json.loads(text), dict), text)


@feature("tools and structured")
def _() -> None:
    messages = [user("What is the weather in Bern?")]
    tools = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
    tools[0]["function"]["parameters"] = {**WEATHER["function"]["parameters"], "additionalProperties": False}
    answer = client.chat.completions.parse(model=RECORDED, messages=messages, tools=tools, response_format=Person)
    (call,) = answer.choices[0].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "7"}
    messages += [answer.choices[0].message, result]
    answer = client.chat.completions.parse(model=RECORDED, messages=messages, tools=tools, response_format=Person)
    check(answer.choices[0].message.parsed is not None, answer)
    answer = client.chat.completions.parse(
        model=REAL, messages=[user("What is the weather in Bern?")], tools=tools, response_format=Person, max_tokens=100
    )
    message = answer.choices[0].message
    check(message.parsed is not None or message.tool_calls, answer)


@feature("usage")
def _() -> None:
    usage = ask(user("count to 20")).usage
    check(usage.completion_tokens == 20 and usage.prompt_tokens > 0, usage)
    chunks = list(ask(user("count to 20"), stream=True, stream_options={"include_usage": True}))
    check(chunks[-1].usage.completion_tokens == 20, chunks[-1])


@feature("stop")
def _() -> None:
    text = ask(user("count to 20"), stop="7").choices[0].message.content
    check(text.split() == ["1", "2", "3", "4", "5", "6"], text)
    text = ask(user("Count from one to ten."), model=REAL, stop=["e"], max_tokens=30).choices[0].message.content
    check("e" not in text, text)


@feature("n")
def _() -> None:
    answer = ask(user("Name a colour."), model=REAL, n=2, max_tokens=8)
    check([choice.index for choice in answer.choices] == [0, 1], answer)


@feature("logprobs")
def _() -> None:
    answer = ask(user("Name a colour."), model=REAL, logprobs=True, top_logprobs=3, max_tokens=4)
    (tokens,) = [choice.logprobs.content for choice in answer.choices]
    check(tokens and all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens), answer)


@feature("penalties")
def _() -> None:
    options = {"model": REAL, "max_tokens": 24, "temperature": 0}
    plain = ask(user("Repeat the word tree many times."), **options).choices[0].message.content
    penal = ask(user("Repeat the word tree many times."), **options, frequency_penalty=2, presence_penalty=2)
    check(penal.choices[0].message.content != plain, plain)
    ask(user("Hi."), **options, logit_bias={"5": -100})


@feature("context overflow recognised")
def _() -> None:
    try:
        ask(user("word " * 12_000), model=REAL)
    except openai.BadRequestError as exc:
        check(exc.code == "context_length_exceeded" and "maximum context length is" in str(exc), exc)
    else:
        raise AssertionError("answered")


@feature("bad key recognised")
def _() -> None:
    try:
        client.with_options(api_key="wrong").chat.completions.create(model=RECORDED, messages=[user("Hi.")])
    except openai.AuthenticationError:
        return
    raise AssertionError("answered")


@feature("cancel in mid-stream")
def _() -> None:
    prompt = marker()
    stream = ask(user(prompt), stream=True)
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    stream.close()
    check_cut(prompt)


@feature("models")
def _() -> None:
    names = {model.id for model in client.models.list()}
    check({RECORDED, "smollm2-135m", "default"} <= names, names)
    check(client.models.retrieve(RECORDED).id == RECORDED, names)


@feature("legacy completions")
def _() -> None:
    answer = client.completions.create(model=REAL, prompt="The capital of France is", max_tokens=5)
    check(answer.choices[0].text, answer)


def not_offered(call) -> None:
    try:
        call()
    except openai.APIStatusError as exc:
        if "offer" in str(exc).lower() or "serve" in str(exc).lower():
            raise NotOfferedError(str(exc)) from exc
        raise


@feature("embeddings")
def _() -> None:
    (found,) = client.embeddings.create(model="embedding", input="word").data
    check(len(found.embedding) == 384, found)


@feature("responses")
def _() -> None:
    not_offered(lambda: client.responses.create(model=REAL, input="word"))


# The realtime websocket

TOOL = {"type": "function", **WEATHER["function"]}
asynchronous = AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)


async def say(connection, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})


async def respond(connection) -> tuple[str, list]:
    """Return the text and the calls of the next response."""
    await connection.response.create()
    text = ""
    async for event in connection:
        check(event.type != "error", event)
        if event.type == "response.output_text.delta":
            text += event.delta
        elif event.type == "response.done":
            check(event.response.status == "completed", event)
            return text, [item for item in event.response.output if item.type == "function_call"]
    raise AssertionError("the connection was closed")


SESSION = {"type": "realtime", "output_modalities": ["text"], "instructions": SYSTEM, "tools": [TOOL]}


@feature("realtime: text")
async def _() -> None:
    async with asynchronous.realtime.connect(model=RECORDED) as connection:
        await say(connection, "count to 20")
        text, _calls = await respond(connection)
    check(text.split()[-1] == "20", text)


@feature("realtime: instructions")
async def _() -> None:
    async with asynchronous.realtime.connect(model=RECORDED) as connection:
        await connection.session.update(session=SESSION)
        await say(connection, "Hello.")
        text, _calls = await respond(connection)
    check_kept(text, "Hello.")


@feature("realtime: tools")
async def _() -> None:
    async with asynchronous.realtime.connect(model=RECORDED) as connection:
        await connection.session.update(session=SESSION)
        await say(connection, "What is the weather in Bern?")
        _text, (call,) = await respond(connection)
        result = get_weather(**json.loads(call.arguments))
        item = {"type": "function_call_output", "call_id": call.call_id, "output": result}
        await connection.conversation.item.create(item=item)
        text, _calls = await respond(connection)
    check_weather(text, "Bern")


@feature("realtime: history")
async def _() -> None:
    async with asynchronous.realtime.connect(model=RECORDED) as connection:
        await say(connection, "First.")
        await respond(connection)
        await say(connection, "Second.")
        text, _calls = await respond(connection)
    told = heard(text)
    check(told["heard"] == ["First.", "Second."] and len(told["answers"]) == 1, told)


main()
