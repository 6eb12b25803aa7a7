"""A home in one file: the database as it is at one moment, the blobs that it refers to, the secret.

Weights are not in it: the store fetches them again.
"""

import gzip
import os
import sqlite3
import tarfile
import tempfile
import zlib
from contextlib import closing, suppress
from pathlib import Path

from memory.home import Home, private
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
        with open(draft, "wb", opener=private) as file:
            with tarfile.open(fileobj=file, mode="w:gz") as tar:
                tar.add(copy, home.database.name)
                # After the database: what it refers to was there before it, and is never changed; it may be deleted meanwhile.
                for path in sorted(home.blobs.rglob("*")):
                    _add(tar, path, home)
                if home.secret_file.is_file():
                    tar.add(home.secret_file, home.secret_file.name)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(archive)
    return archive.stat().st_size


def _add(tar: tarfile.TarFile, path: Path, home: Home) -> None:
    """Add a file of the home, unless it is gone meanwhile."""
    with suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as content:
        tar.addfile(tar.gettarinfo(arcname=str(path.relative_to(home.path)), fileobj=content), content)


def restore(archive: Path, home: Home) -> None:
    """Unpack `archive` into `home`, which must be empty of state and not in use.

    Raises:
        Conflict: the home has a database already, or a server holds it.
        BadInput: the archive is none of Baton's, or damaged, or there is no room for it; the home is as it was.
    """
    with home:
        if home.database.exists():
            raise Conflict(f"{home.path} has a database already. Restore into an empty BATON_HOME.")
        # Unpacked on the home's file system but out of its way, so that what fails half-way leaves nothing.
        with tempfile.TemporaryDirectory(dir=home.path, prefix=".restore-") as folder:
            draft = Home(Path(folder))
            try:
                with gzip.open(archive) as file, tarfile.open(fileobj=file, mode="r|") as tar:
                    tar.extractall(draft.path, filter="data")
                    while file.read(1 << 20):
                        pass  # its checksum is at its end, where tar does not look
            except (OSError, EOFError, zlib.error, tarfile.TarError) as exc:
                raise BadInput(f"{archive} cannot be restored: {exc}.") from exc
            if not draft.database.is_file():
                raise BadInput(f"{archive} is no backup of Baton.")
            if not _is_whole(draft.database):
                raise BadInput(f"{archive} is damaged: its database is not whole. Restore another backup.")
            _move(draft, home)


def _is_whole(database: Path) -> bool:
    try:
        # Immutable, so that SQLite puts no files beside it.
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?immutable=1", uri=True)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone() == ("ok",))
    except sqlite3.DatabaseError:
        return False


def _move(draft: Home, home: Home) -> None:
    """Move every file into place, the database last: a home without it can be restored into again."""
    files = [path for path in draft.path.rglob("*") if path.is_file() and path != draft.database]
    for folder in sorted({path.parent.relative_to(draft.path) for path in files}):
        for step in reversed((folder, *folder.parents)):
            (home.path / step).mkdir(mode=0o700, exist_ok=True)
    for path in (*files, draft.database):
        target = home.path / path.relative_to(draft.path)
        path.chmod(0o600)  # whatever the archive says
        path.replace(target)


def _copy_database(source: Path, target: Path) -> None:
    """Copy with SQLite's online backup, which sees one moment of a database that is written to meanwhile."""
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
