"""Content-addressed blobs, kept once and referred to by tenants.

A file is written beside its place, flushed and renamed, before the row that refers to it is committed, and is removed
after the last such row is gone: a reference always has its content, and a crash leaves at most a file that nobody refers
to, which `sweep` finds. What uses a blob is in `memory.uses`.
"""

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterable, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from memory.database import Database
from memory.schema import blobs
from memory.uses import drop_unused, unreferred
from models.clock import Clock
from models.content import BlobRef
from models.errors import LimitExceeded, NotFound
from models.owner import Owner
from models.ports.media import MediaGrant

_HELD_MS = 3_600_000
"""How long what was put waits for its first use."""

_INCOMING = ".incoming-"

_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Stores and finds blobs under one directory."""

    def __init__(self, root: Path, database: Database, clock: Clock) -> None:
        self._root = root
        self._database = database
        self._clock = clock
        self._placing = asyncio.Lock()  # no file is removed between being put and being referred to
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def put(self, owner: Owner, content: AsyncIterable[bytes], media_type: str, *, max_bytes: int) -> BlobRef:
        """Store `content` as it arrives and refer `owner` to it; storing it again changes nothing.

        It is held for the owner until an item or a file uses it, or `sweep` finds that none does.

        Raises:
            LimitExceeded: there is more than `max_bytes` of it; nothing is kept.
        """
        digest = hashlib.sha256()
        size_bytes = 0
        incoming = await asyncio.to_thread(_incoming, self._root)
        try:
            with incoming:
                async for chunk in content:
                    size_bytes += len(chunk)
                    if size_bytes > max_bytes:
                        raise LimitExceeded(f"The content is over the limit of {max_bytes} bytes. Send a smaller one.")
                    digest.update(chunk)
                    await asyncio.to_thread(_write, incoming, chunk)
                await asyncio.to_thread(_flush, incoming)
            ref = BlobRef(sha256=digest.hexdigest(), media_type=media_type, size_bytes=size_bytes)
            now_ms = self._now_ms()
            async with self._placing:
                await asyncio.to_thread(_keep, Path(incoming.name), self._path(ref.sha256))
                await self._database.write(lambda connection: _refer(connection, Owner.of(owner), ref, now_ms))
        except BaseException:
            Path(incoming.name).unlink(missing_ok=True)  # noqa: ASYNC240  # not awaited: also under cancellation
            raise
        return ref

    async def grant(self, owner: Owner, blob: BlobRef) -> MediaGrant:
        """Return leave to read one of the owner's blobs on this host.

        Raises:
            NotFound: there is no such blob, or the owner has no reference to it.
        """
        content = await asyncio.to_thread(self.open, owner, blob.sha256)
        content.close()
        path = str(self._path(blob.sha256))
        return MediaGrant(owner=Owner.of(owner), sha256=blob.sha256, size_bytes=blob.size_bytes, path=path)

    async def drop(self, digests: Sequence[str]) -> None:
        """Remove the content of blobs, unless somebody refers to them after all."""
        if not digests:
            return
        async with self._placing:
            gone = await self._database.read(lambda connection: unreferred(connection, digests))
            await asyncio.to_thread(_remove, [self._path(sha256) for sha256 in gone])

    async def sweep(self) -> None:
        """Remove what nobody uses: what was put and not used within an hour, and what a crash has left."""
        before_ms = self._now_ms() - _HELD_MS
        async with self._placing:
            await self._database.write(lambda connection: drop_unused(connection, before_ms))
            files = await asyncio.to_thread(_files, self._root)
            digests = [path.name for path in files if _SHA256.fullmatch(path.name)]
            gone = set(await self._database.read(lambda connection: unreferred(connection, digests)))
            left = [path for path in files if path.name in gone or path.name.startswith(_INCOMING)]
            await asyncio.to_thread(_remove, left)

    def open(self, owner: Owner, sha256: str) -> BinaryIO:
        """Open one of the owner's blobs for reading. Blocks; call it from a thread.

        Raises:
            NotFound: there is no such blob, or the owner has no reference to it.
        """
        if _SHA256.fullmatch(sha256) is None or not self._database.read_blocking(
            lambda connection: _is_referred(connection, Owner.of(owner), sha256)
        ):
            raise NotFound(f"There is no blob {sha256!r}.")
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError as exc:  # it went just now, or while a backup was made
            raise NotFound(f"There is no blob {sha256!r}.") from exc

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256


def _refer(connection: Connection, owner: Owner, ref: BlobRef, now_ms: int) -> None:
    connection.execute(
        insert(blobs)
        .values(
            tenant=owner.tenant,
            subject=owner.subject or "",
            sha256=ref.sha256,
            media_type=ref.media_type,
            size_bytes=ref.size_bytes,
            created_ms=now_ms,
            held_ms=now_ms,
        )
        .on_conflict_do_update(index_elements=["tenant", "subject", "sha256"], set_={"held_ms": now_ms})
    )


def _is_referred(connection: Connection, owner: Owner, sha256: str) -> bool:
    is_theirs = (blobs.c.tenant == owner.tenant, blobs.c.subject == (owner.subject or ""))
    wanted = select(blobs.c.sha256).where(*is_theirs, blobs.c.sha256 == sha256)
    return connection.execute(wanted).first() is not None


def _incoming(root: Path) -> IO[bytes]:
    return tempfile.NamedTemporaryFile(dir=root, prefix=_INCOMING, delete=False)


def _write(file: IO[bytes], chunk: bytes) -> None:
    file.write(chunk)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _keep(incoming: Path, place: Path) -> None:
    place.parent.mkdir(mode=0o700, exist_ok=True)
    incoming.replace(place)
    for directory in (place.parent, place.parent.parent):  # the file's entry, and that of a new directory
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]
