"""What was deleted is in no file: looked for as bytes, also in SQLite's log."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from memory.database import Database

_KEPT, _GONE = "what stays ", "what is to go "


def _held(folder: Path, *words: str) -> set[str]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {word for word in words for content in files.values() if word.encode() in content}


@given(st.data())
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
async def test_what_was_deleted_or_rewritten_is_in_no_file_after_a_purge(tmp_path_factory, data):
    """Rows of any length, in any order, so that pages are split, balanced and freed in between."""
    folder = tmp_path_factory.mktemp("purged")
    database = Database(folder / "baton.sqlite3")
    try:
        await database.write(
            lambda c: c.execute(text("CREATE TABLE rows (id INTEGER PRIMARY KEY, body TEXT)")) and None
        )
        lengths = st.one_of(st.integers(1, 40), st.integers(200, 900), st.integers(3_000, 9_000))
        made = 0
        gone: set[int] = set()
        for _ in range(data.draw(st.integers(3, 8))):
            bodies = data.draw(st.lists(lengths, min_size=5, max_size=40))
            rows = [
                {"id": made + n, "body": f"{_GONE}{made + n};" * (length // 16 + 1)} for n, length in enumerate(bodies)
            ]
            made += len(rows)
            await database.write(lambda c, r=rows: c.execute(text("INSERT INTO rows VALUES (:id, :body)"), r) and None)
            ids = data.draw(st.lists(st.integers(0, made - 1), max_size=30, unique=True))
            kept = data.draw(st.integers(0, len(ids)))
            for one in ids[:kept]:
                await database.write(
                    lambda c, one=one: (
                        c.execute(text("UPDATE rows SET body = :b WHERE id = :i"), {"b": _KEPT, "i": one}) and None
                    )
                )
            for one in ids[kept:]:
                await database.write(
                    lambda c, one=one: c.execute(text("DELETE FROM rows WHERE id = :i"), {"i": one}) and None
                )
            gone.update(ids)
            await database.purge()
            assert _held(folder, *(f"{_GONE}{one};" for one in gone)) == set()
    finally:
        database.close()


async def test_a_reader_of_an_older_moment_holds_a_purge_up_until_the_next_write(tmp_path, monkeypatch):
    monkeypatch.setattr("memory.database._PURGE_WAITS_S", (0.0, 0.0))
    database = Database(tmp_path / "baton.sqlite3")
    try:
        await database.write(lambda c: c.execute(text("CREATE TABLE rows (body TEXT)")) and None)
        await database.write(lambda c: c.execute(text("INSERT INTO rows VALUES ('what is to go')")) and None)
        with closing(sqlite3.connect(tmp_path / "baton.sqlite3", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM rows").fetchall()
            await database.write(lambda c: c.execute(text("DELETE FROM rows")) and None)
            await database.purge()
            assert _held(tmp_path, "what is to go") == {"what is to go"}
            reader.execute("COMMIT")
        await database.write(lambda _: None)
        await database.write(lambda _: None)  # the purge comes after the one before
        assert _held(tmp_path, "what is to go") == set()
    finally:
        database.close()


async def test_nothing_is_purged_of_a_database_that_is_closed(tmp_path):
    database = Database(tmp_path / "baton.sqlite3")
    database.close()
    await database.purge()


async def test_what_a_process_had_deleted_that_was_killed_is_gone_once_the_next_has_opened_the_database(tmp_path):
    home, crashed = tmp_path / "home", tmp_path / "crashed"
    home.mkdir()
    database = Database(home / "baton.sqlite3")
    try:
        await database.write(lambda c: c.execute(text("CREATE TABLE rows (body TEXT)")) and None)
        await database.write(lambda c: c.execute(text("INSERT INTO rows VALUES ('what is to go')")) and None)
        await database.write(lambda c: c.execute(text("DELETE FROM rows")) and None)
        shutil.copytree(home, crashed)  # committed, and not purged
    finally:
        database.close()
    assert _held(crashed, "what is to go") == {"what is to go"}
    again = Database(crashed / "baton.sqlite3")
    try:
        assert _held(crashed, "what is to go") == set()
    finally:
        again.close()
