"""The forward pass on a CPU with AVX-512: five calls of `_cpu.c` a layer.

A step of one token of a small model is a thousand small operations of torch, each of which takes longer to launch than to do. Here
what lies between two products is done where the product reads its input or writes its output, and attention reads the
arena as it lies. Every token is computed alike in whatever company, bit by bit: what is verified is what plain decoding would
have written.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from models.language.decoding import _cpu
from models.language.decoding.arena import Arena
from models.language.decoding.decoder import MATRICES, Batch, Decoder, Layer, Span
from models.language.decoding.linear import Packed


@dataclass(frozen=True, slots=True)
class _Places:
    """What attention has to know of each token, (T,) int64, and how it is turned, (T, head size)."""

    slots: Tensor
    starts: Tensor
    lengths: Tensor
    cosine: Tensor
    sine: Tensor


class CpuDecoder(Decoder):
    """Runs a model in float32 whose products are all `Packed`, and any other as `Decoder` does."""

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
        """See `Decoder.run`. Adapters, which come between a product and what follows it, take the longer way."""
        if mask is not None or not self._is_fit:
            return super().run(batch, arena, first=first, last=last, hidden=hidden, mask=mask)
        if hidden is None:
            hidden = self.embed(batch.tokens) if batch.embeddings is None else batch.embeddings.clone()
        else:
            hidden = hidden.clone()  # what follows adds to it in place
        hidden = hidden.contiguous()
        cosine, sine = (part.contiguous() for part in self.rotary(batch.positions))
        places = _Places(batch.slots.contiguous(), *_views(batch.spans), cosine, sine)
        for index in range(first, len(self.layers) if last is None else last):
            self._step(self.layers[index], hidden, places, arena.keys[index], arena.values[index])
        return hidden

    @cached_property
    def _is_fit(self) -> bool:
        packed = all(isinstance(product, Packed) for layer in self.layers for product in _products(layer))
        return packed and self.dtype == torch.float32 and self.shape.head_size % 32 == 0

    def _step(self, layer: Layer, hidden: Tensor, places: _Places, keys: Tensor, values: Tensor) -> None:
        """Run one layer over `hidden`, in place."""
        shape, (qkv, o, gate_up, down) = self.shape, _products(layer)
        seen = qkv.of_normed(hidden, layer.input_norm, shape.norm_eps)
        heads = seen.new_empty(seen.shape[0], shape.heads * shape.head_size)
        _cpu.attend(
            seen.data_ptr(),
            seen.shape[0],
            shape.heads,
            shape.kv_heads,
            shape.head_size,
            places.cosine.data_ptr() if layer.rotary else 0,
            places.sine.data_ptr(),
            0 if layer.qk_norm is None else layer.qk_norm.data_ptr(),
            places.slots.data_ptr(),
            places.starts.data_ptr(),
            places.lengths.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            heads.data_ptr(),
            shape.norm_eps,
        )
        o.add_to(hidden, heads)
        down.add_gated_to(hidden, gate_up.of_normed(hidden, layer.post_norm, shape.norm_eps))


def _products(layer: Layer) -> tuple[Any, ...]:
    return tuple(getattr(layer, name) for name in MATRICES)


def _views(spans: tuple[Span, ...]) -> tuple[Tensor, Tensor]:
    """Return of each token where the slots begin that it sees, and how many they are."""
    starts = [span.start for span in spans for _ in range(span.count)]
    lengths = [span.length - span.count + 1 + n for span in spans for n in range(span.count)]
    return torch.tensor(starts), torch.tensor(lengths)
