"""The sound that a session's open items are spoken with, for whoever plays it now: a ring beside the cursors of its text.

Text can be caught up with, sound cannot: it is many bytes, and late it is of no use. So the last of it is kept, within a bound,
whoever reads it; a reader that is too slow is told how much it has missed, and holds up nobody. It lives in memory alone, and
ends with what it belongs to: once the next turn is accepted, nobody wants to hear the one before.
"""

from collections import deque
from dataclasses import dataclass

_PIECE_BYTES = 64 * 1024
"""What comes in larger pieces is kept in these, lest one alone fill the ring."""


@dataclass(frozen=True, slots=True)
class SoundPiece:
    """Some of an item's sound: 16-bit mono samples, behind `offset` of them."""

    item_id: str
    offset: int
    rate_hz: int
    pcm: bytes

    @property
    def end(self) -> int:
        """How many samples of the item there are with it."""
        return self.offset + len(self.pcm) // 2


class SoundRing:
    """One session's."""

    def __init__(self, most_bytes: int) -> None:
        """Keep at most so much."""
        self._most_bytes = most_bytes
        self._pieces: deque[SoundPiece] = deque()
        self._bytes = 0

    def append(self, item_id: str, offset: int, rate_hz: int, pcm: bytes) -> None:
        """Take what an item grows by; the oldest goes that has no place any more, whosoever it is."""
        for at in range(0, len(pcm), _PIECE_BYTES):
            piece = SoundPiece(item_id, offset + at // 2, rate_hz, pcm[at : at + _PIECE_BYTES])
            self._pieces.append(piece)
            self._bytes += len(piece.pcm)
        while self._bytes > self._most_bytes:
            self._bytes -= len(self._pieces.popleft().pcm)

    def since(self, item_id: str, samples: int) -> list[SoundPiece]:
        """Return what there is of an item behind so many samples, in order."""
        pieces: list[SoundPiece] = []
        for piece in reversed(self._pieces):  # a reader lacks the newest
            if piece.item_id != item_id:
                continue
            if piece.offset < samples:
                break
            pieces.append(piece)
        pieces.reverse()
        return pieces

    def clear(self) -> None:
        """Let go of all of it."""
        self._pieces.clear()
        self._bytes = 0
