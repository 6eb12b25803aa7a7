"""What the openai engine makes of what a server answers, however the server puts it."""

import asyncio
import math
from dataclasses import replace

import pytest
from support.openai_engine import asks, calls_in, collect, fails, text_in, until, user
from support.openai_server import chunk, hang, refuse, says, sse, stream
from support.server import serving

from models.content import FinishDelta, ReasoningDelta, TextDelta, UsageDelta
from models.errors import BadInput, Internal, Unsupported
from models.ports.generate import JsonSchemaConstraint, Sampling, ToolConstraint, ToolSpec

_WEATHER = ToolSpec(name="weather", description="tells the weather", parameters='{"type": "object"}')
_END = sse(chunk({}, finish_reason="stop"))
_DONE = b"data: [DONE]\n\n"


async def test_an_answer_comes_word_by_word_then_usage_then_the_end(engine):
    deltas = await collect(engine, asks(user("three little words")))
    *words, usage, finish = deltas
    assert len(words) == 24
    assert all(isinstance(word, TextDelta) and word.text.endswith(" ") for word in words)
    assert usage == UsageDelta(input_tokens=3, output_tokens=24)
    assert finish == FinishDelta(reason="stop")


async def test_words_are_yielded_before_the_answer_is_whole(engine, server):
    server.replies.append(stream(sse(says("at ")), sse(says("once")), then="hang"))
    deltas = engine.generate(asks())
    assert [(await anext(deltas)).text, (await anext(deltas)).text] == ["at ", "once"]
    await deltas.aclose()


async def test_an_answer_at_its_limit_says_so(engine):
    deltas = await collect(engine, asks(sampling=Sampling(max_output_tokens=2)))
    assert sum(isinstance(delta, TextDelta) for delta in deltas) == 2
    assert deltas[-1] == FinishDelta(reason="length")


async def test_a_tool_is_called(engine, server):
    deltas = await collect(engine, asks(user("the weather?"), constraint=ToolConstraint(tools=(_WEATHER,))))
    assert calls_in(deltas) == {("call_up", "weather"): '{"city": "Bern"}'}
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
    await collect(engine, asks(constraint=ToolConstraint(tools=(_WEATHER,), **wanted)))
    assert server.body["tool_choice"] == sent


async def test_that_a_tool_is_called_strictly_and_once_is_sent(engine, server):
    await collect(engine, asks(constraint=ToolConstraint(tools=(replace(_WEATHER, strict=True),), parallel=False)))
    assert server.body["tools"][0]["function"]["strict"] is True
    assert server.body["parallel_tool_calls"] is False


async def test_no_tools_are_no_tools(engine, server):
    await collect(engine, asks(constraint=ToolConstraint(tools=())))
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
    assert calls_in(await collect(engine)) == {("a", "f"): '{"x":1}', ("b", "g"): ""}
    server.replies.append(
        stream(
            fragment(id="", function={"name": "f", "arguments": "{"}),
            fragment(function={"arguments": "}"}),
            fragment(function={"name": "f", "arguments": "[]"}),
            fragment(function=None),
            _END,
        )
    )
    deltas = await collect(engine)
    assert [(name, arguments) for (_, name), arguments in calls_in(deltas).items()] == [("f", "{}"), ("f", "[]")]
    assert deltas[-1] == FinishDelta(reason="calls")


async def test_calls_whose_fragments_take_turns_are_an_error(engine, server):
    pieces = [sse(chunk({"tool_calls": [{"index": n, "function": {"name": "f"}}]})) for n in (0, 1, 0)]
    server.replies.append(stream(*pieces, _END))
    assert isinstance(await fails(engine), Internal)


async def test_an_answer_may_have_to_fit_a_schema(engine, server):
    await collect(engine, asks(constraint=JsonSchemaConstraint(schema='{"type": "integer"}')))
    answer = {"name": "answer", "schema": {"type": "integer"}, "strict": True}
    assert server.body["response_format"] == {"type": "json_schema", "json_schema": answer}
    assert isinstance(await fails(engine, asks(constraint=JsonSchemaConstraint(schema="{"))), BadInput)


async def test_an_answer_may_have_to_be_any_json(engine, server):
    await collect(engine, asks(constraint=JsonSchemaConstraint(schema='{"type": "object"}')))
    assert server.body["response_format"] == {"type": "json_object"}


async def test_log_probabilities_and_margins_come_with_each_token_if_they_are_asked_for(engine):
    deltas = await collect(engine, asks(signals=frozenset({"logprobs", "margins"})))
    words = [delta for delta in deltas if isinstance(delta, TextDelta)]
    assert all(word.logprobs == (math.log(0.75),) and word.margins == pytest.approx((0.5,)) for word in words)
    assert all(not word.token_ids and not word.entropies for word in words)


async def test_a_server_that_sends_no_log_probabilities_cannot_honour_them(engine, server):
    server.replies.append(stream(sse(says("hm")), _END))
    assert isinstance(await fails(engine, asks(signals=frozenset({"logprobs"}))), Unsupported)


async def test_an_answer_that_the_server_withholds_is_an_error(engine, server):
    server.replies.append(stream(sse(says("I")), sse(chunk({}, finish_reason="content_filter")), _DONE))
    assert (await fails(engine)).code == "content_filter"


async def test_a_refusal_of_the_model_is_what_it_says(engine, server):
    server.replies.append(stream(sse(chunk({"content": None, "refusal": "I will not."})), _END, _DONE))
    assert text_in(await collect(engine)) == "I will not."


@pytest.mark.parametrize(
    "field", ["reasoning_content", "reasoning"]
)  # DeepSeek and older vLLM; newer vLLM and OpenRouter
async def test_what_a_model_thinks_is_no_words_of_its_answer(engine, server, field):
    thoughts = [sse(chunk({field: "Is it "})), sse(chunk({field: "rain?", "content": None}))]
    server.replies.append(stream(*thoughts, sse(chunk({field: None, "content": "Rain."})), _END, _DONE))
    deltas = await collect(engine)
    assert text_in(deltas) == "Rain."
    assert [delta.text for delta in deltas if isinstance(delta, ReasoningDelta)] == ["Is it ", "rain?"]


async def test_a_server_that_tells_no_usage_is_fine(engine, server):
    server.replies.append(stream(sse(says("hm")), _END, _DONE))
    assert [delta.kind for delta in await collect(engine)] == ["text", "finish"]


async def test_a_server_that_refuses_to_be_asked_for_usage_is_not_asked_again(engine, server):
    told = {"message": "Unknown field: stream_options", "code": None}
    server.replies.append(refuse(400, told))
    for _ in range(2):
        assert [delta.kind for delta in await collect(engine)].count("usage") == 0
    assert ["stream_options" in exchange.body for exchange in server.exchanges] == [True, False, False]


@pytest.mark.parametrize("end", [(_END, _DONE), (_END,), (_END, _DONE, b"data: not read any more\n\n")])
async def test_an_answer_is_whole_once_its_reason_was_given(engine, server, end):
    server.replies.append(stream(sse(says("hm")), *end))
    assert (await collect(engine))[-1] == FinishDelta(reason="stop")


async def test_streams_are_read_as_they_are_cut_and_dressed(engine, server):
    whole = b": hello\r\n\r\n" + b"".join((sse(says("Grüße, ")), sse(says("世界")), _END, _DONE)).replace(
        b"\n", b"\r\n"
    )
    server.replies.append(stream(*(whole[at : at + 1] for at in range(len(whole)))))
    assert text_in(await collect(engine)) == "Grüße, 世界"


async def test_a_connection_is_used_again(engine, server):
    for _ in range(5):
        await collect(engine)
    assert server.connections == 1


async def test_nothing_is_left_open_by_a_server_that_does_not_end_its_response(engine, server, clock):
    server.replies.append(stream(sse(says("hm")), _END, _DONE, then="hang"))
    deltas = engine.generate(asks())
    await anext(deltas)
    end = asyncio.ensure_future(anext(deltas))
    await until(lambda: clock._armed)
    clock.advance(0.2)
    assert await end == FinishDelta(reason="stop")
    await deltas.aclose()
    await until(lambda: server.open == 0)


async def test_closing_an_answer_closes_its_connection_at_once(engine, server):
    server.gap_s = 0.001
    deltas = engine.generate(asks())
    await anext(deltas)
    assert server.open == 1
    await deltas.aclose()
    await until(lambda: server.open == 0)


async def test_a_caller_who_is_cancelled_closes_the_connection(engine, server):
    server.replies.append(hang)
    task = asyncio.create_task(collect(engine))
    await until(lambda: server.exchanges)
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: server.open == 0)


async def test_another_baton_is_a_server_like_any_other(make, tmp_path):
    call = {"pattern": "weather", "reply": '{"city": "Bern"}', "call": "weather"}
    count = {"pattern": "count", "reply": "{n} ", "times": "9"}
    async with serving(tmp_path / "home", rules=[call, count]) as baton:
        engine = make(base_url=f"{baton.address}/v1", model="scripted")
        *words, usage, finish = await collect(engine, asks(user("count")))
        assert [delta.text for delta in words] == [f"{n} " for n in range(1, 10)]
        assert (usage.output_tokens, finish.reason) == (9, "stop")
        cut = await collect(engine, asks(user("count"), sampling=Sampling(max_output_tokens=4)))
        assert (text_in(cut), cut[-1].reason) == ("1 2 3 4 ", "length")
        assert text_in(await collect(engine, asks(user("count"), sampling=Sampling(stop=("3",))))) == "1 2 "
        assert text_in(await collect(engine, asks(user("count"), raw=True, sampling=Sampling(stop=("4",))))) == "1 2 3 "
        called = await collect(engine, asks(user("weather?"), constraint=ToolConstraint(tools=(_WEATHER,))))
        assert [name for _, name in calls_in(called)] == ["weather"]
        assert list(calls_in(called).values()) == ['{"city": "Bern"}']
        assert called[-1].reason == "calls"
        assert (await fails(make(base_url=f"{baton.address}/v1", model="nobody"))).code == "model_not_found"
