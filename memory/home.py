"""`BATON_HOME`: the one directory that holds all state, under one exclusive lock, and its owner's alone."""

import hashlib
import json
import logging
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from models.errors import Conflict

_log = logging.getLogger(__name__)

_SECRET_BYTES = 32

_OTHERS = stat.S_IRWXG | stat.S_IRWXO

_NAMED = 4
"""How many of the files that were found open are named."""


class Home:
    """The state directory, held exclusively while entered.

    Nobody but its owner reads it: what is made is made so, and what is found open, the directory itself included, is
    closed and logged. What else a user keeps there (a catalog, weights) is left as it is.

    ```
    baton.sqlite3    sessions, events, turns, effects, blob references, keys
    blobs/           content, by sha-256
    secret           signs the page's cookies
    lock, holder     the lock, and who holds it
    chat-history     what was typed in the terminal
    ```
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / "lock", mode=0o600)

    @property
    def database(self) -> Path:
        """Where the database is."""
        return self.path / "baton.sqlite3"

    @property
    def blobs(self) -> Path:
        """Where blobs are."""
        return self.path / "blobs"

    @property
    def secret_file(self) -> Path:
        """Where the secret is."""
        return self.path / "secret"

    @property
    def chat_history(self) -> Path:
        """Where the terminal keeps what was typed."""
        return self.path / "chat-history"

    def create(self) -> Self:
        """Make the directory if it is not there, and keep it and the state in it from everybody but its owner."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.close_to_others()
        return self

    def close_to_others(self) -> None:
        """Take from everybody but the owner what they may do with the state; log what was open.

        What is another user's cannot be closed, and stays open with a warning.
        """
        found = [path for path in self._state() if _close(path)]
        if found:
            _log.warning(
                "%s could be read by others on this machine; now its owner alone can. Found open: %s.%s",
                self.path,
                ", ".join(path.name for path in found[:_NAMED]) + (" and others" if len(found) > _NAMED else ""),
                " Cookies can be made by whoever has read the secret: delete the file, and a new one is made."
                if self.secret_file in found
                else "",
            )

    def _state(self) -> Iterator[Path]:
        """Yield the directory and everything in it that is ours; single blobs only if one could have got at them."""
        walk = not self.blobs.is_symlink() and any(map(_is_open, (self.path, self.blobs)))
        yield self.path.resolve()
        for suffix in ("", "-wal", "-shm", "-journal"):
            yield self.database.with_name(self.database.name + suffix)
        yield from (self.secret_file, self.chat_history, self.path / "lock", self.path / "holder")
        yield self.blobs
        if walk:
            yield from self.blobs.rglob("*")

    def secret(self) -> bytes:
        """Return the secret of this home, made at first use, and anew if it is too short to be one."""
        path = self.secret_file
        if (known := path.read_bytes() if path.exists() else None) is not None:
            if len(known) >= _SECRET_BYTES:
                return known
            # Anybody could sign with it. All that a secret is worth are cookies: whoever has one logs in again.
            _log.warning("%s has %d bytes, which is no secret: a new one is made, and cookies end.", path, len(known))
        # Written beside its place and renamed: a crash must not leave an empty secret, which signs for anybody.
        draft = self.path / "secret.new"
        with open(draft, "wb", opener=private) as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return path.read_bytes()

    def identity(self) -> str:
        """Return what this home is called where several servers share what they keep; it stays when the home is moved."""
        return hashlib.sha256(b"home:" + self.secret()).hexdigest()[:32]

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            Conflict: somebody else holds it; the message says who.
        """
        self.create()
        holder = self.path / "holder"
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            who = _read_holder(holder)
            raise Conflict(
                f"{self.path} is in use by {who}. Stop that server, or set BATON_HOME to another directory.",
                code="home_locked",
            ) from None
        with open(holder, "w", opener=private) as file:
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        (self.path / "holder").unlink(missing_ok=True)
        self._lock.release()


def private(path: str | Path, flags: int) -> int:
    """Open a file that, if it is made, is its owner's alone; an `opener` of `open`."""
    return os.open(path, flags, 0o600)


def _is_open(path: Path) -> bool:
    return path.exists() and bool(path.stat().st_mode & _OTHERS)


def _close(path: Path) -> bool:
    """Close a file or directory to all but its owner; return whether it was open and is not any more."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or not mode & _OTHERS:
            return False
        path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
    except FileNotFoundError:  # the database's, which come and go
        return False
    except PermissionError:
        _log.warning("%s can be read by others on this machine, and is not ours to change.", path)
        return False
    return True


def _read_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return "another server"
    return f"process {holder['pid']} on {holder['host']}"
