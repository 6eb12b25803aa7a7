"""What every detector of voices keeps of what `ActivityDetector` promises, in this process and through a worker."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ports import SPECS, here
from support.voices import silence, voice

from models.clock import SystemClock
from models.errors import BadInput, Conflict, DeadlineExceeded
from models.ports.activity import WINDOW_SAMPLES, ActivityDetector, ActivityRequest, Verdict
from models.ports.streams import UNREAD_INPUTS, SoundInput, Stream

_SPOKEN = np.concatenate((silence(0.3), voice(0.6), silence(0.3))).tobytes()


@pytest.fixture(params=["scripted-activity", "silero"])
def spec(request):
    return SPECS[request.param]()


@pytest.fixture
async def detector(opened, spec):
    async with opened(spec) as engine:
        yield engine


async def _heard(detector: ActivityDetector, *pieces: bytes) -> list[Verdict]:
    stream = detector.open(ActivityRequest(tenant="acme"))

    async def push() -> None:
        for piece in pieces:
            await stream.push(SoundInput(pcm=piece))
        await stream.end()

    pushing = asyncio.create_task(push())
    async with asyncio.timeout(60), aclosing(stream.outputs()) as verdicts:
        found = [verdict async for verdict in verdicts]
    await pushing
    return found


async def _push(stream: Stream[SoundInput, Verdict], windows: int) -> None:
    for _ in range(windows):
        await stream.push(SoundInput(pcm=bytes(2 * WINDOW_SAMPLES)))


def _cut(pcm: bytes, size: int) -> list[bytes]:
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


async def test_there_is_one_verdict_for_each_window_in_order(detector):
    found = await _heard(detector, *_cut(_SPOKEN, 2 * WINDOW_SAMPLES))
    windows = -(-len(_SPOKEN) // (2 * WINDOW_SAMPLES))  # the last one filled up with silence
    assert [verdict.start_sample for verdict in found] == [n * WINDOW_SAMPLES for n in range(windows)]
    assert all(0 <= verdict.probability <= 1 for verdict in found)


async def test_a_voice_is_told_from_silence(detector):
    found = await _heard(detector, *_cut(_SPOKEN, 2 * WINDOW_SAMPLES))
    inside = [v.probability for v in found if 0.45 * 16_000 < v.start_sample < 0.75 * 16_000]
    before = [v.probability for v in found if v.start_sample < 0.2 * 16_000]
    assert sum(inside) / len(inside) > 0.5 > max(before)


async def test_a_verdict_comes_before_the_next_window_does(detector):
    stream = detector.open(ActivityRequest(tenant="acme"))
    async with asyncio.timeout(20), aclosing(stream.outputs()) as verdicts:
        for n, window in enumerate(_cut(_SPOKEN, 2 * WINDOW_SAMPLES)[:20]):
            await stream.push(SoundInput(pcm=window))
            assert (await anext(verdicts)).start_sample == n * WINDOW_SAMPLES


@pytest.mark.parametrize("size", [2, 318, 1024, 1026, 48_000])
async def test_verdicts_do_not_hang_on_how_sound_is_cut(detector, size):
    pcm = _SPOKEN if size > 2 else _SPOKEN[:4096]
    whole, pieces = await _heard(detector, pcm), await _heard(detector, *_cut(pcm, size))
    assert pieces == whole


async def test_streams_know_nothing_of_each_other(detector):
    alone = await _heard(detector, *_cut(_SPOKEN, 1024))
    together = await asyncio.gather(*(_heard(detector, *_cut(_SPOKEN, 1024)) for _ in range(4)))
    assert together == [alone] * 4


async def test_what_is_no_whole_sample_is_refused(detector):
    with pytest.raises(BadInput):
        await _heard(detector, b"\0")


async def test_nothing_gives_nothing(detector):
    assert await _heard(detector) == []
    assert await _heard(detector, b"", b"") == []


async def test_who_pushes_faster_than_it_is_read_waits(detector):
    """Nothing piles up."""
    stream = detector.open(ActivityRequest(tenant="acme"))
    pushed = 0

    async def push() -> None:
        nonlocal pushed
        while True:
            await stream.push(SoundInput(pcm=bytes(2 * WINDOW_SAMPLES)))
            pushed += 1

    pushing = asyncio.create_task(push())
    for _ in range(200):
        await asyncio.sleep(0)
    assert pushed <= UNREAD_INPUTS
    pushing.cancel()
    await asyncio.wait((pushing,))


async def test_after_the_end_nothing_can_be_pushed(detector):
    stream = detector.open(ActivityRequest(tenant="acme"))
    await stream.end()
    await stream.end()
    with pytest.raises(Conflict):
        await stream.push(SoundInput(pcm=b""))
    assert [verdict async for verdict in stream.outputs()] == []


async def test_a_stream_that_is_closed_refuses_who_goes_on_pushing(detector):
    stream = detector.open(ActivityRequest(tenant="acme"))
    async with asyncio.timeout(20):
        async with aclosing(stream.outputs()) as verdicts:
            await stream.push(SoundInput(pcm=bytes(2 * WINDOW_SAMPLES)))
            await anext(verdicts)
        with pytest.raises(Conflict):
            await _push(stream, 2 * UNREAD_INPUTS)
    assert len(await _heard(detector, bytes(2 * WINDOW_SAMPLES))) == 1  # and leaves room for the next


async def test_a_stream_ends_at_its_deadline(detector):
    stream = detector.open(ActivityRequest(tenant="acme", deadline=SystemClock().now_s() + 0.2))
    async with asyncio.timeout(20):
        with pytest.raises(DeadlineExceeded):
            [verdict async for verdict in stream.outputs()]


async def test_a_detector_may_be_closed_twice(opened, spec):
    async with opened(spec) as detector:
        await detector.aclose()


@given(cuts=st.lists(st.integers(0, 2_000), max_size=12))
def test_however_sound_is_cut_each_window_is_judged_once(cuts):
    async def run() -> list[Verdict]:
        async with here(SPECS["scripted-activity"]()) as detector:
            pieces, at = [], 0
            for cut in cuts:
                pieces.append(_SPOKEN[at : at + 2 * cut])
                at += 2 * cut
            return await _heard(detector, *pieces, _SPOKEN[at:])

    found = asyncio.run(run())
    windows = -(-len(_SPOKEN) // (2 * WINDOW_SAMPLES))
    assert [verdict.start_sample for verdict in found] == [n * WINDOW_SAMPLES for n in range(windows)]
