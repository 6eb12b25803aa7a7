"""The scripted engine keeps what `Engine.generate` promises, on a clock that the test moves."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.catalog import EngineSpec
from models.clock import ManualClock
from models.content import Call, CallDelta, CallResult, Delta, FinishDelta, Message, TextDelta, TextPart, UsageDelta
from models.errors import BadInput, DeadlineExceeded, Internal, Unsupported
from models.language.scripted import ScriptedEngine, build
from models.ports.context import EngineContext
from models.ports.generate import GenerateRequest, RegexConstraint, Sampling, ToolConstraint, ToolSpec

_WEATHER = ToolSpec(name="weather", description="tells the weather", parameters="{}")
_CLOCK = ToolSpec(name="clock", description="tells the time", parameters="{}")
_ECHO = {"pattern": "(?s)(.*)", "reply": r"\1"}
_CALL_WEATHER = {"pattern": "weather", "reply": '{"city": "Bern"}', "call": "weather"}


def _engine(*rules: dict[str, object], clock: ManualClock | None = None, **options: object) -> ScriptedEngine:
    given = json.dumps({**({"rules": rules} if rules else {}), **options})
    return build(EngineSpec(name="scripted", options=given), EngineContext(clock=clock or ManualClock()))


def _says(text: str, role: str = "user") -> Message:
    return Message(item_id=f"item_{role}", role=role, parts=(TextPart(text=text),))


def _asks(text: str = "go", **fields: object) -> GenerateRequest:
    return GenerateRequest(messages=(_says(text),), tenant="local", **fields)


def _offers(*tools: ToolSpec, choice: str = "auto", function: str | None = None) -> GenerateRequest:
    return _asks("weather please", constraint=ToolConstraint(tools=tools, choice=choice, function=function))


async def _collect(deltas: AsyncIterator[Delta], into: list[Delta]) -> None:
    async for delta in deltas:
        into.append(delta)


async def _all(engine: ScriptedEngine, request: GenerateRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def _words(deltas: list[Delta]) -> list[str]:
    return [delta.text for delta in deltas if isinstance(delta, TextDelta)]


def _text(deltas: list[Delta]) -> str:
    return "".join(_words(deltas))


def _reason(deltas: list[Delta]) -> str:
    assert isinstance(deltas[-1], FinishDelta)
    return deltas[-1].reason


# Rules


async def test_without_a_script_it_counts_when_asked_to():
    deltas = await _all(_engine(), _asks("count to 3"))
    assert _words(deltas) == ["1 ", "2 ", "3 "]
    assert _reason(deltas) == "stop"


async def test_without_a_script_it_repeats_what_was_said():
    assert _text(await _all(_engine(), _asks("good morning"))).startswith("You said: good morning\n")


async def test_the_first_rule_that_matches_answers():
    engine = _engine({"pattern": "no", "reply": "1"}, {"pattern": "o", "reply": "2"}, {"pattern": "", "reply": "3"})
    assert _text(await _all(engine, _asks("go"))) == "2"


async def test_a_message_that_no_rule_matches_is_refused():
    with pytest.raises(BadInput, match="No rule"):
        await _all(_engine({"pattern": "^yes$", "reply": "1"}), _asks("no"))


@given(st.text(min_size=1))
async def test_what_a_group_matched_is_written_as_it_is(said):
    assert _text(await _all(_engine(_ECHO), _asks(said))) == said


async def test_what_was_said_is_not_a_template():
    assert _text(await _all(_engine(_ECHO), _asks(r"{n} and \1"))) == r"{n} and \1"


async def test_a_repeated_reply_counts_from_one():
    engine = _engine({"pattern": r"(\d) times (\w+)", "reply": r"{n}:\2 ", "times": r"\1"})
    assert _text(await _all(engine, _asks("3 times ho"))) == "1:ho 2:ho 3:ho "


async def test_it_answers_the_last_user_message_whatever_others_said_since():
    messages = (_says("first"), _says("second"), _says("third", "assistant"), _says("fourth", "system"))
    deltas = await _all(_engine(_ECHO), GenerateRequest(messages=messages, tenant="local"))
    assert _text(deltas) == "second"


async def test_it_answers_a_result_that_came_after_the_user_spoke():
    messages = (
        _says("weather"),
        Call(item_id="item_1", call_id="call_1", name="weather", arguments="{}"),
        CallResult(item_id="item_2", call_id="call_1", parts=(TextPart(text="rain", source="tool"),)),
    )
    deltas = await _all(_engine(_ECHO), GenerateRequest(messages=messages, tenant="local"))
    assert _text(deltas) == "rain"


@pytest.mark.parametrize("options", ["", "[]", '{"rules": [{"pattern": "x"}]}', '{"gap_s": "soon"}'])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(BadInput, match="do not fit"):
        build(EngineSpec(name="scripted", options=options), EngineContext(clock=ManualClock()))


# Pace and deadline


@pytest.mark.parametrize(
    ("rule_gap_s", "engine_gap_s"), [(2.0, 0.0), (None, 2.0), (2.0, 60.0)], ids=["rule", "engine", "rule over engine"]
)
async def test_each_token_comes_after_its_gap(rule_gap_s, engine_gap_s):
    clock = ManualClock(now_s=0)
    engine = _engine({"pattern": "", "reply": "a b c", "gap_s": rule_gap_s}, clock=clock, gap_s=engine_gap_s)
    deltas: list[Delta] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_collect(engine.generate(_asks()), deltas))
        for expected in ("", "a ", "a b ", "a b c"):
            await _settle()
            assert _text(deltas) == expected
            clock.advance(1.5)
            await _settle()
            assert _text(deltas) == expected
            clock.advance(0.5)


async def test_the_deadline_ends_an_answer_that_is_not_whole():
    clock = ManualClock(now_s=0)
    engine = _engine({"pattern": "", "reply": "a b c", "gap_s": 2.0}, clock=clock)
    deltas: list[Delta] = []
    task = asyncio.create_task(_collect(engine.generate(_asks(deadline=5.0)), deltas))
    for _ in range(4):
        await _settle()
        assert not task.done()
        clock.advance(1.0)
    await _settle()
    assert _text(deltas) == "a b "
    assert not task.done()
    clock.advance(1.0)  # the third token would come at 6; the deadline is at 5
    with pytest.raises(DeadlineExceeded):
        await task
    assert _text(deltas) == "a b "


async def test_an_answer_that_is_whole_by_its_deadline_finishes():
    clock = ManualClock(now_s=0)
    deltas: list[Delta] = []
    engine = _engine({"pattern": "", "reply": "a", "gap_s": 2.0}, clock=clock)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_collect(engine.generate(_asks(deadline=2.0)), deltas))
        await _settle()
        clock.advance(2.0)
    assert _reason(deltas) == "stop"


async def test_a_request_that_comes_after_its_deadline_writes_nothing():
    deltas: list[Delta] = []
    with pytest.raises(DeadlineExceeded):
        await _collect(_engine(_ECHO, clock=ManualClock(now_s=10)).generate(_asks(deadline=9.0)), deltas)
    assert _words(deltas) == []


# Limits and stop strings


@given(length=st.integers(0, 12), limit=st.integers(0, 12))
async def test_the_answer_is_cut_at_the_limit_and_says_so_only_if_it_was_cut(length, limit):
    engine = _engine({"pattern": "", "reply": "word ", "times": str(length)})
    deltas = await _all(engine, _asks(sampling=Sampling(max_output_tokens=limit)))
    assert len(_words(deltas)) == min(length, limit)
    assert _reason(deltas) == ("length" if length > limit else "stop")


@example(reply="a b ab", stops=["ab", "b a"])  # the earlier one is neither the first named nor within a token
@given(
    reply=st.text(alphabet="ab \n", max_size=20),
    stops=st.lists(st.text(alphabet="ab \n", max_size=3), max_size=3),
)
async def test_the_answer_ends_before_the_first_stop_string_even_one_that_spans_tokens(reply, stops):
    deltas = await _all(_engine({"pattern": "", "reply": reply}), _asks(sampling=Sampling(stop=tuple(stops))))
    text = _text(deltas)
    # Written from the promise and not as a search: a prefix without any stop string, and one follows unless it is whole.
    given_stops = [stop for stop in stops if stop]
    assert reply.startswith(text)
    assert not any(stop in text for stop in given_stops)
    assert text == reply or any(reply.startswith(stop, len(text)) for stop in given_stops)


# Tools


async def test_a_call_is_made_of_a_tool_that_is_on_offer():
    deltas = await _all(_engine(_CALL_WEATHER, _ECHO), _offers(_CLOCK, _WEATHER))
    calls = [delta for delta in deltas if isinstance(delta, CallDelta)]
    assert "".join(call.arguments for call in calls) == '{"city": "Bern"}'
    assert {call.name for call in calls} == {"weather"}
    assert len({call.call_id for call in calls}) == 1
    assert _words(deltas) == []
    assert _reason(deltas) == "calls"


@pytest.mark.parametrize(
    "request_",
    [
        _asks("weather please"),
        _offers(_CLOCK),
        _offers(_WEATHER, choice="none"),
        _offers(_WEATHER, _CLOCK, choice="required", function="clock"),
    ],
    ids=["no tools", "another tool", "tools that may not be called", "only another may be called"],
)
async def test_a_call_is_not_made_of_a_tool_that_is_not_on_offer(request_):
    deltas = await _all(_engine(_CALL_WEATHER, _ECHO), request_)
    assert not any(isinstance(delta, CallDelta) for delta in deltas)
    assert _text(deltas) == "weather please"


async def test_each_answer_names_its_call_anew():
    engine = _engine(_CALL_WEATHER)
    ids = [
        delta.call_id
        for deltas in (await _all(engine, _offers(_WEATHER)), await _all(engine, _offers(_WEATHER)))
        for delta in deltas
        if isinstance(delta, CallDelta)
    ]
    assert len(set(ids)) == 2


async def test_a_call_that_is_cut_says_so():
    request = _asks("weather", constraint=ToolConstraint(tools=(_WEATHER,)), sampling=Sampling(max_output_tokens=1))
    assert _reason(await _all(_engine(_CALL_WEATHER), request)) == "length"


# Faults, usage, refusals


async def test_a_fault_comes_after_the_reply_and_instead_of_the_finish():
    deltas: list[Delta] = []
    engine = _engine({"pattern": "", "reply": "so far so good", "fault": "error"})
    with pytest.raises(Internal):
        await _collect(engine.generate(_asks()), deltas)
    assert _text(deltas) == "so far so good"
    assert not any(isinstance(delta, FinishDelta) for delta in deltas)


async def test_usage_counts_all_that_was_read_and_all_that_was_written():
    messages = (_says("be brief", "system"), _says("one two three"))
    deltas = await _all(
        _engine({"pattern": "", "reply": "four five"}), GenerateRequest(messages=messages, tenant="local")
    )
    usage = [delta for delta in deltas if isinstance(delta, UsageDelta)]
    assert sum(delta.input_tokens for delta in usage) == 5
    assert sum(delta.output_tokens for delta in usage) == 2


async def test_usage_counts_what_was_written_and_not_what_was_cut():
    deltas = await _all(_engine(), _asks("count to 100", sampling=Sampling(max_output_tokens=7)))
    assert sum(delta.output_tokens for delta in deltas if isinstance(delta, UsageDelta)) == 7


@pytest.mark.parametrize(
    "fields",
    [{"signals": frozenset({"logprobs"})}, {"adapter": "x"}, {"constraint": RegexConstraint(pattern="a")}],
    ids=["signals", "adapter", "regex"],
)
async def test_a_field_that_it_cannot_honour_is_refused_on_the_first_step(fields):
    with pytest.raises(Unsupported):
        await anext(_engine(_ECHO).generate(_asks(**fields)))
