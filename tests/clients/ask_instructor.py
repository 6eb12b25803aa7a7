"""instructor: typed answers in several of its modes."""

import json
import urllib.request

import instructor
import openai
from openai import OpenAI
from probe import KEY, REAL, RECORDED, SYSTEM, UPSTREAM, URL, check, feature, main
from pydantic import BaseModel, Field


class Person(BaseModel, extra="forbid"):
    """A person."""

    born: int = Field(ge=0, le=3000)
    alive: bool


client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Who is Ada?"}]


def ask(mode: instructor.Mode, name: str, model: type = Person, **options):
    made = instructor.from_openai(client, mode=mode)
    return made.chat.completions.create(
        model=name, response_model=model, messages=MESSAGES, max_retries=0, max_tokens=200, **options
    )


@feature("structured, strict")
def _() -> None:
    for mode in (instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        for name in (RECORDED, REAL):
            told = ask(mode, name)
            check(isinstance(told, Person), told)


@feature("structured, not strict")
def _() -> None:
    for name in (RECORDED, REAL):
        told = ask(instructor.Mode.TOOLS, name)
        check(isinstance(told, Person), told)


@feature("system instructions")
def _() -> None:
    modes = (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON)
    for mode in modes:
        ask(mode, RECORDED, Weather)
    with urllib.request.urlopen(f"{UPSTREAM}/recorded") as answer:
        for body in json.load(answer)["bodies"][-len(modes) :]:
            said = {message["role"]: str(message["content"]) for message in body["messages"]}
            check(SYSTEM in said["system"] and "Who is Ada?" in said["user"], body)


class Weather(BaseModel):
    city: str
    degrees: int


@feature("structured, JSON mode")
def _() -> None:
    told = ask(instructor.Mode.JSON, RECORDED, Weather)
    check(told.degrees == 7, told)


@feature("stream")
def _() -> None:
    made = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    parts = list(made.chat.completions.create_partial(model=RECORDED, response_model=Person, messages=MESSAGES))
    check(parts[-1].born == 7, parts)


@feature("usage")
def _() -> None:
    made = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    _person, raw = made.chat.completions.create_with_completion(
        model=RECORDED, response_model=Person, messages=MESSAGES
    )
    check(raw.usage.prompt_tokens > 0, raw)


@feature("context overflow recognised")
def _() -> None:
    made = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    long = [{"role": "user", "content": "word " * 12_000}]
    try:
        made.chat.completions.create(model=REAL, response_model=Person, messages=long, max_retries=0)
    except Exception as exc:  # noqa: BLE001 - instructor wraps it in errors of its own
        check("maximum context length is" in str(exc), exc)
        return
    raise AssertionError("answered")


@feature("bad key recognised")
def _() -> None:
    made = instructor.from_openai(client.with_options(api_key="wrong"), mode=instructor.Mode.TOOLS)
    try:
        made.chat.completions.create(model=RECORDED, response_model=Person, messages=MESSAGES, max_retries=0)
    except Exception as exc:  # noqa: BLE001 - as above
        check(isinstance(exc, openai.AuthenticationError) or "401" in str(exc), exc)
        return
    raise AssertionError("answered")


main()
