"""Forms are tried out in a process that may die, before the process that serves everybody is given them.

What a caller writes, native code compiles by recursion. `form_depth` finds what is surely too deep; what it does not see is
found here, at the price of one process: of a form that ends it, or takes it too long, only its own request fails. The trial
compiles what will be compiled, and asks for the first mask. It does so for a vocabulary of bytes: neither how deep a form goes
nor what its parser does depends on the vocabulary, and a small one is there at once. It has less stack than the threads that
compile later (`STACK_BYTES`), so that what survives there survives here.

A form that has passed is remembered by its digest, and costs nothing again.
"""

import hashlib
from collections import OrderedDict

from models.clock import Clock
from models.errors import LimitExceeded
from models.line_process import LineProcess

TRIAL_STACK_BYTES = 8 << 20
STACK_BYTES = 64 << 20
"""Of the threads that compile forms and follow them."""

_PATIENCE_S = 10.0
_MOST_CPU_S = 2.0
_REMEMBERED = 1_024


class FormTrial:
    """Tries forms out; one process for all of an engine's."""

    def __init__(self, clock: Clock, *, patience_s: float = _PATIENCE_S) -> None:
        """Wait by `clock`, so long for each form. The process is started with the first."""
        self._process = LineProcess("models.decoding.form_trial_process", clock, patience_s=patience_s)
        self._passed: OrderedDict[bytes, bool] = OrderedDict()

    async def compiles(self, source: str, vocabulary: int, *, field: str, tenant: str = "") -> bool:
        """Return whether a grammar can be made of `source`, as llguidance takes it; if not, the engine will say why.

        Args:
            source: what `LLMatcher` is going to be given.
            vocabulary: how many tokens there are, which a grammar may name by number.
            field: where it came from, for the error.
            tenant: whose it is; tenants wait for the process by turns.

        Raises:
            LimitExceeded: making it ends the process, or takes too long, or too much memory.
        """
        digest = hashlib.sha256(source.encode(errors="surrogatepass")).digest()
        if (known := self._passed.get(digest)) is not None:
            self._passed.move_to_end(digest)
            return known
        try:
            tried = await self._process.ask({"source": source, "vocabulary": vocabulary}, tenant=tenant)
        except (TimeoutError, ConnectionError) as exc:
            raise _too_much(field) from exc
        if tried["cpu_s"] > _MOST_CPU_S:
            raise _too_much(field)
        self._passed[digest] = tried["compiles"]
        if len(self._passed) > _REMEMBERED:
            self._passed.popitem(last=False)
        return self._passed[digest]

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        await self._process.aclose()


def _too_much(field: str) -> LimitExceeded:
    return LimitExceeded(
        "Making a grammar of this form takes too long, too much memory, or goes too deep. Make it simpler.", field=field
    )
