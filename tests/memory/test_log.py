"""The session log: numbers without gaps, turns that are not lost, tenants that do not see each other."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory.database import Database
from memory.log import (
    Entry,
    OpenTurn,
    accept_turn,
    append,
    end_turn,
    last_seq,
    open_turns,
    read,
)
from memory.sessions import create_session
from models.errors import Conflict, NotFound
from models.ids import new_id
from models.owner import Owner


def _entries(count: int) -> list[Entry]:
    return [Entry(turn_id=None, kind="note", body=f'{{"n": {n}}}') for n in range(count)]


async def _session(database: Database, tenant: str = "local") -> str:
    session_id = new_id("ses")
    await database.write(lambda c: create_session(c, tenant, session_id, 0))
    return session_id


@given(
    transactions=st.lists(
        st.tuples(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=3), st.booleans()),
        max_size=8,
    )
)
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example makes sessions of its own
)
async def test_every_session_counts_from_one_without_gaps_whatever_is_appended_and_whatever_fails(
    database, transactions
):
    session_ids = [await _session(database) for _ in range(3)]
    expected = dict.fromkeys(session_ids, 0)

    def unit(appends, fails):
        def run(connection):
            rows = [append(connection, "local", session_ids[at], _entries(count), 0) for at, count in appends]
            if fails:
                raise Conflict("not now")
            return rows

        return run

    # All at once: they share commits, and those that fail take their numbers back.
    results = await asyncio.gather(
        *(database.write(unit(appends, fails)) for appends, fails in transactions), return_exceptions=True
    )
    for (appends, fails), rows in zip(transactions, results, strict=True):
        if fails:
            assert isinstance(rows, Conflict)
            continue
        assert [len(numbered) for numbered in rows] == [count for _, count in appends]
        for at, count in appends:
            expected[session_ids[at]] += count
    for session_id, count in expected.items():
        rows = await database.read(lambda c, id_=session_id: read(c, "local", id_, after=0, limit=1_000))
        assert [row.seq for row in rows] == list(range(1, count + 1))
        assert await database.read(lambda c, id_=session_id: last_seq(c, "local", id_)) == count


async def test_what_is_appended_is_what_is_read(database):
    session_id = await _session(database)
    entries = [
        Entry(turn_id="turn_1", kind="item", body='{"text": "Grüezi 👋"}'),
        Entry(turn_id=None, kind="note", body="{}"),
    ]
    written = await database.write(lambda c: append(c, "local", session_id, entries, 1_234))
    assert await database.read(lambda c: read(c, "local", session_id, after=0, limit=10)) == written
    assert [(row.seq, row.turn_id, row.kind, row.body, row.at_ms) for row in written] == [
        (1, "turn_1", "item", '{"text": "Grüezi 👋"}', 1_234),
        (2, None, "note", "{}", 1_234),
    ]


@pytest.mark.parametrize(
    ("after", "limit", "seqs"), [(0, 2, [1, 2]), (2, 2, [3, 4]), (4, 2, [5]), (5, 2, []), (99, 2, []), (0, 0, [])]
)
async def test_a_reader_goes_on_after_the_number_it_has(database, after, limit, seqs):
    session_id = await _session(database)
    await database.write(lambda c: append(c, "local", session_id, _entries(5), 0))
    rows = await database.read(lambda c: read(c, "local", session_id, after=after, limit=limit))
    assert [row.seq for row in rows] == seqs


async def test_numbers_go_on_after_a_restart(tmp_path: Path):
    path = tmp_path / "baton.sqlite3"
    first = Database(path)
    session_id = await _session(first)
    await first.write(lambda c: append(c, "local", session_id, _entries(2), 0))
    first.close()
    second = Database(path)
    rows = await second.write(lambda c: append(c, "local", session_id, _entries(1), 0))
    second.close()
    assert [row.seq for row in rows] == [3]


@pytest.mark.parametrize(
    "use",
    [
        lambda c, tenant, session_id: append(c, tenant, session_id, _entries(1), 0),
        lambda c, tenant, session_id: read(c, tenant, session_id, after=0, limit=10),
        last_seq,
    ],
    ids=["append", "read", "last_seq"],
)
@pytest.mark.parametrize("stranger", ["another tenant", "nobody's session"])
async def test_another_tenants_session_is_as_absent_as_one_that_never_was(database, use, stranger):
    owned = await _session(database, "owner")
    await database.write(lambda c: append(c, "owner", owned, _entries(1), 0))
    session_id = owned if stranger == "another tenant" else "ses_none"
    with pytest.raises(NotFound) as caught:
        await database.write(lambda c: use(c, "stranger", session_id))
    assert caught.value.message == f"There is no session {session_id!r}."
    assert await database.read(lambda c: last_seq(c, "owner", owned)) == 1


async def test_a_turn_is_open_from_its_acceptance_to_its_end(database):
    session_id = await _session(database)
    turn = OpenTurn(owner=Owner("local"), session_id=session_id, turn_id="turn_1")
    assert await database.read(open_turns) == ()
    await database.write(lambda c: accept_turn(c, "local", session_id, "turn_1", 0))
    assert await database.read(open_turns) == (turn,)
    await database.write(lambda c: end_turn(c, "turn_1", "finished", 1))
    assert await database.read(open_turns) == ()


@pytest.mark.parametrize("state", ["finished", "interrupted", "failed"])
async def test_a_turn_that_ended_in_any_way_is_not_open(database, state):
    session_id = await _session(database)
    await database.write(lambda c: accept_turn(c, "local", session_id, "turn_1", 0))
    await database.write(lambda c: end_turn(c, "turn_1", state, 1))
    assert await database.read(open_turns) == ()


async def test_open_turns_are_those_of_all_tenants_oldest_first(database):
    ours, theirs = await _session(database, "ours"), await _session(database, "theirs")
    for tenant, session_id, turn_id, at_ms in [
        ("ours", ours, "turn_late", 3),
        ("theirs", theirs, "turn_early", 1),
        ("ours", ours, "turn_ended", 0),
        ("theirs", theirs, "turn_middle", 2),
    ]:
        await database.write(lambda c, a=(tenant, session_id, turn_id, at_ms): accept_turn(c, *a))
    await database.write(lambda c: end_turn(c, "turn_ended", "failed", 4))
    found = await database.read(open_turns)
    assert [(turn.owner.tenant, turn.turn_id) for turn in found] == [
        ("theirs", "turn_early"),
        ("theirs", "turn_middle"),
        ("ours", "turn_late"),
    ]
