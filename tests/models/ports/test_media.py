"""What a request was granted is opened for its owner, and nothing else."""

import hashlib
from pathlib import Path

import pytest

from models.content import BlobRef
from models.errors import NotFound
from models.owner import Owner
from models.ports.media import GrantedMedia, MediaGrant

ADA = Owner("acme", "ada")
CONTENT = b"pixels"
BLOB = BlobRef(sha256=hashlib.sha256(CONTENT).hexdigest(), media_type="image/png", size_bytes=len(CONTENT))


def _grant(**how: object) -> MediaGrant:
    return MediaGrant(owner=ADA, sha256=BLOB.sha256, size_bytes=BLOB.size_bytes, **how)


@pytest.mark.parametrize("by", ["path", "data"])
def test_a_grant_opens_its_blob_for_its_owner_and_for_no_other_end_user(tmp_path: Path, by: str) -> None:
    (tmp_path / "blob").write_bytes(CONTENT)
    grants = (_grant(path=str(tmp_path / "blob")) if by == "path" else _grant(data=CONTENT),)
    with GrantedMedia().open(BLOB, grants, ADA) as content:
        assert content.read() == CONTENT
    for other in (Owner("acme"), Owner("acme", "eve"), Owner("other", "ada"), Owner.unnamed("acme").within("s")):
        with pytest.raises(NotFound), GrantedMedia().open(BLOB, grants, other):
            pass


def test_what_is_not_what_was_granted_is_not_there(tmp_path: Path) -> None:
    for grants in ((), (_grant(),), (_grant(data=b"others"),), (_grant(path=str(tmp_path / "gone")),)):
        with pytest.raises(NotFound), GrantedMedia().open(BLOB, grants, ADA):
            pass
