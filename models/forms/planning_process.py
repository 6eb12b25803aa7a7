"""The process that `models.forms.planning` asks: what is to be planned in, the plan or what is wrong with it out, both pickled.

Both ends are one installation, and the pipe between them has no other door.
"""

import base64
import json
import pickle
from functools import lru_cache
from typing import Any

from models.answering import serve
from models.errors import BatonError
from models.forms.plan import plan


def holds(schema: dict[str, Any]) -> bool:
    """Return whether llguidance makes a grammar of a small schema, such as an expression or two bounds."""
    return _holds(json.dumps(schema))


@lru_cache(2048)
def _holds(schema: str) -> bool:
    # Not where models are remote: it is not installed there.
    from llguidance import LLMatcher, LLTokenizer

    from models.decoding.calls import JSON_STYLE
    from models.decoding.form_limits import LIMITS

    # Whether there is a grammar is no matter of the vocabulary: bytes are the smallest.
    source = LLMatcher.grammar_from_json_schema({**json.loads(schema), "x-guidance": JSON_STYLE})
    return not LLMatcher(LLTokenizer("byte"), source, log_level=0, limits=LIMITS).is_error()


def planned(asked: str) -> str:
    """Return the plan."""
    constraint, level, remote = pickle.loads(base64.b64decode(asked))
    try:
        made: object = plan(constraint, (lambda _: True) if remote else holds, level, remote=remote)
    except BatonError as exc:
        made = exc
    return base64.b64encode(pickle.dumps(made)).decode()


if __name__ == "__main__":
    serve(planned)
