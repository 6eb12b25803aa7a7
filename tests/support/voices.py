"""Sound for tests: a vowel sung by a machine, noise, and silence. No recording of anybody."""

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
_FORMANTS = ((700, 90), (1220, 110), (2600, 160))
"""Centre and width, in Hz, of what makes an open vowel (Peterson and Barney 1952)."""


def voice(seconds: float, *, seed: int = 7, pitch_hz: float = 110) -> NDArray[np.int16]:
    """Return a vowel in syllables: pulses of a voice through the resonances of a mouth (Fant 1960)."""
    samples = int(seconds * RATE_HZ)
    at = np.arange(samples)
    phase = np.cumsum(pitch_hz + 20 * np.sin(2 * np.pi * at / RATE_HZ * 3)) / RATE_HZ
    sound = (np.diff(np.floor(phase), prepend=0) > 0).astype(np.float64)
    for centre_hz, width_hz in _FORMANTS:
        sound = _resonated(sound, centre_hz, width_hz)
    sound *= 0.5 / np.abs(sound).max() * (0.5 + 0.5 * np.sin(2 * np.pi * at / RATE_HZ * 4))
    return _as_pcm(sound + np.random.default_rng(seed).normal(0, 1e-3, samples))


def hiss(seconds: float, *, amplitude: float = 0.02, seed: int = 7) -> NDArray[np.int16]:
    """Return white noise."""
    return _as_pcm(np.random.default_rng(seed).normal(0, amplitude, int(seconds * RATE_HZ)))


def hum(seconds: float, hz: float = 440.0, amplitude: float = 0.3) -> NDArray[np.int16]:
    """Return one tone."""
    return _as_pcm(amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ))


def silence(seconds: float) -> NDArray[np.int16]:
    """Return nothing that can be heard."""
    return np.zeros(int(seconds * RATE_HZ), np.int16)


def _resonated(sound: NDArray[np.float64], centre_hz: float, width_hz: float) -> NDArray[np.float64]:
    """Return `sound` through a filter of two poles, by the length of its response that can be heard."""
    radius = np.exp(-np.pi * width_hz / RATE_HZ)
    angle = 2 * np.pi * centre_hz / RATE_HZ
    n = np.arange(RATE_HZ // 10)
    response = radius**n * np.sin((n + 1) * angle) / np.sin(angle)
    return np.convolve(sound, response)[: len(sound)]


def _as_pcm(sound: NDArray[np.float64]) -> NDArray[np.int16]:
    return np.clip(np.round(sound * 32_767), -32_768, 32_767).astype("<i2")
