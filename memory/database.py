"""One database: SQLite in WAL mode with full synchronisation, written by one thread.

A *unit* is a function of a connection. Units that wait together are committed together (group commit), each behind a
savepoint of its own, so that a disk flush is shared and a failing unit takes only itself back. A unit's result is given
out after the commit: whoever holds it may tell others.

Policy of both queues, of units to write and to read: bounded; a caller waits for room and for its unit, but no longer than
a deadline. A unit that has not begun by then is never run. One that has may yet be committed: until it has ended, nothing
else is written or read, so that whoever reads afterwards sees what came of it.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from memory.home import private
from memory.schema import REVISION
from memory.trouble import LASTING, corrupt, stalled, trouble
from models.clock import Clock, SystemClock
from models.errors import BatonError, Internal, Overloaded

_log = logging.getLogger(__name__)

T = TypeVar("T")

Unit = Callable[[Connection], T]

_MAX_GROUP = 64
_MAX_WAITING = 1024
_READERS = 2
_WAIT_S = 30.0
_BUSY_MS = 5_000
_PURGE_WAITS_S = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5)
_PROBE_BYTES = 256 * 1024


class _Job(Generic[T]):
    def __init__(self, unit: Unit[T]) -> None:
        self.unit = unit
        self.done: Future[T] = Future()

    def run(self, connection: Connection) -> Callable[[], None]:
        """Run the unit behind a savepoint and return what settles the caller's future after the commit.

        Raises:
            SQLAlchemyError: the whole transaction is lost, with every unit in it.
        """
        connection.exec_driver_sql("SAVEPOINT unit")
        try:
            result = self.unit(connection)
        except Exception as exc:
            # A full disk or a failing one takes back the transaction, not the savepoint (sqlite.org/lang_transaction).
            if not _in_transaction(connection):
                raise
            connection.exec_driver_sql("ROLLBACK TO unit")
            connection.exec_driver_sql("RELEASE unit")
            error = exc
            return lambda: self.done.set_exception(error)
        connection.exec_driver_sql("RELEASE unit")
        return lambda: self.done.set_result(result)


class _Purge:
    """Asks that what was deleted be out of every file."""

    def __init__(self) -> None:
        self.done: Future[bool] = Future()

    def run(self, engine: Engine) -> None:
        try:
            self.done.set_result(_purge(engine))
        except Exception as exc:  # noqa: BLE001  # it is the caller's, and raised there
            self.done.set_exception(exc)


class Database:
    """The database of a home. Opened with its migrations applied; closed by `close`."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        """Open the database at `path`, and make it if it is not there.

        Args:
            path: of the file.
            clock: of the deadlines; the host's by default.

        Raises:
            BatonError: it cannot be opened (see `memory.trouble`), or its revision is not known here.
        """
        self._path = path
        self._clock = clock or SystemClock()
        self._trouble: BatonError | None = None
        self._probing = asyncio.Lock()
        self._writer = _engine(path, begin="BEGIN IMMEDIATE")
        self._reader = _engine(path, begin="BEGIN")
        with _opened(path), self._writer.begin() as connection:
            migrate(connection)
        with suppress(SQLAlchemyError):
            _purge(self._writer)  # what was deleted when the last process ended
        self._jobs: queue.Queue[_Job[Any] | _Purge | None] = queue.Queue()
        self._room = asyncio.Semaphore(_MAX_WAITING)
        self._reading = asyncio.Semaphore(_MAX_WAITING)
        self._group: list[_Job[Any]] = []  # what the writer is at
        self._reads: set[Future[Any]] = set()
        # What had begun when somebody's time was out, and has not ended since.
        self._stuck_writes: set[Future[Any]] = set()
        self._stuck_reads: set[Future[Any]] = set()
        self._closed = False
        self._unpurged = False
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="database-reader")
        self._thread = threading.Thread(target=self._write_loop, name="database-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many units wait to be written."""
        return self._jobs.qsize()

    async def write(self, unit: Unit[T]) -> T:
        """Run `unit` in a transaction and return its result once that is committed.

        A caller that is cancelled meanwhile does not undo the write.

        Raises:
            Overloaded: the database is closed.
            Unavailable: the disk stands still (`storage_stalled`). The unit may yet be kept; a later read tells.
            BatonError: the database refused the transaction, see `memory.trouble`; nothing of the unit is kept.
            BatonError: whatever the unit raised; nothing of it is kept.
        """
        job = _Job(unit)
        async with self._in_time(job.done):
            await self._room.acquire()
            if self._closed:
                self._room.release()
                raise Overloaded("The server is stopping. Try again in a moment.", code="server_stopping")
            written = asyncio.wrap_future(job.done)
            written.add_done_callback(lambda _: self._room.release())
            self._jobs.put(job)
            # Shielded: the cancellation of a caller must not take a unit that waits out of the queue.
            result = await self._translated(asyncio.shield(written))
        if self._trouble is not None and self._trouble.code != corrupt().code and not self._probing.locked():
            self._trouble = None  # it can be written again; damage is not undone by that
        return result

    async def read(self, unit: Unit[T]) -> T:
        """Run `unit` on a snapshot, beside the writer.

        Raises:
            Unavailable: the disk stands still (`storage_stalled`).
            BatonError: the database could not be read; see `memory.trouble`.
        """
        async with self._in_time(), self._reading:
            if len(self._stuck_reads) >= _READERS:
                raise stalled()
            reading = self._readers.submit(self.read_blocking, unit)
            self._reads.add(reading)
            reading.add_done_callback(self._reads.discard)
            return await self._translated(asyncio.wrap_future(reading))

    async def trouble(self) -> BatonError | None:
        """Return what keeps the database from being read or written, if it failed and still does."""
        if self._trouble is None:
            return None
        async with self._probing:
            if (found := self._trouble) is not None:
                try:
                    if found.code == corrupt().code:
                        await self.read(_check_whole)
                    # Rows of some size, so that the file or its log has to grow; then they are gone again.
                    await self.write(_fill)
                    await self.write(_empty)
                except BatonError as exc:
                    self._trouble = found if exc.code == stalled().code else exc
                else:
                    self._trouble = None
        return self._trouble

    def read_blocking(self, unit: Unit[T]) -> T:
        """Run `unit` on a snapshot, in the calling thread."""
        with self._reader.begin() as connection:
            return unit(connection)

    @asynccontextmanager
    async def _in_time(self, write: Future[Any] | None = None) -> AsyncIterator[None]:
        """Bound the wait for a unit; `write` is what a unit to write will come to."""
        if self._stuck_writes:
            raise stalled()
        try:
            async with self._clock.timeout_at(self._clock.now_s() + _WAIT_S):
                yield
        except TimeoutError as exc:
            if write is not None:
                write.cancel()  # which does nothing to what has begun
                _keep(self._stuck_writes, (write, *(job.done for job in self._group)))
            else:
                _keep(self._stuck_reads, (read for read in tuple(self._reads) if read.running()))
            _log.error("the database has not answered for %g s", _WAIT_S)
            self._trouble = self._trouble or stalled()
            raise stalled() from exc

    async def _translated(self, result: asyncio.Future[T]) -> T:
        try:
            return await result
        except BatonError:
            raise
        except SQLAlchemyError as exc:
            _log.exception("the database refused")
            error = trouble(exc, self._path)
            if error.code in LASTING:
                self._trouble = error
            raise error from exc

    async def purge(self) -> None:
        """Have what was deleted out of every file: the log holds it until all of it is in the database.

        A reader of an older moment holds that up. Readers here are short; if one of another process is not, it is done when
        something is written next.

        Raises:
            Unavailable: the disk stands still (`storage_stalled`).
            BatonError: the database could not be written; see `memory.trouble`.
        """
        for wait_s in _PURGE_WAITS_S:
            if self._closed:
                return  # SQLite does it when the last connection closes
            purge = _Purge()
            async with self._in_time(purge.done):
                self._jobs.put(purge)
                if await self._translated(asyncio.shield(asyncio.wrap_future(purge.done))):
                    return
            await asyncio.sleep(wait_s)
        self._unpurged = True

    def close(self) -> None:
        """Write what waits, then close; a later write is refused. A disk that stands still is not waited for."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join(_WAIT_S)
        if self._thread.is_alive():
            _log.error("the database is left while it is being written: its disk stands still")
        self._readers.shutdown(wait=not self._stuck_reads, cancel_futures=True)
        self._writer.dispose()
        self._reader.dispose()

    def _write_loop(self) -> None:
        while True:
            jobs, then = self._next_group()
            self._group = jobs
            jobs = [job for job in jobs if job.done.set_running_or_notify_cancel()]
            if jobs:
                _commit(self._writer, jobs)
            if self._unpurged:
                with suppress(SQLAlchemyError):  # it is tried again after the next
                    self._unpurged = not _purge(self._writer)
            if isinstance(then, _Purge) and then.done.set_running_or_notify_cancel():
                then.run(self._writer)
            elif then == "stop":
                return

    def _next_group(self) -> tuple[list[_Job[Any]], "_Purge | Literal['go on', 'stop']"]:
        """Return units to commit together, and what is to be done after them."""
        jobs: list[_Job[Any]] = []
        job = self._jobs.get()
        while isinstance(job, _Job):
            jobs.append(job)
            if len(jobs) == _MAX_GROUP:
                return jobs, "go on"
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, "go on"
        return jobs, job or "stop"


def _keep(stuck: set[Future[Any]], futures: Iterable[Future[Any]]) -> None:
    """Keep each of the futures until it is done."""
    for future in futures:
        stuck.add(future)
        future.add_done_callback(stuck.discard)  # at once, if it is done


def _commit(engine: Engine, jobs: list[_Job[Any]]) -> None:
    if len(jobs) == 1:
        _commit_alone(engine, jobs[0])
        return
    try:
        # Given back to the pool each time, which rolls back: a COMMIT that fails leaves SQLite's transaction open.
        with engine.begin() as connection:
            settle = [job.run(connection) for job in jobs]
    except Exception as exc:  # noqa: BLE001  # the writer thread goes on, whatever it was
        _log.exception("a transaction failed")
        for job in jobs:
            job.done.set_exception(exc)
        return
    for done in settle:
        done()


def _commit_alone(engine: Engine, job: _Job[T]) -> None:
    """Commit one unit, which needs no savepoint: if it fails, the transaction goes with it."""
    try:
        with engine.begin() as connection:
            result = job.unit(connection)
    except Exception as exc:  # noqa: BLE001  # it is the caller's, and raised there
        job.done.set_exception(exc)
    else:
        job.done.set_result(result)


def _purge(engine: Engine) -> bool:
    """Write the log back and cut it to nothing; return whether no reader was in the way."""
    driver = engine.raw_connection()
    try:
        cursor = driver.cursor()
        cursor.execute("PRAGMA busy_timeout=0")  # nobody else can write meanwhile: rather try again
        try:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            busy, *_ = cursor.fetchone() or (1,)
            return busy == 0
        finally:
            cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    except sqlite3.Error as exc:
        raise OperationalError("PRAGMA wal_checkpoint", None, exc) from exc
    finally:
        driver.close()


def _in_transaction(connection: Connection) -> bool:
    return bool(connection.connection.driver_connection.in_transaction)  # type: ignore[union-attr]  # sqlite3's


def _check_whole(connection: Connection) -> None:
    if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok":
        raise corrupt()


def _fill(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS probe (filler BLOB)")
    connection.exec_driver_sql(f"INSERT INTO probe VALUES (zeroblob({_PROBE_BYTES}))")


def _empty(connection: Connection) -> None:
    connection.exec_driver_sql("DROP TABLE probe")


def _engine(path: Path, *, begin: str) -> Engine:
    with suppress(OSError):  # SQLite says better what is wrong
        os.close(private(path, os.O_RDWR | os.O_CREAT))  # its log and index get the modes that the database has
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        isolation_level=None,
        hide_parameters=True,  # what people write does not belong into the server's log
    )

    # SQLAlchemy's way of having SQLite's own transactions: the driver's implicit ones are off, BEGIN is ours.
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


@contextmanager
def _opened(path: Path) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as exc:
        reason = getattr(exc, "orig", None) or exc
        error = trouble(exc, path)
        raise type(error)(
            f"The database {path} cannot be opened ({reason}). {error.message}",
            code=error.code,
            retryable=error.retryable,
        ) from exc


@contextmanager
def transaction(path: Path) -> Iterator[Connection]:
    """Run one transaction from a command, also beside a server that is running."""
    engine = _engine(path, begin="BEGIN IMMEDIATE")
    try:
        with _opened(path), engine.begin() as connection:
            migrate(connection)
            yield connection
    finally:
        engine.dispose()


def migrate(connection: Connection) -> None:
    """Bring the schema to its newest revision, within the connection's transaction."""
    if _revision(connection) == REVISION:
        return
    # Imported here: it takes as long as the rest of the database, and most starts have nothing to migrate.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        raise Internal(
            f"The database's schema is of a revision that is not known here ({exc}). Was it made by a newer Baton?"
        ) from exc


def _revision(connection: Connection) -> str | None:
    """Return which revision the schema is at; None if there is none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision
