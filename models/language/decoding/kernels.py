"""CUDA kernels of a decoding step, in Triton, and the functions that launch them. Tensors in, tensors out; no state.

A step of few tokens is bound by the bytes of the weights, so a kernel here either streams weights (`matmul`, `gated`) or
is one of the few small ones between two such streams. Three things follow from that:

- Products are split along the inner dimension until every multiprocessor has work. The parts are added up by the kernel
  that comes next and has to read them anyway, always in the same order: no atomics, so a result never depends on timing.
- Attention is split along the keys (flash-decoding), by a number that is fixed when a graph is captured, while lengths
  are read from the device: one graph serves any length.
- Nothing is allocated that the size of the batch does not determine, so that every function can be captured.

Shapes: T tokens, H query heads, G key-value heads, D dimensions of a head, N rows and K columns of a weight, S parts.
"""

# What a kernel takes are not Python's values, and its body is not Python's either: there is nothing to say to mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

MATMUL_TOKENS = 32
"""The most tokens that `matmul` and `gated` take: beyond them arithmetic counts, and cuBLAS is better at that."""

PIECE_TOKENS = 16
"""The most query tokens of a piece."""

# Measured on an H200 for the matrices of a 7B model: three tiles of 64 by 128 in flight, three of them a multiprocessor.
_ROWS, _COLUMNS = 64, 128
# Of attention: how many keys a program looks at at a time, how many programs are made by splitting the keys, and the most parts.
_KEYS, _PROGRAMS, _SPLITS = 64, 512, 32
# A part has at least this many times `_KEYS` where there are so many programs without splitting, and fewer in proportion.
_LEAST, _BUSY = 4, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """What is attended, in pieces of at most `PIECE_TOKENS` query tokens that follow each other in one row.

    Keys and values of a row lie in one extent of the arena, the piece's own included, which are the last of `length`.

    Attributes:
        offsets: int64 [P], the first token of each piece within the packed batch.
        counts: int64 [P], its tokens; 0 is a piece that pads the batch.
        starts: int64 [P], the first slot of the row's extent.
        lengths: int64 [P], slots up to the piece's last token.
        tokens: at least as many as any piece has. What is compiled depends on it: take few values.
    """

    offsets: Tensor
    counts: Tensor
    starts: Tensor
    lengths: Tensor
    tokens: int


@triton.jit(do_not_specialize=["tokens", "splits"])
def _matmul_kernel(
    x, weight, out, tokens, n, k, splits, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    GATED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(1)
    row = tl.arange(0, ROWS)
    if GATED:  # half of the tile's rows are of the gate, the others are their fellows above it
        row = tile * (ROWS // 2) + row % (ROWS // 2) + (row // (ROWS // 2)) * (n // 2)
    else:
        row += tile * ROWS
    column = tl.arange(0, COLUMNS)
    token = tl.arange(0, TOKENS)
    steps = tl.cdiv(tl.cdiv(k, COLUMNS), splits)
    begin = split * steps * COLUMNS
    weights = weight + tl.minimum(row, n - 1).to(tl.int64)[:, None] * k + column[None, :]
    inputs = x + token[None, :] * k + column[:, None]
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for at in range(begin, tl.minimum(begin + steps * COLUMNS, k), COLUMNS):
        if EXACT:
            w = tl.load(weights + at, eviction_policy="evict_first")
            y = tl.load(inputs + at, mask=token[None, :] < tokens, other=0.0)
        else:
            w = tl.load(weights + at, mask=column[None, :] < k - at, other=0.0, eviction_policy="evict_first")
            y = tl.load(inputs + at, mask=(token[None, :] < tokens) & (column[:, None] < k - at), other=0.0)
        total = tl.dot(w, y, total, input_precision="ieee")
    if GATED:
        gate, up = tl.split(total.reshape(2, ROWS // 2, TOKENS).permute(1, 2, 0))
        # Rounded where the model rounds: what two kernels would have handed on.
        gate, up = gate.to(x.dtype.element_ty).to(tl.float32), up.to(x.dtype.element_ty).to(tl.float32)
        total = up * (gate * tl.sigmoid(gate)).to(x.dtype.element_ty).to(tl.float32)
        row, n = tile * (ROWS // 2) + tl.arange(0, ROWS // 2), n // 2
    target = out + (split * tokens + token[None, :]).to(tl.int64) * n + row[:, None]
    tl.store(target, total.to(out.dtype.element_ty), mask=(row[:, None] < n) & (token[None, :] < tokens))


@triton.jit
def _silu_kernel(gate_up, out, n, BLOCK: tl.constexpr):
    token, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + token * 2 * n + at, mask=at < n).to(tl.float32)
    up = tl.load(gate_up + token * 2 * n + n + at, mask=at < n).to(tl.float32)
    gate = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + token * n + at, (gate * up).to(out.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["tokens"])
def _norm_kernel(
    parts, bias, hidden, weight, total, normed, tokens, n, eps, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    BIAS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    token, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(hidden + token * n + at, mask=at < n, other=0.0).to(tl.float32)
    if SPLITS > 0:
        added = tl.zeros((BLOCK,), tl.float32)
        for split in tl.static_range(SPLITS):
            added += tl.load(parts + (split * tokens + token) * n + at, mask=at < n, other=0.0).to(tl.float32)
        if BIAS:
            added += tl.load(bias + at, mask=at < n, other=0.0).to(tl.float32)
        x = (x + added.to(total.dtype.element_ty).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + token * n + at, x, mask=at < n)
        x = x.to(tl.float32)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, 0) / n + eps)
        scale = tl.load(weight + at, mask=at < n, other=0.0).to(tl.float32)
        x = x.to(normed.dtype.element_ty).to(tl.float32) * scale
        tl.store(normed + token * n + at, x.to(normed.dtype.element_ty), mask=at < n)


@triton.jit
def _rotary_kernel(positions, frequencies, cosines, sines, factor, HALF: tl.constexpr, BLOCK: tl.constexpr):
    token, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    live = at < HALF
    angle = tl.load(positions + token).to(tl.float32) * tl.load(frequencies + at, mask=live)
    cosine, sine = tl.cos(angle) * factor, tl.sin(angle) * factor
    target = token * 2 * HALF + at
    tl.store(cosines + target, cosine.to(cosines.dtype.element_ty), mask=live)
    tl.store(cosines + target + HALF, cosine.to(cosines.dtype.element_ty), mask=live)
    tl.store(sines + target, (-sine).to(sines.dtype.element_ty), mask=live)
    tl.store(sines + target + HALF, sine.to(sines.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["tokens"])
def _rotate_kernel(
    parts, bias, scales, cos, sin, slots, queries, keys, values, tokens, stride, eps, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr,
    ROTARY: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = tl.arange(0, DIM // 2)
    width: tl.constexpr = (HEADS + 2 * KV_HEADS) * DIM
    low, high = tl.zeros((DIM // 2,), tl.float32), tl.zeros((DIM // 2,), tl.float32)
    for split in tl.static_range(SPLITS):
        part = parts + (split * tokens + token) * width + head * DIM + half
        low += tl.load(part).to(tl.float32)
        high += tl.load(part + DIM // 2).to(tl.float32)
    if BIAS:
        low += tl.load(bias + head * DIM + half).to(tl.float32)
        high += tl.load(bias + head * DIM + DIM // 2 + half).to(tl.float32)
    dtype = queries.dtype.element_ty
    if head < HEADS + KV_HEADS:
        low, high = low.to(dtype).to(tl.float32), high.to(dtype).to(tl.float32)
        if NORM:
            scale = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / DIM + eps)
            weight = scales + head * DIM + half
            low = (low * scale).to(dtype).to(tl.float32) * tl.load(weight).to(tl.float32)
            high = (high * scale).to(dtype).to(tl.float32) * tl.load(weight + DIM // 2).to(tl.float32)
            low, high = low.to(dtype).to(tl.float32), high.to(dtype).to(tl.float32)
        if ROTARY:
            cosine, sine = cos + token * DIM + half, sin + token * DIM + half
            turned = low * tl.load(cosine).to(tl.float32) + high * tl.load(sine).to(tl.float32)
            high = high * tl.load(cosine + DIM // 2).to(tl.float32) + low * tl.load(sine + DIM // 2).to(tl.float32)
            low = turned
    if head < HEADS:
        target = queries + (token * HEADS + head) * DIM + half
        tl.store(target, low.to(dtype))
        tl.store(target + DIM // 2, high.to(dtype))
    else:
        at = tl.load(slots + token) * stride + (head - HEADS) * DIM + half
        target = keys + at if head < HEADS + KV_HEADS else values + at - KV_HEADS * DIM
        tl.store(target, low.to(dtype))
        tl.store(target + DIM // 2, high.to(dtype))


@triton.jit(do_not_specialize=["tokens", "splits", "least"])
def _attend_kernel(
    queries, keys, values, out, parts, weights, offsets, counts, starts, lengths, tokens, splits, least, stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    piece, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(counts + piece).to(tl.int32)
    if count == 0:
        return
    first, start, length = tl.load(offsets + piece), tl.load(starts + piece), tl.load(lengths + piece).to(tl.int32)
    share = tl.maximum(tl.cdiv(tl.cdiv(length, splits), BLOCK), least) * BLOCK
    whole = share >= length  # the first part is all
    if whole & (split > 0):
        return
    group: tl.constexpr = HEADS // KV_HEADS
    row, dim = tl.arange(0, QUERIES), tl.arange(0, DIM)
    token, head = row // group, kv_head * group + row % group  # queries that share keys are rows of one matrix
    live = token < count
    position = length - count + token
    begin = split * share
    end = tl.minimum(begin + share, length)
    at = (first + token) * HEADS + head
    q = tl.load(queries + at[:, None] * DIM + dim[None, :], mask=live[:, None], other=0.0)
    best = tl.full((QUERIES,), float("-inf"), tl.float32)
    mass = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, DIM), tl.float32)
    for block in range(begin, end, BLOCK):
        key = block + tl.arange(0, BLOCK)
        slot = (start + key) * stride + kv_head * DIM
        k = tl.load(keys + slot[None, :] + dim[:, None], mask=key[None, :] < end, other=0.0)
        v = tl.load(values + slot[:, None] + dim[None, :], mask=key[:, None] < end, other=0.0)
        score = tl.dot(q, k, input_precision="ieee") * scale  # of base 2
        seen = (key[None, :] <= position[:, None]) & (key[None, :] < end)
        score = tl.where(seen, score, float("-inf"))
        top = tl.maximum(best, tl.max(score, 1))
        base = tl.where(top == float("-inf"), 0.0, top)  # a row that has seen no key yet
        chance = tl.exp2(score - base[:, None])
        fade = tl.exp2(best - base)
        mass = mass * fade + tl.sum(chance, 1)
        total = tl.dot(chance.to(v.dtype), v, total * fade[:, None], input_precision="ieee")
        best = top
    total = total / tl.where(mass > 0, mass, 1.0)[:, None]
    if whole:
        tl.store(out + at[:, None] * DIM + dim[None, :], total.to(out.dtype.element_ty), mask=live[:, None])
        if splits > 1:
            tl.store(weights + at, float("inf"), mask=live)  # nothing to merge
    else:
        at += split.to(tl.int64) * tokens * HEADS
        weight = best + tl.log2(tl.where(mass > 0, mass, 1.0))  # -inf where no key was seen
        tl.store(weights + at, weight, mask=live)
        if begin < end:
            tl.store(parts + at[:, None] * DIM + dim[None, :], total, mask=live[:, None])


@triton.jit(do_not_specialize=["heads", "splits"])
def _merge_kernel(parts, weights, out, heads, splits, DIM: tl.constexpr, MOST: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    split, dim = tl.arange(0, MOST), tl.arange(0, DIM)
    where = split * heads + at
    weight = tl.load(weights + where, mask=split < splits, other=float("-inf"))
    if tl.sum(tl.where(split == 0, weight, 0.0), 0) == float("inf"):
        return
    weight = tl.exp2(weight - tl.max(weight, 0))
    part = tl.load(parts + where[:, None] * DIM + dim[None, :], mask=weight[:, None] > 0, other=0.0)
    total = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + at * DIM + dim, total.to(out.dtype.element_ty))


def _tile(tokens: int) -> int:
    return max(16, 1 << (tokens - 1).bit_length())


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def matmul(x: Tensor, weight: Tensor, *, splits: int | None = None) -> Tensor:
    """Multiply x [T, K], T at most `MATMUL_TOKENS`, by weight [N, K]: float32 parts [S, T, N] that add up to x·weightᵀ."""
    (tokens, k), n = x.shape, weight.shape[0]
    tiles = triton.cdiv(n, _ROWS)
    if splits is None:
        splits = 1 if tiles >= 2 * _multiprocessors(x.device) else max(1, min(4, k // (2 * _COLUMNS)))
    out = torch.empty((splits, tokens, n), dtype=torch.float32, device=x.device)
    _matmul_kernel[(tiles, splits)](
        x, weight, out, tokens, n, k, splits, _tile(tokens), _ROWS, _COLUMNS, False, k % _COLUMNS == 0,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def gated(x: Tensor, weight: Tensor) -> Tensor:
    """Return silu(x·gateᵀ) * (x·upᵀ), [T, N / 2]: x is [T, K], weight [N, K], the gate's rows and then the others."""
    (tokens, k), n = x.shape, weight.shape[0]
    out = torch.empty((tokens, n // 2), dtype=x.dtype, device=x.device)
    _matmul_kernel[(triton.cdiv(n, _ROWS), 1)](
        x, weight, out, tokens, n, k, 1, _tile(tokens), _ROWS, _COLUMNS, True, k % _COLUMNS == 0,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def silu(gate_up: Tensor) -> Tensor:
    """Combine gate_up [T, N], the gates and then the others, to [T, N / 2]."""
    tokens, n = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, n), dtype=gate_up.dtype, device=gate_up.device)
    _silu_kernel[(tokens, triton.cdiv(n, 1024))](gate_up, out, n, 1024, num_warps=4)
    return out


def norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the root-mean-square norm of hidden [T, N], times weight [N]."""
    return _norm(None, None, hidden, weight, eps)[1]


def add(parts: Tensor, bias: Tensor | None, hidden: Tensor) -> Tensor:
    """Return hidden [T, N] with the parts [S, T, N] and bias [N] added."""
    return _norm(parts, bias, hidden, None, 0.0)[0]


def add_norm(parts: Tensor, bias: Tensor | None, hidden: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return hidden [T, N] with the parts [S, T, N] and bias [N] added, and the norm of that, times weight [N]."""
    return _norm(parts, bias, hidden, weight, eps)


def _norm(
    parts: Tensor | None, bias: Tensor | None, hidden: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    tokens, n = hidden.shape
    total = hidden if parts is None else torch.empty_like(hidden)
    normed = hidden if weight is None else torch.empty_like(hidden)
    _norm_kernel[(tokens,)](
        parts, bias, hidden, weight, total, normed, tokens, n, eps, 0 if parts is None else parts.shape[0],
        triton.next_power_of_2(n), bias is not None, weight is not None, num_warps=16,
    )  # fmt: skip
    return total, normed


def rotary(positions: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of rotary positions, [T, D] each, the first half of the sines negated.

    Args:
        positions: int64 [T].
        frequencies: float32 [D / 2].
        factor: what both are multiplied by.
        dtype: what they are returned in.
    """
    tokens, half = len(positions), len(frequencies)
    both = torch.empty((2, tokens, 2 * half), dtype=dtype, device=positions.device)
    block = triton.next_power_of_2(half)
    _rotary_kernel[(tokens,)](positions, frequencies, both[0], both[1], factor, half, block, num_warps=1)
    return both[0], both[1]


def rotate(
    parts: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    *,
    heads: int,
    bias: Tensor | None,
    qk_norm: Tensor | None,
    eps: float,
    rotary: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Finish the queries and return them, [T, H, D]; finish keys and values and write them into their slots.

    Args:
        parts: [S, T, (H + 2 G)·D], queries, keys, values, as `matmul` gives them.
        keys: the layer's in the arena, [slots, G, D]; written.
        values: likewise.
        slots: int64 [T].
        heads: H.
        bias: [(H + 2 G)·D].
        qk_norm: [H + G, D], scales of queries and keys after their own norms; None has no such norms.
        eps: of these norms.
        rotary: cosines and sines, [T, D] each, the first half of the sines negated; None rotates nothing.
    """
    splits, tokens = parts.shape[:2]
    kv_heads, dim = keys.shape[1:]
    queries = torch.empty((tokens, heads, dim), dtype=keys.dtype, device=keys.device)
    cos, sin = rotary or (None, None)
    _rotate_kernel[(tokens, heads + 2 * kv_heads)](
        parts, bias, qk_norm, cos, sin, slots, queries, keys, values, tokens, keys.stride(0), eps, heads, kv_heads,
        dim, splits, bias is not None, qk_norm is not None, rotary is not None, num_warps=1,
    )  # fmt: skip
    return queries


def attend(queries: Tensor, keys: Tensor, values: Tensor, pieces: Pieces, *, scale: float) -> Tensor:
    """Attend causally: queries [T, H, D] to their rows' extents of keys and values [slots, G, D]; returns [T, H·D].

    Args:
        queries: of all pieces.
        keys: the layer's.
        values: the layer's.
        pieces: who attends to what.
        scale: of the products of queries and keys.
    """
    tokens, heads, dim = queries.shape
    kv_heads = keys.shape[1]
    rows = len(pieces.counts)
    splits = max(1, min(_SPLITS, _PROGRAMS // (rows * kv_heads)))
    block = _tile(pieces.tokens * (heads // kv_heads))
    out = torch.empty((tokens, heads * dim), dtype=queries.dtype, device=queries.device)
    parts, weights = out, out
    if splits > 1:
        parts = torch.empty((splits, tokens, heads, dim), dtype=torch.float32, device=queries.device)
        weights = torch.empty((splits, tokens, heads), dtype=torch.float32, device=queries.device)
    # Where rows alone make programs enough, a part is long before it is worth a merge.
    least = max(1, min(_LEAST, rows * kv_heads * _LEAST // _BUSY))
    _attend_kernel[(rows, kv_heads, splits)](
        queries, keys, values, out, parts, weights, pieces.offsets, pieces.counts, pieces.starts, pieces.lengths, tokens,
        splits, least, keys.stride(0), scale * 1.4426950408889634, heads, kv_heads, dim, block, _KEYS,
        num_warps=8 if block > 64 else 4, num_stages=2,
    )  # fmt: skip
    if splits > 1:
        most = triton.next_power_of_2(splits)
        warps = max(1, most // 8)
        _merge_kernel[(tokens * heads,)](parts, weights, out, tokens * heads, splits, dim, most, num_warps=warps)
    return out
