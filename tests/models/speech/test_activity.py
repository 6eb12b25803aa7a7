"""Silero VAD beside what its makers' own network says of the same sound, and on voices, noise and tones of a machine."""

from pathlib import Path

import numpy as np
import pytest
from support.ports import spec_of
from support.voices import hiss, hum, silence, voice

from models.catalog import EngineSpec
from models.clock import ManualClock
from models.errors import BadInput, Internal
from models.ports.activity import RATE_HZ, WINDOW_SAMPLES, ActivityRequest
from models.ports.context import EngineContext
from models.ports.streams import SoundInput
from models.speech.activity import SileroDetector, build

# What `silero_vad.onnx` of the same wheel says, fed a window at a time by onnxruntime 1.32 as its README shows:
# 8 windows of silence, 32 of a voice, 16 of silence, 16 of noise, 16 of a tone.
_EXPECTED = (
    *(0.0017, 0.0069, 0.0089, 0.0079, 0.0059, 0.006, 0.0059, 0.0056),
    *(
        0.9535,
        0.9833,
        0.9867,
        0.9965,
        0.9928,
        0.9982,
        0.9952,
        0.9985,
        0.9987,
        0.9983,
        0.9972,
        0.9982,
        0.999,
        0.9989,
        0.9953,
        0.9987,
    ),
    *(
        0.9962,
        0.9948,
        0.995,
        0.9972,
        0.9985,
        0.9965,
        0.9962,
        0.9972,
        0.9903,
        0.9894,
        0.9988,
        0.9994,
        0.9995,
        0.9981,
        0.9989,
        0.9987,
    ),
    *(
        0.0044,
        0.0035,
        0.0075,
        0.0056,
        0.003,
        0.0018,
        0.0016,
        0.0015,
        0.0014,
        0.0014,
        0.0014,
        0.0014,
        0.0014,
        0.0015,
        0.0015,
        0.0015,
    ),
    *(
        0.0901,
        0.0474,
        0.0289,
        0.0202,
        0.0107,
        0.0116,
        0.0082,
        0.0082,
        0.0065,
        0.0064,
        0.0075,
        0.0071,
        0.0052,
        0.0037,
        0.0025,
        0.0042,
    ),
    *(
        0.0419,
        0.0289,
        0.0126,
        0.0093,
        0.0079,
        0.0068,
        0.005,
        0.0033,
        0.0024,
        0.0019,
        0.0025,
        0.0027,
        0.0026,
        0.002,
        0.0016,
        0.0014,
    ),
)


@pytest.fixture(scope="module")
def detector() -> SileroDetector:
    return build(spec_of("silero-vad"), EngineContext(clock=ManualClock()))


async def _heard(detector: SileroDetector, *sound: np.ndarray) -> list[float]:
    stream = detector.open(ActivityRequest(tenant="acme"))
    pcm = np.concatenate(sound).tobytes()
    await stream.push(SoundInput(pcm=pcm))
    await stream.end()
    return [verdict.probability async for verdict in stream.outputs()]


async def test_it_says_what_its_makers_network_says(detector: SileroDetector) -> None:
    found = await _heard(detector, silence(0.256), voice(1.024), silence(0.512), hiss(0.512), hum(0.512))
    assert found == pytest.approx(_EXPECTED, abs=2e-3)


@pytest.mark.parametrize("pitch_hz", [90, 120, 160, 210])
async def test_a_voice_is_heard_from_its_beginning_to_its_end(detector: SileroDetector, pitch_hz: float) -> None:
    found = await _heard(detector, silence(0.5), voice(1.5, pitch_hz=pitch_hz), silence(0.5))
    speaks = [n * WINDOW_SAMPLES / RATE_HZ for n, probability in enumerate(found) if probability > 0.5]
    assert speaks[0] == pytest.approx(0.5, abs=0.1)
    assert speaks[-1] == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("sound", [silence(2), hiss(2), hiss(2, amplitude=0.2), hum(2), hum(2, hz=1_000)], ids=str)
async def test_what_is_no_voice_is_not_taken_for_one(detector: SileroDetector, sound: np.ndarray) -> None:
    assert max(await _heard(detector, sound)) < 0.5


def test_what_is_no_such_network_is_refused(tmp_path: Path) -> None:
    context = EngineContext(clock=ManualClock())
    (tmp_path / "silero_vad_16k_sequence.onnx").write_bytes(b"no network")
    with pytest.raises(Internal):
        build(EngineSpec(name="silero", folder=str(tmp_path)), context)
    with pytest.raises(BadInput):
        build(EngineSpec(name="silero"), context)
    with pytest.raises(BadInput):
        build(EngineSpec(name="silero", options='{"threshold": 1}', folder=str(tmp_path)), context)
