"""Bounds of numbers, as a grammar can say them exactly."""

import math
from decimal import Decimal

from models.errors import BadInput
from models.language.forms.pointers import pointer_of

EXACT = 1 << 53
"""Up to here a float says every integer."""

_LAST = (1 << 63) - 1024  # the largest number of 64 bits that a float says exactly
_LAST_FRACTION = 10**18

_MOST_REMAINDERS = 1_000
_MOST_PLACES = 12


def bound_inside(value: int | float, *, exclusive: bool, whole: bool, sign: int, width: float) -> int | float | None:
    """Return the tightest bound that is included, that a grammar can say, and that does not admit more; None if none is.

    Args:
        value: the bound.
        exclusive: whether it is not included itself.
        whole: whether it bounds integers.
        sign: 1 for a lower bound, -1 for an upper.
        width: how far the other bound is.
    """
    bound = sign * value  # from here on a lower one
    last = _LAST if whole else _LAST_FRACTION
    if bound >= last:
        return None
    if bound < -last:
        return sign * -last
    if whole:
        bound = math.floor(bound) + 1 if exclusive else math.ceil(bound)
    elif exclusive:
        # llguidance writes the bound itself where both are excluded and begin alike, such as 0 and 0.1.
        # It rounds what has more than fifteen digits, so nothing less than one of the fifteenth is a step.
        unit = 10.0 ** (math.floor(math.log10(abs(bound))) - 14) if bound else 0.0
        step = max(min(1e-9 * max(1.0, abs(bound)), width * 1e-6), unit)
        if step >= width:
            return None
        bound = float(f"{bound + step:.15g}")
    if isinstance(bound, int) and abs(bound) > EXACT and (near := float(bound)) != bound:
        bound = int(near if near > bound else math.nextafter(near, math.inf))
        if bound > last:
            return None
    bound = int(bound) if bound == int(bound) else bound
    return sign * bound


def width_between(low: int | float | None, high: int | float | None) -> float:
    """Return how far two bounds are apart; infinitely, if they do not bound anything between them."""
    if low is None or high is None or abs(low) > _LAST or abs(high) > _LAST or high <= low:
        return math.inf
    return float(high - low)


def has_few_remainders(step: int | float) -> bool:
    """Return whether a grammar of multiples of `step` is soon made: it has a state for each remainder, but for powers of ten."""
    digits, exponent = Decimal(str(step)).normalize().as_tuple()[1:]
    return (
        isinstance(exponent, int)
        and abs(exponent) <= _MOST_PLACES
        and len(digits) <= 4
        and int("".join(map(str, digits))) <= _MOST_REMAINDERS
    )


def number_of(value: object, keyword: str, path: tuple[str, ...]) -> int | float:
    """Return the number that a keyword has.

    Raises:
        BadInput: it has none, or one that is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(_float(value)):
        raise BadInput(
            f"'{keyword}' at {pointer_of(path) or 'the top'} of the schema is no number that can be compared."
        )
    return value


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return 0.0  # an integer is finite, however long
