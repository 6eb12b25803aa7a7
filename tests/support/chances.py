"""What a model's scores leave of chance, worked out without the code under test, and whether draws keep to it."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def nucleus(scores: Sequence[float], temperature: float, top_p: float) -> dict[int, float]:
    """Return the chances of the tokens that may be drawn: the fewest likeliest that have a share of `top_p` together."""
    highest = max(scores)
    weights = [math.exp((score - highest) / temperature) for score in scores]
    total = math.fsum(weights)
    kept: dict[int, float] = {}
    for token in sorted(range(len(scores)), key=lambda token: -weights[token]):
        if math.fsum(kept.values()) / total >= top_p:
            break
        kept[token] = weights[token]
    share = math.fsum(kept.values())
    return {token: weight / share for token, weight in kept.items()}


def chi_square_passes(drawn: Mapping[_T, int], chances: Mapping[_T, float]) -> bool:
    """Return whether draws are what chances would give, but for one case in a thousand (Pearson 1900).

    What is expected less than five times is counted together.
    """
    if set(drawn) - set(chances):
        return False
    count = sum(drawn.values())
    rare = [outcome for outcome, chance in chances.items() if count * chance < 5]
    cells = [(drawn.get(each, 0), count * chance) for each, chance in chances.items() if each not in set(rare)]
    if rare:
        cells.append((sum(drawn.get(each, 0) for each in rare), count * sum(chances[each] for each in rare)))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells if expected)
    freedom = len(cells) - 1
    if freedom == 0:
        return True
    # The bound that one in a thousand passes, by Wilson and Hilferty (1931): within a percent of the tables.
    spread = 2 / (9 * freedom)
    return statistic <= freedom * (1 - spread + 3.09 * math.sqrt(spread)) ** 3
