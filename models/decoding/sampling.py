"""Choosing the next token.

The randomness of a request belongs to its seed and the place of the token in the answer, and to nothing else. What is written
so depends neither on who else is served nor on what was drafted: verification asks for the token at each place, and is told
what plain decoding would have been told.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from models.ports import Sampling

_GREEDY_BELOW = 1e-5
"""Dividing scores by a temperature below this one overflows before it says more than the likeliest token does."""

_NUCLEUS_FIRST = 512
"""How many of the likeliest tokens are looked at before all are sorted, which takes a hundred times as long."""

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """Chooses the tokens of one answer.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1] (Holtzman et al. 2020).
        seed: of its randomness.
    """

    temperature: float
    top_p: float
    seed: int

    @classmethod
    def of(cls, sampling: Sampling) -> "Chooser":
        """Make one as a request asks, with a seed of its own where it names none."""
        seed = random.getrandbits(64) if sampling.seed is None else sampling.seed % 2**64
        return cls(temperature=sampling.temperature, top_p=sampling.top_p, seed=seed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < _GREEDY_BELOW

    def choose(self, scores: Tensor, place: int) -> int:
        """Return the token at `place` of the answer, given the scores of all, (vocabulary,) float32."""
        if self.greedy:
            return int(scores.argmax())
        chances = (scores / self.temperature).softmax(-1)
        order: Tensor | None = None
        if self.top_p < 1:
            chances, order = _nucleus(chances, self.top_p)
        totals = chances.double().cumsum(-1)
        drawn = uniform(self.seed, place) * float(totals[-1])
        at = min(int(torch.searchsorted(totals, drawn, right=True)), len(totals) - 1)
        return at if order is None else int(order[at])


def uniform(seed: int, place: int) -> float:
    """Return a number in [0, 1) that belongs to `place` of the stream `seed`: SplitMix64 (Steele et al. 2014)."""
    mixed = (seed + (place + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / 2**53


def _nucleus(chances: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens that have `mass` together, the fewest, and which they are."""
    first = min(_NUCLEUS_FIRST, len(chances))
    best, order = chances.topk(first)
    if first < len(chances) and float(best.sum()) < mass:
        best, order = chances.sort(descending=True)
    before = best.cumsum(-1) - best
    keep = max(int((before < mass).sum()), 1)
    return best[:keep], order[:keep]
