"""The `silero` engine: whether somebody speaks, behind the port `activity`, in the worker of the senses.

Silero VAD (https://github.com/snakers4/silero-vad) at 16 kHz: a short-time Fourier transform, four convolutions and an LSTM cell,
whose state goes from one window to the next. onnxruntime runs it, on one thread: a window takes a tenth of a millisecond, less
than handing it to another thread would, and so it is run where it arrives.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.catalog import EngineSpec
from models.clock import Clock
from models.errors import BadInput, Internal
from models.ports.activity import WINDOW_SAMPLES, ActivityRequest, Verdict
from models.ports.context import EngineContext
from models.ports.streams import Fed, SoundInput

_FILE = "silero_vad_16k_sequence.onnx"
_CONTEXT_SAMPLES = 64
_UNITS = 128
_SAMPLE_BYTES = 2
_WINDOW_BYTES = WINDOW_SAMPLES * _SAMPLE_BYTES

_Floats = NDArray[np.float32]


def build(spec: EngineSpec, context: EngineContext) -> "SileroDetector":
    """Load the model in the spec's folder; there are no options.

    Raises:
        BadInput: there are options, or the spec names no folder.
        Internal: what lies in the folder cannot be loaded.
    """
    if spec.options != "{}":
        raise BadInput("The silero engine takes no options.")
    if spec.folder is None:
        raise BadInput("The silero engine needs weights, and the card names no source of any.")
    try:
        return SileroDetector(Path(spec.folder) / _FILE, context.clock)
    except Exception as exc:  # onnxruntime's own are not of one class
        raise Internal(f"The model in {spec.folder} cannot be loaded: {exc}") from exc


class SileroDetector:
    """Hears whether somebody speaks; see the module."""

    def __init__(self, file: Path, clock: Clock) -> None:
        """Load the network of an ONNX file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._network: Any = onnxruntime.InferenceSession(
            file.read_bytes(), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._clock = clock
        next(
            _Hearing(self._network).hear(bytes(_WINDOW_BYTES))
        )  # a broken model fails here, and the first window is not late

    def open(self, request: ActivityRequest) -> Fed[SoundInput, Verdict]:
        """Open a stream; see `ActivityDetector.open`."""
        return Fed(self._hear, self._clock, request.deadline)

    async def aclose(self) -> None:
        """Let go of the network."""
        self._network = None

    async def _hear(self, sound: AsyncIterator[SoundInput]) -> AsyncGenerator[Verdict, None]:
        if self._network is None:
            raise Internal("The model has been closed.")
        hearing = _Hearing(self._network)
        async for piece in sound:
            for verdict in hearing.hear(piece.pcm):
                yield verdict
        for verdict in hearing.rest():
            yield verdict


class _Hearing:
    """One stream: what is not yet a window, and what the network remembers."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._left = b""
        self._samples = 0
        self._context: _Floats = np.zeros(_CONTEXT_SAMPLES, np.float32)
        self._hidden = self._cell = np.zeros((1, 1, _UNITS), np.float32)

    def hear(self, pcm: bytes) -> Iterator[Verdict]:
        """Yield a verdict for each window that `pcm` completes."""
        if len(pcm) % _SAMPLE_BYTES:
            raise BadInput("A piece of sound has to be a whole number of 16-bit samples.", field="audio")
        pcm = self._left + pcm
        for at in range(0, len(pcm) - _WINDOW_BYTES + 1, _WINDOW_BYTES):
            yield self._verdict(pcm[at : at + _WINDOW_BYTES])
        self._left = pcm[len(pcm) // _WINDOW_BYTES * _WINDOW_BYTES :]

    def rest(self) -> Iterator[Verdict]:
        """Yield the verdict on what is left, filled up with silence; nothing if nothing is."""
        if self._left:
            yield self._verdict(self._left.ljust(_WINDOW_BYTES, b"\0"))
            self._left = b""

    def _verdict(self, window: bytes) -> Verdict:
        samples: _Floats = np.frombuffer(window, "<i2").astype(np.float32) / np.float32(32_768)
        heard = np.concatenate((self._context, samples))[None]
        found, self._hidden, self._cell = self._network.run(
            ["speech_probs", "hn", "cn"], {"input": heard, "h": self._hidden, "c": self._cell}
        )
        self._context = samples[-_CONTEXT_SAMPLES:]
        start, self._samples = self._samples, self._samples + WINDOW_SAMPLES
        return Verdict(start_sample=start, probability=float(found.reshape(-1)[0]))
