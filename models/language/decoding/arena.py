"""The key-value cache: one arena of slots a layer, in which every row owns a contiguous extent.

Contiguous, because a processor reads an extent as it lies, without gathering blocks first, and a GPU kernel needs no table to
find them. What that costs is moving: an extent that outgrows its place is copied to another.
"""

import math
import mmap

import torch

_PIECE_SLOTS = 256
"""What is moved at a time at least, where two places overlap: fewer would be a thousand small copies."""


class Arena:
    """Keys and values of all rows.

    Attributes:
        keys: one tensor a layer, (slots, key-value heads, head size); a slot holds one token.
        values: the same.
        slots: how many tokens there is room for. One more lies behind them, for what is computed only to fill a shape.
    """

    def __init__(
        self, *, layers: int, slots: int, kv_heads: int, head_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Zeros rather than whatever lies there: attention multiplies masked values by nought, and nought times NaN is NaN.
        self._all = _zeros((layers, 2, slots + 1, kv_heads, head_size), dtype, device)
        self.keys = [self._all[layer, 0] for layer in range(layers)]
        self.values = [self._all[layer, 1] for layer in range(layers)]
        self.slots = slots

    @property
    def slot_bytes(self) -> int:
        """What one token takes."""
        return self._all[:, :, 0].numel() * self._all.element_size()

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values, (tokens, key-value heads, head size), into `slots`, (tokens,) int64."""
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)

    def move(self, source: int, target: int, count: int) -> None:
        """Copy `count` slots; the two places may overlap."""
        if source == target:
            return
        # Piece by piece from the end that is written first, so that no more than a piece has to be held beside the arena.
        piece = max(abs(source - target), _PIECE_SLOTS)
        begins = range(0, count, piece)
        for begin in begins if target < source else reversed(begins):
            slots = min(piece, count - begin)
            moved = self._all[:, :, source + begin : source + begin + slots]
            if abs(source - target) < slots:
                moved = moved.clone()
            self._all[:, :, target + begin : target + begin + slots] = moved


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Pages of zeros from the system take no memory until they are written; torch writes them at once. NumPy would ask for huge
    # ones: to clear those of 30 layers holds the first step of a new place up by 0.1 s, and attention is a fifth slower in them.
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
