"""How much of a conversation there may be."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.content import Item, length_of
from models.errors import too_long


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """Bounds of one session, each with what happens at it.

    Attributes:
        candidates: proposals open at a time; the oldest is dropped.
        item_characters: length of an item that is added; a longer one is refused.
        items: items kept for the model's context; the oldest leave it, the log keeps them.
        history_characters: length of all of them together, likewise; the newest item stays, whatever its length.
        sound_bytes: sound of open items kept for those who play it; a reader further behind is told how much it has missed.
        rows: rows kept for readers that lag; a reader further behind reads the database.
        detach_grace_s: how long a turn runs on without a reader before it is cancelled; 0 is at once, infinity never.
        proposal_s: how long a proposal waits to be committed before it is dropped.
        idle_s: how long a session without reader or turn stays in memory.
    """

    candidates: int = 4
    item_characters: int = 100_000
    items: int = 256
    history_characters: int = 400_000
    sound_bytes: int = 1024 * 1024
    rows: int = 64
    detach_grace_s: float = 60.0
    proposal_s: float = 60.0
    idle_s: float = 300.0


def check_lengths(items: Sequence[Item], most: int) -> None:
    """Check that no item has more than `most` characters.

    Raises:
        LimitExceeded: one has.
    """
    for item in items:
        if (length := length_of(item)) > most:
            raise too_long("an item", length, most, field="item")
