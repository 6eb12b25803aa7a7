"""What is kept of sessions beside their logs: listed by their last activity, and deleted whole."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from memory.branches import delete_session
from memory.database import Database
from memory.documents import digest_of, keep_documents
from memory.effects import Effect, open_effect
from memory.items import ItemPlace, note_items
from memory.log import Entry, accept_turn, append
from memory.schema import metadata
from memory.sessions import (
    SessionRecord,
    change_session,
    create_session,
    find_session,
    list_sessions,
    name_session,
)
from memory.uses import note_uses
from models.errors import NotFound
from models.ids import new_id

_NOTE = Entry(turn_id=None, kind="note", body="{}")


async def _listed(database: Database, tenant: str, limit: int = 100, before: str | None = None) -> list[SessionRecord]:
    return list(await database.read(lambda c: list_sessions(c, tenant, limit=limit, before=before)))


def _ids(records: list[SessionRecord]) -> list[str]:
    return [record.session_id for record in records]


async def test_a_session_is_found_as_it_was_made(database):
    await database.write(lambda c: create_session(c, "local", "ses_1", 7, title="Plans", model="small"))
    assert await database.read(lambda c: find_session(c, "local", "ses_1")) == SessionRecord(
        session_id="ses_1",
        title="Plans",
        instructions=None,
        model="small",
        created_ms=7,
        updated_ms=7,
        last_seq=0,
    )


async def test_a_session_is_as_new_as_its_last_row(database):
    await database.write(lambda c: create_session(c, "local", "ses_1", 7))
    await database.write(lambda c: append(c, "local", "ses_1", [_NOTE, _NOTE], 9))
    record = await database.read(lambda c: find_session(c, "local", "ses_1"))
    assert (record.created_ms, record.updated_ms, record.last_seq) == (7, 9, 2)


async def test_what_is_set_holds_and_the_rest_stays(database):
    await database.write(lambda c: create_session(c, "local", "ses_1", 7, title="Plans", model="small"))
    await database.write(lambda c: create_session(c, "local", "ses_2", 7))
    await database.write(lambda c: change_session(c, "ses_1", model=None, instructions="Be brief."))
    one, other = [await database.read(lambda c, n=n: find_session(c, "local", f"ses_{n}")) for n in (1, 2)]
    assert (one.title, one.instructions, one.model) == ("Plans", "Be brief.", None)
    assert (other.title, other.instructions, other.model) == (None, None, None)


async def test_a_name_is_given_only_where_there_is_none(database):
    await database.write(lambda c: create_session(c, "local", "ses_1", 7))
    for title in ("first", "second"):
        await database.write(lambda c, title=title: name_session(c, "ses_1", title))
    assert (await database.read(lambda c: find_session(c, "local", "ses_1"))).title == "first"


# Listing


@given(
    sessions=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=12),
    limit=st.integers(1, 5),
    chance=st.randoms(use_true_random=False),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_pages_of_any_length_together_list_each_session_of_the_tenant_once_the_last_active_first(
    database, sessions, limit, chance: random.Random
):
    tenants = {letter: new_id("tenant") for letter in "ab"}  # each example has tenants of its own
    activity: dict[str, tuple[int, str]] = {}
    for letter, at_ms in sessions:
        session_id = new_id("ses")
        await database.write(lambda c, a=(tenants[letter], session_id, at_ms): create_session(c, *a))
        if chance.random() < 0.5:
            at_ms = chance.randint(0, 3)
            await database.write(lambda c, a=(tenants[letter], session_id, [_NOTE], at_ms): append(c, *a))
        if letter == "a":
            activity[session_id] = (at_ms, session_id)
    found: list[str] = []
    while page := _ids(await _listed(database, tenants["a"], limit, found[-1] if found else None)):
        assert len(page) <= limit
        found += page
    assert found == sorted(activity, key=activity.__getitem__, reverse=True)


async def test_a_session_that_becomes_active_between_two_pages_hides_none_of_the_others(database):
    for n in range(6):
        await database.write(lambda c, n=n: create_session(c, "local", f"ses_{n}", n))
    first = _ids(await _listed(database, "local", 2))
    assert first == ["ses_5", "ses_4"]
    await database.write(lambda c: append(c, "local", "ses_5", [_NOTE], 10))
    await database.write(lambda c: create_session(c, "local", "ses_new", 11))
    assert _ids(await _listed(database, "local", 10, before=first[-1])) == ["ses_3", "ses_2", "ses_1", "ses_0"]


@pytest.mark.parametrize("before", ["ses_theirs", "ses_none"])
async def test_a_page_after_a_session_that_is_not_the_tenants_is_not_found(database, before):
    await database.write(lambda c: create_session(c, "theirs", "ses_theirs", 1))
    with pytest.raises(NotFound) as refused:
        await _listed(database, "ours", before=before)
    assert refused.value.code == "session_not_found"


async def test_a_tenant_without_sessions_has_an_empty_list(database):
    await database.write(lambda c: create_session(c, "theirs", "ses_theirs", 1))
    assert await _listed(database, "ours") == []


# Deleting


def _fill(connection: Connection, tenant: str, session_id: str) -> None:
    create_session(connection, tenant, session_id, 1)
    append(connection, tenant, session_id, [_NOTE, _NOTE], 2)
    accept_turn(connection, tenant, session_id, f"turn_of_{session_id}", 3)
    effect = Effect(
        key="call_1", turn_id=f"turn_of_{session_id}", tool="mail", effect="effectful", arguments="{}", result=None
    )
    open_effect(connection, tenant, session_id, effect, 4)
    note_items(connection, session_id, [ItemPlace(item_id="item_1", seq=1, kind="user", call_id=None)])
    keep_documents(connection, session_id, {digest_of("Be brief."): "Be brief."})
    note_uses(connection, tenant, session_id, [("item_1", "a" * 64)])


def _rows(connection: Connection) -> dict[str, list[tuple[object, ...]]]:
    tables = (table for table in metadata.sorted_tables if table.name == "sessions" or "session_id" in table.c)
    return {table.name: [tuple(row) for row in connection.execute(table.select())] for table in tables}


async def test_deleting_a_session_takes_everything_of_it_and_nothing_else(database):
    await database.write(lambda c: _fill(c, "ours", "ses_kept"))
    await database.write(lambda c: _fill(c, "theirs", "ses_theirs"))
    before = await database.read(_rows)
    await database.write(lambda c: _fill(c, "ours", "ses_gone"))
    filled = await database.read(_rows)
    # Whichever tables refer to a session are emptied of it, also those that will be added.
    assert all(len(filled[table]) > len(before[table]) for table in filled)
    await database.write(lambda c: delete_session(c, "ours", "ses_gone"))
    assert await database.read(_rows) == before


@pytest.mark.parametrize(("tenant", "session_id"), [("theirs", "ses_1"), ("ours", "ses_none")])
async def test_anothers_session_is_as_absent_as_one_that_never_was(database, tenant, session_id):
    await database.write(lambda c: _fill(c, "ours", "ses_1"))
    before = await database.read(_rows)
    for use in (find_session, delete_session):
        with pytest.raises(NotFound) as refused:
            await database.write(lambda c, use=use: use(c, tenant, session_id))
        assert refused.value.message == f"There is no session {session_id!r}."
    assert await database.read(_rows) == before
