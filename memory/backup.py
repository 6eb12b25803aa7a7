"""A home in one file: the database as it is at one moment, the blobs that it refers to, the secret.

Weights are not in it: the store fetches them again.
"""

import os
import sqlite3
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

from memory.home import Home
from models.errors import BadInput, Conflict


def backup(home: Home, archive: Path) -> int:
    """Write a gzipped tar of `home` to `archive`, also beside a server that runs. Return its size in bytes.

    Raises:
        Conflict: there is such a file already.
        BadInput: there is nothing to back up.
    """
    if archive.exists():
        raise Conflict(f"{archive} exists already. Name another file.")
    if not home.database.exists():
        raise BadInput(f"{home.path} has no database. Is BATON_HOME right?")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".backup-") as folder:
        copy, draft = Path(folder) / "database", Path(folder) / "archive"
        _copy_database(home.database, copy)
        with open(draft, "wb", opener=_private) as file:
            with tarfile.open(fileobj=file, mode="w:gz") as tar:
                tar.add(copy, home.database.name)
                # After the database: what it refers to was there before it, and is never changed.
                if home.blobs.is_dir():
                    tar.add(home.blobs, home.blobs.name)
                if home.secret_file.is_file():
                    tar.add(home.secret_file, home.secret_file.name)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(archive)
    return archive.stat().st_size


def restore(archive: Path, home: Home) -> None:
    """Unpack `archive` into `home`, which must be empty of state and not in use.

    Raises:
        Conflict: the home has a database already, or a server holds it.
        BadInput: the archive is none of Baton's.
    """
    with home:
        if home.database.exists():
            raise Conflict(f"{home.path} has a database already. Restore into an empty BATON_HOME.")
        try:
            with tarfile.open(archive) as tar:
                if home.database.name not in tar.getnames():
                    raise BadInput(f"{archive} is no backup of Baton.")
                tar.extractall(home.path, filter="data")
        except (OSError, tarfile.TarError) as exc:
            raise BadInput(f"{archive} cannot be read: {exc}.") from exc


def _copy_database(source: Path, target: Path) -> None:
    """Copy with SQLite's online backup, which sees one moment of a database that is written to meanwhile."""
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
