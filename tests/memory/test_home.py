"""`BATON_HOME`: one holder at a time, who is named, and a secret that nobody else reads."""

import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memory import backup as archives
from memory import home as home_module
from memory.blobs import BlobStore
from memory.database import Database
from memory.home import Home
from models.clock import SystemClock
from models.errors import Conflict

_HOLDER = """
import sys
from pathlib import Path
from memory.home import Home

with Home(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def _holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold the home in another process, until that process is ended or its input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "state" / "baton")


def test_a_second_holder_is_refused_and_told_who_holds_it(home):
    with _holder(home.path) as process:
        with pytest.raises(Conflict) as caught, home:
            pass
        assert caught.value.code == "home_locked"
        assert f"process {process.pid} on {socket.gethostname()}" in caught.value.message
        assert str(home.path) in caught.value.message


def test_a_second_process_is_refused_what_this_one_holds(home):
    with home:
        refused = subprocess.run(
            [sys.executable, "-c", _HOLDER, str(home.path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert f"process {os.getpid()} on" in refused.stderr


def test_a_refused_holder_does_not_take_the_holders_name_away(home):
    with _holder(home.path) as process:
        for _ in range(2):
            with pytest.raises(Conflict, match=f"process {process.pid} "), home:
                pass


def test_a_holder_that_leaves_lets_the_next_one_in(home):
    with _holder(home.path) as process:
        process.communicate(timeout=20)
    with home:
        pass
    with home:
        pass


def test_a_holder_that_was_killed_lets_the_next_one_in(home):
    with _holder(home.path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
    assert (home.path / "holder").exists()  # it had no time to tidy up, and that must not count
    with home, pytest.raises(Conflict, match=f"process {os.getpid()} "), Home(home.path):
        pass


def test_a_holder_that_cannot_be_read_is_still_a_holder(home):
    with home:
        (home.path / "holder").write_text("")
        with pytest.raises(Conflict, match="another server"), Home(home.path):
            pass


def test_the_directory_is_its_owners_only(home):
    home.create()
    assert _mode(home.path) == 0o700


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_secret_is_its_owners_only(home, umask):
    before = os.umask(umask)
    try:
        home.create().secret()
    finally:
        os.umask(before)
    assert _mode(home.path / "secret") == 0o600


def test_the_secret_stays_the_same(home):
    secret = home.create().secret()
    assert len(secret) == 32
    assert home.secret() == secret
    assert Home(home.path).secret() == secret


def test_two_homes_have_two_secrets(tmp_path):
    assert Home(tmp_path / "a").create().secret() != Home(tmp_path / "b").create().secret()


def test_a_secret_that_could_not_be_written_is_not_taken_for_one(home, monkeypatch):
    def disk_full(_size: int) -> bytes:
        raise OSError("No space left on device")

    home.create()
    with monkeypatch.context() as patch:
        patch.setattr(home_module.secrets, "token_bytes", disk_full)
        with pytest.raises(OSError, match="No space"):
            home.secret()
    # An empty secret would sign whatever anybody asks for.
    assert len(home.secret()) == 32


async def _lived_in(home: Home) -> Home:
    """Give the home one of everything that is kept in it."""
    with home:
        home.secret()
        home.chat_history.touch(mode=0o600)  # as the prompt does
        database = Database(home.database)

        async def content():
            yield b"words"

        await BlobStore(home.blobs, database, SystemClock()).put("acme", content(), "text/plain", max_bytes=9)
        _check_closed(home)  # while it is in use, too, with the database's log and index
        database.close()
    return home


def _check_closed(home: Home) -> None:
    for path in (home.path, *home.path.rglob("*")):
        assert _mode(path) == (0o700 if path.is_dir() else 0o600), path


@pytest.fixture
def anybodys():
    """New files are everybody's, unless whoever makes them says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("anybodys")
async def test_whatever_is_made_in_a_home_is_its_owners_only(home):
    _check_closed(await _lived_in(home))


async def test_what_is_found_open_is_closed_and_said_once(home, caplog):
    await _lived_in(home)
    (home.path / "catalog.toml").touch(mode=0o644)
    for path in (home.path, *home.path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with caplog.at_level(logging.WARNING), Home(home.path):
        (said,) = (record.getMessage() for record in caplog.records)
        assert str(home.path) in said
        assert "delete the file" in said, "whoever has read the secret can still sign with it"
        caplog.clear()
        home.create()
        assert not caplog.records
    assert _mode(home.path / "catalog.toml") == 0o644, "the user's own"
    (home.path / "catalog.toml").unlink()
    _check_closed(home)


@pytest.mark.parametrize("open_one", ["baton.sqlite3", "secret", "chat-history", "blobs"])
async def test_one_file_that_is_open_in_a_closed_home_is_closed_too(home, open_one):
    await _lived_in(home)
    for path in ((home.path / open_one), *(home.path / open_one).rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o664)
    home.create()
    _check_closed(home)


async def test_a_link_in_a_home_is_left_as_it_is_with_what_it_leads_to(home, tmp_path):
    await _lived_in(home)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch(mode=0o644)
    home.chat_history.unlink()
    home.chat_history.symlink_to(elsewhere)
    home.path.chmod(0o755)
    home.create()
    assert _mode(elsewhere) == 0o644


async def test_what_is_restored_is_its_owners_only_whatever_the_archive_says(home, tmp_path):
    await _lived_in(home)
    for path in home.path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    archives.backup(home, tmp_path / "archive")
    assert _mode(tmp_path / "archive") == 0o600
    restored = Home(tmp_path / "restored")
    archives.restore(tmp_path / "archive", restored)
    _check_closed(restored)


@pytest.mark.parametrize("size_bytes", [0, 1, 31])
def test_a_secret_that_is_too_short_to_be_one_is_replaced_and_that_is_said(home, caplog, size_bytes):
    home.create()
    home.secret_file.write_bytes(b"s" * size_bytes)
    with caplog.at_level(logging.WARNING):
        secret = home.secret()
    assert len(secret) == 32
    assert not secret.startswith(b"s" * 31)
    assert f"has {size_bytes} bytes" in caplog.text
    assert home.secret() == secret
    assert _mode(home.secret_file) == 0o600


def test_a_longer_secret_of_ones_own_is_kept(home):
    home.create()
    home.secret_file.write_bytes(b"s" * 64)
    assert home.secret() == b"s" * 64
