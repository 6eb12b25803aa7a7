"""What a step costs, learned from steps: milliseconds by tokens, at each load, and by rows for a drafter's rounds.

No shape is assumed. On an accelerator that memory bandwidth bounds, a step of sixteen tokens costs as much as one of one; on
a busy CPU it costs several times as much; and the load of the machine moves all of it. What has not been measured for long
is forgotten, so that it is tried again.
"""

from bisect import bisect_left, bisect_right

from models.language.decoding.drafters import DrafterName

# A first guess, cheap on purpose, because only what seems to pay is ever tried: the step doubles at 16 tokens, or four times
# as many as were measured.
_DOUBLES_AT = 16
_DOUBLES_TIMES = 4

_STEADY = 0.1  # the weight of a measurement among many
_FRESH = 0.5  # its weight at most, if the last one is long ago
_FRESH_AFTER = 128  # so many measurements
_FORGOTTEN_AFTER = 4096
_OUTLIER = 2.0  # what is further off than this counts as if it were so much


class Curve:
    """Milliseconds as a function of a size: knots where it was measured, straight lines between them."""

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._sizes: list[float] = []
        self._ms: list[float] = []
        self._counts: list[int] = []
        self._last: list[int] = []
        self._clock = 0

    def observe(self, size: int, ms: float) -> None:
        """Learn that `size`, at least 1, took `ms` this time."""
        self._clock += 1
        key = _key(size)
        at = bisect_left(self._keys, key)
        if at == len(self._keys) or self._keys[at] != key:
            if self._keys:
                ms = _within(ms, self.at(size), 2 * _OUTLIER)
            self._keys.insert(at, key)
            self._sizes.insert(at, size)
            self._ms.insert(at, ms)
            self._counts.insert(at, 1)
            self._last.insert(at, self._clock)
            return
        age = self._clock - self._last[at]
        self._counts[at] += 1
        weight = max(1 / self._counts[at], _STEADY, min(_FRESH, age / _FRESH_AFTER))
        self._sizes[at] += weight * (size - self._sizes[at])
        self._ms[at] += weight * (_within(ms, self._ms[at], _OUTLIER) - self._ms[at])
        self._last[at] = self._clock
        if self._clock % 256 == 0:
            self._forget()

    def at(self, size: float) -> float:
        """Return what `size` is thought to take; 0 if nothing is known."""
        sizes = self._sizes
        if not sizes:
            return 0.0
        right = bisect_left(sizes, size)
        if 0 < right < len(sizes):
            begin, base = sizes[right - 1], self._ms[right - 1]
            return base + (self._ms[right] - base) * (size - begin) / (sizes[right] - begin)
        begin, base = (sizes[-1], self._ms[-1]) if right else (sizes[0], self._ms[0])
        # A size costs at least its share of what a larger one does.
        return max(base + self._slope() * (size - begin), base * min(1.0, size / begin))

    def ramp(self, size: int, more: int) -> list[float]:
        """Return what `size`, `size + 1`, ... `size + more` are thought to take."""
        low = self.at(size)
        values = [low]
        for knot, high in [*self._between(size, size + more), (size + more, self.at(size + more))]:
            done = len(values) - 1
            steps = int(knot) - size - done
            if steps:
                slope = (high - low) / (knot - size - done)
                values.extend([low + slope * step for step in range(1, steps + 1)])
                low += slope * steps
        return values

    def least_slope(self, size: int, more: int) -> float:
        """Return the least that each of at most `more` further units is thought to add, taken together."""
        low = self.at(size)
        ends = [(size + 1, self.at(size + 1)), (size + more, self.at(size + more))]
        return min((ms - low) / (knot - size) for knot, ms in [*ends, *self._between(size + 1, size + more)])

    def _between(self, size: float, end: float) -> list[tuple[float, float]]:
        """The knots between two sizes, and their milliseconds."""
        left, right = bisect_right(self._sizes, size), bisect_left(self._sizes, end)
        return list(zip(self._sizes[left:right], self._ms[left:right], strict=True))

    def _slope(self) -> float:
        """The slope where there is no knot on one side."""
        first, last = self._sizes[0], self._sizes[-1]
        if last > first:
            return max(0.0, (self._ms[-1] - self._ms[0]) / (last - first))
        return self._ms[0] / max(_DOUBLES_AT, _DOUBLES_TIMES * first)

    def _forget(self) -> None:
        kept = [at for at, last in enumerate(self._last) if self._clock - last < _FORGOTTEN_AFTER]
        self._keys = [self._keys[at] for at in kept]
        self._sizes = [self._sizes[at] for at in kept]
        self._ms = [self._ms[at] for at in kept]
        self._counts = [self._counts[at] for at in kept]
        self._last = [self._last[at] for at in kept]


def _key(size: int) -> int:
    """The knot that a size belongs to: its own up to 16, then eight to each doubling."""
    shift = max(0, size.bit_length() - 4)
    return (shift << 4) + (size >> shift)


def _within(value: float, middle: float, factor: float) -> float:
    return min(max(value, middle / factor), middle * factor)


class Costs:
    """The costs of one engine: its steps, and the rounds of its drafters.

    Rows cost besides their tokens: attention, choosing, telling. So steps of few rows and of many are learned apart, by the bits
    of their number.
    """

    def __init__(self) -> None:
        self._steps: dict[int, Curve] = {}
        self._rounds: dict[DrafterName, Curve] = {}

    def step_ms(self, tokens: int, rows: int) -> float:
        """Return what a step of so many tokens of so many rows is thought to take; 0 if nothing is known."""
        return self._curve(rows).at(tokens)

    def extra_ms(self, rows: int, more: int) -> list[float]:
        """Return what 0, 1, ... `more` tokens added to a step of `rows` rows that write are thought to add."""
        ramp = self._curve(rows).ramp(rows, more)
        return [ms - ramp[0] for ms in ramp]

    def least_token_ms(self, rows: int, more: int) -> float:
        """Return the least that a token may cost, of up to `more` added to a step of `rows` rows that write."""
        return self._curve(rows).least_slope(rows, more)

    def round_ms(self, name: DrafterName, rows: int) -> float:
        """Return what a drafter takes to guess one token more of so many rows."""
        curve = self._rounds.get(name)
        return 0.0 if curve is None else curve.at(rows)

    def observe_step(self, tokens: int, rows: int, ms: float) -> None:
        """Learn what a step took."""
        self._curve(rows).observe(tokens, ms)

    def observe_draft(self, name: DrafterName, rows: int, tokens: int, ms: float) -> None:
        """Learn what a drafter took to guess `tokens` tokens for `rows` rows together, row beside row."""
        rounds = max(1.0, tokens / rows)
        self._rounds.setdefault(name, Curve()).observe(rows, ms / rounds)

    def _curve(self, rows: int) -> Curve:
        return self._steps.setdefault(rows.bit_length(), Curve())
