"""What every synthesizer keeps of what `Synthesizer` promises, in this process and through a worker."""

import asyncio
from contextlib import aclosing

import pytest
from support.ports import SPECS

from models.clock import SystemClock
from models.content import AudioDelta
from models.errors import DeadlineExceeded, Unsupported
from models.ports.streams import Flush
from models.ports.synthesize import SpeechEvent, Spoken, Synthesizer, SynthesizeRequest

_TEXT = "Well, it was the best of times. It was 17.5 % of the worst of times."


@pytest.fixture(params=["scripted-synthesize"])
def spec(request):
    return SPECS[request.param]()


@pytest.fixture
async def synthesizer(opened, spec):
    async with opened(spec) as engine:
        yield engine


async def _spoken(synthesizer: Synthesizer, *pieces: str | Flush, **fields) -> list[SpeechEvent]:
    stream = synthesizer.open(SynthesizeRequest(tenant="acme", **fields))

    async def push() -> None:
        for piece in pieces:
            await stream.push(piece)
        await stream.end()

    pushing = asyncio.create_task(push())
    try:
        async with asyncio.timeout(60), aclosing(stream.outputs()) as events:
            return [event async for event in events]
    finally:
        pushing.cancel()
        await asyncio.wait((pushing,))


def _samples(events: list[SpeechEvent]) -> int:
    return sum(len(event.pcm) // 2 for event in events if isinstance(event, AudioDelta))


async def test_text_becomes_sound_of_one_rate(synthesizer):
    events = await _spoken(synthesizer, _TEXT)
    assert len({event.rate_hz for event in events if isinstance(event, AudioDelta)}) == 1
    assert _samples(events) > 0


async def test_marks_follow_their_sound_and_the_last_is_of_all(synthesizer):
    events = await _spoken(synthesizer, *_TEXT)
    samples = 0
    marks = [Spoken(characters=0, samples=0)]
    for event in events:
        if isinstance(event, AudioDelta):
            samples += len(event.pcm) // 2
        else:
            assert event.characters > marks[-1].characters
            assert marks[-1].samples < event.samples <= samples
            marks.append(event)
    assert marks[-1] == Spoken(characters=len(_TEXT), samples=samples)


@pytest.mark.parametrize("size", [1, 3, 7, len(_TEXT)])
async def test_what_is_spoken_does_not_hang_on_how_the_text_is_cut(synthesizer, size):
    cut = [_TEXT[at : at + size] for at in range(0, len(_TEXT), size)]
    sound = [
        b"".join(e.pcm for e in await _spoken(synthesizer, *pieces) if isinstance(e, AudioDelta))
        for pieces in (cut, [_TEXT])
    ]
    assert sound[0] == sound[1]


async def test_speech_begins_while_the_text_is_still_being_written(synthesizer):
    stream = synthesizer.open(SynthesizeRequest(tenant="acme"))
    async with asyncio.timeout(20), aclosing(stream.outputs()) as events:
        await stream.push("It was the best of times. And th")
        assert isinstance(await anext(events), AudioDelta)


async def test_a_flush_has_spoken_what_has_come(synthesizer):
    stream = synthesizer.open(SynthesizeRequest(tenant="acme"))
    async with asyncio.timeout(20), aclosing(stream.outputs()) as events:
        await stream.push("wait")
        await stream.push(Flush())
        assert isinstance(await anext(events), AudioDelta)
        assert await anext(events) == Spoken(characters=4, samples=_samples(await _spoken(synthesizer, "wait")))


async def test_nothing_is_said_of_nothing(synthesizer):
    assert await _spoken(synthesizer) == []
    assert await _spoken(synthesizer, "", Flush(), "") == []


@pytest.mark.parametrize("fields", [{"voice": "nobody"}, {"speed": 99.0}], ids=lambda fields: next(iter(fields)))
async def test_what_cannot_be_had_is_refused_first_of_all(synthesizer, fields):
    with pytest.raises(Unsupported) as refused:
        await _spoken(synthesizer, _TEXT, **fields)
    assert refused.value.field in fields


async def test_a_stream_ends_at_its_deadline(synthesizer):
    stream = synthesizer.open(SynthesizeRequest(tenant="acme", deadline=SystemClock().now_s() + 0.2))
    async with asyncio.timeout(20):
        with pytest.raises(DeadlineExceeded):
            [event async for event in stream.outputs()]
