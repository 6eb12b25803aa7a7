"""Whether a grammar can be made of a small schema, such as an expression or two bounds."""

import json
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from models.decoding.calls import JSON_STYLE
from models.decoding.form_limits import LIMITS

# Whether there is a grammar is no matter of the vocabulary: bytes are the smallest.
_BYTES = LLTokenizer("byte")


def holds(schema: dict[str, Any]) -> bool:
    """Return whether llguidance makes a grammar of `schema`."""
    return _holds(json.dumps({**schema, "x-guidance": JSON_STYLE}))


@lru_cache(2048)
def _holds(schema: str) -> bool:
    return not LLMatcher(_BYTES, LLMatcher.grammar_from_json_schema(schema), log_level=0, limits=LIMITS).is_error()
