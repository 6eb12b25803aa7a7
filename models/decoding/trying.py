"""Whether a grammar can be made of a small schema, such as an expression or two bounds: tried, in a process that may die.

Small is not cheap: of `{"multipleOf": 134217727}` a grammar is made in minutes, and nothing else runs meanwhile.
"""

import asyncio
import time
from typing import Any

from llguidance import LLMatcher

from models.clock import Clock
from models.decoding.calls import JSON_STYLE
from models.decoding.form_trial import FormTrial
from models.errors import LimitExceeded
from models.forms.plan import Holds

_PATIENCE_S = 1.0
_MOST_S = 3.0

_BYTES = 257
"""Whether there is a grammar is no matter of the vocabulary: bytes are the smallest."""


class Trying:
    """Tries small schemas; one process for all requests."""

    def __init__(self, clock: Clock) -> None:
        """Wait by `clock`. The process is started with the first schema."""
        self._trial = FormTrial(clock, patience_s=_PATIENCE_S)

    def begin(self) -> Holds:
        """Return what tries the schemas of one request, from another thread than the loop's, which calls this.

        What takes too long by itself is not held. If all together do, it raises `LimitExceeded`.
        """
        loop = asyncio.get_running_loop()
        spent_s = 0.0

        def holds(schema: dict[str, Any]) -> bool:
            nonlocal spent_s
            if spent_s > _MOST_S:
                raise LimitExceeded("Making a grammar of this schema takes too long. Make it simpler.")
            source = LLMatcher.grammar_from_json_schema({**schema, "x-guidance": JSON_STYLE})
            began_s = time.monotonic()
            trying = asyncio.run_coroutine_threadsafe(self._trial.compiles(source, _BYTES, field="form"), loop)
            try:
                return trying.result()
            except LimitExceeded:
                spent_s += time.monotonic() - began_s
                return False

        return holds

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        await self._trial.aclose()
