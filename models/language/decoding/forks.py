"""Answers to one prompt: the first row reads it, the others wait, and go on from a copy of what it has read."""

from models.language.decoding.prefixes import Scope
from models.language.decoding.rows import Row


class Forks:
    """Who reads a prompt for others, and the others. Used by one thread."""

    def __init__(self) -> None:
        self._reading: dict[tuple[Scope, str], Row] = {}
        self._parked: list[Row] = []

    def __len__(self) -> int:
        """How many wait for another to read."""
        return len(self._parked)

    def parks(self, row: Row) -> bool:
        """Return whether a row that comes waits here, because another one reads its prompt; else it may be the one that does."""
        if row.fork is None:
            return False
        reading = self._reading.setdefault((row.scope, row.fork), row)
        if reading is row or not are_forks(row, reading):
            return False
        self._parked.append(row)
        return True

    def remove(self, row: Row) -> None:
        """Let a row go that waits here, if it does."""
        if row in self._parked:
            self._parked.remove(row)

    def unpark(self, row: Row) -> list[Row]:
        """Return who need not wait for `row` any more: all, if it has read; else it goes, and the next one is to read."""
        if row.fork is None or self._reading.get((row.scope, row.fork)) is not row:
            return []
        del self._reading[row.scope, row.fork]
        followers = [other for other in self._parked if are_forks(row, other)]
        if not row.has_read and followers:
            followers = followers[:1]
            self._reading[row.scope, row.fork] = followers[0]
        for follower in followers:
            self._parked.remove(follower)
        return followers


def are_forks(one: Row, other: Row) -> bool:
    """Return whether two rows are answers to one prompt: never of two owners, nor of prompts that differ."""
    return (
        one.fork is not None
        and one.fork == other.fork
        and one.scope == other.scope
        and one.prompt.plain
        and other.prompt.plain
        and one.prompt.tokens == other.prompt.tokens
    )
