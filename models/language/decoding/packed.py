"""The blocks of a GGUF as its maker quantised them, kept beside the weights that transformers loads.

`packed.safetensors` holds, by transformers' names, the matrices that `linear` can multiply with as they are: the bytes of their
blocks, (out, bytes of a row) uint8, in transformers' order of rows; the file's metadata names each one's kind. A model's head is
there under its own name also where it is the embedding. Formats: llama.cpp's `ggml-common.h`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.language.decoding.linear import GROUP, Product, dense, eight_bit, four_bit

FILE = "packed.safetensors"

KINDS = frozenset({"Q4_0", "Q4_1", "Q8_0"})
"""Kinds of blocks that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMatrix:
    """A matrix in blocks of 32 weights.

    Attributes:
        kind: one of `KINDS`.
        data: (out, bytes of a row) uint8.
    """

    kind: str
    data: Tensor

    def unpack(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (out, in), uint8 below 16 or int8, and scales and minimums, (out, in / 32) float16."""
        outer = self.data.shape[0]
        width = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[self.kind]
        blocks = self.data.view(outer, -1, width)
        scales = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
        if self.kind == "Q8_0":
            return blocks[..., 2:].reshape(outer, -1).view(torch.int8), scales, torch.zeros_like(scales)
        codes = blocks[..., width - GROUP // 2 :]
        minimums = blocks[..., 2:4].contiguous().view(torch.float16)[..., 0] if self.kind == "Q4_1" else -8 * scales
        return torch.cat((codes & 15, codes >> 4), -1).view(outer, -1), scales, minimums

    def dense(self) -> Tensor:
        """Return the matrix, (out, in) float32."""
        codes, scales, minimums = self.unpack()
        each = codes.float().view(*scales.shape, GROUP) * scales.float()[..., None] + minimums.float()[..., None]
        return each.view(codes.shape)


def write_packed(folder: Path, matrices: Mapping[str, PackedMatrix]) -> None:
    """Write matrices, by their names, into `folder`."""
    save_file(
        {name: blocks.data for name, blocks in matrices.items()},
        folder / FILE,
        metadata={name: blocks.kind for name, blocks in matrices.items()},
    )


def packer(folder: Path) -> Callable[[list[str], Tensor, Tensor | None], Product] | None:
    """Return what makes a product of the blocks in `folder`, or None if there are none.

    It is given the names of the weights that lie one after another in the product, (out, in), and its bias. Where their
    blocks are not all here, or not all of as many bits, it returns the dense product.
    """
    if not (folder / FILE).is_file():
        return None
    opened: Any = safe_open(folder / FILE, "pt")  # it has no types
    kinds: dict[str, str] = opened.metadata() or {}

    def pack(names: list[str], weight: Tensor, bias: Tensor | None) -> Product:
        bits = {kinds[name][:2] if name in kinds else None for name in names}
        if len(bits) > 1 or None in bits:
            return dense(weight.float(), bias)
        parts = [PackedMatrix(kind=kinds[name], data=opened.get_tensor(name)).unpack() for name in names]
        codes, scales, minimums = (torch.cat(part) for part in zip(*parts, strict=True))
        wide = None if bias is None else bias.float()
        return eight_bit(codes, scales, wide) if bits == {"Q8"} else four_bit(codes, scales, minimums, wide)

    return pack
