"""The effect ledger: what was asked of the world is on record before it is asked, and counted once."""

import asyncio
from dataclasses import replace

import pytest

from memory.database import Database
from memory.effects import Effect, complete_call, complete_effect, open_effect, open_effects
from memory.sessions import create_session
from models.errors import Internal, NotFound


def _effect(key: str = "call_1", **fields: str) -> Effect:
    return Effect(
        **{
            "key": key,
            "turn_id": "turn_1",
            "tool": "mail",
            "effect": "effectful",
            "arguments": '{"to": "a"}',
            "result": None,
            **fields,
        }
    )


async def _opened(database: Database, *effects: Effect, tenant: str = "local", session_id: str = "ses_1") -> None:
    await database.write(lambda c: create_session(c, tenant, session_id, 0))
    await _open(database, *effects, tenant=tenant, session_id=session_id)


async def _open(database: Database, *effects: Effect, tenant: str = "local", session_id: str = "ses_1") -> None:
    for effect in effects:
        await database.write(lambda c, e=effect: open_effect(c, tenant, session_id, e, 0))


async def _open_ones(database: Database, tenant: str = "local", session_id: str = "ses_1") -> tuple[Effect, ...]:
    return await database.read(lambda c: open_effects(c, tenant, session_id))


async def _complete(database: Database, key: str, tenant: str = "local", session_id: str = "ses_1") -> bool:
    return await database.write(lambda c: complete_effect(c, tenant, session_id, key, '"sent"', 1))


async def test_a_call_is_open_until_it_is_completed(database):
    await _opened(database, _effect())
    assert await _open_ones(database) == (_effect(),)
    assert await _complete(database, "call_1") is True
    assert await _open_ones(database) == ()


async def test_a_call_still_open_after_a_restart_is_found_as_it_was_written(tmp_path):
    path = tmp_path / "baton.sqlite3"
    effect = _effect(effect="idempotent", arguments='{"to": "Zoë"}')
    first = Database(path)
    await _opened(first, effect)
    first.close()
    second = Database(path)
    assert await _open_ones(second) == (effect,)
    second.close()


async def test_completing_twice_counts_once_and_keeps_the_first_result(database):
    await _opened(database, _effect())

    def results(connection):
        return [row for (row,) in connection.exec_driver_sql("SELECT result FROM effects")]

    assert await _complete(database, "call_1") is True
    assert await database.write(lambda c: complete_effect(c, "local", "ses_1", "call_1", '"again"', 2)) is False
    assert await database.read(results) == ['"sent"']


async def test_of_many_that_complete_a_call_at_once_exactly_one_counts(database):
    await _opened(database, _effect())
    counted = await asyncio.gather(*(_complete(database, "call_1") for _ in range(20)))
    assert sorted(counted) == [False] * 19 + [True]


async def test_a_key_is_opened_once_in_its_session_and_one_made_again_is_known_by_its_new_call(database):
    await _opened(database, _effect())
    await _open(database, replace(_effect(), call_id="call_again"))
    (opened,) = await _open_ones(database)
    assert (opened.key, opened.call_id) == (_effect().key, "call_again")


async def test_what_is_done_is_not_opened_again(database):
    await _opened(database, _effect())
    await _complete(database, "call_1")
    await _open(database, replace(_effect(), call_id="call_again"))
    assert await _open_ones(database) == ()


async def test_a_result_completes_the_open_row_of_its_call_and_no_other(database):
    await _opened(database)
    for key in ("first", "second"):  # the id of a call may serve again once it has its result
        await _open(database, replace(_effect(), key=key, call_id="call_1"))
        assert await database.write(lambda c: complete_call(c, "local", "ses_1", "call_1", '"done"', 2))
        assert not await database.write(lambda c: complete_call(c, "local", "ses_1", "call_1", '"again"', 3))
    assert not await database.write(lambda c: complete_call(c, "local", "ses_1", "call_none", '"done"', 2))
    assert await _open_ones(database) == ()


async def test_the_same_key_in_another_session_is_another_call(database):
    await _opened(database, _effect())
    await _opened(database, _effect(), session_id="ses_2")
    await _complete(database, "call_1", session_id="ses_2")
    assert await _open_ones(database) == (_effect(),)
    assert await _open_ones(database, session_id="ses_2") == ()


async def test_open_calls_come_in_the_order_in_which_they_were_made(database):
    keys = ["call_c", "call_a", "call_b"]
    await _opened(database, *(_effect(key) for key in keys))
    assert [effect.key for effect in await _open_ones(database)] == keys


@pytest.mark.parametrize(
    ("tenant", "session_id", "key"),
    [("local", "ses_1", "call_none"), ("local", "ses_none", "call_1"), ("stranger", "ses_1", "call_1")],
    ids=["no such call", "no such session", "another tenant's"],
)
async def test_a_call_that_is_not_the_callers_cannot_be_completed(database, tenant, session_id, key):
    await _opened(database, _effect())
    with pytest.raises(NotFound):
        await _complete(database, key, tenant, session_id)
    assert await _open_ones(database) == (_effect(),)


async def test_another_tenants_calls_are_not_listed(database):
    await _opened(database, _effect())
    assert await _open_ones(database, tenant="stranger") == ()


async def test_a_call_belongs_to_a_session_that_exists(database):
    with pytest.raises(Internal):
        await database.write(lambda c: open_effect(c, "local", "ses_none", _effect(), 0))
