"""How media reach an engine: by grants, which the gateway makes and whoever runs the engine opens.

Engines are given no store to look into. A request that shows a picture carries a grant for it; on the gateway's own host that is
a path, beyond it the bytes. A grant is one owner's, and is opened only for a request of that owner.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from models.content import BlobRef
from models.errors import NotFound
from models.owner import Owner

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaGrant:
    """Leave to read one blob, for one owner. Exactly one of `path` and `data` is there.

    Attributes:
        owner: whose it is.
        sha256: of its content.
        size_bytes: how long it is.
        path: where it lies on this host.
        data: what it is.
    """

    owner: Owner
    sha256: str
    size_bytes: int
    path: str | None = None
    data: bytes | None = field(default=None, repr=False)


class MediaSource(Protocol):
    """What an engine reads media by."""

    def open(self, blob: BlobRef, grants: Iterable[MediaGrant], owner: Owner) -> AbstractContextManager[BinaryIO]:
        """Open a blob for reading, by the grant among `grants` that is for it and for `owner`. Blocks.

        Raises:
            NotFound: there is no such grant, or what it leads to is gone or is not what it should be.
        """
        ...


class GrantedMedia:
    """Opens what a request was granted, and nothing else. What it opens it has checked against its hash."""

    @contextmanager
    def open(self, blob: BlobRef, grants: Iterable[MediaGrant], owner: Owner) -> Iterator[BinaryIO]:
        """Open a blob; see `MediaSource.open`."""
        grant = next((each for each in grants if each.sha256 == blob.sha256 and each.owner == owner), None)
        if grant is None:
            raise _missing(blob)
        with _opened(grant, blob) as content:
            digest = hashlib.sha256()
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
            if digest.hexdigest() != blob.sha256:
                raise _missing(blob)
            content.seek(0)
            yield content


@contextmanager
def _opened(grant: MediaGrant, blob: BlobRef) -> Iterator[BinaryIO]:
    if grant.data is not None:
        yield io.BytesIO(grant.data)
        return
    if grant.path is None:
        raise _missing(blob)
    try:
        content = open(grant.path, "rb")  # noqa: SIM115  # an error of whoever reads it is not one of opening it
    except OSError as exc:
        raise _missing(blob) from exc
    with content:
        yield content


def _missing(blob: BlobRef) -> NotFound:
    return NotFound(f"There is no media {blob.sha256[:12]}… of this request.", code="media_not_found")
