"""Branches share rows by reference, and what they share stays until the last of them goes."""

import pytest
from sqlalchemy import Connection

from memory.branches import delete_session, make_branch, sharers
from memory.items import ItemPlace, find_items, forget_items, note_items
from memory.log import Entry, append, read
from memory.schema import blobs, metadata
from memory.sessions import create_session, find_session, list_sessions
from memory.uses import drop_unused, note_uses
from models.errors import NotFound


def _say(connection: Connection, session_id: str, *texts: str) -> None:
    for text in texts:
        (row,) = append(connection, "ours", session_id, [Entry(turn_id=None, kind="note", body=f'"{text}"')], 1)
        note_items(connection, session_id, [ItemPlace(item_id=f"item_{text}", seq=row.seq, kind="user", call_id=None)])


def _said(connection: Connection, session_id: str, after: int = 0, limit: int = 100) -> str:
    return "".join(row.body.strip('"') for row in read(connection, "ours", session_id, after=after, limit=limit))


def _found(connection: Connection, session_id: str) -> str:
    ids = [f"item_{text}" for text in "abcdefxyz"]
    return "".join(sorted(place.item_id[-1] for place in find_items(connection, "ours", session_id, item_ids=ids)))


def _stored(connection: Connection) -> dict[str, int]:
    tables = (table for table in metadata.sorted_tables if table.name == "sessions" or "session_id" in table.c)
    return {table.name: len(connection.execute(table.select()).all()) for table in tables}


def _family(connection: Connection) -> None:
    """A session of five, a branch of its first three with two of its own, and a branch of that."""
    create_session(connection, "ours", "root", 1, title="Root")
    _say(connection, "root", *"abc")
    make_branch(connection, "ours", "root", "child", 3, 2)
    _say(connection, "root", *"de")
    _say(connection, "child", *"xy")
    make_branch(connection, "ours", "child", "grandchild", 4, 3)
    _say(connection, "grandchild", "z")


async def test_a_branch_reads_on_from_where_it_left_and_writes_to_itself_alone(database):
    def all_of_it(connection: Connection) -> None:
        _family(connection)
        assert [_said(connection, name) for name in ("root", "child", "grandchild")] == ["abcde", "abcxy", "abcxz"]
        assert [_said(connection, "grandchild", after, 2) for after in range(5)] == ["ab", "bc", "cx", "xz", "z"]
        assert [_found(connection, name) for name in ("root", "child", "grandchild")] == ["abcde", "abcxy", "abcxz"]
        assert find_session(connection, "ours", "grandchild").title == "Root"

    await database.write(all_of_it)


async def test_a_branch_of_what_a_branch_shares_is_one_of_the_ancestor(database):
    def all_of_it(connection: Connection) -> None:
        _family(connection)
        make_branch(connection, "ours", "grandchild", "cousin", 2, 4)
        assert _said(connection, "cousin") == "ab"
        delete_session(connection, "ours", "grandchild")
        delete_session(connection, "ours", "child")
        assert _said(connection, "cousin") == "ab"
        assert _stored(connection)["sessions"] == 2

    await database.write(all_of_it)


async def test_what_leaves_one_conversation_stays_in_the_others(database):
    def all_of_it(connection: Connection) -> None:
        _family(connection)
        assert set(sharers(connection, "root", "root", "item_b", 2)) == {"child", "grandchild"}
        forget_items(connection, "child", ["item_b"], 9)
        assert [_found(connection, name) for name in ("root", "child", "grandchild")] == ["abcde", "acxy", "abcxz"]
        assert set(sharers(connection, "child", "root", "item_b", 2)) == {"root", "grandchild"}
        # What was removed after the branch point is in a branch from before it.
        make_branch(connection, "ours", "child", "late", 5, 3)
        assert _found(connection, "late") == "abcxy"
        assert sharers(connection, "root", "root", "item_d", 4) == ()

    await database.write(all_of_it)


@pytest.mark.parametrize(
    "order",
    [("root", "child", "grandchild"), ("grandchild", "child", "root"), ("child", "root", "grandchild")],
)
async def test_what_branches_need_stays_until_the_last_goes_and_then_nothing_is_left(database, order):
    def all_of_it(connection: Connection) -> None:
        _family(connection)
        left = {"root": "abcde", "child": "abcxy", "grandchild": "abcxz"}
        for name in order:
            delete_session(connection, "ours", name)
            del left[name]
            with pytest.raises(NotFound):
                find_session(connection, "ours", name)
            with pytest.raises(NotFound):
                read(connection, "ours", name, after=0, limit=1)
            with pytest.raises(NotFound):
                append(connection, "ours", name, [], 1)
            assert {one.session_id for one in list_sessions(connection, "ours", limit=9)} == set(left)
            assert {one: _said(connection, one) for one in left} == left
            bodies = set(connection.exec_driver_sql("SELECT body FROM events").scalars())
            assert bodies == {f'"{letter}"' for letter in "".join(left.values())}
        assert set(_stored(connection).values()) == {0}

    await database.write(all_of_it)


async def test_a_blob_goes_with_the_last_item_that_uses_it_unless_it_is_held(database):
    def put(connection: Connection, held_ms: int | None) -> None:
        connection.execute(blobs.delete())
        connection.execute(
            blobs.insert().values(
                tenant="ours", sha256="f" * 64, media_type="image/png", size_bytes=1, created_ms=1, held_ms=held_ms
            )
        )

    def all_of_it(connection: Connection) -> None:
        _family(connection)
        put(connection, 5)
        note_uses(connection, "ours", "root", [("item_a", "f" * 64)])
        note_uses(connection, "ours", "child", [("item_x", "f" * 64)])
        assert delete_session(connection, "ours", "root") == ()  # the branches have `a`
        assert drop_unused(connection, 9) == ()
        assert delete_session(connection, "ours", "grandchild") == ()
        assert delete_session(connection, "ours", "child") == ("f" * 64,)
        create_session(connection, "ours", "again", 1)
        put(connection, 5)
        note_uses(connection, "ours", "again", [("item_a", "f" * 64)])
        connection.execute(blobs.update().values(held_ms=7))  # it was put once more
        assert delete_session(connection, "ours", "again") == ()
        assert drop_unused(connection, 7) == ()
        assert drop_unused(connection, 8) == ("f" * 64,)

    await database.write(all_of_it)
