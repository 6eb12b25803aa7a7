"""The store: weights on this machine's disk, complete or not at all.

```
CACHE/models/CARD/DIGEST/        the weights of a card; DIGEST is of its sources, so a changed card is fetched anew
CACHE/models/CARD/.partial-…/    what is being fetched now, or was when its process was killed
CACHE/locks/CARD.lock            held by who fetches or removes
```

A folder of weights appears by one rename, after everything in it has been checked and flushed to the disk. Where the
`transformers` engine is given a GGUF, the folder holds what that engine loads, and the GGUF as `source.gguf`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence, Set
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from models.catalog import Card
from models.errors import NOT_INSTALLED, BadInput, BatonError, Conflict, FetchFailed, Unsupported
from models.sources import TRUSTS, FileSource, HubSource, Source, Trust, ways
from models.supply.fetch import Progress, explain, fetch, reach_hub, size_of
from models.supply.subprocess_module import BEAT_S, ProgramFailed, run_module

_PARTIAL = ".partial-"

# Raised when what conversion writes changes, so that nobody loads what an earlier one wrote.
_LAYOUT = 2


class Store:
    """Fetches, finds and removes weights."""

    def __init__(self, cache: Path, *, allowed: Set[Trust] = frozenset(TRUSTS)) -> None:
        """Keep weights under `cache`; only sources of the trusts that are `allowed` are taken."""
        self._allowed = allowed
        self._hub_is_away: FetchFailed | None = None
        self._models = cache / "models"
        self._locks = cache / "locks"

    def folder(self, card: Card) -> Path | None:
        """Return where the complete weights of `card` lie; None if they are not here, or it needs none."""
        folders = (self._destination(card, way) for way in ways(card.sources, self._allowed))
        # What a link leads to may have been taken away.
        return next((folder for folder in folders if folder.is_dir() and all(map(Path.exists, folder.iterdir()))), None)

    def pull(self, card: Card) -> Generator[Progress, None, None]:
        """Fetch the weights of `card`, if they are not here, and say how far that is.

        Its ways are tried in order: the next one if one cannot be gone, for whatever reason. That the hub cannot be reached
        is found out once, where there is another way; where there is none, it is asked each time.

        Blocks, but never for long: it says something several times a second. Closing the generator in between stops
        the work and leaves nothing of it; so does an error.

        Raises:
            FetchFailed: they could not be fetched or converted; the message says from where and what to do.
            BadInput: the card does not fit what its source holds.
            Unsupported: they are of a format that is not loaded, or no source of theirs is allowed.
        """
        if not card.sources or self.folder(card) is not None:
            return
        if not (open_ways := ways(card.sources, self._allowed)):
            raise Unsupported(
                f"The model {card.name!r} is off: it has no official source, and BATON_SOURCES=official forbids others "
                f"({_named(card.sources)})."
            )
        with _explained(card.name, None):
            if _is_converted(card) and find_spec("torch") is None:
                raise FetchFailed(NOT_INSTALLED)  # before anything is fetched in vain
            self._locks.mkdir(parents=True, exist_ok=True)
            lock = self._lock(card.name)
            yield from _acquire(lock)
            try:
                # Another process may have brought them while this one waited.
                if self.folder(card) is None:
                    yield from self._pull_by(card, open_ways)
            finally:
                lock.release()

    def remove(self, name: str) -> int:
        """Remove what is stored for a card of that name; return how many bytes that was.

        Raises:
            Conflict: it is being fetched right now.
        """
        if name not in self.names():
            return 0
        try:
            with self._lock(name).acquire(timeout=0):
                size = self.size_bytes(name)
                _discard(self._models / name)
        except Timeout:
            raise Conflict(
                f"{name!r} is being fetched right now. Stop that, or wait for it, and then remove it."
            ) from None
        return size

    def names(self) -> tuple[str, ...]:
        """Return the names of the cards for which anything is stored, also of those that are in no catalog now."""
        if not self._models.is_dir():
            return ()
        return tuple(sorted({folder.parent.name for folder in self._models.glob("*/*/")}))

    def size_bytes(self, name: str) -> int:
        """Return how many bytes are stored for a card of that name."""
        return size_of(self._models / name)

    def _pull_by(self, card: Card, open_ways: Sequence[Sequence[Source]]) -> Iterator[Progress]:
        failures: list[BatonError] = []
        for way in open_ways:
            try:
                with _explained(card.name, way):
                    yield from self._pull(card, way, is_only=len(open_ways) == 1)
            except BatonError as exc:
                failures.append(exc)
            else:
                return
        if len(failures) == 1:
            raise failures[0]
        kind = BadInput if all(isinstance(failure, BadInput) for failure in failures) else FetchFailed
        raise kind(" ".join(failure.message for failure in failures)) from failures[-1]

    def _pull(self, card: Card, way: Sequence[Source], *, is_only: bool) -> Iterator[Progress]:
        destination = self._destination(card, way)
        home = destination.parent
        home.mkdir(parents=True, exist_ok=True)
        for left in (*home.glob(f"{_PARTIAL}*"), destination):  # if that is here, its links lead nowhere
            shutil.rmtree(left, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=home))
        try:
            if not is_only and any(isinstance(source, HubSource) for source in way):
                yield from self._reach_hub(staging)
            weights = staging / "weights"
            weights.mkdir()
            for n, source in enumerate(way):
                scratch = staging / str(n)
                scratch.mkdir()
                yield from fetch(source, weights, scratch)
                shutil.rmtree(scratch)
            if card.engine.name == "transformers" and any(weights.glob("*.gguf")):
                weights = yield from _convert(weights, staging / "converted")
            _flush(weights)
            weights.rename(destination)
            _flush_folder(home)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _reach_hub(self, scratch: Path) -> Iterator[Progress]:
        if self._hub_is_away is not None:
            raise FetchFailed(self._hub_is_away.message)
        try:
            yield from reach_hub(scratch)
        except FetchFailed as exc:
            self._hub_is_away = exc
            raise

    def _destination(self, card: Card, way: Sequence[Source]) -> Path:
        sources = [
            [str(source), [[file.path, file.sha256] for file in source.files], *_stamps(source)] for source in way
        ]
        text = json.dumps([_LAYOUT, card.engine.name, sources])
        return self._models / card.name / hashlib.sha256(text.encode()).hexdigest()[:16]

    def _lock(self, name: str) -> BaseFileLock:
        # Not bound to a thread: a generator may be carried on, or closed, by another one than began it.
        return FileLock(self._locks / f"{name}.lock", thread_local=False)


def _is_converted(card: Card) -> bool:
    """Return whether the card's weights are a GGUF that has to be converted. A GGUF is never taken without being named."""
    named = [file.path for source in card.sources for file in source.files]
    named += [str(source.path) for source in card.sources if isinstance(source, FileSource)]
    return card.engine.name == "transformers" and any(name.endswith(".gguf") for name in named)


def _stamps(source: Source) -> list[tuple[int, int]]:
    """Return what tells that a file of this machine has been replaced by another: its length, and when it was written.

    Of a whole folder there is nothing to tell: it is linked to, never converted.
    """
    if not isinstance(source, FileSource):
        return []
    folder = source.path.parent if source.path.is_file() else source.path
    files = [folder / file.path for file in source.files] or [source.path]
    stats = [file.stat() for file in files if file.is_file()]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _discard(home: Path) -> None:
    """Remove all of a card, so that what is half removed is nowhere taken for complete."""
    away = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=home))
    for folder in home.glob("[!.]*/"):
        folder.rename(away / folder.name)
    shutil.rmtree(home)


def _acquire(lock: BaseFileLock) -> Iterator[Progress]:
    while True:
        try:
            lock.acquire(timeout=BEAT_S)
        except Timeout:
            yield Progress(stage="waiting")
        else:
            return


def _convert(fetched: Path, converted: Path) -> Generator[Progress, None, Path]:
    """Have a GGUF written as the `transformers` engine loads it; return the folder, which has the GGUF too."""
    source, *others = fetched.iterdir()
    if others:
        raise BadInput(
            "a GGUF holds all that is needed; the card's sources may give nothing beside it. Correct the card."
        )
    converted.mkdir()
    running = run_module(
        *("models.supply.convert", str(source), str(converted)), folder=fetched, measure=lambda: size_of(converted)
    )
    try:
        for done in running:
            yield Progress(stage="converting", done_bytes=done)
    except ProgramFailed as exc:
        raise FetchFailed(f"its GGUF could not be converted: {explain(exc)}") from exc
    finally:
        running.close()
    source.rename(converted / "source.gguf")
    return converted


@contextmanager
def _explained(card: str, way: Sequence[Source] | None) -> Iterator[None]:
    """Say of an error which card and which sources it is about; make one of what a disk or a program says."""
    failed = f"The model {card!r} could not be fetched" + ("" if way is None else f" from {_named(way)}")
    try:
        yield
    except BatonError as exc:
        if exc.message.startswith(f"The model {card!r} could"):
            raise  # it says so
        raise type(exc)(f"{failed}: {exc.message}", code=exc.code) from exc
    except OSError as exc:
        raise FetchFailed(f"{failed}: {explain(exc)}") from exc


def _named(sources: Sequence[Source]) -> str:
    return " and ".join(map(str, sources))


def _flush(folder: Path) -> None:
    """Have the content of a folder on the disk before it is renamed to where it counts as complete."""
    for file in folder.iterdir():
        if not file.is_symlink():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
