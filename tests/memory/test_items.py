"""Items are found by their ids and by their calls', in their own tenant's session, as long as they are part of it."""

import pytest
from sqlalchemy import Connection

from memory.items import ItemPlace, find_items, forget_items, last_of_user, note_items
from memory.sessions import create_session

SAID = ItemPlace(item_id="item_1", seq=1, kind="user", call_id=None)
CALL = ItemPlace(item_id="item_2", seq=2, kind="call", call_id="call_1")
RESULT = ItemPlace(item_id="item_3", seq=3, kind="call_result", call_id="call_1")
LATER = ItemPlace(item_id="item_4", seq=4, kind="user", call_id=None)


@pytest.fixture
async def filled(database):
    def fill(connection: Connection) -> None:
        for tenant, session_id in (("ours", "ses_1"), ("ours", "ses_2"), ("theirs", "ses_3")):
            create_session(connection, tenant, session_id, 1)
        note_items(connection, "ses_1", [SAID, CALL, RESULT, LATER])
        note_items(connection, "ses_3", [SAID])
        note_items(connection, "ses_2", [])

    await database.write(fill)
    return database


async def _found(database, session_id="ses_1", tenant="ours", **wanted):
    return set(await database.read(lambda c: find_items(c, tenant, session_id, **wanted)))


async def test_items_are_found_by_their_own_ids_and_by_their_calls(filled):
    assert await _found(filled, item_ids=["item_1", "nonesuch"]) == {SAID}
    assert await _found(filled, call_ids=["call_1"]) == {CALL, RESULT}
    assert await _found(filled, item_ids=["item_4"], call_ids=["call_1"]) == {CALL, RESULT, LATER}
    assert await _found(filled) == set()


async def test_an_item_of_another_session_or_tenant_is_not_found(filled):
    assert await _found(filled, "ses_2", item_ids=["item_1"]) == set()
    assert await _found(filled, "ses_3", item_ids=["item_1"]) == set()
    assert await _found(filled, "ses_1", "theirs", item_ids=["item_1"]) == set()


async def test_what_is_removed_is_not_found_and_may_come_again(filled):
    await filled.write(lambda c: forget_items(c, "ses_1", ["item_1", "nonesuch"], 9))
    assert await _found(filled, item_ids=["item_1"]) == set()
    assert await _found(filled, "ses_3", "theirs", item_ids=["item_1"]) == {SAID}
    again = ItemPlace(item_id="item_1", seq=9, kind="user", call_id=None)
    await filled.write(lambda c: note_items(c, "ses_1", [again]))
    assert await _found(filled, item_ids=["item_1"]) == {again}


async def test_what_the_user_said_last_is_found(filled):
    assert await filled.read(lambda c: last_of_user(c, "ours", "ses_1")) == LATER
    assert await filled.read(lambda c: last_of_user(c, "ours", "ses_2")) is None
    assert await filled.read(lambda c: last_of_user(c, "ours", "ses_3")) is None
