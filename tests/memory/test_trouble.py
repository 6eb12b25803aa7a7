"""A database that fails says why: real failures of a real file."""

import asyncio
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from memory.database import Database, transaction
from memory.sessions import create_session, list_sessions
from models.errors import BatonError, Internal, Overloaded, Unavailable


def _add(name: str, *, size: int = 0):
    def unit(connection: Connection) -> None:
        create_session(connection, "local", name, 0)
        connection.execute(text("UPDATE sessions SET instructions = :x WHERE id = :n"), {"x": "x" * size, "n": name})

    return unit


async def _fill(database: Database) -> None:
    """Leave the file no page to grow by, which SQLite answers as it does a full disk."""
    pages = await database.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
    await database.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}"))


async def _make_room(database: Database) -> None:
    await database.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1000000"))


async def _fails(database: Database, unit) -> BatonError:
    with pytest.raises(BatonError) as failed:
        await database.write(unit)
    return failed.value


async def test_a_full_disk_is_told_as_one_until_there_is_room(database):
    assert await database.trouble() is None
    await _fill(database)
    error = await _fails(database, _add("a", size=300_000))
    assert isinstance(error, Unavailable)
    assert (error.code, error.retryable) == ("storage_full", False)
    for _ in range(2):
        trouble = await database.trouble()
        assert trouble is not None
        assert trouble.code == "storage_full"
    await _make_room(database)
    assert await database.trouble() is None
    await database.write(_add("a", size=300_000))
    tables = await database.read(lambda c: c.execute(text("SELECT name FROM sqlite_master")).scalars().all())
    assert "probe" not in tables


async def test_a_write_that_succeeds_ends_the_trouble_by_itself(database):
    await _fill(database)
    await _fails(database, _add("a", size=300_000))
    await _make_room(database)
    assert database._trouble is None


async def test_all_of_a_group_are_told_of_a_full_disk(database):
    await _fill(database)
    results = await asyncio.gather(
        *(database.write(_add(str(n), size=300_000)) for n in range(5)), return_exceptions=True
    )
    assert {getattr(result, "code", None) for result in results} == {"storage_full"}


def _spoil(path: Path, *, header: bool) -> None:
    """Overwrite pages of a closed database."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    start = 0 if header else 4096
    content[start : start + 100 if header else len(content)] = b"\xa5" * ((100 if header else len(content)) - start)
    path.write_bytes(content)


async def test_damaged_pages_are_told_as_such_and_no_write_that_succeeds_undoes_them(tmp_path):
    path = tmp_path / "baton.sqlite3"
    first = Database(path)
    await first.write(_add("a", size=100_000))
    first.close()
    whole = path.read_bytes()
    _spoil(path, header=False)
    database = _opened_damaged(path)
    if isinstance(database, BatonError):
        error = database
    else:
        with pytest.raises(BatonError) as failed:
            await database.read(lambda c: list_sessions(c, "local", limit=10, before=None))
        error = failed.value
        trouble = await database.trouble()
        assert trouble is not None
        assert trouble.code == "storage_corrupt"
        database.close()
    assert isinstance(error, Internal)
    assert (error.code, error.retryable) == ("storage_corrupt", False)
    assert "full" not in error.message
    path.write_bytes(whole)
    Database(path).close()


def _opened_damaged(path: Path) -> Database | BatonError:
    try:
        return Database(path)
    except BatonError as exc:
        return exc


def test_what_is_no_database_is_told_as_damage_when_it_is_opened(tmp_path):
    path = tmp_path / "baton.sqlite3"
    Database(path).close()
    _spoil(path, header=True)
    with pytest.raises(Internal, match=r"cannot be opened.*damaged") as failed:
        Database(path)
    assert failed.value.code == "storage_corrupt"
    with pytest.raises(Internal) as failed, transaction(path):
        pass
    assert failed.value.code == "storage_corrupt"


async def test_storage_that_can_only_be_read_is_told_as_such(database):
    await database.write(lambda c: c.exec_driver_sql("PRAGMA query_only=ON"))
    error = await _fails(database, _add("a"))
    assert isinstance(error, Unavailable)
    assert (error.code, error.retryable) == ("storage_read_only", False)
    assert (await database.trouble()).code == "storage_read_only"


async def test_a_database_that_another_program_holds_may_be_asked_again(database, tmp_path):
    await database.write(lambda c: c.exec_driver_sql("PRAGMA busy_timeout=0"))
    with closing(sqlite3.connect(tmp_path / "baton.sqlite3")) as other:
        other.execute("BEGIN IMMEDIATE")
        error = await _fails(database, _add("a"))
    assert isinstance(error, Overloaded)
    assert (error.code, error.retryable) == ("storage_busy", True)
    assert await database.trouble() is None
    await database.write(_add("a"))


_CHILD = """
import asyncio, resource, sys
from pathlib import Path
from sqlalchemy import text
from memory.database import Database
from models.errors import BatonError

async def main():
    database = Database(Path(sys.argv[1]))
    await database.write(lambda c: c.execute(text("CREATE TABLE filled (body TEXT)")))
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
    try:
        await database.write(lambda c: c.execute(text("INSERT INTO filled VALUES (:x)"), {"x": "x" * 500_000}))
    except BatonError as exc:
        print(exc.code, (await database.trouble()).code)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    print(await database.trouble())

asyncio.run(main())
"""


def test_a_file_that_cannot_grow_is_an_error_of_the_disk_until_it_can(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "baton.sqlite3")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["storage_failed storage_failed", "None"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 200_000
