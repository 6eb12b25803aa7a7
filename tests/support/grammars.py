"""Whether llguidance makes a grammar of a small schema, tried here: tests choose what they try."""

import json
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from models.decoding.calls import JSON_STYLE
from models.decoding.form_limits import LIMITS

_BYTES = LLTokenizer("byte")


def holds(schema: dict[str, Any]) -> bool:
    """Return whether there is one."""
    return _holds(json.dumps({**schema, "x-guidance": JSON_STYLE}))


@lru_cache(2048)
def _holds(schema: str) -> bool:
    return not LLMatcher(_BYTES, LLMatcher.grammar_from_json_schema(schema), log_level=0, limits=LIMITS).is_error()
