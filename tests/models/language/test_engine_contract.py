"""What every engine keeps of what `Engine` promises, whatever it is made of.

To add an engine: a fixture `NAME_engine` in conftest.py, and its name here.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from models.clock import ManualClock
from models.content import Delta, FinishDelta, Message, Role, TextDelta, TextPart, UsageDelta
from models.errors import BadInput, DeadlineExceeded, NotFound, Unsupported
from models.ports.generate import Draft, Engine, GenerateRequest, Sampling

_ENGINES = ["openai", "scripted", "sequential", "transformers"]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=_ENGINES)
def running(request):
    return request.getfixturevalue(f"{request.param}_engine")


@pytest.fixture
async def engine(running, clock) -> AsyncIterator[Engine]:
    async with running(clock) as engine:
        yield engine


def _says(text: str, role: Role = "user") -> Message:
    return Message(item_id=f"item_{role}", role=role, parts=(TextPart(text=text),))


def _asks(text: str = "count to 24", *, limit: int = 24, **fields: object) -> GenerateRequest:
    """Ask for what the scripted engine answers at length; other engines may answer what they like."""
    sampling = {name: fields.pop(name) for name in ("temperature", "top_p", "seed", "stop") if name in fields}
    return GenerateRequest(
        messages=(_says(text),), sampling=Sampling(max_output_tokens=limit, **sampling), tenant="local", **fields
    )


async def _all(engine: Engine, request: GenerateRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


def _text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def _used(deltas: list[Delta]) -> tuple[int, int]:
    usage = [delta for delta in deltas if isinstance(delta, UsageDelta)]
    return sum(delta.input_tokens for delta in usage), sum(delta.output_tokens for delta in usage)


async def test_an_answer_comes_in_pieces_and_says_last_why_it_ended(engine):
    deltas = await _all(engine, _asks())
    assert len([delta for delta in deltas if isinstance(delta, TextDelta)]) > 3
    assert [isinstance(delta, FinishDelta) for delta in deltas] == [False] * (len(deltas) - 1) + [True]


async def test_usage_counts_what_was_read_and_what_was_written(engine):
    short, long = [_used(await _all(engine, _asks(limit=limit))) for limit in (2, 6)]
    more_read = _used(await _all(engine, _asks("Please be so kind and count to 24", limit=2)))
    assert short[0] == long[0] > 0
    assert more_read[0] > short[0]
    assert (short[1], long[1]) == (2, 6)


async def test_an_answer_at_its_limit_is_cut_there_and_says_so(engine):
    whole, cut = await _all(engine, _asks()), await _all(engine, _asks(limit=5))
    assert cut[-1] == FinishDelta(reason="length")
    assert _text(whole).startswith(_text(cut))
    assert len(_text(cut)) < len(_text(whole))


async def test_an_answer_ends_before_a_stop_string_wherever_tokens_begin(engine):
    whole = _text(await _all(engine, _asks()))
    for start in range(4, 12):
        stop = whole[start : start + 5]
        deltas = await _all(engine, _asks(stop=("no such words", stop)))
        assert _text(deltas) == whole[: whole.index(stop)]
        assert deltas[-1] == FinishDelta(reason="stop")


async def test_what_could_have_been_a_stop_string_is_not_lost_at_the_end(engine):
    whole = _text(await _all(engine, _asks()))
    assert _text(await _all(engine, _asks(stop=(whole[-3:] + "no such words",)))) == whole


async def test_temperature_zero_gives_the_same_answer_each_time(engine):
    first, second = [_text(await _all(engine, _asks(temperature=0.0))) for _ in range(2)]
    assert first == second != ""


async def test_a_seed_gives_the_same_answer_each_time(engine):
    request = _asks(temperature=1.0, top_p=0.95, seed=7)
    first, second = [_text(await _all(engine, request)) for _ in range(2)]
    assert first == second != ""


async def test_answers_written_at_the_same_time_do_not_mix(engine):
    requests = [_asks(f"count to {n}", temperature=1.0, seed=n) for n in (21, 22, 23)]
    alone = [_text(await _all(engine, request)) for request in requests]
    together = await asyncio.gather(*(_all(engine, request) for request in requests))
    assert [_text(deltas) for deltas in together] == alone


async def test_an_answer_that_is_closed_leaves_no_task_and_room_for_the_next(engine):
    before = asyncio.all_tasks()
    for _ in range(3):
        async with aclosing(engine.generate(_asks())) as deltas:
            async for delta in deltas:
                if isinstance(delta, TextDelta):
                    break
    assert asyncio.all_tasks() == before
    assert _text(await _all(engine, _asks())) != ""


async def test_a_caller_who_is_cancelled_leaves_no_task_and_room_for_the_next(engine):
    before = asyncio.all_tasks()
    answers = [asyncio.create_task(_all(engine, _asks(limit=200))) for _ in range(3)]
    await asyncio.sleep(0)
    for answer in answers:
        answer.cancel()
    await asyncio.wait(answers)
    assert all(answer.cancelled() for answer in answers)
    assert asyncio.all_tasks() == before
    assert _text(await _all(engine, _asks())) != ""


async def test_a_deadline_that_has_passed_is_told_at_once(engine, clock):
    with pytest.raises(DeadlineExceeded):
        await _all(engine, _asks(deadline=clock.now_s() - 1))


async def test_an_answer_ends_at_its_deadline(engine, clock):
    answer = engine.generate(_asks(deadline=clock.now_s() + 10))
    async for delta in answer:
        if isinstance(delta, TextDelta):
            break
    clock.advance(11)
    with pytest.raises(DeadlineExceeded):
        await anext(answer)


@pytest.mark.parametrize(
    "fields",
    [{"adapter": "x"}, {"draft": Draft(text="x")}, {"reads_ahead": True}],
    ids=lambda fields: next(iter(fields)),
)
async def test_a_field_is_honoured_or_refused_on_the_first_step(engine, fields):
    answer = engine.generate(_asks(**fields))
    try:
        await anext(answer)
    except (Unsupported, NotFound) as exc:
        assert exc.field in fields  # noqa: PT017  # either is as good
    else:
        assert "adapter" not in fields
        assert isinstance([delta async for delta in answer][-1], FinishDelta)


async def test_an_empty_conversation_is_answered_or_refused(engine):
    request = GenerateRequest(messages=(), sampling=Sampling(max_output_tokens=4), tenant="local")
    with contextlib.suppress(BadInput):
        assert isinstance((await _all(engine, request))[-1], FinishDelta)


@pytest.mark.parametrize(
    "said", ["", " ", "naïve 日本語 👩‍🚀", "שלום\u202e", "\x00\ufffd\n\n", "<|im_end|>{{ 1 }}{% if"]
)
async def test_whatever_is_said_is_answered_in_characters(engine, said):
    deltas = await _all(engine, _asks(said, limit=6))
    assert isinstance(deltas[-1], FinishDelta)
    _text(deltas).encode()


async def test_an_engine_may_be_closed_twice(running, clock):
    async with running(clock) as engine:
        await engine.aclose()


async def test_each_delta_says_how_many_tokens_were_written_so_far(engine):
    """So that what was delivered of an answer that is cut off is counted, too."""
    deltas = await _all(engine, _asks(temperature=0))
    written = [delta.written for delta in deltas if isinstance(delta, TextDelta)]
    assert written == sorted(written)
    assert written[0] >= 1
    _, output_tokens = _used(deltas)
    assert written[-1] <= output_tokens <= written[-1] + 1  # the token that ends it has no words
