"""Keys: the right one names its tenant, every other string names nobody, and the database could not tell it."""

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory.database import Database, transaction
from memory.keys import (
    Key,
    RequestDefaults,
    any_key,
    create_key,
    find_key,
    list_keys,
    revoke_key,
    verify_key,
)
from models.errors import NotFound


async def _create(database: Database, tenant: str = "acme", name: str = "laptop", at_ms: int = 5) -> str:
    return await database.write(lambda c: create_key(c, tenant, name, at_ms))


async def _verify(database: Database, presented: str) -> Key | None:
    return await database.read(lambda c: verify_key(c, presented))


async def _revoke(database: Database, key_id: str) -> None:
    await database.write(lambda c: revoke_key(c, key_id, 9))


def _id_of(key: str) -> str:
    return key.split("_")[1]


async def test_the_right_key_names_its_tenant(database):
    key = await _create(database)
    found = await _verify(database, key)
    assert found == Key(
        key_id=_id_of(key),
        tenant="acme",
        name="laptop",
        requests_per_minute=None,
        defaults=RequestDefaults(),
        created_ms=5,
        revoked_ms=None,
    )


async def test_a_key_keeps_its_rate_and_its_defaults(database):
    defaults = RequestDefaults(model="small", instructions="Sois bref, «s'il te plaît».", max_output_tokens=7)
    key = await database.write(lambda c: create_key(c, "acme", "x", 0, requests_per_minute=30, defaults=defaults))
    found = await _verify(database, key)
    assert found is not None
    assert (found.requests_per_minute, found.defaults) == (30, defaults)


async def test_keys_of_two_tenants_are_told_apart(database):
    ours, theirs = await _create(database, "ours"), await _create(database, "theirs")
    tenants = [found and found.tenant for found in (await _verify(database, ours), await _verify(database, theirs))]
    assert tenants == ["ours", "theirs"]


async def test_a_revoked_key_names_nobody_from_then_on(database):
    key = await _create(database)
    await _revoke(database, _id_of(key))
    assert await _verify(database, key) is None
    assert await database.read(lambda c: find_key(c, _id_of(key))) is None


async def test_revoking_one_key_leaves_the_others_good(database):
    lost, kept = await _create(database), await _create(database)
    await _revoke(database, _id_of(lost))
    assert await _verify(database, kept) is not None


@pytest.mark.parametrize("which", ["unknown", "revoked already"])
async def test_revoking_what_is_not_good_says_so(database, which):
    key_id = "key0"
    if which == "revoked already":
        key_id = _id_of(await _create(database))
        await _revoke(database, key_id)
    with pytest.raises(NotFound, match=key_id):
        await _revoke(database, key_id)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1],
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: key + "x",
        lambda key: key + "ß",
        lambda key: " " + key,
        lambda key: key.replace("baton", "batons"),
        lambda key: key.replace("baton_", ""),
        lambda key: "_".join(key.split("_")[:2]),
        lambda key: "_".join(key.split("_")[:2]) + "_",
        lambda key: f"baton_{_id_of(key)}_{hashlib.sha256(key.split('_', 2)[2].encode()).hexdigest()}",
        lambda key: f"baton_{_id_of(key)[:-1]}_{key.split('_', 2)[2]}",
        lambda key: key.swapcase(),
    ],
    ids=[
        "cut",
        "one character",
        "longer",
        "not ascii",
        "space",
        "prefix",
        "no prefix",
        "no secret",
        "empty secret",
        "the hash itself",
        "another id",
        "case",
    ],
)
async def test_a_key_that_is_not_quite_right_names_nobody(database, spoil):
    key = await _create(database)
    assert await _verify(database, spoil(key)) is None


@given(garbage=st.text() | st.text().map(lambda text: f"baton_{text}_{text}"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # nothing is written
async def test_garbage_names_nobody_and_breaks_nothing(database, garbage):
    assert await _verify(database, garbage) is None


async def test_only_a_hash_of_the_secret_is_stored(tmp_path):
    path = tmp_path / "baton.sqlite3"
    with transaction(path) as connection:
        key = create_key(connection, "acme", "laptop", 0)
    secret = key.split("_", 2)[2]
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert _id_of(key).encode() in stored
    assert secret.encode() not in stored
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in stored


async def test_a_key_without_its_secret_does_not_show_it(database):
    key = await _create(database)
    assert key.split("_", 2)[2] not in repr(await _verify(database, key))


async def test_every_key_is_listed_oldest_first_also_the_revoked_ones(database):
    late = await _create(database, name="late", at_ms=2)
    early = await _create(database, name="early", at_ms=1)
    await _revoke(database, _id_of(early))
    found = await database.read(list_keys)
    assert [(key.key_id, key.name, key.revoked_ms) for key in found] == [
        (_id_of(early), "early", 9),
        (_id_of(late), "late", None),
    ]


async def test_revoking_the_last_key_does_not_open_a_server_that_had_one(database):
    assert await database.read(any_key) is False
    key = await _create(database)
    assert await database.read(any_key) is True
    await _revoke(database, _id_of(key))
    assert await database.read(any_key) is True
