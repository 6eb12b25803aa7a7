"""The database: what is told to others is on the disk, and one unit's failure is its own."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, insert, text
from sqlalchemy.schema import CreateIndex

import memory.database
from memory.database import _MAX_WAITING, Database, Unit, transaction
from memory.schema import REVISION, events, metadata, sessions
from memory.sessions import create_session
from models.clock import ManualClock
from models.errors import Conflict, Internal, Overloaded, Unavailable

_TIMEOUT_S = 30


def _add(name: str) -> Unit[None]:
    return lambda connection: create_session(connection, "local", name, 0)


def _names(connection: Connection) -> list[str]:
    return [row.id for row in connection.execute(sessions.select().order_by(sessions.c.id))]


def _on_disk(database_path: object) -> list[str]:
    """Return the sessions that another connection finds, which sees only what is committed."""
    connection = sqlite3.connect(str(database_path))
    try:
        return [name for (name,) in connection.execute("SELECT id FROM sessions ORDER BY id")]
    finally:
        connection.close()


@asynccontextmanager
async def _held(database: Database) -> AsyncIterator[threading.Event]:
    """Keep the writer busy, so that units wait together; set the event (or leave) to let it go on."""
    entered, go_on = threading.Event(), threading.Event()

    def hold(_connection: Connection) -> None:
        entered.set()
        assert go_on.wait(_TIMEOUT_S)

    holder = asyncio.create_task(database.write(hold))
    assert await asyncio.to_thread(entered.wait, _TIMEOUT_S)
    try:
        yield go_on
    finally:
        go_on.set()
        await holder


async def _queued(database: Database, count: int) -> None:
    while database.waiting < count:  # noqa: ASYNC110  # a turn of the loop lets the next writer in
        await asyncio.sleep(0)


# Writing


async def test_a_write_returns_its_units_result_and_is_on_the_disk(database, tmp_path):
    assert await database.write(lambda connection: (_add("a")(connection), "done")[1]) == "done"
    assert _on_disk(tmp_path / "baton.sqlite3") == ["a"]


async def test_units_that_wait_together_are_committed_together(database, tmp_path):
    last_ran, go_on = threading.Event(), threading.Event()

    def last(connection: Connection) -> None:
        _add("b")(connection)
        last_ran.set()
        assert go_on.wait(_TIMEOUT_S)

    async with asyncio.TaskGroup() as tasks:
        async with _held(database):
            first_write = tasks.create_task(database.write(_add("a")))
            await _queued(database, 1)
            last_write = tasks.create_task(database.write(last))
            await _queued(database, 2)
        assert await asyncio.to_thread(last_ran.wait, _TIMEOUT_S)
        # Both units have run and neither is committed: nobody is told yet, and nobody sees them.
        await asyncio.sleep(0)
        assert not first_write.done()
        assert not last_write.done()
        assert _on_disk(tmp_path / "baton.sqlite3") == []
        assert await database.read(_names) == []
        go_on.set()
    assert _on_disk(tmp_path / "baton.sqlite3") == ["a", "b"]


async def test_a_unit_that_fails_takes_only_itself_back(database, tmp_path):
    def fail(connection: Connection) -> None:
        _add("half done")(connection)
        raise Conflict("not now")

    async with _held(database):
        writes = [asyncio.ensure_future(database.write(unit)) for unit in (_add("a"), fail, _add("a"), _add("b"))]
        await _queued(database, 4)
    first, failed, twice, last = await asyncio.gather(*writes, return_exceptions=True)
    assert first is None
    assert last is None
    assert isinstance(failed, Conflict)
    assert isinstance(twice, Internal)  # the database's own refusal, in our words
    assert _on_disk(tmp_path / "baton.sqlite3") == ["a", "b"]


async def test_a_commit_that_is_refused_is_nobodys_success(database, tmp_path):
    def break_at_commit(connection: Connection) -> str:
        # A deferred constraint is checked by COMMIT itself, as a full disk would be found.
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        row = {"session_id": "none", "seq": 1, "kind": "x", "body": "{}", "at_ms": 0}
        connection.execute(insert(events), row)
        return "done"

    async with _held(database):
        writes = [asyncio.ensure_future(database.write(unit)) for unit in (_add("a"), break_at_commit)]
        await _queued(database, 2)
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(result) for result in results] == [Internal, Internal]
    assert _on_disk(tmp_path / "baton.sqlite3") == []
    await database.write(_add("b"))
    assert _on_disk(tmp_path / "baton.sqlite3") == ["b"]


@pytest.mark.parametrize("when", ["waiting", "running"])
async def test_a_caller_that_is_cancelled_does_not_undo_its_write(database, tmp_path, when):
    entered, go_on = threading.Event(), threading.Event()

    def unit(connection: Connection) -> None:
        _add("a")(connection)
        entered.set()
        assert go_on.wait(_TIMEOUT_S)

    async with _held(database) as release:
        write = asyncio.create_task(database.write(unit))
        await _queued(database, 1)
        if when == "running":
            release.set()
            assert await asyncio.to_thread(entered.wait, _TIMEOUT_S)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        go_on.set()
    await database.write(_add("b"))
    assert _on_disk(tmp_path / "baton.sqlite3") == ["a", "b"]


async def test_more_writers_than_there_is_room_for_wait_and_all_are_served(database, tmp_path):
    names = [f"{n:05}" for n in range(_MAX_WAITING + 100)]
    async with _held(database):
        writes = [asyncio.ensure_future(database.write(_add(name))) for name in names]
        await _queued(database, _MAX_WAITING - 1)  # one place is the holder's
        for _ in range(10):
            await asyncio.sleep(0)
        assert database.waiting == _MAX_WAITING - 1
    await asyncio.gather(*writes)
    assert _on_disk(tmp_path / "baton.sqlite3") == names


async def test_closing_writes_what_waits(tmp_path):
    database = Database(tmp_path / "baton.sqlite3")
    async with _held(database) as release:
        writes = [asyncio.ensure_future(database.write(_add(name))) for name in "abc"]
        await _queued(database, 3)
        release.set()
        database.close()
        await asyncio.gather(*writes)
    assert _on_disk(tmp_path / "baton.sqlite3") == ["a", "b", "c"]


async def test_a_write_after_closing_is_refused_instead_of_waiting_for_ever(tmp_path):
    database = Database(tmp_path / "baton.sqlite3")
    database.close()
    with pytest.raises(Overloaded):
        async with asyncio.timeout(5):
            await database.write(_add("a"))


# Reading


async def test_a_read_goes_on_beside_a_writer_and_sees_what_was_committed(database):
    await database.write(_add("a"))
    async with _held(database):
        assert await database.read(_names) == ["a"]
        assert await asyncio.to_thread(database.read_blocking, _names) == ["a"]


async def test_a_read_that_the_database_refuses_keeps_the_internals_inside(database):
    with pytest.raises(Internal) as caught:
        await database.read(lambda connection: connection.execute(text("SELECT secret FROM nowhere")))
    assert "nowhere" not in caught.value.message


# The file


@pytest.mark.parametrize(("pragma", "value"), [("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)])
async def test_a_commit_survives_a_power_cut_and_a_reference_has_its_row(database, pragma, value):
    def ask(connection: Connection) -> object:
        return connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one()

    assert await database.write(ask) == value
    assert await database.read(ask) == value


def _schema_of(path: object) -> list[tuple[str, str]]:
    connection = sqlite3.connect(str(path))
    try:
        return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    finally:
        connection.close()


async def test_the_migrations_build_exactly_the_schema(database):
    def compare(connection: Connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    assert await database.read(compare) == []


async def test_the_migrations_build_exactly_the_indexes_conditions_and_all(database, tmp_path):
    # Alembic's comparison does not look at the condition of a partial index.
    engine = create_engine("sqlite://")
    declared = {
        index.name: str(CreateIndex(index).compile(engine))
        for table in metadata.tables.values()
        for index in table.indexes
    }
    built = {
        name: sql for name, sql in _schema_of(tmp_path / "baton.sqlite3") if sql and sql.startswith("CREATE INDEX")
    }
    assert built == declared


async def test_migrating_again_changes_nothing(tmp_path):
    path = tmp_path / "baton.sqlite3"
    first = Database(path)
    await first.write(_add("a"))
    first.close()
    before = _schema_of(path)
    Database(path).close()
    assert _schema_of(path) == before
    assert _on_disk(path) == ["a"]


async def test_a_command_writes_beside_a_server_that_runs(database, tmp_path):
    with transaction(tmp_path / "baton.sqlite3") as connection:
        _add("from a command")(connection)
    assert await database.read(_names) == ["from a command"]


async def test_a_command_that_fails_leaves_nothing(database, tmp_path):
    def fail() -> None:
        with transaction(tmp_path / "baton.sqlite3") as connection:
            _add("from a command")(connection)
            raise Conflict("not now")

    with pytest.raises(Conflict):
        fail()
    assert await database.read(_names) == []


async def test_a_full_disk_loses_no_unit_that_was_told_to_be_kept(database):
    def fill(n):
        return lambda c: c.execute(text("INSERT INTO filled VALUES (:n, :body)"), {"n": n, "body": "x" * 200_000})

    await database.write(lambda c: c.execute(text("CREATE TABLE filled (n INTEGER, body TEXT)")))
    pages = await database.write(lambda c: c.execute(text("PRAGMA page_count")).scalar_one())
    # A stand-in for a full disk: SQLite answers both alike, by taking the whole transaction back.
    await database.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages + 300}"))
    told = await asyncio.gather(*(database.write(fill(n)) for n in range(20)), return_exceptions=True)
    kept = await database.read(lambda c: {n for (n,) in c.execute(text("SELECT n FROM filled"))})
    assert kept == {n for n, outcome in enumerate(told) if not isinstance(outcome, Exception)}
    assert any(isinstance(outcome, Unavailable) for outcome in told)
    await database.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1000000"))
    await database.write(fill(99))


def test_the_revision_that_needs_no_migration_is_the_newest():
    scripts = ScriptDirectory(str(Path(memory.database.__file__).parent / "migrations"))
    assert scripts.get_heads() == [REVISION]


# A disk that stands still


async def _settled(database: Database) -> list[str]:
    """Return the sessions that are read as soon as anything is."""
    while True:
        try:
            return await database.read(_names)
        except Unavailable:  # it stands still
            await asyncio.sleep(0)


async def test_a_write_that_hangs_is_waited_for_until_a_deadline_and_nothing_is_read_before_it_has_ended(tmp_path):
    clock = ManualClock()
    database = Database(tmp_path / "baton.sqlite3", clock)
    entered, go_on = threading.Event(), threading.Event()

    def hang(connection: Connection) -> None:
        entered.set()
        assert go_on.wait(_TIMEOUT_S)
        _add("late")(connection)

    try:
        hanging = asyncio.create_task(database.write(hang))
        assert await asyncio.to_thread(entered.wait, _TIMEOUT_S)
        behind = asyncio.create_task(database.write(_add("never begun")))
        await _queued(database, 1)
        clock.advance(29)
        await asyncio.sleep(0)
        assert not hanging.done()
        clock.advance(1)
        failed = await asyncio.wait_for(asyncio.gather(hanging, behind, return_exceptions=True), _TIMEOUT_S)
        for refused in (database.read(_names), database.write(_add("refused at once"))):
            failed += await asyncio.gather(refused, return_exceptions=True)
        for exc in failed:
            assert isinstance(exc, Unavailable)
            assert (exc.code, exc.retryable) == ("storage_stalled", True)
        found = await database.trouble()
        assert found is not None
        assert found.code == "storage_stalled"
        go_on.set()
        assert await _settled(database) == ["late"], "whoever reads sees what came of it"
        await database.write(_add("after"))
        assert await database.trouble() is None
        assert await database.read(_names) == ["after", "late"]
    finally:
        go_on.set()
        database.close()


async def test_reads_that_hang_are_waited_for_until_a_deadline_and_writes_go_on(tmp_path):
    clock = ManualClock()
    database = Database(tmp_path / "baton.sqlite3", clock)
    entered, go_on = threading.Semaphore(0), threading.Event()

    def hang(connection: Connection) -> list[str]:
        entered.release()
        assert go_on.wait(_TIMEOUT_S)
        return _names(connection)

    try:
        reads = [asyncio.create_task(database.read(hang)) for _ in range(3)]  # one more than there are readers
        for _ in range(2):
            assert await asyncio.to_thread(entered.acquire, timeout=_TIMEOUT_S)
        clock.advance(30)
        for exc in await asyncio.wait_for(asyncio.gather(*reads, return_exceptions=True), _TIMEOUT_S):
            assert isinstance(exc, Unavailable)
            assert exc.code == "storage_stalled"
        with pytest.raises(Unavailable, match="does not answer"):
            await database.read(_names)
        await database.write(_add("a"))
        go_on.set()
        assert await _settled(database) == ["a"]
    finally:
        go_on.set()
        database.close()
