"""Matrix products: (tokens, in) to (tokens, out), with the weights as they suit the device.

`dense` is what torch does. `four_bit` and `eight_bit` keep the blocks of a GGUF, 32 weights with a scale of their own: a step of
few tokens costs the time it takes to read the weights, so on a CPU an eighth of the bytes is most of the speed. With AVX-512
they are products of ours (`_cpu.c`), built when Baton is installed where there is a C compiler; without them, torch's
own product of four bits. Where that does not fit either, the weights are made dense.

In ours a token's result never depends, in any bit, on what other tokens are in the batch: a draft that is verified is chosen
from the very scores that plain decoding would have seen. Torch's of four bits keeps to that too; its dense product, on a CPU, does
not quite.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    # After torch, whose OpenMP it then shares: two sets of threads would wait for each other's cores.
    from models.language.decoding import _cpu

    FASTEST = _cpu.supported()
except ImportError:  # installed where there was no C compiler
    FASTEST = False
"""Whether there are products of ours, and this CPU can do them."""

Product = Callable[[Tensor], Tensor]
"""A matrix product: (tokens, in) to (tokens, out), in the dtype of what it is given."""

GROUP = 32
"""So many weights of a row share a scale."""

_TILE_ROWS = 16

_AS_IT_IS, _NORMED, _GATED = range(3)
"""What becomes of the input first; as `_cpu.c` counts them."""


def dense(weight: Tensor, bias: Tensor | None = None) -> Product:
    """Return the product with a dense weight, (out, in)."""
    return lambda seen: F.linear(seen, weight, bias)


def four_bit(codes: Tensor, scales: Tensor, minimums: Tensor, bias: Tensor | None = None) -> Product:
    """Return the product with weights that are `scale * code + minimum`. What is concatenated by rows is fused.

    Args:
        codes: (out, in) uint8, each below 16.
        scales: (out, in / 32) float16.
        minimums: the same.
        bias: (out,) or None.
    """
    outer, inner = codes.shape
    if FASTEST:
        return Packed(4, _tiles(_four_bit_codes, codes, scales, minimums), outer, inner, bias)
    if torch_has_four_bits() and outer % 16 == 0:
        return _TorchFourBit(codes, scales, minimums, bias)
    return _made_dense(_expanded(codes, scales) + minimums.float().repeat_interleave(GROUP, 1), bias)


def eight_bit(codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Product:
    """Return the product with weights that are `scale * code`.

    Args:
        codes: (out, in) int8.
        scales: (out, in / 32) float16.
        bias: (out,) or None.
    """
    outer, inner = codes.shape
    if FASTEST:
        return Packed(8, _tiles(_eight_bit_codes, codes, scales), outer, inner, bias)
    return _made_dense(_expanded(codes, scales), bias)


class Packed:
    """A product of ours. What it is given, float32, is rounded to sixteen bits, by blocks of 32.

    What comes before it in a model, and after it, it can do in the same go.
    """

    def __init__(self, bits: Literal[4, 8], weights: Tensor, outer: int, inner: int, bias: Tensor | None) -> None:
        """Take weights as `_tiles` lays them."""
        self._bits = bits
        self._weights = weights
        self._outer = outer
        self._inner = inner
        self._bias = bias

    def __call__(self, seen: Tensor) -> Tensor:
        """Return the product with `seen`."""
        return self._multiply(seen.float(), _AS_IT_IS).to(seen.dtype)

    def of_normed(self, hidden: Tensor, scale: Tensor, eps: float) -> Tensor:
        """Return the product with `hidden` over its root mean square, times `scale`."""
        return self._multiply(hidden, _NORMED, norm=scale, eps=eps)

    def add_to(self, total: Tensor, seen: Tensor) -> None:
        """Add the product with `seen` to `total`, in place."""
        self._multiply(seen, _AS_IT_IS, total=total)

    def add_gated_to(self, total: Tensor, gate_up: Tensor) -> None:
        """Add the product with SiLU(gate) * up to `total`, in place; `gate_up` is (tokens, 2 x in)."""
        self._multiply(gate_up, _GATED, total=total)

    def _multiply(
        self, seen: Tensor, prepare: int, *, total: Tensor | None = None, norm: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        seen = seen.contiguous()
        tokens, width = seen.shape
        if width != (2 if prepare == _GATED else 1) * self._inner:
            raise ValueError(f"The product takes {self._inner} values a token and was given {width}.")
        if total is not None and not total.is_contiguous():
            raise ValueError("What is added to has gaps.")
        out = seen.new_empty(tokens, self._outer) if total is None else total
        _cpu.multiply(
            self._bits,
            prepare,
            total is not None,
            seen.data_ptr(),
            tokens,
            self._inner,
            self._weights.data_ptr(),
            self._outer,
            out.data_ptr(),
            0 if norm is None else norm.data_ptr(),
            eps,
        )
        if self._bias is not None:
            out += self._bias
        return out


class _TorchFourBit:
    """Torch's product: input, output, scales and minimums are rounded to bfloat16."""

    def __init__(self, codes: Tensor, scales: Tensor, minimums: Tensor, bias: Tensor | None) -> None:
        self._weights = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)  # noqa: SLF001  # so it is called
        zero = minimums.float() + 8 * scales.float()  # it takes codes as from -8 to 7
        self._scales_and_zeros = torch.stack((scales.t(), zero.t()), -1).bfloat16().contiguous()
        self._bias = bias

    def __call__(self, seen: Tensor) -> Tensor:
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001  # so it is called
        out: Tensor = multiply(seen.bfloat16(), self._weights, GROUP, self._scales_and_zeros).to(seen.dtype)
        return out if self._bias is None else out + self._bias


def torch_has_four_bits() -> bool:
    """Return whether torch's product of four bits is made for this CPU; elsewhere it is slower than the dense one."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _made_dense(weight: Tensor, bias: Tensor | None) -> Product:
    return lambda seen: F.linear(seen.float(), weight, bias).to(seen.dtype)


def _expanded(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.float() * scales.float().repeat_interleave(GROUP, 1)


def _tiles(arrange: Callable[[Tensor], Tensor], codes: Tensor, *halves: Tensor) -> Tensor:
    """Return weights as `_cpu.c` reads them: by tiles of 16 rows and blocks of 32 columns, each with its numbers."""
    outer, inner = codes.shape
    if inner % GROUP:
        raise ValueError(f"Rows of {inner} weights are not whole blocks of {GROUP}.")
    missing = -outer % _TILE_ROWS
    tiles, blocks = (outer + missing) // _TILE_ROWS, inner // GROUP
    parts = [arrange(F.pad(codes, (0, 0, 0, missing)).view(tiles, _TILE_ROWS, blocks, GROUP))]
    for half in halves:
        rows = F.pad(half.half(), (0, 0, 0, missing)).view(tiles, _TILE_ROWS, blocks)
        parts.append(rows.transpose(1, 2).contiguous().view(torch.uint8))
    return torch.cat(parts, -1).contiguous()


def _four_bit_codes(codes: Tensor) -> Tensor:
    """Return (tiles, blocks, 256) of (tiles, 16, blocks, 32): byte 64j + 4r + i is of row r, columns 8j + i and 8j + 4 + i."""
    tiles, rows, blocks, _ = codes.shape
    pairs = codes.view(tiles, rows, blocks, 4, 2, 4)
    both = pairs[..., 0, :] | (pairs[..., 1, :] << 4)
    return both.permute(0, 2, 3, 1, 4).reshape(tiles, blocks, -1)


def _eight_bit_codes(codes: Tensor) -> Tensor:
    """Return (tiles, blocks, 512) of (tiles, 16, blocks, 32): byte 32p + 2r + i is of row r, column 2p + i."""
    tiles, rows, blocks, _ = codes.shape
    pairs = codes.view(torch.uint8).view(tiles, rows, blocks, 16, 2)
    return pairs.permute(0, 2, 3, 1, 4).reshape(tiles, blocks, -1)
