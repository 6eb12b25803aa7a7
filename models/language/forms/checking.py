"""Checking answers against schemas, in a process of their own; see `models.language.forms.judge`."""

from collections.abc import Sequence

from models.clock import Clock
from models.errors import BadInput, LimitExceeded
from models.language.forms.question_process import LineProcess, TooMuch
from models.owner import Owner


class Checker:
    """Asks the judge, one question at a time."""

    def __init__(self, clock: Clock) -> None:
        """Wait by `clock`."""
        self._judge = LineProcess("models.language.forms.judge", clock)

    async def check(self, schema: str, texts: Sequence[str], *, owner: Owner) -> list[str | None]:
        """Return what is wrong with each of `texts` by `schema`, both JSON; None where it fits. What is made of a schema serves its owner alone.

        Raises:
            BadInput: `schema` is none, or refers to what is not in it.
            LimitExceeded: checking takes too long, or more memory than it may.
            Unavailable: it cannot be checked now.
        """
        try:
            asked = {"schema": schema, "texts": list(texts), "owner": [owner.tenant, owner.subject]}
            reply = await self._judge.ask(asked, tenant=owner.tenant)
        except TooMuch as exc:
            raise LimitExceeded(
                "Checking an answer against this schema takes too long, or too much memory. Make it simpler."
            ) from exc
        if "wrong" in reply:
            raise BadInput(f"The JSON schema is none that can be checked: {reply['wrong']}.")
        faults: list[str | None] = reply["faults"]
        return faults

    async def aclose(self) -> None:
        """End the process. Idempotent."""
        await self._judge.aclose()
