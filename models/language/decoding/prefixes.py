"""Extents of finished rows, kept so that a later prompt that begins alike need not be read again.

They are found by the tokens that were written into them. Each scope is a trie whose edges are chunks of 32 tokens,
compared byte by byte: no two texts can be taken for each other, whatever they hash to. A look-up walks down as far as the
prompt agrees, so that a prompt nobody has seen costs one step, and a known one some microseconds per chunk.

A scope is an owner and an adapter, because keys and values depend on the adapter, and because how fast an answer begins must
tell nobody what another has asked, neither another tenant nor another end user of the same application. Only what tokens determine may be kept: never a prompt with pictures in it, whose
placeholders are the same tokens for every picture.

Pure: extents are only numbers here. What is kept belongs to the arena's owner, who evicts (`oldest`) when it needs room.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from models.language.decoding.blocks import Extent
from models.owner import Owner

CHUNK_TOKENS = 32

_WIDTH = 4
_STRIDE = CHUNK_TOKENS * _WIDTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Within which prefixes may be shared.

    Attributes:
        owner: whose text it is.
        adapter: the LoRA adapter that wrote the keys and values, by a name that never comes to stand for other weights.
    """

    owner: Owner
    adapter: str | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Kept:
    """An extent and what is in it. It is its own key.

    Attributes:
        scope: who may use it.
        tokens: how many of its slots are in use, from the first on.
        extent: where it is. Whoever compacts the arena writes here where it went.
        text: the tokens, as the trie compares them.
    """

    scope: Scope
    tokens: int
    extent: Extent
    text: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The kept extent that agrees longest with a prompt.

    Attributes:
        kept: it stays kept until it is taken: copy from its extent, or take it and go on in place.
        tokens: how many tokens agree. At least one token of a prompt has to be run even so, to know what follows it.
    """

    kept: Kept
    tokens: int

    @property
    def whole(self) -> bool:
        """Whether all that was kept agrees, so that taking it loses nothing that the copy would leave behind."""
        return self.tokens == self.kept.tokens


class _Node:
    """A place in the trie, reached by whole chunks. A leaf always has something kept."""

    __slots__ = ("children", "kept")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.kept: dict[bytes, Kept] = {}  # by the tokens behind the last whole chunk, fewer than a chunk


class Prefixes:
    """The kept extents of one arena, the least recently used first.

    Within a scope no kept text begins another one: the longer one holds all that the shorter one does.
    """

    def __init__(self) -> None:
        self._roots: dict[Scope, _Node] = {}
        self._kept: dict[Kept, None] = {}
        self._blocks = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Kept]:
        """Go through what is kept, the least recently used first. Take nothing meanwhile."""
        return iter(self._kept)

    @property
    def blocks(self) -> int:
        """How many blocks are kept in all: what eviction could free."""
        return self._blocks

    def keep(self, scope: Scope, tokens: Sequence[int], extent: Extent) -> Extent | None:
        """Keep `extent`, whose slots hold `tokens` from the first on; return an extent to be freed, if there is one.

        That is one kept so far whose text begins the new one; or `extent` itself, if a kept text begins with `tokens`.
        """
        text = _bytes(tokens)
        if not text:
            return extent
        path = self._descend(self._roots.setdefault(scope, _Node()), text)
        depth = (len(path) - 1) * _STRIDE
        if (longer := _going_on_with(path[-1], text[depth:])) is not None:
            self._touch(longer)
            return extent
        shorter = next(
            (kept for kept in chain.from_iterable(node.kept.values() for node in path) if text.startswith(kept.text)),
            None,
        )
        node = path[-1]
        for at in range(depth, len(text) - _STRIDE + 1, _STRIDE):
            node = node.children.setdefault(text[at : at + _STRIDE], _Node())
        kept = Kept(scope=scope, tokens=len(tokens), extent=extent, text=text)
        node.kept[_tail(text)] = kept
        self._kept[kept] = None
        self._blocks += extent.blocks
        return None if shorter is None else self.take(shorter)

    def match(self, scope: Scope, tokens: Sequence[int]) -> Match | None:
        """Return what agrees longest with the beginning of `tokens`, now the most recently used, or None if nothing does."""
        root = self._roots.get(scope)
        if root is None:
            return None
        text = _bytes(tokens)
        path = self._descend(root, text)
        depth = len(path) - 1
        kept, agreed = _nearest(path[-1], text[depth * _STRIDE : (depth + 1) * _STRIDE])
        agreed += depth * CHUNK_TOKENS
        if not agreed:
            return None
        self._touch(kept)
        return Match(kept=kept, tokens=agreed)

    def take(self, kept: Kept) -> Extent:
        """Stop keeping an extent, to go on in it or to free it; return it."""
        del self._kept[kept]
        self._blocks -= kept.extent.blocks
        root, text = self._roots[kept.scope], kept.text
        path = self._descend(root, text)
        del path[-1].kept[_tail(text)]
        while len(path) > 1 and not path[-1].children and not path[-1].kept:
            path.pop()
            del path[-1].children[text[(len(path) - 1) * _STRIDE : len(path) * _STRIDE]]
        if not root.children and not root.kept:
            del self._roots[kept.scope]
        return kept.extent

    def _touch(self, kept: Kept) -> None:
        del self._kept[kept]
        self._kept[kept] = None

    def _descend(self, root: _Node, text: bytes) -> list[_Node]:
        """Walk down as many whole chunks as agree; return the places passed, the first and the last included."""
        path, node, depth = [root], root, 0
        while (child := node.children.get(text[depth : depth + _STRIDE])) is not None:
            path.append(child)
            node, depth = child, depth + _STRIDE
        return path


def _bytes(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


def _tail(text: bytes) -> bytes:
    """What is behind the last whole chunk."""
    return text[len(text) // _STRIDE * _STRIDE :]


def _going_on_with(node: _Node, rest: bytes) -> Kept | None:
    """Something kept at `node` or below that goes on with `rest`, and perhaps with more."""
    for tail, kept in node.kept.items():
        if tail.startswith(rest):
            return kept
    for chunk, child in node.children.items():
        if chunk.startswith(rest):
            return _any(child)
    return None


def _nearest(node: _Node, rest: bytes) -> tuple[Kept, int]:
    """What is kept at `node` or below and agrees longest with `rest`, which is less than a chunk or no child's; how long."""
    best: Kept | _Node | None = None
    longest = -1
    ways: chain[tuple[bytes, Kept | _Node]] = chain(node.kept.items(), node.children.items())
    for chunk, found in ways:
        # Only what agrees on one token more than the best so far is looked at closely.
        if best is None or chunk.startswith(rest[: (longest + 1) * _WIDTH]):
            agreed = _agreement(chunk, rest)
            if agreed > longest:
                best, longest = found, agreed
    assert best is not None  # a leaf has something kept, and a place that is no leaf has children
    return (_any(best) if isinstance(best, _Node) else best), longest


def _any(node: _Node) -> Kept:
    """Something kept at `node` or below."""
    while not node.kept:
        node = next(iter(node.children.values()))
    return next(iter(node.kept.values()))


def _agreement(left: bytes, right: bytes) -> int:
    """How many tokens two texts have in common from the first on."""
    agreed = 0
    for at in range(0, min(len(left), len(right)), _WIDTH):
        if left[at : at + _WIDTH] != right[at : at + _WIDTH]:
            break
        agreed += 1
    return agreed
