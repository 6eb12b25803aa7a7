"""What was asked of a session and is not in its log yet: a message that is being kept, a response that is being decided.

Whoever asks need not wait: a surface goes on hearing its client meanwhile, and is told what came of it. The session owns the
tasks that see to it.
"""

import asyncio
from collections.abc import Sequence

from models.content import Item
from models.errors import BatonError


class Pending:
    """Something that is going to be in the log, or not."""

    def __init__(self) -> None:
        self._outcome: asyncio.Future[BatonError | None] = asyncio.get_running_loop().create_future()

    @property
    def is_settled(self) -> bool:
        """Whether it is known what came of it."""
        return self._outcome.done()

    def settle(self, error: BatonError | None) -> None:
        """Say what came of it; the first word counts."""
        if not self._outcome.done():
            self._outcome.set_result(error)

    async def done(self) -> None:
        """Wait until it is in the log.

        Raises:
            BatonError: it is not going to be.
        """
        if (error := await asyncio.shield(self._outcome)) is not None:
            raise error


class Saying(Pending):
    """Items that were said, and are not in the log yet. A request that comes in time takes them along, in one transaction."""

    def __init__(self, items: Sequence[Item]) -> None:
        """Begin with items that were checked."""
        super().__init__()
        self.items = tuple(items)
        self.is_taken = False


class TurnRequest(Pending):
    """A response that was asked for, and is being decided."""

    def __init__(self, turn_id: str, generation: int, saying: Saying | None, interrupts: str | None) -> None:
        """Begin with what was proposed, what it has taken along, and the turn that it ends."""
        super().__init__()
        self.turn_id = turn_id
        self.generation = generation
        self.saying = saying
        self.interrupts = interrupts
