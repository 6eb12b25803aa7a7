"""Content-addressed blobs, kept once and referred to by tenants.

A file is written beside its place, flushed and renamed, before the row that refers to it is committed: a reference
always has its content, and a crash leaves at most a file that nobody refers to.
"""

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterable
from pathlib import Path
from typing import IO, BinaryIO

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from memory.database import Database
from memory.schema import blobs
from models.clock import Clock
from models.content import BlobRef
from models.errors import LimitExceeded, NotFound
from models.ports.media import MediaGrant

_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Stores and finds blobs under one directory."""

    def __init__(self, root: Path, database: Database, clock: Clock) -> None:
        self._root = root
        self._database = database
        self._clock = clock
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def put(self, tenant: str, content: AsyncIterable[bytes], media_type: str, *, max_bytes: int) -> BlobRef:
        """Store `content` as it arrives and refer `tenant` to it; storing it again changes nothing.

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
            await asyncio.to_thread(_keep, Path(incoming.name), self._path(digest.hexdigest()))
        except BaseException:
            Path(incoming.name).unlink(missing_ok=True)  # noqa: ASYNC240  # not awaited: also under cancellation
            raise
        ref = BlobRef(sha256=digest.hexdigest(), media_type=media_type, size_bytes=size_bytes)
        created_ms = int(self._clock.wall_s() * 1000)
        await self._database.write(lambda connection: _refer(connection, tenant, ref, created_ms))
        return ref

    async def grant(self, tenant: str, blob: BlobRef) -> MediaGrant:
        """Return leave to read one of the tenant's blobs on this host.

        Raises:
            NotFound: there is no such blob, or the tenant has no reference to it.
        """
        content = await asyncio.to_thread(self.open, tenant, blob.sha256)
        content.close()
        path = str(self._path(blob.sha256))
        return MediaGrant(tenant=tenant, sha256=blob.sha256, size_bytes=blob.size_bytes, path=path)

    def open(self, tenant: str, sha256: str) -> BinaryIO:
        """Open one of the tenant's blobs for reading. Blocks; call it from a thread.

        Raises:
            NotFound: there is no such blob, or the tenant has no reference to it.
        """
        if _SHA256.fullmatch(sha256) is None or not self._database.read_blocking(
            lambda connection: _is_referred(connection, tenant, sha256)
        ):
            raise NotFound(f"There is no blob {sha256!r}.")
        return self._path(sha256).open("rb")

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256


def _refer(connection: Connection, tenant: str, ref: BlobRef, created_ms: int) -> None:
    connection.execute(
        insert(blobs)
        .values(
            tenant=tenant,
            sha256=ref.sha256,
            media_type=ref.media_type,
            size_bytes=ref.size_bytes,
            created_ms=created_ms,
        )
        .on_conflict_do_nothing()
    )


def _is_referred(connection: Connection, tenant: str, sha256: str) -> bool:
    wanted = select(blobs.c.sha256).where(blobs.c.tenant == tenant, blobs.c.sha256 == sha256)
    return connection.execute(wanted).first() is not None


def _incoming(root: Path) -> IO[bytes]:
    return tempfile.NamedTemporaryFile(dir=root, prefix=".incoming-", delete=False)


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
