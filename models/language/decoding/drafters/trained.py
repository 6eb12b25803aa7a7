"""The drafters that were trained: a small model of a few layers, which shares the target's embedding and head.

A `pair` is layers of its own, right after the embedding. An `early_exit` (Kangaroo, arXiv:2404.18911) is the target's first
layers, the very weights, and one layer of its own behind them. Both are the same thing to run: a `Decoder` of few layers with a
cache of its own, small because it remembers only the last few hundred tokens of each request. Nothing of the target's cache is
touched, so a draft cannot harm what it guesses at.

How far to draft is the stop head's say (SpecDec++, arXiv:2405.19715): a guess that makes it too likely that some guess of the
draft is refused is not made any more. So a draft is short, or none, exactly where it would not hold.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.language.decoding.decoder import Batch, Decoder, Layer, Span
from models.language.decoding.drafters import Context, DrafterName
from models.language.decoding.drafters.weights import (
    DraftWeights,
    LayerWeights,
    StopHead,
    fits,
    kind_of,
    load_draft,
    shipped,
)
from models.language.decoding.linear import GROUP, Product, dense, eight_bit

PLACE_TOKENS = 512
"""So many tokens of a request are remembered, the latest ones."""

READ_TOKENS = 128
"""So many are read of a prompt, and again whenever the memory is full. Twice as many raise acceptance by a hundredth."""

_STOP_ABOVE = 0.6
"""No guess is made any more once it is likelier than this that one of the draft is refused."""

_CHANCES = (0.62, 0.75, 0.82, 0.86, 0.89, 0.91, 0.93, 0.94, 0.95, 0.96, 0.96, 0.96)
"""The chance of each guess that the stop head let pass, if those before it were accepted: on text that was held out."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Row:
    """A request's part of the cache.

    Attributes:
        place: its number.
        base: which of the request's tokens is in its first slot.
        fed: how many slots hold tokens that were accepted.
        draft: what was guessed last; the keys and values of all but the last of it lie behind those.
    """

    place: int
    base: int = 0
    fed: int = 0
    draft: list[int] = field(default_factory=list)


class TrainedDrafter:
    """Guesses with a small model. Implements `Drafter` and `Forecasts`.

    Args:
        name: what it is called.
        decoder: the small model; its head scores the `vocabulary`.
        vocabulary: (N,) int64, the tokens that it can guess.
        stop: says when to stop.
        rows: for how many requests there is room; others get no drafts.
        stop_above: see `_STOP_ABOVE`.
    """

    def __init__(
        self,
        name: DrafterName,
        decoder: Decoder,
        vocabulary: Tensor,
        stop: StopHead,
        *,
        rows: int,
        stop_above: float = _STOP_ABOVE,
    ) -> None:
        self._name = name
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._stop = stop
        self._stop_above = stop_above
        self._arena = decoder.arena(rows * PLACE_TOKENS)
        self._free = list(reversed(range(rows)))
        self._rows: dict[Context, _Row] = {}

    @property
    def name(self) -> DrafterName:
        """`pair` or `early_exit`."""
        return self._name

    def join(self, context: Context) -> None:
        """Take in a request, if there is room. It is read when it is first drafted for."""
        if self._free:
            self._rows[context] = _Row(place=self._free.pop())

    def forecast(self, asks: Sequence[tuple[Context, int]]) -> list[list[float]]:
        """Return what is known before looking: that the stop head leaves out what is unlikely to hold."""
        return [list(_CHANCES[:most]) if context in self._rows else [] for context, most in asks]

    @torch.inference_mode()
    def draft(self, asks: Sequence[tuple[Context, int]]) -> list[list[int]]:
        """Return for each request at most so many tokens that may come next."""
        drafts: list[list[int]] = [[] for _ in asks]
        survival = [1.0] * len(asks)
        going = [at for at, (context, most) in enumerate(asks) if most and context in self._rows]
        reads = [self._unread(*asks[at]) for at in going]
        depth = 0
        while going:
            guesses, refusals = self._guess([self._rows[asks[at][0]] for at in going], reads, depth)
            still: list[int] = []
            for at, guess, refusal in zip(going, guesses, refusals, strict=True):
                survival[at] *= 1 - refusal
                if 1 - survival[at] > self._stop_above:
                    continue
                drafts[at].append(guess)
                if len(drafts[at]) < min(asks[at][1], len(_CHANCES)):
                    still.append(at)
            going, depth = still, depth + 1
            reads = [drafts[at][-1:] for at in going]
        for (context, _), draft in zip(asks, drafts, strict=True):
            if context in self._rows:
                self._rows[context].draft = draft
        return drafts

    def observe(self, context: Context, drafted: int, accepted: int) -> None:
        """Do nothing: what was accepted is seen in the request itself."""

    def leave(self, context: Context) -> None:
        """Forget a request."""
        row = self._rows.pop(context, None)
        if row is not None:
            self._free.append(row.place)

    def _unread(self, context: Context, most: int) -> list[int]:
        """Bring a row up to date with its request, and return the tokens that it has yet to read: one at least."""
        row, tokens = self._rows[context], context.tokens
        for guess, token in zip(row.draft[:-1], tokens[row.base + row.fed :], strict=False):
            if guess != token:
                break
            row.fed += 1
        row.draft = []
        row.fed = min(row.fed, len(tokens) - row.base - 1)  # what follows the last token is guessed by running it
        behind = len(tokens) - row.base - row.fed
        if behind > READ_TOKENS or len(tokens) - row.base + most > PLACE_TOKENS:
            row.base, row.fed = max(0, len(tokens) - READ_TOKENS), 0
        unread = tokens[row.base + row.fed :]
        row.fed += len(unread)
        return unread

    def _guess(self, rows: Sequence[_Row], reads: Sequence[Sequence[int]], depth: int) -> tuple[list[int], list[float]]:
        """Run each row's tokens; return what it guesses after them, and the chance that this is refused.

        `depth` is how many tokens of the draft have been run when this is over.
        """
        spans: list[Span] = []
        slots: list[int] = []
        positions: list[int] = []
        offset = 0
        for row, read in zip(rows, reads, strict=True):
            start, length = row.place * PLACE_TOKENS, row.fed + depth
            spans.append(Span(offset=offset, count=len(read), start=start, length=length))
            positions += range(length - len(read), length)
            slots += range(start + length - len(read), start + length)
            offset += len(read)
        batch = Batch(
            tokens=torch.tensor([token for read in reads for token in read]),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            spans=tuple(spans),
        )
        hidden = self._decoder.run(batch, self._arena)
        hidden = hidden[[span.offset + span.count - 1 for span in spans]]
        scores = self._decoder.logits(hidden)
        best, place = scores.max(-1)
        normed = F.rms_norm(hidden, hidden.shape[-1:], self._decoder.norm, self._decoder.shape.norm_eps)
        refusal = self._stop.refusal(normed, best - scores.logsumexp(-1))
        return self._vocabulary[place].tolist(), refusal.tolist()


def shipped_for(target: Decoder, names: Set[DrafterName], *, rows: int) -> list[TrainedDrafter]:
    """Return those of the drafters of these names that come with Baton and fit the model that `target` runs.

    Others are not loaded: each takes a part of a second of every start. See `load_trained`.
    """
    paths = [path for path in shipped() if kind_of(path) in names]
    return [load_trained(path, target, rows=rows) for path in paths if fits(path, target.embedding)]


def load_trained(path: Path, target: Decoder, *, rows: int) -> TrainedDrafter:
    """Load the drafter in a file for the model that `target` runs.

    Args:
        path: as a recipe wrote it.
        target: whose embedding it shares, and whose first layers if it is an early exit.
        rows: for how many requests at a time.

    Raises:
        BadInput: the file is no drafter, or is one for another model.
    """
    weights = load_draft(path, target.embedding, dtype=target.dtype)
    return TrainedDrafter(weights.shape.kind, _decoder(weights, target), weights.vocabulary, weights.stop, rows=rows)


def _decoder(weights: DraftWeights, target: Decoder) -> Decoder:
    size = target.shape.head_size
    steps = torch.arange(0, size, 2, device=target.device, dtype=torch.float32) / size
    return type(target)(
        shape=replace(target.shape, vocabulary=len(weights.vocabulary), sections=()),
        layers=[*target.layers[: weights.shape.entry], *(_layer(layer) for layer in weights.layers)],
        embedding=target.embedding,
        head=_product(target.embedding[weights.vocabulary]),
        norm=weights.norm,
        frequencies=weights.shape.rope_theta**-steps,
    )


def _layer(layer: LayerWeights) -> Layer:
    return Layer(
        qkv=_product(torch.cat((layer.q, layer.k, layer.v))),
        o=_product(layer.o),
        gate_up=_product(torch.cat((layer.gate, layer.up))),
        down=_product(layer.down),
        input_norm=layer.input_norm,
        post_norm=layer.post_norm,
    )


def _product(weight: Tensor) -> Product:
    """Return the product with a weight of (out, in) as it is fastest: with eight bits on a CPU."""
    if weight.is_cuda:
        from models.language.decoding.cuda import Matrix  # needs Triton, which comes with CUDA

        return Matrix(weight)
    if weight.shape[1] % GROUP:
        return dense(weight)
    blocks = weight.float().view(weight.shape[0], -1, GROUP)
    scales = (blocks.abs().amax(-1) / 127).clamp(min=1e-7).half()
    codes = (blocks / scales.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
    return eight_bit(codes.flatten(1), scales)
