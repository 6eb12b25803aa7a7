"""Who drafts for which row, and how long a draft: whatever writes most tokens per millisecond.

Before each step the policy weighs what the drafts would add to it against what they would cost. A draft token is worth the
chance that it is accepted, which it only is if all before it are; it costs its share of a longer step (`costs`) and of the
drafter's rounds. Tokens are added to the step, likeliest first over all rows, and the step with the best expected rate is
run, among those that are not too long. So a draft is long where a request repeats itself, short where it does not, and gone
where the machine has no time left.

Chances come from the drafter where it can tell (the suffix drafter by the length of its match), else from a common first
guess; both are corrected by how drafts fared, of the drafter in this engine and of this request. Evidence fades with time, so
that what has not been tried for long is believed as on its first day and is tried again. That is all the exploration there
is, and what it wastes is bounded: with evidence fading by a share d per step and a first guess that weighs c trials, at most
c * d of the time. Pure and deterministic: no clock, no dice.

What the beliefs are worth is checked by an account. Each step with drafts pays in the time it saved against plain steps that
write the same tokens, or draws the time it lost; 2.5 % of all time is paid in besides. While the account is overdrawn nothing
drafts. So, whatever the beliefs, speculation loses no more than that share, and what it has lately gained. Plain steps in
between (one of 64) keep the measure true.

To be told in this order: `observe_draft` of what forecasts took, `choose`, then for a step that was chosen so `observe_draft` of
each drafter, `observe_step`, and `observe` of each row that drafted.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from models.language.decoding.costs import Costs
from models.language.decoding.drafters import DrafterName

Reason = Literal["pays", "dear", "no_guess", "measuring", "overdrawn"]

_FIRST_CHANCE = 0.6  # that a token is accepted, of a drafter that does not tell
_SUREST = 0.98
_LEAST_CHANCE = 0.01
_LEAST_GAIN = 1.01  # a step with drafts has to promise so many times the rate of a plain one
# Plain steps that one with drafts may take: words in bursts are read no sooner, and whoever comes meanwhile waits.
_LONGEST_STEP = 3.0
_READING_STEP = 0.2  # more, where prompts are read in it as well: that has made it longer already

_SHARE = 0.025  # of all time may be lost
_PURSE = 8.0  # plain steps: the savings that may be lost again
_ADVANCE = 1.0  # plain steps: what may be lost before anything was saved

_MEASURE_EVERY = 64  # steps
_MEASURE_FIRST = 3  # plain steps at a new load


@dataclass(frozen=True, slots=True, kw_only=True)
class RowState:
    """A row that is about to write.

    Attributes:
        key: names the row until `forget`.
        limit: the most draft tokens that it can take: what it may still write, the room in its extent, its constraint.
        offers: the drafters that it may use, each with the chances, token by token, that its draft holds as far as the one
            before did (which also bound the draft: an empty list is no draft), or None if the drafter does not tell.
    """

    key: Hashable
    limit: int
    offers: Mapping[DrafterName, Sequence[float] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftChoice:
    """What a row does in the next step, and why.

    Attributes:
        drafter: who guesses; None for plain decoding.
        length: how many tokens at most.
        expected: how many of them should be accepted.
        reason: `pays`: it does; `dear`: no draft is worth its time at this load; `no_guess`: nobody offers one; `measuring`:
            a plain step, to know what one costs; `overdrawn`: drafts have lost more time of late than they may.
    """

    drafter: DrafterName | None
    length: int
    expected: float
    reason: Reason


_PLAIN: Mapping[Reason, DraftChoice] = {
    reason: DraftChoice(drafter=None, length=0, expected=0.0, reason=reason)
    for reason in ("dear", "no_guess", "measuring", "overdrawn")
}


class _Record:
    """How many tokens were accepted against how many should have been; both fade, by observation and by step."""

    __slots__ = ("_expected", "_fade_seen", "_fade_step", "_got", "_step", "_weight")

    def __init__(self, *, weight: float, fade_seen: float, fade_step: float) -> None:
        self._weight, self._fade_seen, self._fade_step = weight, fade_seen, fade_step
        self._got = self._expected = 0.0
        self._step = 0

    def ratio(self, step: int) -> float:
        faded = self._fade_step ** (step - self._step)
        return float((self._got * faded + self._weight) / (self._expected * faded + self._weight))

    def learn(self, step: int, got: float, expected: float) -> None:
        faded = self._fade_seen * self._fade_step ** (step - self._step)
        self._got = self._got * faded + got
        self._expected = self._expected * faded + expected
        self._step = step


def _engine_record() -> _Record:
    return _Record(weight=4.0, fade_seen=0.99, fade_step=0.998)


def _row_record() -> _Record:
    return _Record(weight=1.0, fade_seen=0.94, fade_step=0.995)


class _Draft(NamedTuple):
    """What a row could draft: for each token the chance that it and all before it are accepted."""

    row: int
    name: DrafterName
    gains: list[float]


class _Plan(NamedTuple):
    """Drafts for a step, each with its length, and the tokens per millisecond that the step promises."""

    rate: float
    drafts: list[tuple[_Draft, int]]


class Policy:
    """The policy of one engine.

    Args:
        longest: the longest draft, in tokens.
        costs: what steps cost; may have been warmed up.
    """

    def __init__(self, *, longest: int = 16, costs: Costs | None = None) -> None:
        self.costs = Costs() if costs is None else costs
        self._longest = longest
        self._step = 0
        self._engine: dict[DrafterName, _Record] = {}
        self._rows: dict[Hashable, dict[DrafterName, _Record]] = {}
        self._asked: dict[Hashable, Sequence[float]] = {}
        self._measured: dict[
            int, tuple[int, int]
        ] = {}  # by the bits of the number of rows: plain steps, and when the last was
        self._balance_ms: float | None = None
        self._draft_ms = 0.0
        self._token_ms = 0.0

    @property
    def balance_ms(self) -> float:
        """How much time drafts may lose now; negative while they are not allowed to."""
        return self._balance_ms or 0.0

    def choose(self, rows: Sequence[RowState], *, reading: bool = False) -> list[DraftChoice]:
        """Return a choice for each row; `reading` says whether prompts are read in the same step."""
        self._step += 1
        self._asked.clear()
        if not rows:
            return []
        refusal = self._refusal(len(rows))
        if refusal is None and not any(
            row.limit and (told is None or told) for row in rows for told in row.offers.values()
        ):
            refusal = "no_guess"
        plain_ms = self.costs.step_ms(len(rows), len(rows))
        self._token_ms = plain_ms / len(rows)
        return self._best(rows, reading, plain_ms) if refusal is None else [_PLAIN[refusal]] * len(rows)

    def may_pay(self, rows: int) -> bool:
        """Whether `choose` would look at offers now. If not, they need not be made: rows without them get its reason, too."""
        return self._refusal(rows) is None

    def observe_draft(self, name: DrafterName, rows: int, tokens: int, ms: float) -> None:
        """Learn what a drafter took to draft `tokens` tokens for `rows` rows together."""
        self._draft_ms += ms
        if rows:
            self.costs.observe_draft(name, rows, tokens, ms)

    def observe_step(self, rows: int, drafted: int, ms: float, *, reading: bool = False) -> None:
        """Learn what a step took: of `rows` rows that write, with so many drafted tokens, and perhaps of prompts, too."""
        plain_ms = self.costs.step_ms(rows, rows) or ms
        believed_ms = max(plain_ms, self.costs.step_ms(rows + drafted, rows))
        draft_ms, self._draft_ms = self._draft_ms, 0.0
        if self._balance_ms is None:
            self._balance_ms = _ADVANCE * plain_ms
        self._balance_ms += _SHARE * ms
        if drafted or draft_ms:
            # What prompts took is not the drafts' fault, and neither is what else held a step up.
            spent_ms = believed_ms if reading else min(ms, 2 * believed_ms)
            self._balance_ms -= spent_ms - plain_ms + draft_ms
        self._balance_ms = min(self._balance_ms, _PURSE * plain_ms)
        if reading:
            return
        if not drafted:
            count, _ = self._measured.get(rows.bit_length(), (0, 0))
            self._measured[rows.bit_length()] = (count + 1, self._step)
        self.costs.observe_step(rows + drafted, rows, ms)

    def observe(self, key: Hashable, name: DrafterName, drafted: int, accepted: int) -> None:
        """Learn how many tokens of a row's draft were accepted; `drafted` may be fewer than were chosen, or none."""
        if not drafted:
            return
        asked = self._asked.get(key, ())
        tried = [asked[at] if at < len(asked) else _FIRST_CHANCE for at in range(min(drafted, accepted + 1))]
        told = sum(tried)
        engine = self._engine.setdefault(name, _engine_record())
        row = self._rows.setdefault(key, {}).setdefault(name, _row_record())
        # The row's record is about what it has of its own, once the engine's is known.
        expected = told * engine.ratio(self._step)
        engine.learn(self._step, accepted, told)
        row.learn(self._step, accepted, expected)
        if self._balance_ms is not None:
            self._balance_ms += accepted * self._token_ms

    def forget(self, key: Hashable) -> None:
        """Forget a row that is finished."""
        self._rows.pop(key, None)
        self._asked.pop(key, None)

    def _refusal(self, rows: int) -> Reason | None:
        """Why no row could draft now, whatever it is offered."""
        plain_ms = self.costs.step_ms(rows, rows)
        count, last = self._measured.get(rows.bit_length(), (0, 0))
        if not plain_ms or count < _MEASURE_FIRST or self._step - last > _MEASURE_EVERY:
            return "measuring"
        if self.balance_ms < 0:
            return "overdrawn"
        if self._least_chance(rows, self._longest * rows, plain_ms) >= _SUREST:
            return "dear"
        return None

    def _least_chance(self, rows: int, room: int, plain_ms: float) -> float:
        """The chance that a token needs at the least, of up to `room` tokens that are added to a step."""
        token_ms = self.costs.least_token_ms(rows, max(1, room))
        return max(_LEAST_CHANCE, token_ms * rows / plain_ms)

    def _best(self, rows: Sequence[RowState], reading: bool, plain_ms: float) -> list[DraftChoice]:
        """Weigh the drafters that are offered, alone and together, and return the choices of the best."""
        rate = len(rows) / plain_ms
        room = sum(min(row.limit, self._longest) for row in rows)
        least = self._least_chance(len(rows), room, plain_ms)
        engine = {name: record.ratio(self._step) for name, record in self._engine.items()}
        drafts = [draft for index, row in enumerate(rows) for draft in self._drafts(index, row, engine, least)]
        choices = [_PLAIN["dear"]] * len(rows)
        if not drafts:
            return choices
        extra_ms = self.costs.extra_ms(len(rows), sum(len(draft.gains) for draft in drafts))
        longest_ms = plain_ms * (1 + _READING_STEP if reading else _LONGEST_STEP)
        names = sorted({draft.name for draft in drafts})
        best = _Plan(rate * _LEAST_GAIN, [])
        for size in range(1, len(names) + 1):
            for menu in combinations(names, size):
                among = [draft for draft in drafts if draft.name in menu]
                plan = self._fill(among, len(rows), plain_ms, extra_ms, longest_ms)
                best = max(best, plan, key=lambda plan: plan.rate)
        for draft, length in best.drafts:
            key, told = rows[draft.row].key, rows[draft.row].offers[draft.name]
            self._asked[key] = (_FIRST_CHANCE,) * length if told is None else told
            expected = sum(draft.gains[:length])
            choices[draft.row] = DraftChoice(drafter=draft.name, length=length, expected=expected, reason="pays")
        return choices

    def _drafts(self, index: int, row: RowState, engine: Mapping[DrafterName, float], least: float) -> list[_Draft]:
        """What each drafter could do for a row, cut where a token is not worth looking at."""
        drafts, longest = [], min(row.limit, self._longest)
        records = self._rows.get(row.key, {})
        for name, told in row.offers.items():
            factor = engine.get(name, 1.0)
            if name in records:
                factor *= records[name].ratio(self._step)
            gain, gains = 1.0, []
            for chance in (_FIRST_CHANCE,) * longest if told is None else told[:longest]:
                gain *= min(_SUREST, chance * factor)
                if gain < least:
                    break
                gains.append(gain)
            if gains:
                drafts.append(_Draft(index, name, gains))
        return drafts

    def _fill(
        self, drafts: Sequence[_Draft], rows: int, plain_ms: float, extra_ms: Sequence[float], longest_ms: float
    ) -> _Plan:
        """Fill a step with the likeliest tokens of `drafts`, one of each row at most; return the best of the steps on the way."""
        chosen: dict[int, _Draft] = {}
        for draft in drafts:
            rival = chosen.get(draft.row)
            if rival is None or self._worth(draft, rows, plain_ms) > self._worth(rival, rows, plain_ms):
                chosen[draft.row] = draft
        users = Counter(draft.name for draft in chosen.values())
        round_ms = {name: self.costs.round_ms(name, count) for name, count in users.items()}
        # A row's tokens come in their order, because each is less likely than the one before it.
        tokens = sorted(
            (-gain, depth, draft.row, draft.name)
            for draft in chosen.values()
            for depth, gain in enumerate(draft.gains, 1)
        )
        rounds = dict.fromkeys(round_ms, 0)
        expected, drafting_ms, best_rate, best_count = float(rows), 0.0, 0.0, 0
        for count, (gain, depth, _, name) in enumerate(tokens, 1):
            expected -= gain
            if depth > rounds[name]:
                rounds[name] = depth
                drafting_ms += round_ms[name]
            step_ms = plain_ms + extra_ms[count] + drafting_ms
            if step_ms > longest_ms:
                break
            rate = expected / step_ms
            if rate > best_rate:
                best_rate, best_count = rate, count
        lengths = {row: depth for _, depth, row, _ in tokens[:best_count]}
        return _Plan(best_rate, [(chosen[row], length) for row, length in lengths.items()])

    def _worth(self, draft: _Draft, rows: int, plain_ms: float) -> float:
        """What a draft adds at best, in tokens, less its rounds' time, which all rows share."""
        round_tokens = self.costs.round_ms(draft.name, rows) / plain_ms
        return sum(max(0.0, gain - round_tokens) for gain in draft.gains)
