"""`POST /v1/chat/completions`, as bytes on a socket."""

import asyncio
import json
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio
from support.app import Served, serving_app
from support.completions import Chunks, check_completion
from support.rules import RULES, WEATHER
from support.server import count
from support.sse import Parser, parse

from memory.keys import RequestDefaults
from models.clock import ManualClock
from models.content import Call, CallResult, Message, TextPart, text_of
from models.ports.generate import ToolConstraint
from orchestrator.events import TurnInput
from streaming.limits import SurfaceLimits

_PATH = "/v1/chat/completions"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    async with serving_app(folder, limits=SurfaceLimits(drain_s=1), rules=RULES) as running:
        yield running


def _body(text: str | list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    return {"messages": messages, **fields}


async def _ask(served: Served, text: str | list[dict[str, Any]], **fields: Any) -> httpx.Response:
    async with served.http() as client:
        return await client.post(_PATH, json=_body(text, **fields))


async def _whole(served: Served, text: str | list[dict[str, Any]], **fields: Any) -> Any:
    answer = await _ask(served, text, **fields)
    assert answer.status_code == 200, answer.text
    return check_completion(answer.json())


async def _stream(served: Served, text: str | list[dict[str, Any]], *, usage: bool = False, **fields: Any) -> Chunks:
    if usage:
        fields["stream_options"] = {"include_usage": True}
    answer = await _ask(served, text, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return Chunks(parse(answer.content), usage=usage)


@asynccontextmanager
async def _reading(served: Served, text: str, **fields: Any) -> AsyncIterator[AsyncIterator[bytes]]:
    """Ask, and give the answer's bytes as they come."""
    body = _body(text, stream=True, **fields)
    async with (
        served.http() as client,
        client.stream("POST", _PATH, json=body) as answer,
        aclosing(answer.aiter_bytes()) as data,  # type: ignore[type-var]  # a generator, whatever httpx calls it
    ):
        yield data


# The answer


@pytest.mark.parametrize("text", ["count to 12", "naïve 👋🏽 \u2028 text\nin two lines", "nothing"])
async def test_an_answer_is_the_same_whole_and_in_chunks(served: Served, text: str) -> None:
    expected = {"count to 12": count(12), "nothing": ""}.get(text, f"You said: {text}")
    whole = await _whole(served, text)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "stop"
    assert whole.model == "scripted"
    chunks = await _stream(served, text)
    assert (chunks.text, chunks.finish_reason) == (expected, "stop")


@pytest.mark.parametrize("store", [False, True])
async def test_what_the_model_thinks_is_told_beside_the_answer(served: Served, store: bool) -> None:
    whole = (await _ask(served, "think of rain", store=store)).json()["choices"][0]["message"]
    assert (whole["reasoning_content"], whole["content"]) == ("What is rain? ", "rain it is.")
    sent = parse((await _ask(served, "think of rain", stream=True, store=store)).content)
    deltas = [event.json()["choices"][0]["delta"] for event in sent[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "What is rain? "
    assert "".join(delta.get("content") or "" for delta in deltas) == "rain it is."


async def test_what_the_model_thought_is_not_shown_to_it(served: Served) -> None:
    answer = (await _ask(served, "think of rain", store=True)).json()
    session = await served.conductor.sessions.open("local", answer["baton"]["session"])
    await session.respond(TurnInput(items=(Message(item_id="more", role="user", parts=(TextPart(text="more"),)),)))
    assert [text_of(item) for item in served.engine.requests[-1].messages] == ["think of rain", "rain it is.", "more"]


async def test_usage_is_what_the_engine_counted_and_streamed_only_to_who_asks(served: Served) -> None:
    whole = (await _whole(served, "count to 12")).usage
    assert (whole.prompt_tokens, whole.completion_tokens) == (3, 12)
    chunks = await _stream(served, "count to 12", usage=True)
    assert chunks.usage == whole
    await _stream(served, "count to 12")  # which asserts that there is none


async def test_the_answer_says_who_gave_it_and_where_the_time_went(served: Served) -> None:
    sent = (await _ask(served, "count to 2")).json()["baton"]
    assert (sent["model"], sent["refused"], sent["session"]) == ("scripted", {}, None)
    assert sent["reasons"][0] == "the only one that can"
    assert 0 <= sent["decided_ms"] <= sent["first_delta_ms"] <= sent["duration_ms"]
    assert (await _stream(served, "count to 2")).baton.keys() == sent.keys()


async def test_what_asks_for_an_answer_reaches_the_engine_whole(served: Served) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the weather in Bern?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
    ]
    sampling = {"temperature": 0.5, "top_p": 0.25, "seed": 7, "stop": ["\n\n"], "max_tokens": 17}
    await _whole(served, messages, tools=[WEATHER], tool_choice="none", **sampling)
    request = served.engine.requests[-1]
    shown = [(i.role if isinstance(i, Message) else i.kind, text_of(i)) for i in request.messages]
    assert shown == [
        ("system", "Be brief."),
        ("user", "What is the weather in Bern?"),
        ("assistant", "I look."),
        ("call", "{}"),
        ("call_result", "sunny"),
        ("user", "And now?"),
    ]
    assert request.sampling.temperature == 0.5
    assert (request.sampling.top_p, request.sampling.seed) == (0.25, 7)
    assert (request.sampling.stop, request.sampling.max_output_tokens) == (("\n\n",), 17)
    assert request.tenant == "local"
    assert request.deadline is not None
    assert isinstance(request.constraint, ToolConstraint)
    assert request.constraint.choice == "none"
    assert json.loads(request.constraint.tools[0].parameters) == WEATHER["function"]["parameters"]


async def test_more_tokens_than_the_server_writes_are_bounded_to_its_own_limit(served: Served) -> None:
    await _whole(served, "count to 2", max_completion_tokens=1_000_000)
    most = served.conductor.settings.max_output_tokens
    assert served.engine.requests[-1].sampling.max_output_tokens == most


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_ends_at_its_bound_and_before_a_stop_string(served: Served, stream: bool) -> None:
    async def said(**fields: Any) -> tuple[str | None, str | None]:
        if stream:
            chunks = await _stream(served, "count to 9", **fields)
            return chunks.text, chunks.finish_reason
        choice = (await _whole(served, "count to 9", **fields)).choices[0]
        return choice.message.content, choice.finish_reason

    assert await said(max_tokens=4) == (count(4), "length")
    assert await said(max_completion_tokens=3, max_tokens=5) == (count(3), "length")
    assert await said(stop="6") == (count(5), "stop")
    assert await said(stop=["8", "4 5"]) == (count(3), "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_function_is_called_and_its_result_is_answered(served: Served, stream: bool) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Bern?"}]
    if stream:
        chunks = await _stream(served, messages, tools=[WEATHER])
        (call,) = chunks.calls
        assert (chunks.text, chunks.finish_reason) == ("", "tool_calls")
        made = {"role": "assistant", "content": None, "tool_calls": [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        ]}  # fmt: skip
    else:
        choice = (await _whole(served, messages, tools=[WEATHER])).choices[0]
        assert choice.finish_reason == "tool_calls"
        made = choice.message.model_dump()
    (sent,) = made["tool_calls"]
    assert sent["function"]["name"] == "get_weather"
    assert json.loads(sent["function"]["arguments"]) == {"city": "Bern"}
    messages += [made, {"role": "tool", "tool_call_id": sent["id"], "content": "sunny"}]
    answer = await _whole(served, messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "The sun shines."
    *_, shown, result = served.engine.requests[-1].messages
    assert isinstance(shown, Call)
    assert isinstance(result, CallResult)
    assert shown.call_id == result.call_id == sent["id"]


async def test_a_keys_defaults_hold_and_what_the_request_says_goes_before_them(serve: Any) -> None:
    defaults = RequestDefaults(instructions="Be kind.", max_output_tokens=3, model="scripted")
    async with serve(rules=RULES) as served, served.http(await served.key("acme", defaults=defaults)) as client:
        answer = check_completion((await client.post(_PATH, json=_body("count to 9"))).json())
        assert answer.choices[0].message.content == count(3)
        request = served.engine.requests[-1]
        assert (text_of(request.messages[0]), request.tenant) == ("Be kind.", "acme")
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "count to 9"}]
        answer = check_completion((await client.post(_PATH, json=_body(messages, max_tokens=4))).json())
        assert answer.choices[0].message.content == count(4)
        assert text_of(served.engine.requests[-1].messages[0]) == "Be brief."


# Errors

_USER = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": []}, "invalid_input", "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_input", "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "invalid_input", "messages[0].content"),
        ({"messages": [_USER, {"role": "user", "content": [{"type": "text"}]}]}, "invalid_input",
         "messages[1].content[0].text"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "invalid_input", "messages[0].role"),
        ({"messages": [{**_USER, "weight": 1}]}, "unknown_parameter", "messages[0].weight"),
        ({"messages": [_USER], "functions": []}, "unknown_parameter", "functions"),
        ({"messages": [_USER], "stop": ["a", ""]}, "invalid_input", "stop[1]"),
        ({"messages": [_USER], "temperature": "hot"}, "invalid_input", "temperature"),
        ({"messages": [_USER], "temperature": 3}, "invalid_input", "temperature"),
        ({"messages": [_USER], "tool_choice": "sometimes"}, "invalid_input", "tool_choice"),
        ({"messages": [_USER], "tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_input",
         "tools[0].function.name"),
        ({"messages": [_USER], "n": 2, "store": True}, "unsupported", "n"),
        ({"messages": [_USER], "response_format": {"type": "json_object"}}, "no_capable_model", "response_format"),
        ({"messages": [_USER], "response_format": {"type": "xml"}}, "invalid_input", "response_format.type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "unsupported", "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "tool_call_id": "c", "content": ""}]}, "invalid_input",
         "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "🎻" * 25_000}]}, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}, _USER]}, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 90_000}] * 5 + [_USER]}, "context_length_exceeded", "messages"),
        ({}, "invalid_input", "messages"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
async def test_a_bad_request_is_refused_in_openais_shape_and_names_its_field(
    served: Served, body: dict[str, Any], code: str, param: str, stream: bool
) -> None:
    async with served.http() as client:
        answer = await client.post(_PATH, json={**body, "stream": stream})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert error["message"]


async def test_a_body_of_another_type_is_refused_with_the_header_it_needs(served: Served) -> None:
    async with served.http() as client:
        form = {"content-type": "application/x-www-form-urlencoded"}
        answer = await client.post(_PATH, content=b'{"messages": []}', headers=form)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_input", "content-type")
    assert "'content-type: application/json'" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5_000 + b"}",
    ],
    ids=lambda body: body[:12].decode("latin-1") + str(len(body)),
)
async def test_a_body_that_is_no_json_object_is_refused_and_breaks_nothing(served: Served, body: bytes) -> None:
    async with served.http() as client:
        answer = await client.post(_PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["code"] == "invalid_input"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("store", [False, True])
async def test_an_unknown_model_is_a_404_that_lists_names(served: Served, stream: bool, store: bool) -> None:
    answer = await _ask(served, "Hello", model="nonesuch", stream=stream, store=store)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "scripted" in error["message"]


@pytest.mark.parametrize(("text", "code"), [("fail", "internal"), ("die", "worker_died"), ("fail at once", "internal")])
@pytest.mark.parametrize("store", [False, True])
async def test_a_fault_is_an_error_with_a_status_until_the_first_byte_and_an_event_after(
    served: Served, text: str, code: str, store: bool
) -> None:
    whole = await _ask(served, text, store=store)
    assert (whole.status_code, whole.json()["error"]["code"]) == (503 if text == "die" else 500, code)
    assert whole.json()["error"]["type"] == "server_error"
    streamed = await _ask(served, text, stream=True, store=store)
    if text == "fail at once":
        assert (streamed.status_code, streamed.json()["error"]["code"]) == (500, code)
        return
    assert streamed.status_code == 200
    *chunks, last = parse(streamed.content)
    assert "".join(c.json()["choices"][0]["delta"].get("content") or "" for c in chunks) == "I am about to "
    assert last.json()["error"]["code"] == code


async def test_more_turns_than_a_tenant_may_have_are_refused_until_one_ends(serve: Any) -> None:
    async with serve(rules=RULES, max_tenant_turns=1) as served:
        async with _reading(served, "slowly count to 1000") as data:
            await anext(data)
            for stream in (False, True):
                refused = await _ask(served, "count to 2", stream=stream)
                assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_turns")
                assert refused.headers["retry-after"] == "1"
        await served.until(lambda: served.sample("baton_turns_running") == 0)
        assert (await _whole(served, "count to 2")).choices[0].message.content == count(2)


async def test_errors_are_counted_by_their_codes(serve: Any) -> None:
    async with serve(rules=RULES) as served:
        await _ask(served, "Hello", model="nonesuch")
        await _ask(served, "Hello", model="nonesuch", stream=True)
        await _ask(served, "fail")
        await _ask(served, "fail at once", stream=True)
        await _ask(served, "Hello", reasoning_effort="high")
        await _ask(served, "Hello", temperature=9)
        for code, times in (("model_not_found", 2), ("internal", 2), ("unsupported", 1), ("invalid_input", 1)):
            assert served.sample("baton_errors_total", tenant="local", code=code) == times, code
        assert served.sample("baton_turn_faults_total", tenant="local", code="internal") == 2


# Clients that go, wait, or do not read


@pytest.mark.parametrize("text", ["slowly count to 1000", "wait"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_stops_the_engine_within_a_second(served: Served, stream: bool, text: str) -> None:
    interrupted = served.sample("baton_turns_total", tenant="local", state="interrupted")
    before = len(served.engine.requests)
    async with served.http() as client:
        asking = asyncio.create_task(client.post(_PATH, json=_body(text, stream=stream)))
        await served.until(lambda: len(served.engine.requests) == before + 1, timeout_s=10)
        asking.cancel()
        await asyncio.wait({asking})
    await served.until(lambda: served.engine.running == 0)
    await served.until(lambda: served.sample("baton_turns_running") == 0)
    assert served.sample("baton_turns_total", tenant="local", state="interrupted") == interrupted + 1


async def test_the_words_come_as_they_are_written(served: Served) -> None:
    parser, seen = Parser(), 0
    async with _reading(served, "slowly count to 20") as data:
        async for piece in data:
            parser.feed(piece)
            seen += 1
    parser.close()
    assert seen >= 10, "the answer came in one piece"


async def test_an_answer_that_is_slow_to_come_is_bridged_by_comments(serve: Any) -> None:
    clock = ManualClock()
    async with serve(rules=RULES, clock=clock) as served, _asking(served, "wait") as answering:
        await served.until(lambda: served.engine.running == 1, timeout_s=10)
        for _ in range(20):
            await asyncio.sleep(0)
        clock.advance(15)
        answer = await answering
        parser, pieces = Parser(), answer.aiter_bytes()
        assert parser.feed(await anext(pieces)) == []
        clock.advance(15)
        assert parser.feed(await anext(pieces)) == []
        parser.close()
        assert len(parser.comments) == 2
        await pieces.aclose()


@asynccontextmanager
async def _asking(served: Served, text: str) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    async with served.http() as client:
        request = client.build_request("POST", _PATH, json=_body(text, stream=True))
        task = asyncio.create_task(client.send(request, stream=True))
        yield task
        await (await task).aclose()


async def test_a_client_that_does_not_read_holds_the_engine_up_and_is_let_go(serve: Any) -> None:
    limits = SurfaceLimits(send_timeout_s=0.5, drain_s=1)
    async with serve(rules=RULES, limits=limits) as served, AsyncExitStack() as stack:
        raw = stack.enter_context(sockets.socket())
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        raw.setblocking(False)
        host, port = served.address.split(":")
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, (host, int(port)))
        body = json.dumps(_body("flood", stream=True)).encode()
        head = f"POST {_PATH} HTTP/1.1\r\nhost: {served.address}\r\ncontent-type: application/json\r\n"
        await loop.sock_sendall(raw, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await served.until(lambda: len(served.engine.requests) == 1, timeout_s=10)
        await served.until(lambda: served.engine.running == 0, timeout_s=10)
        await served.until(lambda: served.sample("baton_turns_running") == 0)
        assert served.sample("baton_turns_total", tenant="local", state="interrupted") == 1
        here = raw.getsockname()[1]

        def is_connected() -> bool:
            ends = (c for c in psutil.Process().net_connections("tcp") if c.raddr and c.status == "ESTABLISHED")
            return any((c.laddr.port, c.raddr.port) == (int(port), here) for c in ends)

        await served.until(lambda: not is_connected(), timeout_s=10)


# What is kept


async def test_only_what_is_to_be_stored_is_kept(served: Served) -> None:
    async with served.http() as client:
        before = (await client.get("/v1/sessions?limit=200")).json()["data"]
        await client.post(_PATH, json=_body("count to 2"))
        await client.post(_PATH, json=_body("count to 2", store=False, stream=True))
        assert (await client.get("/v1/sessions?limit=200")).json()["data"] == before


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_stored_is_a_session_with_the_whole_conversation(served: Served, stream: bool) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "count to 2"},
        {"role": "assistant", "content": count(2)},
        {"role": "user", "content": "count to 3"},
    ]
    if stream:
        chunks = await _stream(served, messages, store=True, usage=True, metadata={"a": "b"})
        assert chunks.text == count(3)
        session_id = chunks.baton["session"]
    else:
        answer = await _ask(served, messages, store=True)
        assert check_completion(answer.json()).choices[0].message.content == count(3)
        session_id = answer.json()["baton"]["session"]
    async with served.http() as client:
        session = (await client.get(f"/v1/sessions/{session_id}")).json()
    assert session["title"] == "count to 2"
    said = [(item["role"], item["content"][0]["text"]) for item in session["items"]]
    assert said == [("user", "count to 2"), ("assistant", count(2)), ("user", "count to 3"), ("assistant", count(3))]
    assert text_of(served.engine.requests[-1].messages[0]) == "Be brief."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stored_answer_with_calls_is_the_same_as_one_that_is_not(served: Served, stream: bool) -> None:
    text = "What is the weather in Bern?"
    if stream:
        (call,) = (await _stream(served, text, tools=[WEATHER], store=True)).calls
        assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Bern"})
    else:
        (made,) = (await _whole(served, text, tools=[WEATHER], store=True)).choices[0].message.tool_calls
        assert (made.function.name, json.loads(made.function.arguments)) == ("get_weather", {"city": "Bern"})


@pytest.mark.parametrize("fields", [{"model": "nonesuch"}, {"n": 2}])
async def test_a_turn_that_is_refused_leaves_no_session_behind(served: Served, fields: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "count to 2"}, {"role": "assistant", "content": count(2)}, _USER]
    async with served.http() as client:
        before = (await client.get("/v1/sessions?limit=200")).json()["data"]
        assert (await client.post(_PATH, json=_body(messages, store=True, **fields))).status_code in {400, 404}
        assert (await client.get("/v1/sessions?limit=200")).json()["data"] == before


async def test_a_stored_turn_goes_on_when_its_client_goes(served: Served) -> None:
    async with _reading(served, "slowly count to 40", store=True) as data:
        await anext(data)
    async with served.http() as client:
        (newest,) = (await client.get("/v1/sessions?limit=1")).json()["data"]
        async with asyncio.timeout(20):
            while (said := (await client.get(f"/v1/sessions/{newest['id']}")).json()["items"][-1])["role"] == "user":
                pass  # its last row is being written
    assert (said["content"][0]["text"], said["status"]) == (count(40), "completed")


# More than the window holds


def _loop_of_calls(count: int, last: str) -> list[dict[str, Any]]:
    def pair(n: int, content: str) -> list[dict[str, Any]]:
        call = {"id": f"call_{n}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        return [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": content},
        ]

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the secret?"}]
    for n in range(count):
        messages += pair(n, "word " * 1000)
    return [*messages, *pair(count, last)]


@pytest.mark.parametrize("store", [False, True])
async def test_a_loop_of_calls_longer_than_the_window_goes_on_from_its_last_result(served: Served, store: bool) -> None:
    answer = await _whole(served, _loop_of_calls(40, "The secret is 4711."), store=store)
    assert answer.choices[0].message.content == "You said: The secret is 4711."
    # The pairs that fit are shown whole: more than a quarter of the window, and no more than all of it.
    assert 8_000 < answer.usage.prompt_tokens < 32_768


@pytest.mark.parametrize("store", [False, True])
async def test_a_result_that_is_itself_more_than_the_window_is_refused(served: Served, store: bool) -> None:
    answer = await _ask(served, _loop_of_calls(2, "wörd " * 19_000), store=store)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "context_length_exceeded"
