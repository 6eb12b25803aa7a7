"""Where engines run, as the fleet sees it: a worker process here, later others elsewhere."""

from dataclasses import dataclass
from typing import Literal, Protocol

from models.catalog import EngineSpec
from models.errors import BatonError
from models.placement.doors import Door


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementStatus:
    """How a card stands in its place.

    Attributes:
        state: whether a request would be worked on at once, waits, or fails.
        message: why it failed or is not ready, if that is known.
    """

    state: Literal["ready", "loading", "failed"]
    message: str | None = None


class Placement(Protocol):
    """A place where engines run. Nothing of it raises because the place is down: cards then stand as loading or failed."""

    def door(self, card: str) -> Door:
        """Return the engine of `card` as it is seen from here. Its requests wait until `settle` has said how the card stands."""
        ...

    async def settle(self, card: str, with_: EngineSpec | BatonError) -> None:
        """Have the engine of `card` built, now and whenever the place begins anew; or have all its requests fail.

        Returns once it is built.

        Raises:
            BatonError: it cannot be.
        """
        ...

    def status(self, card: str) -> PlacementStatus:
        """Return how a card stands."""
        ...


class Keeper(Protocol):
    """What keeps something of requests that are over: prefixes that were read, answers that drafts come from."""

    async def forget(self, tenant: str, subject: str | None = None) -> None:
        """Let go of all that is kept of a tenant, or of one subject of it. Returns once nothing of it is kept.

        What keeps nothing, since it is down, has forgotten.
        """
        ...
