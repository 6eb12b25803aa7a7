"""A database of an earlier Baton, with people's conversations in it, becomes one of this Baton."""

import inspect
import json
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, text

from memory.database import Database
from memory.items import find_items
from memory.log import Entry, append, open_turns, read
from memory.sessions import SessionRecord, list_sessions
from models.errors import Internal


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(inspect.getfile(Database)).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


@pytest.fixture
def old(tmp_path):
    """An engine on a database of the first revision, which keeps references as Baton's own does."""
    engine = create_engine(f"sqlite:///{tmp_path / 'baton.sqlite3'}")

    @event.listens_for(engine, "connect")
    def keep_references(connection, _record):
        connection.execute("PRAGMA foreign_keys=ON")

    with engine.begin() as connection:
        command.upgrade(_config(connection), "0001")
    yield engine
    engine.dispose()


def _fill(engine: Engine) -> None:
    rows = {
        "INSERT INTO sessions (id, tenant, created_ms, last_seq) VALUES (:id, :tenant, :at, :last)": [
            {"id": "ses_long", "tenant": "local", "at": 100, "last": 2},
            {"id": "ses_empty", "tenant": "local", "at": 200, "last": 0},
            {"id": "ses_theirs", "tenant": "theirs", "at": 300, "last": 1},
        ],
        "INSERT INTO events (session_id, seq, turn_id, kind, body, at_ms) VALUES (:id, :seq, :turn, 'note', '{}', :at)": [
            {"id": "ses_long", "seq": 1, "turn": "turn_1", "at": 150},
            {"id": "ses_long", "seq": 2, "turn": None, "at": 900},
            {"id": "ses_theirs", "seq": 1, "turn": None, "at": 350},
        ],
        "INSERT INTO turns (id, session_id, tenant, state, accepted_ms) VALUES (:id, :ses, 'local', 'accepted', 150)": [
            {"id": "turn_1", "ses": "ses_long"}
        ],
    }
    with engine.begin() as connection:
        for statement, values in rows.items():
            connection.execute(text(statement), values)


async def test_sessions_keep_their_logs_and_are_as_new_as_their_last_rows(old, tmp_path):
    _fill(old)
    database = Database(tmp_path / "baton.sqlite3")
    try:
        ours = await database.read(lambda c: list_sessions(c, "local", limit=10))
        assert ours == tuple(
            SessionRecord(
                session_id=session_id,
                title=None,
                instructions=None,
                model=None,
                created_ms=created_ms,
                updated_ms=updated_ms,
                last_seq=last_seq,
            )
            for session_id, created_ms, updated_ms, last_seq in [("ses_long", 100, 900, 2), ("ses_empty", 200, 200, 0)]
        )
        (theirs,) = await database.read(lambda c: list_sessions(c, "theirs", limit=10))
        assert theirs.updated_ms == 350
        rows = await database.read(lambda c: read(c, "local", "ses_long", after=0, limit=10))
        assert [(row.seq, row.turn_id, row.at_ms) for row in rows] == [(1, "turn_1", 150), (2, None, 900)]
        assert [turn.turn_id for turn in await database.read(open_turns)] == ["turn_1"]
        # And the log goes on where it was.
        note = Entry(turn_id=None, kind="note", body="{}")
        (row,) = await database.write(lambda c: append(c, "local", "ses_long", [note], 1_000))
        assert row.seq == 3
    finally:
        database.close()


async def test_references_hold_after_the_migration(old, tmp_path):
    _fill(old)
    database = Database(tmp_path / "baton.sqlite3")
    try:
        assert await database.read(lambda c: c.exec_driver_sql("PRAGMA foreign_key_check").fetchall()) == []
        with pytest.raises(Internal):
            await database.write(lambda c: c.execute(text("DELETE FROM sessions WHERE id = 'ses_long'")) and None)
    finally:
        database.close()


def test_the_way_back_leaves_the_rows_and_the_first_schema(old, tmp_path):
    _fill(old)

    def schema(connection: Connection) -> list[tuple[object, ...]]:
        return [
            tuple(row) for row in connection.execute(text("SELECT name, tbl_name FROM sqlite_master ORDER BY name"))
        ]

    def columns(connection: Connection) -> list[str]:
        return [row.name for row in connection.execute(text("PRAGMA table_info(sessions)"))]

    with old.connect() as connection:
        before = schema(connection), columns(connection)
    Database(tmp_path / "baton.sqlite3").close()
    with old.begin() as connection:
        assert columns(connection) != before[1]
        command.downgrade(_config(connection), "0001")
    with old.connect() as connection:
        assert (schema(connection), columns(connection)) == before
        assert connection.execute(text("SELECT count(*) FROM events")).scalar_one() == 3


async def test_items_of_an_earlier_log_are_found_by_their_ids_afterwards(old, tmp_path):
    def message(item_id: str, role: str = "user") -> dict[str, object]:
        return {"kind": "message", "item_id": item_id, "role": role, "parts": [], "status": "completed"}

    def call(item_id: str, status: str) -> dict[str, object]:
        return {
            "kind": "call",
            "item_id": item_id,
            "call_id": f"of_{item_id}",
            "name": "f",
            "arguments": "{}",
            "status": status,
        }

    result = {"kind": "call_result", "item_id": "item_5", "call_id": "of_item_3", "parts": []}
    events = [
        ("items_added", {"items": [message("item_1"), message("item_2", "system")]}),
        ("turn_accepted", {"input": {"items": [message("item_0")]}}),
        ("item_closed", {"item": call("item_3", "completed")}),
        ("item_closed", {"item": call("item_4", "incomplete")}),
        ("items_added", {"items": [result]}),
        ("items_removed", {"item_ids": ["item_1", "nonesuch"]}),
        *(("items_added", {"items": [message(f"item_more_{n}")]}) for n in range(600)),
    ]
    with old.begin() as connection:
        connection.execute(
            text("INSERT INTO sessions (id, tenant, created_ms, last_seq) VALUES ('ses_1', 'local', 1, :last)"),
            {"last": len(events)},
        )
        connection.execute(
            text("INSERT INTO events (session_id, seq, kind, body, at_ms) VALUES ('ses_1', :seq, :kind, :body, 1)"),
            [{"seq": seq, "kind": kind, "body": json.dumps(body)} for seq, (kind, body) in enumerate(events, 1)],
        )
    database = Database(tmp_path / "baton.sqlite3")
    try:
        ids = [f"item_{n}" for n in range(6)] + ["item_more_599"]
        found = await database.read(lambda c: find_items(c, "local", "ses_1", item_ids=ids))
        assert {(place.item_id, place.seq, place.kind, place.call_id) for place in found} == {
            ("item_0", 2, "user", None),
            ("item_2", 1, "system", None),
            ("item_3", 3, "call", "of_item_3"),
            ("item_4", 4, "cut_call", "of_item_4"),
            ("item_5", 5, "call_result", "of_item_3"),
            ("item_more_599", 606, "user", None),
        }
    finally:
        database.close()


def test_the_blobs_of_a_tenant_stay_the_tenants_own(old):
    with old.begin() as connection:
        command.upgrade(_config(connection), "0005")
        connection.execute(text("INSERT INTO blobs VALUES ('local', 'ab', 'image/png', 1, 2, NULL)"))
    for there, back in (("head", "0005"), ("head", "0004")):
        with old.begin() as connection:
            command.upgrade(_config(connection), there)
            kept = connection.execute(text("SELECT tenant, subject, sha256, size_bytes, held_ms FROM blobs")).all()
            assert kept == [("local", "", "ab", 1, None)]
        with old.begin() as connection:
            command.downgrade(_config(connection), back)
            assert connection.execute(text("SELECT tenant, sha256 FROM blobs")).all() == [("local", "ab")]
