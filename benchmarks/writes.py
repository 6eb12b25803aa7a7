"""What does a durable row cost, alone and when many sessions write at once?

Beside Baton's group commit: a bare driver with one transaction and one flush for each row, in the same run on the same
disk; it has no numbering, no savepoints and no SQLAlchemy, so what it shows is the flush.
"""

import asyncio
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import typer

from benchmarks.report import Json, Quick, Row, report, row
from memory import log
from memory.database import Database
from memory.log import Entry
from memory.sessions import create_session
from models.owner import Owner

_ENTRY = Entry(turn_id=None, kind="items_added", body="{}" * 100)


async def _together(database: Database, writers: int, rounds: int) -> list[float]:
    """Return units a second, for each round of `writers` units that wait together."""
    rates = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        await asyncio.gather(
            *(database.write(lambda c: log.append(c, "local", "session", (_ENTRY,), 0)) for _ in range(writers))
        )
        rates.append(writers / (time.perf_counter() - began_s))
    return rates


def _one_by_one(path: Path, units: int) -> list[float]:
    rates = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        for n in range(units):
            began_s = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT INTO events (session_id, seq, kind, body, at_ms) VALUES ('session', ?, ?, ?, 0)",
                (1_000_000 + n, _ENTRY.kind, _ENTRY.body),
            )
            connection.execute("COMMIT")
            rates.append(1 / (time.perf_counter() - began_s))
    return rates


async def _measure(rounds: int, folder: Path) -> list[Row]:
    path = folder / "baton.sqlite3"
    database = Database(path)
    try:
        await database.write(lambda c: create_session(c, Owner("local"), "session", 0))
        rows = [
            row("writes_per_s", "1/s", await _together(database, writers, rounds), system="baton", writers=writers)
            for writers in (1, 10, 50, 200)
        ]
    finally:
        database.close()
    rows.append(row("writes_per_s", "1/s", _one_by_one(path, rounds), system="sqlite3_flush_each", writers=1))
    return rows


def main(quick: Quick = False, json: Json = None) -> None:
    """Measure, on the disk that holds the working directory."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        report(asyncio.run(_measure(20 if quick else 200, Path(folder))), json)


if __name__ == "__main__":
    typer.run(main)
