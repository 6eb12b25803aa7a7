"""Media that an engine is to read."""

from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol


class BlobReader(Protocol):
    """Reads media for an engine, within one tenant."""

    def open(self, sha256: str) -> AbstractContextManager[BinaryIO]:
        """Open the blob for reading.

        Raises:
            NotFound: there is no such blob, or the tenant has no reference to it.
        """
        ...
