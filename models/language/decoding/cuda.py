"""The forward pass on CUDA: the kernels of `kernels.py`, and steps of few tokens captured as CUDA graphs.

A step of one token of a 7B model reads 14 GB of weights in 3.3 ms and launches 250 kernels, which takes a processor as long.
Captured, they are one launch. A graph is made for a number of tokens and of pieces of rows (`kernels.Pieces`); how many there
really are is rounded up to one that exists, and what is left over computes into a slot of the arena that nobody reads. To
capture one takes as long as a dozen steps, so that it is done for sizes that have come up before; till then, a step is run
launch by launch.

Prompts of many tokens run through the same kernels without a graph: there the device is slower than who launches.
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.language.decoding import kernels
from models.language.decoding.arena import Arena
from models.language.decoding.decoder import Batch, Decoder, Span
from models.language.decoding.kernels import MATMUL_TOKENS, PIECE_TOKENS, Pieces
from models.language.decoding.linear import Product

GRAPH_TOKENS = 512
"""The most tokens of a captured step. What a larger one computes takes longer than its launches."""

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Numbers of tokens that graphs are made for. Of pieces, which cost next to nothing, there are powers of two."""

_PIECE_SIZES = (1, 4, 8, PIECE_TOKENS)
"""Sizes of pieces that kernels are compiled for."""

_USES = 3
"""How often a step comes up before it is captured."""

_STAGES = 4
"""How many steps may be on their way to the device at a time."""


class Matrix:
    """A matrix product whose weight the kernels find: what `decoder_of` is to make for a `CudaDecoder`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take a weight of (out, in) and perhaps a bias of (out,)."""
        self.weight = weight.contiguous()
        self.bias = bias

    def __call__(self, seen: Tensor) -> Tensor:
        """Return the product with `seen`, (tokens, in)."""
        return F.linear(seen, self.weight, self.bias)


def pack(names: list[str], weight: Tensor, bias: Tensor | None) -> Matrix:
    """Make a product, as `loading.Pack`."""
    return Matrix(weight, bias)


class CudaDecoder(Decoder):
    """Runs a model on CUDA.

    What `logits`, and `run` up to the last layer, return is overwritten by the next call of either.
    """

    def run(
        self,
        batch: Batch,
        arena: Arena,
        *,
        first: int = 0,
        last: int | None = None,
        hidden: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """See `Decoder.run`. The step is faster if the batch's tensors are on the CPU."""
        if self.shape.head_size & (self.shape.head_size - 1):  # the kernels have heads of powers of two
            return super().run(batch, arena, first=first, last=last, hidden=hidden, mask=mask)
        last = len(self.layers) if last is None else last
        tokens, pieces = len(batch.tokens), pieces_of(batch.spans)
        hidden = batch.embeddings if hidden is None else hidden
        small = max(tokens, len(pieces)) <= GRAPH_TOKENS
        if not (small and self.device.type == "cuda" and batch.positions.ndim == 1):
            return self._run_plainly(batch, arena, pieces, first, last, hidden, mask)
        size, rows = _size(tokens), 1 << (len(pieces) - 1).bit_length()
        inputs = self._inputs
        inputs.fill(batch, pieces, size, rows, arena.slots)
        views = inputs.pieces(rows, _largest(pieces))
        embed = hidden is None
        if hidden is not None:
            inputs.hidden[:tokens] = hidden
        kept = None
        if mask is not None:
            kept = inputs.mask(mask.shape[1])[:size]
            kept[:tokens] = mask

        def step() -> Tensor:
            given = F.embedding(inputs.tokens[:size], self.embedding) if embed else inputs.hidden[:size]
            rotary = kernels.rotary(inputs.positions[:size], self._frequencies, self._rotary_scale, self.dtype)
            return self._run_layers(given, rotary, inputs.slots[:size], views, arena, first, last, kept)

        key = ("run", size, rows, views.tokens, first, last, embed, mask is None)
        out = self._graphs.run(arena, key, step)[:tokens]
        return out if last == len(self.layers) else out.clone()  # who drafts may keep it

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Decoder.logits`."""
        tokens = len(hidden)
        if self.device.type != "cuda" or tokens > GRAPH_TOKENS:
            return self._scores(hidden)
        size = _size(tokens)
        given = self._inputs.hidden[:size]
        torch.mul(hidden, 1, out=given[:tokens])  # to copy it would wait for `run`
        return self._graphs.run(self, ("logits", size), lambda: self._scores(given))[:tokens]

    @torch.inference_mode()
    def warm_up(self, arena: Arena, rows: Sequence[int]) -> None:
        """Compile the kernels, and capture steps of so many rows, so that no request has to wait for them."""
        compiled = [
            (1, 4),
            (1, 8),
            (1, 16),
            (2, 16),
            (4, 16),
        ]  # all that is compiled by number of tokens, and size of pieces
        for count, tokens in (*compiled, *((count, 1) for count in rows for _ in range(_USES))):
            # The slot behind all others is nobody's: whatever is computed here is written there.
            spans = tuple(Span(offset=at * tokens, count=tokens, start=0, length=tokens) for at in range(count))
            zeros = torch.zeros(count * tokens, dtype=torch.int64)
            batch = Batch(tokens=zeros, positions=zeros, slots=zeros + arena.slots, spans=spans)
            self.logits(self.run(batch, arena))

    # Inside

    @cached_property
    def _inputs(self) -> "_Inputs":
        return _Inputs(self.shape.hidden_size, self.dtype, self.device)

    @cached_property
    def _graphs(self) -> "_Graphs":
        return _Graphs()

    def _run_plainly(
        self,
        batch: Batch,
        arena: Arena,
        pieces: Sequence[tuple[int, int, int, int]],
        first: int,
        last: int,
        hidden: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        batch = batch.on(self.device)
        if hidden is None:
            hidden = self.embed(batch.tokens)
        cosine, sine = self.rotary(batch.positions)
        columns = torch.tensor(pieces, dtype=torch.int64).T.contiguous().to(self.device)
        views = Pieces(
            offsets=columns[0], counts=columns[1], starts=columns[2], lengths=columns[3], tokens=_largest(pieces)
        )
        rotary = (cosine[:, 0].contiguous(), sine[:, 0].contiguous())
        return self._run_layers(hidden, rotary, batch.slots, views, arena, first, last, mask)

    def _run_layers(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        slots: Tensor,
        pieces: Pieces,
        arena: Arena,
        first: int,
        last: int,
        mask: Tensor | None,
    ) -> Tensor:
        if first >= last:
            return hidden
        shape, layers = self.shape, self.layers
        seen = kernels.norm(hidden, layers[first].input_norm, shape.norm_eps)
        for index in range(first, last):
            layer, keys, values = layers[index], arena.keys[index], arena.values[index]
            parts, bias = self._parts(index, "qkv", seen, mask)
            queries = kernels.rotate(
                parts, keys, values, slots, heads=shape.heads, bias=bias, qk_norm=layer.qk_norm, eps=shape.norm_eps,
                rotary=rotary if layer.rotary else None,
            )  # fmt: skip
            heads = kernels.attend(queries, keys, values, pieces, scale=shape.head_size**-0.5)
            parts, bias = self._parts(index, "o", heads, mask)
            hidden, seen = kernels.add_norm(parts, bias, hidden, layer.post_norm, shape.norm_eps)
            parts, bias = self._parts(index, "down", self._gated(index, seen, mask), mask)
            if index + 1 < last:
                hidden, seen = kernels.add_norm(parts, bias, hidden, layers[index + 1].input_norm, shape.norm_eps)
            else:
                hidden = kernels.add(parts, bias, hidden)
        return hidden

    def _parts(self, index: int, name: str, seen: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return a product in parts that add up to it, and the bias that is still to be added."""
        matrix = _streamed(getattr(self.layers[index], name), seen, mask)
        if matrix is not None:
            return kernels.matmul(seen, matrix.weight), matrix.bias
        return self._product(index, name, seen, mask)[None], None

    def _gated(self, index: int, seen: Tensor, mask: Tensor | None) -> Tensor:
        matrix = _streamed(self.layers[index].gate_up, seen, mask)
        if matrix is not None and matrix.bias is None:
            return kernels.gated(seen, matrix.weight)
        return kernels.silu(self._product(index, "gate_up", seen, mask))

    def _scores(self, hidden: Tensor) -> Tensor:
        seen = kernels.norm(hidden, self.norm, self.shape.norm_eps)
        matrix = _streamed(self.head, seen, None)
        if matrix is not None and matrix.bias is None:
            return kernels.matmul(seen, matrix.weight, splits=1)[0]
        return self.head(seen).float()


class _Graphs:
    """Captured steps. They share their memory, since they run one after another."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._known: WeakKeyDictionary[object, dict[Hashable, _Captured]] = WeakKeyDictionary()

    def run(self, owner: object, key: Hashable, step: Callable[[], Tensor]) -> Tensor:
        """Run a step, or replay it once it was captured. It is forgotten with its owner, whose memory it uses."""
        captured = self._known.setdefault(owner, {}).setdefault(key, _Captured())
        captured.uses += 1
        if captured.graph is not None:
            captured.graph.replay()
            assert captured.out is not None
            return captured.out
        result = step()
        if captured.uses >= _USES:
            graph = torch.cuda.CUDAGraph()
            # Whoever else has work on this device, in threads of their own, may go on with it meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                captured.out = step()
            captured.graph = graph
        return result


@dataclass(slots=True)
class _Captured:
    uses: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    out: Tensor | None = None


class _Inputs:
    """Where graphs read what they run on. It goes to the device in one copy, from memory that is not written meanwhile."""

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.hidden = torch.zeros(GRAPH_TOKENS, hidden_size, dtype=dtype, device=device)
        self._device = torch.zeros(7, GRAPH_TOKENS, dtype=torch.int64, device=device)
        self.tokens, self.positions, self.slots = self._device[0], self._device[1], self._device[2]
        self._masks: dict[int, Tensor] = {}
        self._stages = deque(
            (torch.zeros(7, GRAPH_TOKENS, dtype=torch.int64, pin_memory=True), torch.cuda.Event())  # type: ignore[no-untyped-call]  # torch's own
            for _ in range(_STAGES)
        )

    def fill(
        self, batch: Batch, pieces: Sequence[tuple[int, int, int, int]], size: int, rows: int, scratch: int
    ) -> None:
        """Have a batch copied to the device, filled up to `size` tokens and `rows` pieces."""
        stage, copied = self._stages[0]
        self._stages.rotate(-1)
        copied.synchronize()
        count = len(batch.tokens)
        stage[:2, count:size] = 0
        stage[2, count:size] = scratch
        stage[3:, : len(pieces)] = torch.from_numpy(np.array(pieces, np.int64)).T
        stage[4, len(pieces) : rows] = 0
        given = (batch.tokens, batch.positions, batch.slots)
        for row, values in enumerate(given):
            if values.device.type == "cpu":
                stage[row, :count] = values
        self._device.copy_(stage, non_blocking=True)
        copied.record()
        for row, values in enumerate(given):
            if values.device.type != "cpu":
                self._device[row, :count] = values

    def mask(self, adapters: int) -> Tensor:
        """Return where the mask of so many adapters is read."""
        if adapters not in self._masks:
            self._masks[adapters] = torch.ones(GRAPH_TOKENS, adapters, dtype=torch.bool, device=self._device.device)
        return self._masks[adapters]

    def pieces(self, rows: int, tokens: int) -> Pieces:
        offsets, counts, starts, lengths = self._device[3:, :rows]
        return Pieces(offsets=offsets, counts=counts, starts=starts, lengths=lengths, tokens=tokens)


def pieces_of(spans: Sequence[Span]) -> list[tuple[int, int, int, int]]:
    """Cut spans into pieces of at most `PIECE_TOKENS`: offset, count, start and length of each, as in `Pieces`."""
    pieces = []
    for span in spans:
        for at in range(0, span.count, PIECE_TOKENS):
            count = min(PIECE_TOKENS, span.count - at)
            pieces.append((span.offset + at, count, span.start, span.length - span.count + at + count))
    return pieces


def _largest(pieces: Sequence[tuple[int, int, int, int]]) -> int:
    """Return how many tokens the largest piece has, rounded up."""
    most = max(piece[1] for piece in pieces)
    return next(size for size in _PIECE_SIZES if size >= most)


def _size(count: int) -> int:
    return next(size for size in _SIZES if size >= count)


def _streamed(product: Product, seen: Tensor, mask: Tensor | None) -> Matrix | None:
    """Return the matrix of a product that is bound by reading it, for which the kernels here are the faster ones."""
    few = len(seen) <= MATMUL_TOKENS and seen.dtype != torch.float32 and mask is None
    return product if few and isinstance(product, Matrix) else None
