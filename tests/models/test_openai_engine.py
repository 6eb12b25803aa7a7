"""The openai engine against a real server on loopback, with its faults, on a clock that the test moves."""

import asyncio
import json
import logging
import math
import random
from collections.abc import AsyncIterator, Callable

import pytest
from support.openai_server import (
    OpenAIServer,
    chunk,
    hang,
    hang_up,
    openai_server,
    refuse,
    says,
    sse,
    stream,
)
from support.server import serving

from models.clock import ManualClock
from models.content import (
    BlobRef,
    Call,
    CallDelta,
    CallResult,
    Delta,
    FinishDelta,
    ImagePart,
    Item,
    Message,
    TextDelta,
    TextPart,
    UsageDelta,
)
from models.engines import EngineSpec
from models.engines.openai import OpenAIEngine, build
from models.errors import (
    BadInput,
    BatonError,
    DeadlineExceeded,
    Internal,
    LimitExceeded,
    NotFound,
    Overloaded,
    Unsupported,
)
from models.ports import (
    GenerateRequest,
    JsonSchemaConstraint,
    RegexConstraint,
    Sampling,
    ToolConstraint,
    ToolSpec,
)

_WEATHER = ToolSpec(name="weather", description="tells the weather", parameters='{"type": "object"}')
_END = sse(chunk({}, finish_reason="stop"))
_DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def make(server: OpenAIServer, clock: ManualClock) -> AsyncIterator[Callable[..., OpenAIEngine]]:
    made: list[OpenAIEngine] = []

    def make(**options: object) -> OpenAIEngine:
        options = {"base_url": server.base_url, "model": "fake", **options}
        made.append(build(EngineSpec(name="openai", options=json.dumps(options)), clock))
        return made[-1]

    yield make
    for engine in made:
        await engine.aclose()


@pytest.fixture
def pauses(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let pauses between attempts pass at once, and say how long they were."""
    lasted: list[float] = []

    async def pass_by(clock: ManualClock, until_s: float) -> None:
        lasted.append(until_s - clock.now_s())
        clock.advance(lasted[-1])

    monkeypatch.setattr("models.engines.openai.sleep_until", pass_by)
    return lasted


@pytest.fixture
def engine(make: Callable[..., OpenAIEngine]) -> OpenAIEngine:
    return make()


def _says(text: str, role: str = "user") -> Message:
    return Message(item_id=f"item_{role}", role=role, parts=(TextPart(text=text),))


def _asks(*items: Item, **fields: object) -> GenerateRequest:
    return GenerateRequest(messages=items or (_says("go"),), tenant="local", **fields)


async def _all(engine: OpenAIEngine, request: GenerateRequest | None = None) -> list[Delta]:
    return [delta async for delta in engine.generate(request or _asks())]


async def _fails(engine: OpenAIEngine, request: GenerateRequest | None = None) -> BatonError:
    with pytest.raises(BatonError) as caught:
        await _all(engine, request)
    return caught.value


async def _until(condition: Callable[[], object]) -> None:
    """Let the sockets work until `condition` holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in the kernel
            await asyncio.sleep(0.001)


def _text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def _calls(deltas: list[Delta]) -> dict[tuple[str, str], str]:
    calls: dict[tuple[str, str], str] = {}
    for delta in deltas:
        if isinstance(delta, CallDelta):
            key = (delta.call_id, delta.name)
            calls[key] = calls.get(key, "") + delta.arguments
    return calls


# What is asked


async def test_the_conversation_is_sent_in_the_servers_format(engine, server):
    call = Call(item_id="c", call_id="call_1", name="weather", arguments='{"city": "Bern"}')
    bare = Call(item_id="d", call_id="call_2", name="clock", arguments="")
    results = tuple(
        CallResult(item_id=f"r{n}", call_id=f"call_{n}", parts=(TextPart(text=text),))
        for n, text in ((1, "4 C"), (2, "noon"))
    )
    await _all(
        engine, _asks(_says("Be brief.", "system"), _says("So?"), _says("I look.", "assistant"), call, bare, *results)
    )
    assert server.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "So?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}},
                {"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "4 C"},
        {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
    ]
    assert server.exchanges[-1].path == "/v1/chat/completions"


async def test_a_call_without_words_before_it_is_a_message_of_its_own(engine, server):
    call = Call(item_id="c", call_id="call_1", name="weather", arguments="{}")
    await _all(engine, _asks(_says("So?"), call, CallResult(item_id="r", call_id="call_1", parts=())))
    assert [message["role"] for message in server.body["messages"]] == ["user", "assistant", "tool"]
    assert server.body["messages"][1]["content"] is None


async def test_sampling_is_sent_and_what_is_not_set_is_left_to_the_server(engine, server):
    sampling = Sampling(temperature=0.5, top_p=0.9, seed=7, max_output_tokens=9, stop=("x", "y"))
    await _all(engine, _asks(sampling=sampling))
    asked = {name: server.body[name] for name in ("temperature", "top_p", "seed", "max_tokens", "stop")}
    assert asked == {"temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 9, "stop": ["x", "y"]}
    await _all(engine)
    assert server.body["temperature"] == 0.0
    assert not server.body.keys() & {"top_p", "seed", "stop", "tools", "logprobs", "response_format"}


async def test_a_server_is_spoken_to_in_its_dialect(make, server):
    dialect = {"max_tokens_field": "max_completion_tokens", "fixed": ["temperature"], "tenant_field": "cache_salt"}
    engine = make(**dialect, headers={"X-Team": "blue"})
    await _all(engine)
    assert server.body["max_completion_tokens"] == 512
    assert not server.body.keys() & {"max_tokens", "temperature"}
    assert len(server.body["cache_salt"]) == 64
    assert "local" not in json.dumps(server.body)
    assert server.exchanges[-1].headers["x-team"] == "blue"


async def test_the_key_is_read_from_the_variable_that_is_named(make, server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-something\n")
    await _all(make(api_key_env="SOME_KEY"))
    assert server.exchanges[-1].headers["authorization"] == "Bearer sk-something"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ({"headers": {"authorization": "Bearer sk-1"}}, "api_key_env"),
        ({"base_url": "http://me:secret@example.org/v1"}, "api_key_env"),
        ({"base_url": "ftp://example.org"}, "base_url"),
        ({"modell": "x"}, "modell"),
        ({"read_timeout_s": 0}, "read_timeout_s"),
    ],
)
async def test_options_that_do_not_fit_are_refused(make, options, message):
    with pytest.raises(BadInput, match=message):
        make(**options)


async def test_a_query_of_the_base_url_is_kept(make, server):
    await _all(make(base_url=f"{server.base_url}/?api-version=1"))
    assert server.exchanges[-1].path == "/v1/chat/completions?api-version=1"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("adapter", "x"),
        ("draft_prefix", "x"),
        ("constraint", RegexConstraint(pattern="x")),
        ("signals", frozenset({"token_ids"})),
        ("signals", frozenset({"entropies"})),
    ],
)
async def test_what_cannot_be_honoured_is_refused_before_anything_is_sent(engine, server, field, value):
    assert isinstance(await _fails(engine, _asks(**{field: value})), Unsupported)
    assert not server.exchanges


async def test_what_is_not_text_is_refused(engine):
    blob = BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1)
    picture = Message(item_id="a", role="user", parts=(ImagePart(blob=blob, width_px=1, height_px=1),))
    error = await _fails(engine, _asks(picture))
    assert isinstance(error, Unsupported)
    assert "image" in error.message


# What is answered


async def test_an_answer_comes_word_by_word_then_usage_then_the_end(engine):
    deltas = await _all(engine, _asks(_says("three little words")))
    *words, usage, finish = deltas
    assert len(words) == 24
    assert all(isinstance(word, TextDelta) and word.text.endswith(" ") for word in words)
    assert usage == UsageDelta(input_tokens=3, output_tokens=24)
    assert finish == FinishDelta(reason="stop")


async def test_words_are_yielded_before_the_answer_is_whole(engine, server):
    server.replies.append(stream(sse(says("at ")), sse(says("once")), then="hang"))
    deltas = engine.generate(_asks())
    assert [(await anext(deltas)).text, (await anext(deltas)).text] == ["at ", "once"]
    await deltas.aclose()


async def test_an_answer_at_its_limit_says_so(engine):
    deltas = await _all(engine, _asks(sampling=Sampling(max_output_tokens=2)))
    assert sum(isinstance(delta, TextDelta) for delta in deltas) == 2
    assert deltas[-1] == FinishDelta(reason="length")


async def test_a_tool_is_called(engine, server):
    deltas = await _all(engine, _asks(_says("the weather?"), constraint=ToolConstraint(tools=(_WEATHER,))))
    assert _calls(deltas) == {("call_up", "weather"): '{"city": "Bern"}'}
    assert deltas[-1] == FinishDelta(reason="calls")
    function = {"name": "weather", "description": "tells the weather", "parameters": {"type": "object"}}
    assert server.body["tools"] == [{"type": "function", "function": function}]
    assert "tool_choice" not in server.body


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ({"choice": "none"}, "none"),
        ({"choice": "required"}, "required"),
        ({"choice": "required", "function": "weather"}, {"type": "function", "function": {"name": "weather"}}),
    ],
)
async def test_the_choice_of_a_tool_is_sent(engine, server, wanted, sent):
    await _all(engine, _asks(constraint=ToolConstraint(tools=(_WEATHER,), **wanted)))
    assert server.body["tool_choice"] == sent


async def test_no_tools_are_no_tools(engine, server):
    await _all(engine, _asks(constraint=ToolConstraint(tools=())))
    assert "tools" not in server.body


async def test_several_calls_keep_their_ids_and_names_even_if_the_server_leaves_things_out(engine, server):
    def fragment(**fields: object) -> bytes:
        return sse(chunk({"tool_calls": [fields]}))

    server.replies.append(
        stream(
            fragment(index=0, id="a", function={"name": "f", "arguments": '{"x":'}),
            fragment(index=0, function={"arguments": "1}"}),
            fragment(index=1, id="b", function={"name": "g", "arguments": None}),
            _END,
        )
    )
    assert _calls(await _all(engine)) == {("a", "f"): '{"x":1}', ("b", "g"): ""}
    server.replies.append(
        stream(
            fragment(id="", function={"name": "f", "arguments": "{"}),
            fragment(function={"arguments": "}"}),
            fragment(function={"name": "f", "arguments": "[]"}),
            fragment(function=None),
            _END,
        )
    )
    deltas = await _all(engine)
    assert [(name, arguments) for (_, name), arguments in _calls(deltas).items()] == [("f", "{}"), ("f", "[]")]
    assert deltas[-1] == FinishDelta(reason="calls")


async def test_calls_whose_fragments_take_turns_are_an_error(engine, server):
    pieces = [sse(chunk({"tool_calls": [{"index": n, "function": {"name": "f"}}]})) for n in (0, 1, 0)]
    server.replies.append(stream(*pieces, _END))
    assert isinstance(await _fails(engine), Internal)


async def test_an_answer_may_have_to_fit_a_schema(engine, server):
    await _all(engine, _asks(constraint=JsonSchemaConstraint(schema='{"type": "object"}')))
    answer = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert server.body["response_format"] == {"type": "json_schema", "json_schema": answer}
    assert isinstance(await _fails(engine, _asks(constraint=JsonSchemaConstraint(schema="{"))), BadInput)


async def test_log_probabilities_and_margins_come_with_each_token_if_they_are_asked_for(engine):
    deltas = await _all(engine, _asks(signals=frozenset({"logprobs", "margins"})))
    words = [delta for delta in deltas if isinstance(delta, TextDelta)]
    assert all(word.logprobs == (math.log(0.75),) and word.margins == pytest.approx((0.5,)) for word in words)
    assert all(not word.token_ids and not word.entropies for word in words)


async def test_a_server_that_sends_no_log_probabilities_cannot_honour_them(engine, server):
    server.replies.append(stream(sse(says("hm")), _END))
    assert isinstance(await _fails(engine, _asks(signals=frozenset({"logprobs"}))), Unsupported)


async def test_an_answer_that_the_server_withholds_is_an_error(engine, server):
    server.replies.append(stream(sse(says("I")), sse(chunk({}, finish_reason="content_filter")), _DONE))
    assert (await _fails(engine)).code == "content_filter"


async def test_a_refusal_of_the_model_is_what_it_says(engine, server):
    server.replies.append(stream(sse(chunk({"content": None, "refusal": "I will not."})), _END, _DONE))
    assert _text(await _all(engine)) == "I will not."


async def test_a_server_that_tells_no_usage_is_fine(engine, server):
    server.replies.append(stream(sse(says("hm")), _END, _DONE))
    assert [delta.kind for delta in await _all(engine)] == ["text", "finish"]


async def test_a_server_that_refuses_to_be_asked_for_usage_is_not_asked_again(engine, server):
    told = {"message": "Unknown field: stream_options", "code": None}
    server.replies.append(refuse(400, told))
    for _ in range(2):
        assert [delta.kind for delta in await _all(engine)].count("usage") == 0
    assert ["stream_options" in exchange.body for exchange in server.exchanges] == [True, False, False]


@pytest.mark.parametrize("end", [(_END, _DONE), (_END,), (_END, _DONE, b"data: not read any more\n\n")])
async def test_an_answer_is_whole_once_its_reason_was_given(engine, server, end):
    server.replies.append(stream(sse(says("hm")), *end))
    assert (await _all(engine))[-1] == FinishDelta(reason="stop")


async def test_streams_are_read_as_they_are_cut_and_dressed(engine, server):
    whole = b": hello\r\n\r\n" + b"".join((sse(says("Grüße, ")), sse(says("世界")), _END, _DONE)).replace(
        b"\n", b"\r\n"
    )
    server.replies.append(stream(*(whole[at : at + 1] for at in range(len(whole)))))
    assert _text(await _all(engine)) == "Grüße, 世界"


async def test_a_connection_is_used_again(engine, server):
    for _ in range(5):
        await _all(engine)
    assert server.connections == 1


async def test_nothing_is_left_open_by_a_server_that_does_not_end_its_response(engine, server, clock):
    server.replies.append(stream(sse(says("hm")), _END, _DONE, then="hang"))
    deltas = engine.generate(_asks())
    await anext(deltas)
    end = asyncio.ensure_future(anext(deltas))
    await _until(lambda: clock._armed)
    clock.advance(0.2)
    assert await end == FinishDelta(reason="stop")
    await deltas.aclose()
    await _until(lambda: server.open == 0)


async def test_closing_an_answer_closes_its_connection_at_once(engine, server):
    server.gap_s = 0.001
    deltas = engine.generate(_asks())
    await anext(deltas)
    assert server.open == 1
    await deltas.aclose()
    await _until(lambda: server.open == 0)


async def test_a_caller_who_is_cancelled_closes_the_connection(engine, server):
    server.replies.append(hang)
    task = asyncio.create_task(_all(engine))
    await _until(lambda: server.exchanges)
    task.cancel()
    await asyncio.wait([task])
    await _until(lambda: server.open == 0)


# Time


async def test_an_answer_ends_at_its_deadline(engine, server, clock):
    server.replies += [hang, stream(sse(says("I ")), then="hang")]
    for said in ([], [TextDelta(text="I ")]):
        deltas = engine.generate(_asks(deadline=clock.now_s() + 5))
        assert [await anext(deltas) for _ in said] == said
        more = asyncio.ensure_future(anext(deltas))
        await _until(lambda: server.open == 1 and clock._armed)
        clock.advance(4.9)
        await asyncio.sleep(0.01)
        assert not more.done()
        clock.advance(0.1)
        with pytest.raises(DeadlineExceeded):
            await more
        await _until(lambda: server.open == 0)


async def test_a_deadline_that_has_passed_is_refused_at_once(engine, clock):
    assert isinstance(await _fails(engine, _asks(deadline=clock.now_s() - 1)), DeadlineExceeded)


async def test_a_server_that_falls_silent_is_given_up_on(make, server, clock):
    server.replies += [hang, stream(sse(says("I ")), then="hang")]
    for said in ([], [TextDelta(text="I ")]):
        deltas = make(read_timeout_s=3).generate(_asks())
        assert [await anext(deltas) for _ in said] == said
        more = asyncio.ensure_future(anext(deltas))
        await _until(lambda: server.open == 1 and clock._armed)
        clock.advance(3)
        with pytest.raises(Internal, match="3 s") as caught:
            await more
        assert caught.value.code == "upstream_unavailable"
        await _until(lambda: server.open == 0)
    assert len(server.exchanges) == 2


async def test_a_connection_that_is_not_made_in_time_is_given_up_on(make):
    # 192.0.2.0/24 is for documentation: nobody is there.
    engine = make(base_url="http://192.0.2.1/v1", connect_timeout_s=0.05, max_retries=0)
    error = await _fails(engine)
    assert error.code == "upstream_unavailable"
    assert "192.0.2.1" in error.message


# What fails


async def test_a_failure_is_tried_again_until_it_works(engine, server, pauses):
    server.replies += [refuse(500), refuse(500)]
    assert (await _all(engine))[-1] == FinishDelta(reason="stop")
    assert len(pauses) == 2


async def test_each_pause_is_longer_and_partly_random(make, server, pauses):
    engine = make(max_retries=4)
    for seed in range(3):
        engine._chance = random.Random(seed)
        server.replies += [refuse(500)] * 5
        assert (await _fails(engine)).code == "upstream_unavailable"
    assert len(set(pauses)) == 12
    for n, pause_s in enumerate(pauses):
        longest_s = 0.25 * 2 ** (n % 4)
        assert longest_s / 2 <= pause_s <= longest_s


@pytest.mark.parametrize("after", ["2", "Sun, 15 Jun 2025 15:06:42 GMT"])
async def test_a_server_says_when_to_come_again(engine, server, clock, pauses, after):
    assert clock.wall_s() == 1_750_000_000.0  # Sun, 15 Jun 2025 15:06:40 GMT
    server.replies.append(refuse(429, retry_after=after))
    assert (await _all(engine))[-1] == FinishDelta(reason="stop")
    assert pauses == [2]


async def test_nobody_waits_longer_than_the_deadline_or_the_patience_allows(engine, server, clock, pauses):
    for request in (_asks(deadline=clock.now_s() + 5), _asks()):
        server.replies.append(refuse(429, retry_after="120"))
        assert isinstance(await _fails(engine, request), Overloaded)
    assert len(server.exchanges) == 2
    assert not pauses


async def test_a_nonsense_retry_after_is_passed_over(engine, server, pauses):
    server.replies.append(refuse(503, retry_after="soon"))
    await _all(engine)
    assert len(pauses) == 1
    assert pauses[0] < 1


async def test_a_server_that_stays_down_is_named(make, server):
    engine = make(base_url="http://127.0.0.1:1/v1", max_retries=0)
    error = await _fails(engine)
    assert isinstance(error, Internal)
    assert error.retryable
    assert "127.0.0.1:1" in error.message


async def test_a_connection_that_breaks_before_the_answer_is_tried_again(engine, server, pauses):
    server.replies.append(hang_up)
    assert (await _all(engine))[-1] == FinishDelta(reason="stop")
    assert len(pauses) == 1


@pytest.mark.parametrize("then", ["break", "reset", "end"])
async def test_an_answer_that_breaks_off_is_an_error_after_what_was_said(engine, server, then):
    heard = asyncio.Event()
    server.replies.append(stream(sse(says("I was ")), then=then, when=heard))
    deltas = engine.generate(_asks())
    assert await anext(deltas) == TextDelta(text="I was ")
    heard.set()
    with pytest.raises(Internal, match="broke") as caught:
        await anext(deltas)
    assert caught.value.retryable
    assert len(server.exchanges) == 1


@pytest.mark.parametrize(
    "piece", [b"data: {\n\n", b"data: []\n\n", b'data: {"choices": 3}\n\n', b"data: " + b"x" * (2 << 20)]
)
async def test_garbage_in_a_stream_is_an_error(engine, server, piece):
    server.replies.append(stream(sse(says("I ")), piece, _END, _DONE))
    assert isinstance(await _fails(engine), Internal)


async def test_something_else_than_a_stream_is_an_error(engine, server):
    server.replies.append(refuse(200))
    error = await _fails(engine)
    assert "base_url" in error.message
    server.replies.append(refuse(307, location="http://127.0.0.1:1/"))
    assert "base_url" in (await _fails(engine)).message
    assert len(server.exchanges) == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_for_the_operator_and_is_shown_to_nobody(make, server, monkeypatch, caplog, status):
    monkeypatch.setenv("SOME_KEY", "sk-something")
    server.replies.append(refuse(status, {"message": "Incorrect API key provided: sk-something"}))
    caplog.set_level(logging.DEBUG)
    error = await _fails(make(api_key_env="SOME_KEY"))
    assert error.code == "upstream_refused"
    assert "api_key_env" in error.message
    assert "sk-something" not in error.message + caplog.text
    assert len(server.exchanges) == 1


async def test_a_model_that_the_server_does_not_have_is_not_found(engine, server):
    server.replies.append(refuse(404))
    error = await _fails(engine)
    assert isinstance(error, NotFound)
    assert error.code == "model_not_found"


@pytest.mark.parametrize(
    "told",
    [
        {"message": "Too much.", "code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 4096 tokens.", "code": 400},
        {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"},
        "The input (9 tokens) is longer than the model's context length (8 tokens).",
    ],
)
async def test_a_conversation_that_is_too_long_is_told_so(engine, server, told):
    server.replies += [refuse(400, told), stream(sse({"error": told}))]
    for _ in range(2):
        error = await _fails(engine)
        assert isinstance(error, LimitExceeded)
        assert error.code == "context_length_exceeded"


async def test_what_a_server_says_of_a_request_it_refuses_is_passed_on(engine, server):
    server.replies.append(refuse(422, {"message": "seed has to be positive"}))
    error = await _fails(engine)
    assert isinstance(error, BadInput)
    assert "seed has to be positive" in error.message


async def test_a_server_without_room_is_overloaded_in_the_end(make, server):
    server.replies.append(refuse(429))
    assert isinstance(await _fails(make(max_retries=0)), Overloaded)


async def test_an_account_that_is_used_up_is_not_tried_again(engine, server):
    server.replies.append(refuse(429, {"message": "You exceeded your quota.", "code": "insufficient_quota"}))
    assert (await _fails(engine)).code == "upstream_refused"
    assert len(server.exchanges) == 1


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"message": "boom", "type": "server_error", "code": None}, Internal),
        ({"message": "slow down", "type": "rate_limit_exceeded"}, Overloaded),
        ({"message": "bad", "code": 400}, BadInput),
        ("boom", Internal),
        (["odd"], Internal),
    ],
)
async def test_an_error_in_the_stream_ends_it(engine, server, told, kind):
    server.replies.append(stream(sse(says("I ")), sse({"error": told}), _DONE))
    deltas = engine.generate(_asks())
    assert await anext(deltas) == TextDelta(text="I ")
    with pytest.raises(kind):
        await anext(deltas)


# Places


async def test_no_more_requests_run_than_may_and_the_most_urgent_is_next(make, server):
    engine = make(max_requests=1)
    held = engine.generate(_asks())
    await anext(held)
    order: list[str] = []

    async def ask(priority: str) -> None:
        await _all(engine, _asks(priority=priority))
        order.append(priority)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for priority in ("batch", "normal", "interactive"):
            tasks.create_task(ask(priority))
        await asyncio.sleep(0)
        await held.aclose()
    assert order == ["interactive", "normal", "batch"]


async def test_who_finds_no_place_is_refused(make, clock):
    engine = make(max_requests=1, max_waiting=1, wait_timeout_s=2)
    held = engine.generate(_asks())
    await anext(held)
    for deadline_s, kind in ((None, Overloaded), (clock.now_s() + 3, DeadlineExceeded)):
        waiting = asyncio.create_task(_fails(engine, _asks(deadline=deadline_s)))
        await _until(lambda: clock._armed)
        assert isinstance(await _fails(engine), Overloaded)
        clock.advance(2)
        assert isinstance(await waiting, kind)
    await held.aclose()
    assert (await _all(engine))[-1] == FinishDelta(reason="stop")


async def test_a_place_is_passed_on_by_those_who_are_cancelled_while_they_wait(make):
    engine = make(max_requests=1)
    held = engine.generate(_asks())
    await anext(held)
    waiting = [asyncio.create_task(_all(engine)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    closing = asyncio.create_task(held.aclose())
    await asyncio.sleep(0)
    waiting[0].cancel()
    await closing
    assert (await waiting[2])[-1] == FinishDelta(reason="stop")
    assert (await _all(engine))[-1] == FinishDelta(reason="stop")


async def test_an_engine_that_is_closed_fails_what_runs_and_takes_nothing_more(engine, server):
    server.replies.append(stream(sse(says("I ")), then="hang"))
    deltas = engine.generate(_asks())
    await anext(deltas)
    await engine.aclose()
    await engine.aclose()
    with pytest.raises(Internal):
        await anext(deltas)
    assert (await _fails(engine)).retryable
    await _until(lambda: server.open == 0)


# Baton before Baton


async def test_another_baton_is_a_server_like_any_other(make, tmp_path):
    call = {"pattern": "weather", "reply": '{"city": "Bern"}', "call": "weather"}
    count = {"pattern": "count", "reply": "{n} ", "times": "9"}
    async with serving(tmp_path / "home", rules=[call, count]) as baton:
        engine = make(base_url=f"{baton.address}/v1", model="scripted")
        *words, usage, finish = await _all(engine, _asks(_says("count")))
        assert [delta.text for delta in words] == [f"{n} " for n in range(1, 10)]
        assert (usage.output_tokens, finish.reason) == (9, "stop")
        cut = await _all(engine, _asks(_says("count"), sampling=Sampling(max_output_tokens=4)))
        assert (_text(cut), cut[-1].reason) == ("1 2 3 4 ", "length")
        assert _text(await _all(engine, _asks(_says("count"), sampling=Sampling(stop=("3",))))) == "1 2 "
        called = await _all(engine, _asks(_says("weather?"), constraint=ToolConstraint(tools=(_WEATHER,))))
        assert [name for _, name in _calls(called)] == ["weather"]
        assert list(_calls(called).values()) == ['{"city": "Bern"}']
        assert called[-1].reason == "calls"
        assert (await _fails(make(base_url=f"{baton.address}/v1", model="nobody"))).code == "model_not_found"
