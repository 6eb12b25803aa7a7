"""A backup is a home at one moment, and a home again when it is restored."""

import errno
import random
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from memory.backup import backup, restore
from memory.database import Database
from memory.home import Home
from memory.log import Entry, append
from memory.sessions import create_session
from models.errors import BadInput, Conflict


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    database = Database(home.database)
    yield database
    database.close()


def _sessions(home: Home) -> list[str]:
    with closing(sqlite3.connect(home.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [name for (name,) in connection.execute("SELECT id FROM sessions ORDER BY id")]


async def test_what_is_backed_up_is_there_again_when_it_is_restored(home: Home, database: Database, tmp_path: Path):
    await database.write(lambda c: create_session(c, "local", "sess_1", 0))
    secret = home.secret()
    (home.blobs / "ab").mkdir(parents=True)
    (home.blobs / "ab" / "cd").write_bytes(b"a picture")
    archive = tmp_path / "elsewhere" / "backup.tar.gz"
    assert backup(home, archive) == archive.stat().st_size
    other = Home(tmp_path / "other")
    restore(archive, other)
    assert _sessions(other) == ["sess_1"]
    assert other.secret() == secret
    assert (other.blobs / "ab" / "cd").read_bytes() == b"a picture"
    assert archive.stat().st_mode & 0o077 == 0, "others can read the keys' hashes and the secret"
    assert [path.name for path in archive.parent.iterdir()] == ["backup.tar.gz"], "something was left beside it"


async def test_blobs_that_are_deleted_while_a_backup_is_made_are_not_in_it(
    home: Home, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("ab", "cd"):
        (home.blobs / name).mkdir(parents=True)
        (home.blobs / name / "blob").write_bytes(name.encode())
    found = Path.rglob

    def late(self: Path, pattern: str) -> list[Path]:
        paths = list(found(self, pattern))
        (home.blobs / "ab" / "blob").unlink()
        return paths

    monkeypatch.setattr(Path, "rglob", late)
    backup(home, tmp_path / "backup.tar.gz")
    monkeypatch.undo()
    other = Home(tmp_path / "other")
    restore(tmp_path / "backup.tar.gz", other)
    assert [path.read_bytes() for path in other.blobs.rglob("blob")] == [b"cd"]


async def test_a_backup_beside_a_writer_is_one_moment_of_the_log(home: Home, database: Database, tmp_path: Path):
    await database.write(lambda c: create_session(c, "local", "sess_1", 0))
    entry = Entry(turn_id=None, kind="items_added", body="{}" * 1000)
    done = threading.Event()
    sizes: list[int] = []

    def back_up() -> None:
        for n in range(3):
            sizes.append(backup(home, tmp_path / f"{n}.tar.gz"))
        done.set()

    thread = threading.Thread(target=back_up)
    thread.start()
    while not done.is_set():
        await database.write(lambda c: append(c, "local", "sess_1", [entry] * 5, 0))
    thread.join()
    for n in range(3):
        copy = Home(tmp_path / f"copy-{n}")
        restore(tmp_path / f"{n}.tar.gz", copy)
        with closing(sqlite3.connect(copy.database)) as connection:
            (last,) = connection.execute("SELECT last_seq FROM sessions").fetchone()
            (rows,) = connection.execute("SELECT count(*) FROM events").fetchone()
        assert rows == last
    assert len(sizes) == 3


def test_a_file_that_is_there_is_not_written_over(home: Home, database: Database, tmp_path: Path):
    archive = tmp_path / "backup.tar.gz"
    archive.write_text("precious")
    with pytest.raises(Conflict, match="exists already"):
        backup(home, archive)
    assert archive.read_text() == "precious"


def test_a_home_without_a_database_is_nothing_to_back_up(tmp_path: Path):
    with pytest.raises(BadInput, match="BATON_HOME"):
        backup(Home(tmp_path / "nowhere"), tmp_path / "backup.tar.gz")
    assert not (tmp_path / "backup.tar.gz").exists()


def test_a_home_that_has_state_is_not_restored_over(home: Home, database: Database, tmp_path: Path):
    backup(home, tmp_path / "backup.tar.gz")
    with pytest.raises(Conflict, match="has a database already"):
        restore(tmp_path / "backup.tar.gz", home)


def test_what_is_no_backup_is_refused_and_leaves_nothing(tmp_path: Path):
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz"):
        pass
    (tmp_path / "text.tar.gz").write_text("no archive")
    for name in ("other.tar.gz", "text.tar.gz", "absent.tar.gz"):
        home = Home(tmp_path / f"home-{name}")
        with pytest.raises(BadInput):
            restore(tmp_path / name, home)
        assert not home.database.exists()


def _cut(archive: bytes) -> bytes:
    return archive[: len(archive) // 2]


def _flipped(archive: bytes) -> bytes:
    middle = len(archive) // 2
    return archive[:middle] + bytes(255 - byte for byte in archive[middle : middle + 64]) + archive[middle + 64 :]


@pytest.mark.parametrize("damage", [_cut, _flipped])
def test_a_damaged_archive_is_refused_in_words_and_leaves_nothing(
    home: Home, database: Database, tmp_path: Path, damage: Callable[[bytes], bytes]
):
    home.secret()
    home.blobs.mkdir()
    (home.blobs / "noise").write_bytes(random.Random(1).randbytes(100_000))
    whole, broken = tmp_path / "whole.tar.gz", tmp_path / "broken.tar.gz"
    backup(home, whole)
    broken.write_bytes(damage(whole.read_bytes()))
    other = Home(tmp_path / "other")
    with pytest.raises(BadInput, match="broken"):
        restore(broken, other)
    assert {path.name for path in other.path.iterdir()} <= {"lock"}
    restore(whole, other)
    assert _sessions(other) == []


def test_a_damaged_database_is_not_put_in_place(tmp_path: Path):
    damaged, archive = tmp_path / "damaged", tmp_path / "backup.tar.gz"
    damaged.write_bytes(b"SQLite format 3\0" + b"\1" * 5000)
    home = Home(tmp_path / "home")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(damaged, home.database.name)
    with pytest.raises(BadInput, match="damaged"):
        restore(archive, home)
    assert {path.name for path in home.path.iterdir()} <= {"lock"}


def test_a_disk_that_is_full_leaves_nothing_half_restored(
    home: Home, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home.secret()
    backup(home, tmp_path / "backup.tar.gz")
    copy = tarfile.copyfileobj  # type: ignore[attr-defined]  # what writes each member

    def full(source: object, target: object, length: int, *rest: object, **options: object) -> None:
        if length == 32:  # the secret, which comes after the database
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target, length, *rest, **options)

    monkeypatch.setattr(tarfile, "copyfileobj", full)
    other = Home(tmp_path / "other")
    with pytest.raises(BadInput, match="No space left"):
        restore(tmp_path / "backup.tar.gz", other)
    assert {path.name for path in other.path.iterdir()} <= {"lock"}
