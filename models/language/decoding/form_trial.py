"""Forms are tried out in a process that may die, before the process that serves everybody is given them.

What a caller writes, native code compiles by recursion. `form_depth` finds what is surely too deep; what it does not see is
found here, at the price of one process: of a form that ends it, or takes it too long, only its own request fails. The trial
compiles what will be compiled, and follows the beginning of an answer. It does so for a vocabulary of bytes: how deep a form goes
does not depend on the vocabulary, and a small one is there at once. It has less stack than the threads that compile later
(`STACK_BYTES`), so that what survives there survives here.

What came of a form is remembered for its owner by its digest, and costs that one nothing again: how soon an answer begins tells no
end user what another has asked.
"""

import hashlib
from collections import OrderedDict

from models.clock import Clock
from models.errors import LimitExceeded
from models.language.forms.question_process import LineProcess, TooMuch
from models.owner import Owner

STACK_BYTES = 64 << 20
"""Of the threads that compile forms and follow them; the trial has an eighth of it (`models.language.forms.answering`)."""

_REMEMBERED = 1_024


class FormTrial:
    """Tries forms out; one process for all of an engine's."""

    def __init__(self, clock: Clock) -> None:
        """Wait by `clock`. The process is started with the first form."""
        self._process = LineProcess("models.language.decoding.form_trial_process", clock)
        self._known: OrderedDict[tuple[Owner, bytes], bool | None] = OrderedDict()  # None is too much

    async def compiles(self, source: str, vocabulary: int, *, field: str, owner: Owner) -> bool:
        """Return whether a grammar can be made of `source`, as llguidance takes it; if not, the engine will say why.

        Args:
            source: what `LLMatcher` is going to be given.
            vocabulary: how many tokens there are, which a grammar may name by number.
            field: where it came from, for the error.
            owner: whose it is; tenants wait for the process by turns.

        Raises:
            LimitExceeded: making it takes too long, too much memory, or goes too deep.
            Unavailable: it cannot be tried now.
        """
        key = (owner, hashlib.sha256(source.encode(errors="surrogatepass")).digest())
        if key in self._known:
            self._known.move_to_end(key)
        else:
            self._known[key] = await self._tried(source, vocabulary, owner.tenant)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        if (known := self._known[key]) is None:
            raise LimitExceeded(
                "Making a grammar of this form takes too long, too much memory, or goes too deep. Make it simpler.",
                field=field,
            )
        return known

    async def _tried(self, source: str, vocabulary: int, tenant: str) -> bool | None:
        try:
            found: bool = await self._process.ask({"source": source, "vocabulary": vocabulary}, tenant=tenant)
        except TooMuch:
            return None
        return found

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        await self._process.aclose()
