"""`BATON_HOME`: the one directory that holds all state, under one exclusive lock."""

import json
import os
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from models.errors import Conflict


class Home:
    """The state directory, held exclusively while entered.

    ```
    baton.sqlite3    sessions, events, turns, effects, blob references, keys
    blobs/           content, by sha-256
    secret           signs the page's cookies
    lock, holder     the lock, and who holds it
    ```
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / "lock")

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

    def create(self) -> Self:
        """Make the directory, readable by its owner only, if it is not there."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def secret(self) -> bytes:
        """Return the secret of this home, made at first use."""
        path = self.secret_file
        if not path.exists():
            # Written beside its place and renamed: a crash must not leave an empty secret, which signs for anybody.
            draft = self.path / "secret.new"
            with open(draft, "wb", opener=_private) as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        return path.read_bytes()

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
        holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        (self.path / "holder").unlink(missing_ok=True)
        self._lock.release()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return "another server"
    return f"process {holder['pid']} on {holder['host']}"
