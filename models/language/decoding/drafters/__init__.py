"""Drafters guess how an answer goes on; the target model verifies the guess in one run.

A guess costs nothing but time: verification chooses each token as plain decoding would, so what is written never depends
on who guessed. Drafters so need give no probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from models.owner import Owner

DrafterName = Literal["suffix", "pair", "early_exit"]


@dataclass(slots=True, eq=False, kw_only=True)
class Context:
    """A request as a drafter sees it. It is its own key: two requests with equal fields are two.

    Attributes:
        owner: whose request it is; what is learned from its text serves nobody else.
        tokens: the prompt and what was accepted so far. It only grows, and only the engine writes to it.
        prompt_length: how many of them are the prompt.
        forgotten: whether nothing of it may be kept when it leaves.
    """

    owner: Owner
    tokens: list[int]
    prompt_length: int
    forgotten: bool = False


class Drafter(Protocol):
    """Guesses for many requests at once. Used by one thread."""

    @property
    def name(self) -> DrafterName:
        """What it is called in usage records and metrics."""
        ...

    def join(self, context: Context) -> None:
        """Take in a request whose prompt has been read."""
        ...

    def draft(self, asks: Sequence[tuple[Context, int]]) -> list[list[int]]:
        """Return for each request at most so many tokens that may come next; fewer or none where there is no good guess."""
        ...

    def observe(self, context: Context, drafted: int, accepted: int) -> None:
        """Learn how many of the tokens last drafted were accepted; `context.tokens` has grown by them and one more."""
        ...

    def leave(self, context: Context) -> None:
        """Forget a request that was finished or cancelled, and free what it held."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A drafter that keeps something of requests that have left."""

    def forget(self, tenant: str, subject: str | None) -> None:
        """Let go of all that was learned of a tenant, or of one subject of it."""
        ...


@runtime_checkable
class Forecasts(Protocol):
    """A drafter that can tell how good its drafts would be, before it drafts."""

    def forecast(self, asks: Sequence[tuple[Context, int]]) -> list[list[float]]:
        """Return for each request the chance, token by token, that a draft of at most so many would be right so far."""
        ...
