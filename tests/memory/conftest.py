"""What the tests of this floor share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from memory.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database of its own, on disk, migrated."""
    database = Database(tmp_path / "baton.sqlite3")
    yield database
    database.close()
