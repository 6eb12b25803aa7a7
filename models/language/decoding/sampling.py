"""Choosing the next token.

The randomness of a request belongs to its seed and the place of the token in the answer, and to nothing else. What is written
so depends neither on who else is served nor on what was drafted: verification asks for the token at each place, and is told
what plain decoding would have been told.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.ports.generate import Sampling

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
        top_k: so many of the likeliest may be drawn (Fan et al. 2018), and those as likely as the last; 0 is all.
        min_p: how many times as likely as the likeliest a token has to be at least (Nguyen et al. 2024).
    """

    temperature: float
    top_p: float
    seed: int
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def of(cls, sampling: Sampling) -> "Chooser":
        """Make one as a request asks, with a seed of its own where it names none."""
        seed = random.getrandbits(64) if sampling.seed is None else sampling.seed % 2**64
        return cls(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < _GREEDY_BELOW

    @property
    def truncates(self) -> bool:
        """Whether it looks at more than the nucleus to say what may be drawn."""
        return self.top_k > 0 or self.min_p > 0

    def choose(self, scores: Tensor, place: int) -> int:
        """Return the token at `place` of the answer, given the scores of all, (vocabulary,) float32."""
        return choose(scores[None], [(self, place)])[0]


def choose(scores: Tensor, asked: Sequence[tuple[Chooser, int]]) -> list[int]:
    """Return the token of each of many places, of any answers. None depends on what else is asked.

    Args:
        scores: (places, vocabulary) float32.
        asked: whose place each is, and where in their answer.
    """
    chosen: list[int] = scores.argmax(-1).tolist() if any(each.greedy for each, _ in asked) else [0] * len(asked)
    sampled = [at for at, (each, _) in enumerate(asked) if not each.greedy]
    truncated = [at for at in sampled if asked[at][0].truncates]
    if truncated:
        sampled = [at for at in sampled if not asked[at][0].truncates]
    wholly = [at for at in sampled if asked[at][0].top_p >= 1]
    partly = [at for at in sampled if asked[at][0].top_p < 1]
    for drawing, draw in ((wholly, _draw), (partly, _draw_from_nucleus), (truncated, _draw_truncated)):
        if drawing:
            choosers = [asked[at] for at in drawing]
            given = scores if len(drawing) == len(scores) else scores[drawing]
            for at, token in zip(drawing, draw(given, choosers), strict=True):
                chosen[at] = token
    return chosen


def uniform(seed: int, place: int) -> float:
    """Return a number in [0, 1) that belongs to `place` of the stream `seed`: SplitMix64 (Steele et al. 2014)."""
    mixed = (seed + (place + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / 2**53


def _draw(scores: Tensor, asked: Sequence[tuple[Chooser, int]]) -> list[int]:
    drawn: list[int] = _drawn(_chances(scores, asked), asked).tolist()
    return drawn


def _draw_from_nucleus(scores: Tensor, asked: Sequence[tuple[Chooser, int]]) -> list[int]:
    chances = _chances(scores, asked)
    masses = torch.tensor([each.top_p for each, _ in asked], device=scores.device)
    best, order = chances.topk(min(_NUCLEUS_FIRST, chances.shape[-1]))
    drawn: list[int] = order.gather(-1, _drawn(_kept(best, masses), asked)[:, None])[:, 0].tolist()
    wider = (best.sum(-1) < masses).nonzero()[:, 0].tolist() if best.shape[-1] < chances.shape[-1] else []
    for at in wider:
        every, order = chances[at : at + 1].sort(descending=True)
        drawn[at] = int(order[0, _drawn(_kept(every, masses[at : at + 1]), asked[at : at + 1])])
    return drawn


def _draw_truncated(scores: Tensor, asked: Sequence[tuple[Chooser, int]]) -> list[int]:
    """Draw from what `top_k`, `top_p` and `min_p` leave, each of what the one before has left."""
    tempered = _tempered(scores, asked)
    left, order, short = _left(tempered, asked, min(_NUCLEUS_FIRST, tempered.shape[-1]))
    drawn: list[int] = order.gather(-1, _drawn(left, asked)[:, None])[:, 0].tolist()
    for at in short.nonzero()[:, 0].tolist():
        left, order, _ = _left(tempered[at : at + 1], asked[at : at + 1], tempered.shape[-1])
        drawn[at] = int(order[0, _drawn(left, asked[at : at + 1])])
    return drawn


def _left(tempered: Tensor, asked: Sequence[tuple[Chooser, int]], wide: int) -> tuple[Tensor, Tensor, Tensor]:
    """Look at the `wide` likeliest.

    Returns:
        How many times as likely as the likeliest each is, which falls, 0 if it may not be drawn; which tokens they are; and
        for which rows one has to look at more.
    """
    device, all_seen = tempered.device, wide == tempered.shape[-1]
    best, order = tempered.sort(descending=True, stable=True) if all_seen else tempered.topk(wide)
    chances = (best - best[:, :1]).exp()
    few = torch.tensor([each.top_k > 0 for each, _ in asked], device=device)
    last = torch.tensor([min(each.top_k or wide, wide) - 1 for each, _ in asked], device=device)
    among = (best >= best.gather(-1, last[:, None])) | ~few[:, None]
    chances = chances.where(among, 0)
    masses = torch.where(few, chances.sum(-1), (tempered - best[:, :1]).exp().sum(-1))
    nuclei = torch.tensor([each.top_p if each.top_p < 1 else torch.inf for each, _ in asked], device=device)
    left = _kept(chances, nuclei * masses)
    least = torch.tensor([each.min_p for each, _ in asked], device=device)
    left = left.where(left >= least[:, None], 0)
    short = among[:, -1] & (few | (left[:, -1] > 0)) & best[:, -1].isfinite()
    return left, order, short if not all_seen else torch.zeros_like(short)


def _chances(scores: Tensor, asked: Sequence[tuple[Chooser, int]]) -> Tensor:
    return _tempered(scores, asked).softmax(-1)


def _tempered(scores: Tensor, asked: Sequence[tuple[Chooser, int]]) -> Tensor:
    temperatures = torch.tensor([each.temperature for each, _ in asked], device=scores.device)
    return scores / temperatures[:, None]


def _kept(best: Tensor, masses: Tensor) -> Tensor:
    """Return chances, which fall, of which all are 0 but the fewest that have their row's mass together."""
    before = best.cumsum(-1) - best
    before[:, 0] = 0
    return best.where(before < masses[:, None], 0)


def _drawn(chances: Tensor, asked: Sequence[tuple[Chooser, int]]) -> Tensor:
    """Return where each row's number falls, (rows,) int64."""
    totals = chances.double().cumsum(-1)
    numbers = torch.tensor([uniform(each.seed, place) for each, place in asked], dtype=torch.double)
    numbers = numbers.to(chances.device) * totals[:, -1]
    # What has no chance is not drawn, even where a product has rounded up to the total.
    last = (totals < totals[:, -1:]).sum(-1)
    return torch.minimum(torch.searchsorted(totals, numbers[:, None], right=True)[:, 0], last)
