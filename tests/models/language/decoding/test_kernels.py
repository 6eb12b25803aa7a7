"""The CUDA kernels, against torch. Without a GPU they run in Triton's interpreter, if TRITON_INTERPRET=1 is set."""

import os
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (torch.cuda.is_available() or INTERPRETED):
    pytest.skip("needs CUDA, or TRITON_INTERPRET=1", allow_module_level=True)

from models.language.decoding import kernels  # noqa: E402 - only where there is something to run it on

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def bound(dtype: torch.dtype) -> float:
    return 1e-2 if dtype == torch.bfloat16 else 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "n", "k", "splits"), [(1, 192, 512, 1), (5, 200, 328, 2), (33, 64, 1024, 4)])
def test_a_product_in_parts_adds_up_to_the_product(
    dtype: torch.dtype, tokens: int, n: int, k: int, splits: int
) -> None:
    x, weight = random(tokens, k, dtype=dtype), random(n, k, dtype=dtype)
    parts = kernels.matmul(x, weight, splits=splits)
    assert parts.shape[0] == splits
    assert error(parts.sum(0), x.double() @ weight.double().T) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 17])
def test_a_gated_product_is_silu_of_one_half_times_the_other(dtype: torch.dtype, tokens: int) -> None:
    x, weight = random(tokens, 256, dtype=dtype), random(200, 256, dtype=dtype)
    gate, up = (x.double() @ weight.double().T).chunk(2, -1)
    wanted = functional.silu(gate) * up
    assert error(kernels.gated(x, weight), wanted) < bound(dtype)
    assert error(kernels.silu((x.double() @ weight.double().T).to(dtype)), wanted) < bound(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_a_sum_is_that_of_the_model(dtype: torch.dtype) -> None:
    parts, hidden = random(3, 4, 200), random(4, 200, dtype=dtype)
    weight, bias = random(2, 200, dtype=dtype)
    total = hidden.double() + parts.double().sum(0) + bias.double()
    wanted = functional.rms_norm(total, (200,), weight.double(), 1e-5)
    got_total, got = kernels.add_norm(parts, bias, hidden, weight, 1e-5)
    assert error(got_total, total) < bound(dtype)
    assert error(got, wanted) < bound(dtype)
    assert error(kernels.add(parts, bias, hidden), total) < bound(dtype)
    assert error(kernels.norm(total.to(dtype), weight, 1e-5), wanted) < bound(dtype)


def test_rotary_positions_are_exact_far_into_a_text() -> None:
    positions, frequencies = torch.tensor([0, 5, 131_071], device=DEVICE), 10_000 ** -torch.linspace(0, 1, 32)
    cosine, sine = kernels.rotary(positions, frequencies.to(DEVICE), 1.5, torch.float32)
    angles = (positions[:, None].cpu().float() * frequencies).double()
    assert error(cosine.cpu(), 1.5 * angles.cos().repeat(1, 2)) < 1e-5
    assert error(sine.cpu(), 1.5 * torch.cat((-angles.sin(), angles.sin()), -1)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_keys_and_values_are_written_into_their_slots_and_queries_returned(
    dtype: torch.dtype, normed: bool, rotated: bool
) -> None:
    heads, kv_heads, dim, tokens = 6, 2, 32, 3
    parts, bias = random(2, tokens, (heads + 2 * kv_heads) * dim), random((heads + 2 * kv_heads) * dim, dtype=dtype)
    keys, values = torch.zeros(2, 9, kv_heads, dim, dtype=dtype, device=DEVICE)
    slots = torch.tensor([7, 2, 0], device=DEVICE)
    angles = random(tokens, dim // 2).repeat(1, 2)
    norms = random(heads + kv_heads, dim, dtype=dtype) if normed else None
    cos, sin = angles.cos(), angles.sin()

    got = kernels.rotate(
        parts, keys, values, slots, heads=heads, bias=bias, qk_norm=norms, eps=1e-6,
        rotary=(cos, torch.cat((-sin[:, : dim // 2], sin[:, dim // 2 :]), -1)) if rotated else None,
    )  # fmt: skip

    whole = (parts.sum(0) + bias.float()).to(dtype).double().view(tokens, heads + 2 * kv_heads, dim)
    q, k, v = whole.split([heads, kv_heads, kv_heads], 1)
    if norms is not None:
        q, k = (
            functional.rms_norm(x, (dim,), None, 1e-6) * scale.double() for x, scale in ((q, norms[:6]), (k, norms[6:]))
        )
    if rotated:
        q, k = (
            x * cos[:, None].double() + torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), -1) * sin[:, None].double()
            for x in (q, k)
        )
    assert error(got, q) < bound(dtype)
    assert error(keys[slots], k) < bound(dtype)
    assert error(values[slots], v) < bound(dtype)
    untouched = [slot for slot in range(9) if slot not in (7, 2, 0)]
    assert not keys[untouched].any()
    assert not values[untouched].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows",
    [
        [(1, 1), (1, 70), (1, 300)],  # what each adds, and how long it is then
        [(4, 4), (1, 65), (3, 200)],
        [(16, 16), (16, 32), (9, 130)],
        [(1, 33)] * 300,  # so many that the keys are not split
    ],
)
def test_each_piece_attends_its_own_extent_causally(dtype: torch.dtype, rows: list[tuple[int, int]]) -> None:
    if INTERPRETED:
        rows = rows[:40]
    heads, kv_heads, dim = 6, 2, 32
    queries, pieces = random(sum(count for count, _ in rows), heads, dim, dtype=dtype), pieces_of(rows)
    slots = int(pieces.starts[-1]) + rows[-1][1]
    keys, values = (random(slots, kv_heads, dim, dtype=dtype) for _ in range(2))
    got = kernels.attend(queries, keys, values, pieces, scale=0.2)
    wanted, first, start = [], 0, 0
    for count, length in rows:
        q = queries[first : first + count].double().transpose(0, 1)
        k, v = (
            x[start : start + length].double().transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
            for x in (keys, values)
        )
        age = torch.arange(length - count, length)[:, None] - torch.arange(length)[None, :]
        wanted.append(
            functional.scaled_dot_product_attention(q, k, v, attn_mask=(age >= 0).to(DEVICE), scale=0.2).transpose(0, 1)
        )
        first, start = first + count, start + length
    assert error(got.view_as(queries), torch.cat(wanted)) < bound(dtype)


def test_a_piece_without_tokens_is_passed_over() -> None:
    queries, pieces = random(3, 6, 32), pieces_of([(1, 20), (2, 50)])
    keys, values = random(2, 70, 2, 32)
    wanted = kernels.attend(queries, keys, values, pieces, scale=0.2)
    padded = kernels.Pieces(
        offsets=torch.cat([pieces.offsets, pieces.offsets]),
        counts=torch.cat([pieces.counts, 0 * pieces.counts]),
        starts=torch.cat([pieces.starts, pieces.starts]),
        lengths=torch.cat([pieces.lengths, pieces.lengths]),
        tokens=pieces.tokens,
    )
    assert error(kernels.attend(queries, keys, values, padded, scale=0.2), wanted) < 1e-6


def pieces_of(rows: Sequence[tuple[int, int]]) -> kernels.Pieces:
    """Return the pieces of rows that lie one after another, (tokens, length) each."""
    counts, lengths = (torch.tensor(column, device=DEVICE) for column in zip(*rows, strict=True))
    return kernels.Pieces(
        offsets=counts.cumsum(0) - counts,
        counts=counts,
        starts=lengths.cumsum(0) - lengths,
        lengths=lengths,
        tokens=1 << (int(counts.max()) - 1).bit_length(),
    )
