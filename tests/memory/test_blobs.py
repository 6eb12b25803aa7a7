"""Blobs: found by their content, kept once, and only by those who stored them."""

import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from memory.blobs import BlobStore
from memory.database import Database
from memory.schema import blobs
from models.clock import ManualClock
from models.content import BlobRef
from models.errors import LimitExceeded, NotFound


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
