"""What fails at a server, what is tried again, and what the caller is told: on a clock that the test moves."""

import asyncio
import logging
import random

import pytest
from support.openai_engine import asks, collect, fails
from support.openai_server import chunk, hang_up, refuse, says, sse, stream

from models.content import FinishDelta, TextDelta
from models.errors import BadInput, Internal, LimitExceeded, NotFound, Overloaded

_END = sse(chunk({}, finish_reason="stop"))
_DONE = b"data: [DONE]\n\n"


async def test_a_failure_is_tried_again_until_it_works(engine, server, pauses):
    server.replies += [refuse(500), refuse(500)]
    assert (await collect(engine))[-1] == FinishDelta(reason="stop")
    assert len(pauses) == 2


async def test_each_pause_is_longer_and_partly_random(make, server, pauses):
    engine = make(max_retries=4)
    for seed in range(3):
        engine._chance = random.Random(seed)
        server.replies += [refuse(500)] * 5
        assert (await fails(engine)).code == "upstream_unavailable"
    assert len(set(pauses)) == 12
    for n, pause_s in enumerate(pauses):
        longest_s = 0.25 * 2 ** (n % 4)
        assert longest_s / 2 <= pause_s <= longest_s


@pytest.mark.parametrize("after", ["2", "Sun, 15 Jun 2025 15:06:42 GMT"])
async def test_a_server_says_when_to_come_again(engine, server, clock, pauses, after):
    assert clock.wall_s() == 1_750_000_000.0  # Sun, 15 Jun 2025 15:06:40 GMT
    server.replies.append(refuse(429, retry_after=after))
    assert (await collect(engine))[-1] == FinishDelta(reason="stop")
    assert pauses == [2]


async def test_nobody_waits_longer_than_the_deadline_or_the_patience_allows(engine, server, clock, pauses):
    for request in (asks(deadline=clock.now_s() + 5), asks()):
        server.replies.append(refuse(429, retry_after="120"))
        assert isinstance(await fails(engine, request), Overloaded)
    assert len(server.exchanges) == 2
    assert not pauses


async def test_a_nonsense_retry_after_is_passed_over(engine, server, pauses):
    server.replies.append(refuse(503, retry_after="soon"))
    await collect(engine)
    assert len(pauses) == 1
    assert pauses[0] < 1


async def test_a_server_that_stays_down_is_named(make, server):
    engine = make(base_url="http://127.0.0.1:1/v1", max_retries=0)
    error = await fails(engine)
    assert isinstance(error, Internal)
    assert error.retryable
    assert "127.0.0.1:1" in error.message


async def test_a_connection_that_breaks_before_the_answer_is_tried_again(engine, server, pauses):
    server.replies.append(hang_up)
    assert (await collect(engine))[-1] == FinishDelta(reason="stop")
    assert len(pauses) == 1


@pytest.mark.parametrize("then", ["break", "reset", "end"])
async def test_an_answer_that_breaks_off_is_an_error_after_what_was_said(engine, server, then):
    heard = asyncio.Event()
    server.replies.append(stream(sse(says("I was ")), then=then, when=heard))
    deltas = engine.generate(asks())
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
    assert isinstance(await fails(engine), Internal)


async def test_something_else_than_a_stream_is_an_error(engine, server):
    server.replies.append(refuse(200))
    error = await fails(engine)
    assert "base_url" in error.message
    server.replies.append(refuse(307, location="http://127.0.0.1:1/"))
    assert "base_url" in (await fails(engine)).message
    assert len(server.exchanges) == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_for_the_operator_and_is_shown_to_nobody(make, server, monkeypatch, caplog, status):
    monkeypatch.setenv("SOME_KEY", "sk-something")
    server.replies.append(refuse(status, {"message": "Incorrect API key provided: sk-something"}))
    caplog.set_level(logging.DEBUG)
    error = await fails(make(api_key_env="SOME_KEY"))
    assert error.code == "upstream_refused"
    assert "api_key_env" in error.message
    assert "sk-something" not in error.message + caplog.text
    assert len(server.exchanges) == 1


async def test_a_model_that_the_server_does_not_have_is_not_found(engine, server):
    server.replies.append(refuse(404))
    error = await fails(engine)
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
        error = await fails(engine)
        assert isinstance(error, LimitExceeded)
        assert error.code == "context_length_exceeded"


async def test_what_a_server_says_of_a_request_it_refuses_is_passed_on(engine, server):
    server.replies.append(refuse(422, {"message": "seed has to be positive"}))
    error = await fails(engine)
    assert isinstance(error, BadInput)
    assert "seed has to be positive" in error.message


async def test_a_server_without_room_is_overloaded_in_the_end(make, server):
    server.replies.append(refuse(429))
    assert isinstance(await fails(make(max_retries=0)), Overloaded)


async def test_an_account_that_is_used_up_is_not_tried_again(engine, server):
    server.replies.append(refuse(429, {"message": "You exceeded your quota.", "code": "insufficient_quota"}))
    assert (await fails(engine)).code == "upstream_refused"
    assert len(server.exchanges) == 1


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"message": "boom", "type": "server_error", "code": None}, Internal),
        ({"message": "slow down", "type": "rate_limit_exceeded"}, Overloaded),
        ({"message": "bad", "code": 400}, BadInput),
        ({"message": "bad", "code": "400"}, BadInput),
        ({"message": "bad", "type": "invalid_request_error"}, BadInput),
        ({"message": "no", "code": "content_filter"}, BadInput),
        ({"message": "no", "code": "model_not_found"}, NotFound),
        ({"message": "slow down", "code": "429"}, Overloaded),
        ("boom", Internal),
        (["odd"], Internal),
    ],
)
async def test_an_error_in_the_stream_ends_it(engine, server, told, kind):
    server.replies.append(stream(sse(says("I ")), sse({"error": told}), _DONE))
    deltas = engine.generate(asks())
    assert await anext(deltas) == TextDelta(text="I ")
    with pytest.raises(kind):
        await anext(deltas)
