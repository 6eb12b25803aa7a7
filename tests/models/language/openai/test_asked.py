"""What the openai engine asks a server for, and what it refuses to ask."""

import json

import pytest
from support.openai_engine import asks, collect, fails, text_in, user
from support.openai_server import refuse, sse, stream

from models.content import BlobRef, Call, CallResult, FinishDelta, ImagePart, Message, TextDelta, TextPart, UsageDelta
from models.errors import BadInput, NotFound, Unsupported
from models.owner import Owner
from models.ports.generate import Draft, JsonSchemaConstraint, RegexConstraint, Sampling, ToolConstraint


async def test_the_conversation_is_sent_in_the_servers_format(engine, server):
    call = Call(item_id="c", call_id="call_1", name="weather", arguments='{"city": "Bern"}')
    bare = Call(item_id="d", call_id="call_2", name="clock", arguments="")
    results = tuple(
        CallResult(item_id=f"r{n}", call_id=f"call_{n}", parts=(TextPart(text=text),))
        for n, text in ((1, "4 C"), (2, "noon"))
    )
    await collect(
        engine, asks(user("Be brief.", "system"), user("So?"), user("I look.", "assistant"), call, bare, *results)
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
    await collect(engine, asks(user("So?"), call, CallResult(item_id="r", call_id="call_1", parts=())))
    assert [message["role"] for message in server.body["messages"]] == ["user", "assistant", "tool"]
    assert server.body["messages"][1]["content"] is None


async def test_sampling_is_sent_and_what_is_not_set_is_left_to_the_server(engine, server):
    sampling = Sampling(temperature=0.5, top_p=0.9, seed=7, max_output_tokens=9, stop=("x", "y"))
    await collect(engine, asks(sampling=sampling))
    asked = {name: server.body[name] for name in ("temperature", "top_p", "seed", "max_tokens", "stop")}
    assert asked == {"temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 9, "stop": ["x", "y"]}
    await collect(engine)
    assert server.body["temperature"] == 0.0
    assert not server.body.keys() & {"top_p", "seed", "stop", "tools", "logprobs", "response_format"}


async def test_a_raw_prompt_asks_for_a_completion_of_text(engine, server):
    texts = [
        {
            "text": "the ",
            "logprobs": {"tokens": ["the "], "token_logprobs": [-0.5], "top_logprobs": [{"a": -1, "the ": -0.5}]},
        },
        {
            "text": "s\u00e9a",
            "logprobs": {
                "tokens": ["s", "bytes:\\xc3", "bytes:\\xa9", "a"],
                "token_logprobs": [-1, -2, -3, -4],
                "top_logprobs": None,
            },
        },
        {"text": "", "finish_reason": "length"},
    ]
    chunks = [sse({"object": "text_completion", "choices": [{"index": 0, **text}]}) for text in texts]
    usage = sse({"object": "text_completion", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
    server.replies.append(stream(*chunks, usage, b"data: [DONE]\n\n"))
    request = asks(user("<s>So?"), raw=True, logprobs=2, sampling=Sampling(max_output_tokens=5, top_k=3, stop=("x",)))
    deltas = await collect(engine, request)
    assert server.exchanges[-1].path == "/v1/completions"
    sent = {"prompt": "<s>So?", "logprobs": 2, "max_tokens": 5, "top_k": 3, "stop": ["x"]}
    assert {name: server.body[name] for name in sent} == sent
    assert not server.body.keys() & {"messages", "top_logprobs"}
    assert text_in(deltas) == "the s\u00e9a"
    tokens = [token for delta in deltas if isinstance(delta, TextDelta) for token in delta.tokens]
    assert [(token.chosen.data, token.chosen.logprob) for token in tokens] == [
        (b"the ", -0.5),
        (b"s", -1),
        (b"\xc3", -2),
        (b"\xa9", -3),
        (b"a", -4),
    ]
    assert [(other.text, other.logprob) for other in tokens[0].top] == [("the ", -0.5), ("a", -1)]
    assert deltas[-2:] == [UsageDelta(input_tokens=3, output_tokens=5), FinishDelta(reason="length")]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(404, None, Unsupported), (405, None, Unsupported), (404, "model_not_found", NotFound)],
)
async def test_a_server_that_does_not_go_on_with_texts_is_unsupported(engine, server, status, code, expected):
    server.replies.append(refuse(status, {"message": "This is a chat model.", "type": None, "code": code}))
    assert isinstance(await fails(engine, asks(user("So?"), raw=True)), expected)


async def test_bias_penalties_and_truncation_are_sent_where_they_are_asked_for(engine, server):
    asked = {"repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": -0.5, "top_k": 3, "min_p": 0.1}
    await collect(engine, asks(sampling=Sampling(logit_bias=((5, 1.5), (7, -100.0)), **asked)))
    assert {name: server.body[name] for name in asked} == asked
    assert server.body["logit_bias"] == {"5": 1.5, "7": -100.0}
    await collect(engine)
    assert not server.body.keys() & {*asked, "logit_bias"}


async def test_a_server_is_spoken_to_in_its_dialect(make, server):
    dialect = {"max_tokens_field": "max_completion_tokens", "fixed": ["temperature"], "tenant_field": "cache_salt"}
    engine = make(**dialect, headers={"X-Team": "blue"})
    await collect(engine)
    assert server.body["max_completion_tokens"] == 512
    assert not server.body.keys() & {"max_tokens", "temperature"}
    assert len(server.body["cache_salt"]) == 64
    assert "local" not in json.dumps(server.body)
    assert server.exchanges[-1].headers["x-team"] == "blue"


async def test_a_server_that_keeps_caches_apart_is_told_of_no_two_owners_the_same(make, server):
    engine = make(tenant_field="cache_salt")
    owners = [Owner("ada"), Owner("ada", "eve"), Owner("adae", "ve"), Owner("bob", "eve"), Owner("ada", "*call_1")]
    told = []
    for owner in (*owners, *owners):
        await collect(engine, asks(tenant=owner.tenant, subject=owner.subject))
        told.append(server.body["cache_salt"])
    assert told[:5] == told[5:]
    assert len(set(told)) == 5


async def test_the_key_is_read_from_the_variable_that_is_named(make, server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-something\n")
    await collect(make(api_key_env="SOME_KEY"))
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


async def test_a_server_elsewhere_is_reached_through_the_proxy_of_the_environment(make, server, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine models.example login me password of-the-netrc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("SOME_KEY", "sk-something")
    monkeypatch.setenv("http_proxy", server.base_url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    await collect(make(base_url="http://models.example/v1", api_key_env="SOME_KEY"))
    assert server.exchanges[-1].path == "http://models.example/v1/chat/completions"
    assert server.exchanges[-1].headers["authorization"] == "Bearer sk-something"


async def test_a_server_of_this_machine_or_one_that_is_excepted_is_reached_without_the_proxy(make, server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    await collect(make(max_retries=0))
    await collect(make(base_url=server.base_url.replace("127.0.0.1", "localhost"), max_retries=0))
    monkeypatch.setenv("no_proxy", "0.0.0.0")  # this machine, under a name that is not loopback's
    await collect(make(base_url=server.base_url.replace("127.0.0.1", "0.0.0.0"), max_retries=0))
    assert len(server.exchanges) == 3


async def test_a_proxy_that_is_none_of_http_is_refused(make, monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(BadInput, match="http_proxy"):
        make(base_url="http://models.example/v1")


async def test_a_query_of_the_base_url_is_kept(make, server):
    await collect(make(base_url=f"{server.base_url}/?api-version=1"))
    assert server.exchanges[-1].path == "/v1/chat/completions?api-version=1"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("adapter", "x"),
        ("draft", Draft(text="x")),
        ("constraint", RegexConstraint(pattern="x")),
        ("signals", frozenset({"token_ids"})),
        ("signals", frozenset({"entropies"})),
    ],
)
async def test_what_cannot_be_honoured_is_refused_before_anything_is_sent(engine, server, field, value):
    assert isinstance(await fails(engine, asks(**{field: value})), Unsupported)
    assert not server.exchanges


async def test_no_remote_server_goes_on_with_an_answer_of_a_form(engine, server):
    form = JsonSchemaConstraint(schema="{}")
    for constraint in (form, ToolConstraint(tools=(), form=form)):
        asked = asks(continues=True, constraint=constraint)
        error = await fails(engine, asked)
        assert (type(error), error.field) == (Unsupported, "continue_final_message")
    assert not server.exchanges


async def test_what_is_not_text_is_refused(engine):
    blob = BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1)
    picture = Message(item_id="a", role="user", parts=(ImagePart(blob=blob, width_px=1, height_px=1),))
    error = await fails(engine, asks(picture))
    assert isinstance(error, Unsupported)
    assert "image" in error.message
