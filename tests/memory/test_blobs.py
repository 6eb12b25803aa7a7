"""Blobs: found by their content, kept once, and only by those who stored them."""

import hashlib
import re
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from memory.blobs import BlobStore
from memory.database import Database
from memory.schema import blobs, files
from memory.sessions import create_session
from memory.uses import drop_uses, note_uses
from models.clock import ManualClock
from models.content import BlobRef
from models.errors import LimitExceeded, NotFound
from models.ids import new_id
from models.owner import Owner


@pytest.fixture
def store(tmp_path, database):
    return BlobStore(tmp_path / "blobs", database, ManualClock())


async def _stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _put(store: BlobStore, *chunks: bytes, tenant: str = "local", max_bytes: int = 1_000) -> BlobRef:
    return await store.put(tenant, _stream(*chunks), "image/png", max_bytes=max_bytes)


def _read(store: BlobStore, sha256: str, tenant: str = "local") -> bytes:
    with store.open(tenant, sha256) as file:
        return file.read()


def _files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


async def test_a_blob_is_found_by_the_hash_of_its_content(store):
    ref = await _put(store, b"pixels")
    assert ref == BlobRef(sha256=hashlib.sha256(b"pixels").hexdigest(), media_type="image/png", size_bytes=6)
    assert _read(store, ref.sha256) == b"pixels"


@given(chunks=st.lists(st.binary(max_size=64), max_size=8))
@settings(max_examples=25)  # each opens a database of its own
async def test_a_blob_is_the_same_however_it_was_cut_when_it_arrived(tmp_path_factory, chunks):
    home = tmp_path_factory.mktemp("home")
    database = Database(home / "baton.sqlite3")
    store = BlobStore(home / "blobs", database, ManualClock())
    try:
        ref = await _put(store, *chunks)
        assert ref == await _put(store, b"".join(chunks))
        assert _read(store, ref.sha256) == b"".join(chunks)
    finally:
        database.close()


async def test_the_same_content_twice_is_one_file_and_one_reference(store, database, tmp_path):
    assert await _put(store, b"pixels") == await _put(store, b"pixels")
    assert len(_files(tmp_path)) == 1
    count = await database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM blobs").scalar_one())
    assert count == 1


async def test_two_tenants_share_the_file_but_not_the_reference(store, tmp_path):
    ours = await _put(store, b"pixels", tenant="ours")
    with pytest.raises(NotFound):
        _read(store, ours.sha256, "theirs")
    await _put(store, b"pixels", tenant="theirs")
    assert _read(store, ours.sha256, "theirs") == b"pixels"
    assert len(_files(tmp_path)) == 1


async def test_anothers_blob_is_as_absent_as_one_that_never_was(store):
    ref = await _put(store, b"pixels", tenant="ours")
    never = hashlib.sha256(b"never").hexdigest()
    messages = []
    for sha256 in (ref.sha256, never):
        with pytest.raises(NotFound) as caught:
            _read(store, sha256, "theirs")
        messages.append(caught.value.message.replace(sha256, "SHA"))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("chunks", [[b"x" * 11], [b"x"] * 11, [b"x" * 10, b"x"]])
async def test_content_over_the_limit_is_refused_and_leaves_no_file(store, tmp_path, chunks):
    with pytest.raises(LimitExceeded, match="10 bytes"):
        await _put(store, *chunks, max_bytes=10)
    assert _files(tmp_path) == []
    with pytest.raises(NotFound):
        _read(store, hashlib.sha256(b"".join(chunks)).hexdigest())


async def test_content_over_the_limit_is_not_read_to_its_end(store):
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 4

    with pytest.raises(LimitExceeded):
        await store.put("local", endless(), "image/png", max_bytes=10)
    assert taken == 3


async def test_content_of_exactly_the_limit_is_kept(store):
    assert (await _put(store, b"x" * 10, max_bytes=10)).size_bytes == 10


async def test_a_source_that_breaks_off_leaves_no_file(store, tmp_path):
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put("local", broken(), "image/png", max_bytes=10)
    assert _files(tmp_path) == []


async def test_blobs_are_there_after_a_restart(tmp_path):
    first = Database(tmp_path / "baton.sqlite3")
    ref = await _put(BlobStore(tmp_path / "blobs", first, ManualClock()), b"pixels")
    first.close()
    second = Database(tmp_path / "baton.sqlite3")
    assert _read(BlobStore(tmp_path / "blobs", second, ManualClock()), ref.sha256) == b"pixels"
    second.close()


async def test_a_blob_is_readable_by_its_owner_only(store, tmp_path):
    await _put(store, b"pixels")
    (file,) = _files(tmp_path)
    assert file.stat().st_mode & 0o077 == 0


_SHA256 = hashlib.sha256(b"pixels").hexdigest()


@pytest.mark.parametrize(
    "sha256",
    [
        "",
        "..",
        "../baton.sqlite3",
        "../" * 20 + "etc/passwd",
        "/etc/passwd",
        f"../blobs/{_SHA256[:2]}/{_SHA256}",
        f"{_SHA256}/../{_SHA256}",
        f"{_SHA256}\n",
        f" {_SHA256}",
        _SHA256[:63],
        _SHA256.upper(),
        f"{_SHA256}\0",
        "\uff10" * 64,  # digits to Unicode, not to us
    ],
)
async def test_what_is_not_a_hash_is_no_blob_even_if_it_leads_to_a_file_and_a_row_has_it(store, database, sha256):
    await _put(store, b"pixels")
    row = {"tenant": "local", "sha256": sha256, "media_type": "image/png", "size_bytes": 6, "created_ms": 0}
    await database.write(lambda c: c.execute(insert(blobs).values(row)) and None)
    with pytest.raises(NotFound, match=re.escape(repr(sha256))):
        _read(store, sha256)


# What nobody uses


async def test_what_was_put_is_held_for_an_hour_and_then_swept_with_what_a_crash_has_left(tmp_path, database):
    clock = ManualClock()
    store = BlobStore(tmp_path / "blobs", database, clock)
    await database.write(lambda c: create_session(c, "local", "ses_1", 1))
    used, unused = await _put(store, b"used"), await _put(store, b"unused")
    theirs = await _put(store, b"unused", tenant="theirs")
    await database.write(lambda c: note_uses(c, "local", "ses_1", [("item_1", used.sha256)]))
    await database.write(lambda c: note_uses(c, "theirs", "ses_1", [("item_2", theirs.sha256)]))
    (tmp_path / "blobs" / ".incoming-1").write_bytes(b"half")
    lost = tmp_path / "blobs" / "ab" / ("ab" * 32)
    lost.parent.mkdir(exist_ok=True)
    lost.write_bytes(b"nobody's")
    await store.sweep()
    assert {path.read_bytes() for path in _files(tmp_path)} == {b"used", b"unused"}
    assert _read(store, unused.sha256) == b"unused"
    clock.advance(3_601)
    again = await _put(store, b"put later")
    await store.sweep()
    with pytest.raises(NotFound):
        store.open("local", unused.sha256)
    assert _read(store, theirs.sha256, "theirs") == b"unused"  # who uses it has it still
    assert _read(store, used.sha256) == b"used"
    assert _read(store, again.sha256) == b"put later"


async def test_content_goes_with_the_last_use_of_any_tenant_and_the_right_to_it_with_the_tenants_last(
    tmp_path, database
):
    store = BlobStore(tmp_path / "blobs", database, ManualClock())
    ref = await _put(store, b"pixels")
    assert await _put(store, b"pixels", tenant="theirs") == ref
    for tenant in ("local", "theirs"):
        await database.write(lambda c, tenant=tenant: create_session(c, tenant, tenant, 1))
        await database.write(lambda c, tenant=tenant: note_uses(c, tenant, tenant, [("item_1", ref.sha256)]))
    await store.drop(await database.write(lambda c: drop_uses(c, "local", "local")))
    with pytest.raises(NotFound):
        store.open("local", ref.sha256)
    assert _read(store, ref.sha256, "theirs") == b"pixels"
    await store.drop(await database.write(lambda c: drop_uses(c, "theirs", "theirs", [("item_1", ref.sha256)])))
    assert _files(tmp_path) == []


async def test_what_is_put_again_meanwhile_is_not_removed(tmp_path, database):
    store = BlobStore(tmp_path / "blobs", database, ManualClock())
    ref = await _put(store, b"pixels")
    await database.write(lambda c: create_session(c, "local", "ses_1", 1))
    await database.write(lambda c: note_uses(c, "local", "ses_1", [("item_1", ref.sha256)]))
    loose = await database.write(lambda c: drop_uses(c, "local", "ses_1"))
    assert loose == (ref.sha256,)
    await _put(store, b"pixels")
    await store.drop(loose)
    assert _read(store, ref.sha256) == b"pixels"


async def test_a_file_uses_its_content(tmp_path, database):
    store = BlobStore(tmp_path / "blobs", database, ManualClock())
    ref = await _put(store, b"pixels")
    await database.write(lambda c: create_session(c, "local", "ses_1", 1))
    await database.write(lambda c: note_uses(c, "local", "ses_1", [("item_1", ref.sha256)]))
    file = {"id": "file_1", "tenant": "local", "name": "a", "purpose": "vision", "sha256": ref.sha256, "created_ms": 1}
    await database.write(lambda c: c.execute(insert(files).values(file)) and None)
    await store.drop(await database.write(lambda c: drop_uses(c, "local", "ses_1")))
    assert _read(store, ref.sha256) == b"pixels"


# Whose it is

OWNERS = (
    Owner("acme"),
    Owner("acme", "ada"),
    Owner("acme", "eve"),
    Owner.unnamed("acme").within("s1"),
    Owner("b", "ada"),
)


async def _is_opened(store: BlobStore, owner: Owner, content: bytes) -> bool:
    digest = hashlib.sha256(content).hexdigest()
    ref = BlobRef(sha256=digest, media_type="image/png", size_bytes=len(content))
    try:
        with store.open(owner, digest) as file:
            assert file.read() == content
    except NotFound:
        with pytest.raises(NotFound):
            await store.grant(owner, ref)
        return False
    assert (await store.grant(owner, ref)).owner == owner
    return True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(("put", "use", "drop", "sweep")), st.sampled_from(OWNERS), st.sampled_from((b"1", b"22"))
        ),
        max_size=14,
    )
)
async def test_a_blob_is_opened_by_whom_it_was_put_or_is_used_and_by_no_other_end_user(tmp_path, database, steps):
    clock = ManualClock()
    store = BlobStore(tmp_path / "blobs", database, clock)
    await database.write(lambda c: c.execute(blobs.delete()) and None)
    held: set[tuple[Owner, bytes]] = set()
    used: set[tuple[Owner, bytes]] = set()
    sessions = {owner: new_id("sess") for owner in OWNERS}
    for owner, session_id in sessions.items():
        await database.write(lambda c, whose=owner, name=session_id: create_session(c, whose, name, 1))
    for step, owner, content in steps:
        sha256, session_id = hashlib.sha256(content).hexdigest(), sessions[owner]
        match step:
            case "put":
                await store.put(owner, _stream(content), "image/png", max_bytes=9)
                held.add((owner, content))
            case "use" if (owner, content) in held | used:
                await database.write(
                    lambda c, o=owner, s=session_id, d=sha256: note_uses(c, o.tenant, s, [("i", d)], subject=o.subject)
                )
                held.discard((owner, content))
                used.add((owner, content))
            case "drop":
                await store.drop(await database.write(lambda c, o=owner, s=session_id: drop_uses(c, o.tenant, s)))
                used -= {(owner, each) for each in (b"1", b"22")}
            case "sweep":
                clock.advance(3_601)
                await store.sweep()
                held = {one for one in held if one in used}
        for somebody, each in product(OWNERS, (b"1", b"22")):
            assert await _is_opened(store, somebody, each) is ((somebody, each) in held | used)
    for session_id in sessions.values():
        await database.write(lambda c, name=session_id: drop_uses(c, "", name) and None)


async def test_a_blob_whose_content_went_is_not_found(tmp_path, store):
    ref = await _put(store, b"pixels")
    for path in _files(tmp_path):
        path.unlink()
    with pytest.raises(NotFound):
        store.open("local", ref.sha256)
