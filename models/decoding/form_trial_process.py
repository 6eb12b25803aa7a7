"""The process that `models.decoding.form_trial` asks: a line `{"source", "vocabulary"}` in, `{"compiles", "cpu_s"}` out."""

import json
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from models.decoding.form_limits import LIMITS
from models.decoding.form_trial import TRIAL_STACK_BYTES

_MEMORY_BYTES = 1 << 30


@lru_cache(8)
def _bytes_of(vocabulary: int) -> LLTokenizer:
    return LLTokenizer("byte", n_vocab=max(vocabulary, 257))


def answer(line: str) -> dict[str, Any] | None:
    """Return what is answered to a line."""
    asked = json.loads(line)
    if asked is None:
        return None
    began_s = time.process_time()
    matcher = LLMatcher(_bytes_of(asked["vocabulary"]), asked["source"], log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return {"compiles": not matcher.is_error(), "cpu_s": time.process_time() - began_s}


def _serve() -> None:
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)  # noqa: T201  # this is how it speaks


def main() -> None:
    """Answer until there are no more lines."""
    with suppress(ImportError, ValueError, OSError):  # where there are such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(TRIAL_STACK_BYTES)  # the first thread's is whatever the system gives
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
