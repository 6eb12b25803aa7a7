"""The process that `models.language.decoding.form_trial` asks: `{"source", "vocabulary"}` in, whether a grammar can be made out."""

from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from models.language.decoding.form_limits import LIMITS
from models.language.forms.answering import serve

_STEPS = 64
"""Of an answer that are followed: parsers do much of their work only where it is needed."""


@lru_cache(8)
def _bytes_of(vocabulary: int) -> LLTokenizer:
    return LLTokenizer("byte", n_vocab=max(vocabulary, 257))


def compiles(asked: Any) -> bool:
    """Return whether a grammar can be made; follow the beginning of an answer in it."""
    try:
        matcher = LLMatcher(_bytes_of(asked["vocabulary"]), asked["source"], log_level=0, limits=LIMITS)
        for _ in range(_STEPS):
            if matcher.is_error() or matcher.is_stopped():
                break
            allowed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            forced = matcher.compute_ff_tokens() or [
                int(at) for at in np.unpackbits(allowed, bitorder="little").nonzero()[0][-1:]
            ]
            if not forced or not all(matcher.consume_token(token) for token in forced):
                break
        return not matcher.is_error()
    except BaseException as exc:
        # A panic of native code is no `Exception`, and has no name that could be imported. Whoever compiles it says what it is.
        if isinstance(exc, MemoryError | SystemExit | KeyboardInterrupt):
            raise
        return False


if __name__ == "__main__":
    serve(compiles)
