"""Media cross to an engine by grants, in this process and through a worker; and what is opened has the content that it has to have."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ports import here, through_a_worker

from models.catalog import EngineSpec
from models.content import BlobRef, ImagePart, Message, TextDelta, TextPart
from models.errors import NotFound
from models.owner import Owner
from models.ports.generate import GenerateRequest
from models.ports.media import GrantedMedia, MediaGrant

ACME = Owner("acme")
_CONTENT = b"a picture of a cat"


def _ref(content: bytes) -> BlobRef:
    digest = hashlib.sha256(content).hexdigest()
    return BlobRef(sha256=digest, media_type="image/png", size_bytes=len(content))


def _grant(content: bytes, owner: Owner = ACME, path: Path | None = None) -> MediaGrant:
    ref = _ref(content)
    lies = {"data": content} if path is None else {"path": str(path)}
    return MediaGrant(owner=owner, sha256=ref.sha256, size_bytes=ref.size_bytes, **lies)


@given(content=st.binary(max_size=200))
def test_what_is_granted_is_read_as_it_is(content: bytes) -> None:
    with GrantedMedia().open(_ref(content), [_grant(b"another"), _grant(content)], ACME) as opened:
        assert opened.read() == content


def test_a_path_is_read_and_one_that_leads_to_something_else_is_not(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(_CONTENT)
    grant = _grant(_CONTENT, path=path)
    with GrantedMedia().open(_ref(_CONTENT), [grant], ACME) as opened:
        assert opened.read() == _CONTENT
    path.write_bytes(b"what was put there since")
    with pytest.raises(NotFound), GrantedMedia().open(_ref(_CONTENT), [grant], ACME):
        pass
    path.unlink()
    with pytest.raises(NotFound), GrantedMedia().open(_ref(_CONTENT), [grant], ACME):
        pass


@pytest.mark.parametrize(
    "grants", [[], [_grant(b"another")], [_grant(_CONTENT, owner=Owner("other"))]], ids=["none", "other", "tenant"]
)
def test_without_a_grant_for_it_and_for_the_tenant_nothing_is_opened(grants: list[MediaGrant]) -> None:
    with pytest.raises(NotFound), GrantedMedia().open(_ref(_CONTENT), grants, ACME):
        pass


@pytest.mark.parametrize("opened", [here, through_a_worker])
async def test_an_engine_reads_what_its_request_was_granted(opened, tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(_CONTENT)
    picture = ImagePart(blob=_ref(_CONTENT), width_px=1, height_px=1)
    said = Message(item_id="item_1", role="user", parts=(TextPart(text="look"), picture))

    async def answer(*grants: MediaGrant) -> str:
        request = GenerateRequest(messages=(said,), tenant="acme", media=grants)
        return "".join([d.text async for d in engine.generate(request) if isinstance(d, TextDelta)])

    async with opened(EngineSpec(name="scripted")) as engine:
        for grant in (_grant(_CONTENT), _grant(_CONTENT, path=path)):
            assert f"look [image, {len(_CONTENT)} bytes]" in await answer(grant)
        with pytest.raises(NotFound):
            await answer(_grant(_CONTENT, owner=Owner("other")))
