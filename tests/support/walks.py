"""Answers as a grammar admits them, chosen by lot: what may be written under a schema, whatever a model would have thought."""

import json
import random
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from models.language.tool_format import JSON_STYLE

_BYTES = LLTokenizer("byte")
_ENDS = frozenset(b'"}]')


def walk(schema: Any, seed: int, most: int = 600) -> str | None:
    """Return an answer, byte by byte; None if it does not come to an end soon.

    Raises:
        ValueError: there is no grammar of `schema`.
    """
    given = schema if isinstance(schema, dict) else {"allOf": [schema]}
    source = LLMatcher.grammar_from_json_schema(json.dumps({**given, "x-guidance": JSON_STYLE}))
    matcher, chance, written = LLMatcher(_BYTES, source, log_level=0), random.Random(seed), bytearray()
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    while not matcher.is_stopped() and len(written) < most:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        admitted = np.flatnonzero(bits[: _BYTES.vocab_size]).tolist()
        more = [token for token in admitted if token < 256]
        if len(more) < len(admitted) and (not more or chance.random() < 0.4):
            return written.decode()
        ends = [token for token in more if token in _ENDS]
        plain = [token for token in more if 32 <= token < 127]
        choice = ends if ends and chance.random() < 0.4 else plain if plain and chance.random() < 0.95 else more
        matcher.consume_token(token := chance.choice(choice))
        written.append(token)
    return written.decode() if matcher.is_stopped() else None
