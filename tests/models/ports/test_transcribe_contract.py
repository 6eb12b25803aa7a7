"""What every transcriber keeps of what `Transcriber` promises, in this process and through a worker."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
from support.ports import SPECS
from support.voices import hum, silence

from models.clock import SystemClock
from models.errors import BadInput, DeadlineExceeded, Unsupported
from models.ports.streams import Flush, SoundInput
from models.ports.transcribe import Hypothesis, Segment, Transcriber, TranscribeRequest, TranscriptEvent

_WORDS = np.concatenate((silence(0.2), hum(0.2), silence(0.2), hum(0.2), silence(0.2))).tobytes()
_PAUSE = silence(1.0).tobytes()


@pytest.fixture(params=["scripted-transcribe"])
def spec(request):
    return SPECS[request.param]()


@pytest.fixture
async def transcriber(opened, spec):
    async with opened(spec) as engine:
        yield engine


async def _heard(transcriber: Transcriber, *pieces: bytes | Flush, **fields) -> list[TranscriptEvent]:
    stream = transcriber.open(TranscribeRequest(tenant="acme", **fields))

    async def push() -> None:
        for piece in pieces:
            await stream.push(piece if isinstance(piece, Flush) else SoundInput(pcm=piece))
        await stream.end()

    pushing = asyncio.create_task(push())
    try:
        async with asyncio.timeout(60), aclosing(stream.outputs()) as events:
            return [event async for event in events]
    finally:
        pushing.cancel()
        await asyncio.wait((pushing,))


def _segments(events: list[TranscriptEvent]) -> list[Segment]:
    return [event for event in events if isinstance(event, Segment)]


async def test_what_is_said_comes_first_as_a_guess_and_then_for_good(transcriber):
    events = await _heard(transcriber, _WORDS)
    assert isinstance(events[0], Hypothesis)
    assert isinstance(events[-1], Segment)
    assert events[-1].text != ""


async def test_a_pause_ends_a_segment(transcriber):
    assert len(_segments(await _heard(transcriber, _WORDS, _PAUSE, _WORDS))) == 2


async def test_a_flush_ends_the_segment_that_is_open_at_once(transcriber):
    stream = transcriber.open(TranscribeRequest(tenant="acme"))
    async with asyncio.timeout(20), aclosing(stream.outputs()) as events:
        await stream.push(SoundInput(pcm=_WORDS))
        await stream.push(Flush())
        while not isinstance(await anext(events), Segment):
            pass


async def test_a_flush_of_nothing_gives_nothing(transcriber):
    assert await _heard(transcriber, Flush(), _PAUSE, Flush()) == []


async def test_segments_and_their_words_come_in_order_and_do_not_overlap(transcriber):
    segments = _segments(await _heard(transcriber, _WORDS, _PAUSE, _WORDS, Flush(), _WORDS))
    places = [place for each in segments for word in each.words for place in (word.start_sample, word.end_sample)]
    assert places == sorted(places)
    for each in segments:
        assert 0 <= each.start_sample < each.end_sample
        assert each.text == " ".join(word.text for word in each.words)


async def test_what_was_heard_does_not_hang_on_how_sound_is_cut(transcriber):
    pcm = _WORDS + _PAUSE + _WORDS
    pieces = [pcm[at : at + 1_000] for at in range(0, len(pcm), 1_000)]
    assert await _heard(transcriber, *pieces) == await _heard(transcriber, pcm)


@pytest.mark.parametrize("fields", [{"language": "tlh"}, {"rate_hz": 11_025}], ids=lambda fields: next(iter(fields)))
async def test_what_cannot_be_had_is_refused_first_of_all(transcriber, fields):
    with pytest.raises(Unsupported) as refused:
        await _heard(transcriber, _WORDS, **fields)
    assert refused.value.field in fields


async def test_what_is_no_whole_sample_is_refused(transcriber):
    with pytest.raises(BadInput):
        await _heard(transcriber, b"\0")


async def test_a_stream_ends_at_its_deadline(transcriber):
    stream = transcriber.open(TranscribeRequest(tenant="acme", deadline=SystemClock().now_s() + 0.2))
    async with asyncio.timeout(20):
        with pytest.raises(DeadlineExceeded):
            [event async for event in stream.outputs()]
