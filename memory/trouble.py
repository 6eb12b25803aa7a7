"""What a failing database says, as errors that name their cause: a full disk, damage, a disk that cannot be written, a lock.

Source: SQLite's result codes, https://sqlite.org/rescode.html.
"""

import shutil
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from models.errors import BatonError, Internal, Overloaded, Unavailable

_FULL: Final = "storage_full"
_CORRUPT: Final = "storage_corrupt"
_READ_ONLY: Final = "storage_read_only"
_FAILED: Final = "storage_failed"
_BUSY: Final = "storage_busy"
_STALLED: Final = "storage_stalled"

LASTING: Final = frozenset({_FULL, _CORRUPT, _READ_ONLY, _FAILED})
"""The codes of what goes on until somebody does something about it."""

_LEAST_FREE_BYTES = 1 << 20
"""On a disk with less, a failing write is taken for one that found no room."""


def trouble(error: SQLAlchemyError, path: Path) -> BatonError:
    """Return what an error of the database at `path` means."""
    cause = getattr(error, "orig", None)
    code = getattr(cause, "sqlite_errorcode", None)
    match None if code is None else code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return full()
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if _is_full(path):
            return full()
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return corrupt()
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return Unavailable(
                "The server's storage can only be read. Whoever runs it has to make BATON_HOME writable.",
                code=_READ_ONLY,
                retryable=False,
            )
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN:
            return Unavailable(
                "The server's storage fails: its disk cannot be read or written. The server's log has the cause.",
                code=_FAILED,
                retryable=False,
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Overloaded("The server's database is held by another program. Try again in a moment.", code=_BUSY)
        case None if "decode to UTF-8" in str(cause):  # of sqlite3 itself: what lies there is no text any more
            return corrupt()
        case _:
            return Internal("The database refused. The server's log has the cause.")


def full() -> Unavailable:
    """Return the error for a disk without room."""
    return Unavailable(
        "The server's disk is full, so nothing more can be kept. Whoever runs it has to make room.",
        code=_FULL,
        retryable=False,
    )


def stalled() -> Unavailable:
    """Return the error for a disk that does not answer in time."""
    return Unavailable(
        "The server's storage does not answer. What was asked may have been kept: look before you ask again.",
        code=_STALLED,
    )


def corrupt() -> Internal:
    """Return the error for what lies on the disk and is not what was written there."""
    return Internal(
        "The server's database is damaged. Whoever runs it has to restore a backup: baton restore.",
        code=_CORRUPT,
        retryable=False,
    )


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LEAST_FREE_BYTES
    except OSError:
        return False
