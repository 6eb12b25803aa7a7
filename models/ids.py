"""Identifiers: a prefix that says of what, and a ULID (github.com/ulid/spec), which sorts by time of making."""

from ulid import ULID


def new_id(prefix: str) -> str:
    """Return a new id such as `turn_01K9...`."""
    return f"{prefix}_{ULID()}"
