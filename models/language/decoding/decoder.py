"""The forward pass of a Llama-like model over packed rows.

Transformers loads the model and says what its numbers mean; here its weights run, in fewer and larger products than its own
code has (queries, keys and values are one, so are gate and up), over the tokens of many requests at once, laid end to end.
A row may be one token, a drafted continuation or a piece of a prompt: nothing is padded.

Sources: Llama (Touvron et al. 2023), grouped-query attention (Ainslie et al. 2023), rotary positions (Su et al. 2021), query
and key norms as in Qwen3, layers without rotary positions as in SmolLM3, multimodal rotary positions as in Qwen2-VL.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.language.decoding.arena import Arena
from models.language.decoding.linear import Product

MATRICES = ("qkv", "o", "gate_up", "down")
"""The matrix products of a layer."""

_PACKED_HEADS_BELOW = 33
"""Up to so many tokens a row, the query heads that share a key head are laid beside its tokens: fewer, larger products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one row contributes to a run.

    Attributes:
        offset: its first token within the batch.
        count: how many tokens it has there.
        start: the first slot of its extent.
        length: the slots in use with these tokens, which are the last of them. Each attends to itself and all before it.
    """

    offset: int
    count: int
    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The tokens of one run, of all rows, end to end.

    Attributes:
        tokens: (T,) int64.
        positions: rotary positions, (T,) int64, or (3, T) for time, height and width.
        slots: where in the arena each token's key and value go, (T,) int64.
        spans: the rows.
        adapters: each token's LoRA adapter, (T,) int64, 0 for none; None if no row has one.
        embeddings: (T, hidden size), in place of those of `tokens`.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    spans: tuple[Span, ...]
    adapters: Tensor | None = None
    embeddings: Tensor | None = None

    def on(self, device: torch.device) -> "Batch":
        """Return the same on `device`."""
        if self.tokens.device == device:
            return self
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("tokens", "positions", "slots")}
        adapters = None if self.adapters is None else self.adapters.to(device, non_blocking=True)
        return replace(self, adapters=adapters, **moved)


@dataclass(slots=True, kw_only=True)
class Layer:
    """One layer's weights.

    Attributes:
        qkv: queries, keys and values, in that order.
        o: from the heads back.
        gate_up: gate, then up.
        down: back from them.
        input_norm: (hidden size,).
        post_norm: (hidden size,).
        qk_norm: (heads + key-value heads, head size), or None: a scale for each query and key after their own norm.
        rotary: whether positions are known here.
    """

    qkv: Product
    o: Product
    gate_up: Product
    down: Product
    input_norm: Tensor
    post_norm: Tensor
    qk_norm: Tensor | None = None
    rotary: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a model.

    Attributes:
        sections: how many frequencies follow time, height and width, in a model of pictures; else none.
    """

    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    vocabulary: int
    norm_eps: float
    sections: tuple[int, ...] = ()


LowRank = Callable[[int, str, Tensor, Tensor, Tensor], Tensor]
"""Adds adapters to a product: layer, matrix, its input, its output, what `Adapters.mask` returned; to the sum."""


class Decoder:
    """Runs a model. It owns weights and no state: that is in the arena it is given.

    Attributes:
        shape: the model's numbers.
        layers: its layers.
    """

    def __init__(
        self,
        *,
        shape: Shape,
        layers: Sequence[Layer],
        embedding: Tensor,
        head: Product,
        norm: Tensor,
        frequencies: Tensor,
        rotary_scale: float = 1.0,
    ) -> None:
        """Take the weights.

        Args:
            shape: the model's numbers.
            layers: the layers, first to last.
            embedding: (vocabulary, hidden size).
            head: hidden size to vocabulary.
            norm: the scale of the last norm, (hidden size,).
            frequencies: of the rotary positions, (head size / 2,) float32.
            rotary_scale: what cosine and sine are multiplied by.
        """
        self.shape = shape
        self.layers = list(layers)
        self.embedding = embedding
        self.head = head
        self.norm = norm
        self.low_rank: LowRank | None = None
        self._frequencies = frequencies
        self._rotary_scale = rotary_scale

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.embedding.dtype

    def arena(self, slots: int) -> Arena:
        """Return a cache of so many tokens for this model."""
        return Arena(
            layers=len(self.layers),
            slots=slots,
            kv_heads=self.shape.kv_heads,
            head_size=self.shape.head_size,
            dtype=self.dtype,
            device=self.device,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of tokens, (T, hidden size)."""
        return self.embedding[tokens]

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
        """Run layers `first` to `last` and leave the tokens' keys and values in the arena.

        Args:
            batch: the tokens; on whatever device.
            arena: the cache, of this model.
            first: the first layer to run.
            last: the layer to stop before; None is the end.
            hidden: what `first` is given, (T, hidden size); None is the embeddings.
            mask: what `Adapters.mask` returned for the batch's adapters.

        Returns:
            (T, hidden size), before the last norm.
        """
        batch = batch.on(self.device)
        if hidden is None:
            hidden = self.embed(batch.tokens) if batch.embeddings is None else batch.embeddings
        rotary = self.rotary(batch.positions)
        bounds = [_bounds(span, self.shape, hidden.device) for span in batch.spans]
        for index in range(first, len(self.layers) if last is None else last):
            hidden = self._layer(index, hidden, batch, arena, rotary, bounds, mask)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token, (M, vocabulary) float32, for `hidden` of (M, hidden size)."""
        return self.head(self._norm(hidden, self.norm)).float()

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of each token's positions, (T, 1, head size); the sine's first half is negated."""
        angles = positions.to(self._frequencies.dtype)[..., None] * self._frequencies
        if positions.ndim == 2:  # frequencies in turn follow time, height and width
            parts = torch.split(angles, list(self.shape.sections), dim=-1)
            angles = torch.cat([part[axis % 3] for axis, part in enumerate(parts)], dim=-1)
        cosine, sine = angles.cos() * self._rotary_scale, angles.sin() * self._rotary_scale
        return (
            torch.cat((cosine, cosine), -1)[:, None].to(self.dtype),
            torch.cat((-sine, sine), -1)[:, None].to(self.dtype),
        )

    # Inside

    def _layer(
        self,
        index: int,
        hidden: Tensor,
        batch: Batch,
        arena: Arena,
        rotary: tuple[Tensor, Tensor],
        bounds: list[Tensor | None],
        mask: Tensor | None,
    ) -> Tensor:
        shape, layer = self.shape, self.layers[index]
        seen = self._norm(hidden, layer.input_norm)
        qkv = self._product(index, "qkv", seen, mask).view(-1, shape.heads + 2 * shape.kv_heads, shape.head_size)
        turned = qkv[:, : shape.heads + shape.kv_heads]
        if layer.qk_norm is not None:
            turned = F.rms_norm(turned, (shape.head_size,), None, shape.norm_eps) * layer.qk_norm
        if layer.rotary:
            turned = torch.addcmul(turned * rotary[0], turned.roll(shape.head_size // 2, -1), rotary[1])
        arena.write(index, batch.slots, turned[:, shape.heads :], qkv[:, shape.heads + shape.kv_heads :])
        heads = self._attend(turned[:, : shape.heads], arena.keys[index], arena.values[index], batch, bounds)
        hidden = hidden + self._product(index, "o", heads, mask)
        seen = self._norm(hidden, layer.post_norm)
        gate, up = self._product(index, "gate_up", seen, mask).chunk(2, -1)
        return hidden + self._product(index, "down", F.silu(gate) * up, mask)

    def _product(self, index: int, matrix: str, seen: Tensor, mask: Tensor | None) -> Tensor:
        product: Product = getattr(self.layers[index], matrix)
        out = product(seen)
        return out if mask is None or self.low_rank is None else self.low_rank(index, matrix, seen, out, mask)

    def _norm(self, hidden: Tensor, scale: Tensor) -> Tensor:
        return F.rms_norm(hidden, (self.shape.hidden_size,), scale, self.shape.norm_eps)

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, batch: Batch, bounds: list[Tensor | None]
    ) -> Tensor:
        """Return each token's heads, (T, heads x head size)."""
        shape = self.shape
        out = queries.new_empty(queries.shape[0], shape.heads * shape.head_size)
        for span, bound in zip(batch.spans, bounds, strict=True):
            rows = slice(span.offset, span.offset + span.count)
            query = queries[rows].transpose(0, 1)[None]
            key = keys[span.start : span.start + span.length].transpose(0, 1)[None]
            value = values[span.start : span.start + span.length].transpose(0, 1)[None]
            if span.count < _PACKED_HEADS_BELOW:
                packed = query.reshape(1, shape.kv_heads, -1, shape.head_size)
                heads = F.scaled_dot_product_attention(packed, key, value, attn_mask=bound)
                heads = heads.reshape(1, shape.heads, span.count, shape.head_size)
            else:
                heads = F.scaled_dot_product_attention(query, key, value, attn_mask=bound, enable_gqa=True)
            out[rows] = heads[0].transpose(0, 1).reshape(span.count, -1)
        return out


def _bounds(span: Span, shape: Shape, device: torch.device) -> Tensor | None:
    """Return which slots each of a row's tokens attends to, or None if all."""
    if span.count == 1:
        return None
    allowed = torch.ones(span.count, span.length, dtype=torch.bool, device=device).tril(span.length - span.count)
    if span.count >= _PACKED_HEADS_BELOW:
        return allowed
    return allowed.repeat(shape.heads // shape.kv_heads, 1)
