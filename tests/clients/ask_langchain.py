"""LangChain's ChatOpenAI, and agents on LangGraph."""

import asyncio

import openai
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from probe import (
    KEY,
    REAL,
    RECORDED,
    SYSTEM,
    URL,
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
from pydantic import BaseModel, Field

options = {"base_url": URL, "api_key": KEY, "max_retries": 0, "use_responses_api": False}
llm = ChatOpenAI(model=RECORDED, **options)
real = ChatOpenAI(model=REAL, max_completion_tokens=100, **options)
weather = tool(get_weather)


class Person(BaseModel):
    """A person."""

    born: int = Field(description="The year.", ge=0, le=3000)
    alive: bool


@feature("chat")
def _() -> None:
    told = heard(llm.invoke("Say something.").content)
    check(told["heard"] == ["Say something."], told)


@feature("stream")
def _() -> None:
    pieces = [piece.content for piece in llm.stream("count to 20")]
    check(len(pieces) > 10 and "".join(pieces).split()[-1] == "20", pieces)


@feature("system instructions")
def _() -> None:
    check_kept(llm.invoke([SystemMessage(SYSTEM), HumanMessage("Hello.")]).content, "Hello.")


@feature("history")
def _() -> None:
    told = heard(llm.invoke([HumanMessage("First."), AIMessage("Second."), HumanMessage("Third.")]).content)
    check(told["heard"] == ["First.", "Third."] and told["answers"] == ["Second."], told)


def agent(question: str, **more):
    made = create_agent(llm, tools=[weather], system_prompt=SYSTEM, **more)
    return made.invoke({"messages": [{"role": "user", "content": question}]})


@feature("tools")
def _() -> None:
    answer = llm.bind_tools([weather]).invoke("What is the weather in Bern?")
    check([call["args"] for call in answer.tool_calls] == [{"city": "Bern"}], answer)
    check_weather(agent("What is the weather in Bern?")["messages"][-1].content, "Bern")


@feature("parallel calls")
def _() -> None:
    messages = agent("What is the weather in Bern and in Oslo?")["messages"]
    check(any(len(getattr(message, "tool_calls", [])) == 2 for message in messages), messages)
    check_weather(messages[-1].content, "Bern", "Oslo")


@feature("structured, strict")
def _() -> None:
    for model in (llm, real):
        for method in ("json_schema", "function_calling"):
            person = model.with_structured_output(Person, method=method, strict=True).invoke("Who is Ada?")
            check(isinstance(person, Person), person)


@feature("structured, not strict")
def _() -> None:
    for method in ("json_schema", "function_calling"):
        person = real.with_structured_output(Person, method=method).invoke("Who is Ada?")
        check(isinstance(person, Person), person)
    told = llm.with_structured_output({"title": "City", "type": "object"}, method="json_mode").invoke("Say JSON.")
    check(isinstance(told, dict), told)


@feature("tools and structured")
def _() -> None:
    told = agent("What is the weather in Bern?", response_format=ProviderStrategy(Person))
    check(isinstance(told["structured_response"], Person), told)
    check(any(message.type == "tool" for message in told["messages"]), told)
    told = agent("What is the weather in Bern?", response_format=Person)
    check(isinstance(told["structured_response"], Person), told)


@feature("usage")
def _() -> None:
    used = llm.invoke("count to 20").usage_metadata
    check(used["output_tokens"] == 20 and used["input_tokens"] > 0, used)
    last = [piece.usage_metadata for piece in llm.stream("count to 20", stream_usage=True) if piece.usage_metadata]
    check(last[-1]["output_tokens"] == 20, last)


@feature("stop")
def _() -> None:
    text = llm.invoke("count to 20", stop=["7"]).content
    check(text.split()[-1] == "6", text)


@feature("n")
def _() -> None:
    told = real.generate([[HumanMessage("Name a colour.")]], n=2, max_completion_tokens=8)
    check(len(told.generations[0]) == 2, told)


@feature("logprobs")
def _() -> None:
    told = real.bind(logprobs=True, top_logprobs=2).invoke("Name a colour.").response_metadata["logprobs"]
    check(told["content"][0]["logprob"] <= 0, told)


@feature("penalties")
def _() -> None:
    real.bind(frequency_penalty=1, presence_penalty=1, logit_bias={"5": -100}).invoke("Say tree.")


@feature("context overflow recognised")
def _() -> None:
    try:
        real.invoke("word " * 12_000)
    except ContextOverflowError:
        return
    raise AssertionError("answered")


@feature("bad key recognised")
def _() -> None:
    try:
        ChatOpenAI(model=RECORDED, **options | {"api_key": "wrong"}).invoke("Hi.")
    except openai.AuthenticationError:
        return
    raise AssertionError("answered")


@feature("cancel in mid-stream")
async def _() -> None:
    prompt = marker()
    stream = llm.astream(prompt)
    for _ in range(5):
        await anext(stream)
    await stream.aclose()
    await asyncio.to_thread(check_cut, prompt)


@feature("legacy completions")
def _() -> None:
    told = OpenAI(model=REAL, base_url=URL, api_key=KEY, max_tokens=5, max_retries=0).invoke("The capital of France is")
    check(told, told)


def not_offered(call) -> None:
    try:
        call()
    except openai.APIStatusError as exc:
        if "offer" in str(exc).lower() or "serve" in str(exc).lower():
            raise NotOfferedError(str(exc)) from exc
        raise


@feature("embeddings")
def _() -> None:
    made = OpenAIEmbeddings(
        model="embedding", base_url=URL, api_key=KEY, max_retries=0, check_embedding_ctx_length=False
    )
    found = made.embed_query("word")
    check(len(found) == 384, found)


@feature("responses")
def _() -> None:
    not_offered(lambda: ChatOpenAI(model=RECORDED, **options | {"use_responses_api": True}).invoke("Hi."))


main()
