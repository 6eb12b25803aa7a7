"""litellm, with its provider for servers that speak OpenAI's API."""

import asyncio
import json

import litellm
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

litellm.telemetry = False
litellm.suppress_debug_info = True


class Person(BaseModel, extra="forbid"):
    born: int
    alive: bool


def ask(messages, model: str = RECORDED, key: str = KEY, **options):
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return litellm.completion(
        model=f"openai/{model}", messages=messages, api_base=URL, api_key=key, num_retries=0, max_retries=0, **options
    )


def text(*args, **options) -> str:
    return ask(*args, **options).choices[0].message.content


@feature("chat")
def _() -> None:
    told = heard(text("Say something."))
    check(told["heard"] == ["Say something."], told)


@feature("stream")
def _() -> None:
    pieces = [piece.choices[0].delta.content or "" for piece in ask("count to 20", stream=True)]
    check(len(pieces) > 10 and "".join(pieces).split()[-1] == "20", pieces)


@feature("system instructions")
def _() -> None:
    check_kept(text([{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hello."}]), "Hello.")


@feature("history")
def _() -> None:
    said = [("user", "First."), ("assistant", "Second."), ("user", "Third.")]
    told = heard(text([{"role": role, "content": words} for role, words in said]))
    check(told["heard"] == ["First.", "Third."] and told["answers"] == ["Second."], told)


def loop(question: str) -> tuple[int, str]:
    messages: list = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    message = ask(messages, tools=[WEATHER]).choices[0].message
    messages.append(message)
    for call in message.tool_calls:
        result = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": result})
    return len(message.tool_calls), text(messages, tools=[WEATHER])


@feature("tools")
def _() -> None:
    check_weather(loop("What is the weather in Bern?")[1], "Bern")


@feature("parallel calls")
def _() -> None:
    calls, said = loop("What is the weather in Bern and in Oslo?")
    check(calls == 2, calls)
    check_weather(said, "Bern", "Oslo")


@feature("structured, strict")
def _() -> None:
    for name in (RECORDED, REAL):
        Person.model_validate_json(text("Who is Ada?", model=name, response_format=Person, max_tokens=100))


@feature("structured, not strict")
def _() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": Person.model_json_schema()}}
    Person.model_validate_json(text("Who is Ada?", model=REAL, response_format=form, max_tokens=100))


@feature("tools and structured")
def _() -> None:
    message = ask("What is the weather in Bern?", tools=[WEATHER], response_format=Person).choices[0].message
    check(message.tool_calls, message)


@feature("usage")
def _() -> None:
    used = ask("count to 20").usage
    check(used.completion_tokens == 20 and used.prompt_tokens > 0, used)
    last = list(ask("count to 20", stream=True, stream_options={"include_usage": True}))[-1]
    check(last.usage.completion_tokens == 20, last)


@feature("stop")
def _() -> None:
    said = text("count to 20", stop=["7"])
    check(said.split()[-1] == "6", said)


@feature("n")
def _() -> None:
    told = ask("Name a colour.", model=REAL, n=2, max_tokens=8)
    check(len(told.choices) == 2, told)


@feature("logprobs")
def _() -> None:
    told = ask("Name a colour.", model=REAL, logprobs=True, top_logprobs=2, max_tokens=4)
    check(told.choices[0].logprobs.content, told)


@feature("penalties")
def _() -> None:
    ask("Say tree.", model=REAL, max_tokens=4, frequency_penalty=1, presence_penalty=1, logit_bias={"5": -100})


@feature("context overflow recognised")
def _() -> None:
    try:
        ask("word " * 12_000, model=REAL)
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("answered")


@feature("bad key recognised")
def _() -> None:
    try:
        ask("Hi.", key="wrong")
    except litellm.AuthenticationError:
        return
    raise AssertionError("answered")


@feature("cancel in mid-stream")
async def _() -> None:
    prompt = marker()
    stream = await litellm.acompletion(
        model=f"openai/{RECORDED}",
        messages=[{"role": "user", "content": prompt}],
        api_base=URL,
        api_key=KEY,
        stream=True,
    )
    for _ in range(5):
        await anext(stream)
    await stream.aclose()
    await asyncio.to_thread(check_cut, prompt)


@feature("legacy completions")
def _() -> None:
    told = litellm.text_completion(
        model=f"text-completion-openai/{REAL}",
        prompt="The capital of France is",
        api_base=URL,
        api_key=KEY,
        max_tokens=5,
    )
    check(told.choices[0].text, told)


def not_offered(call) -> None:
    try:
        call()
    except Exception as exc:
        if "offer" in str(exc).lower() or "serve" in str(exc).lower():
            raise NotOfferedError(str(exc)) from exc
        raise


@feature("embeddings")
def _() -> None:
    made = litellm.embedding(model="openai/embedding", input=["word"], api_base=URL, api_key=KEY)
    check(len(made.data[0]["embedding"]) == 384, made)


@feature("responses")
def _() -> None:
    not_offered(lambda: litellm.responses(model=f"openai/{REAL}", input="word", api_base=URL, api_key=KEY))


main()
