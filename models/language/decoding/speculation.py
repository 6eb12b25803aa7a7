"""What is guessed in a step, for which row, by whom: the drafters at the loop's side.

A draft comes from whoever knows best: an answer that somebody else began (a hint), what a grammar leaves no choice about, or the
drafter that the policy finds worth its time.
"""

import time
from collections import deque
from collections.abc import Collection, Hashable, Sequence
from typing import Protocol

from models.language.decoding.drafters import Drafter, DrafterName, Forecasts, Remembers
from models.language.decoding.policy import DraftChoice, RowState
from models.language.decoding.rows import Row

_HINT_TOKENS = 64
"""The most tokens of a draft, beside which other rows wait."""


class RowWork(Protocol):
    """A row's part of a step."""

    row: Row
    count: int
    draft: list[int]
    drafter: str


class Chooses(Protocol):
    """Says which drafter a row is given, and how many tokens of it; `policy.Policy` is the one that learns."""

    def may_pay(self, rows: int) -> bool:
        """Return whether `choose` would look at what drafters offer."""
        ...

    def choose(self, rows: Sequence[RowState], *, reading: bool = False) -> list[DraftChoice]:
        """Return a choice for each row."""
        ...

    def observe_draft(self, name: DrafterName, rows: int, tokens: int, ms: float) -> None:
        """Learn what drafting took."""
        ...

    def observe_step(self, rows: int, drafted: int, ms: float, *, reading: bool = False) -> None:
        """Learn what a step took: of so many rows that write, with so many drafted tokens, and perhaps of prompts, too."""
        ...

    def observe(self, key: Hashable, name: DrafterName, drafted: int, accepted: int) -> None:
        """Learn how many tokens of a draft were right."""
        ...

    def forget(self, key: Hashable) -> None:
        """Forget a row."""
        ...


class Speculation:
    """Drafts for the rows of a step. In each step `draft`, `observe` for each row that drafted, then `observe_step`."""

    def __init__(self, drafters: Sequence[Drafter], policy: Chooses) -> None:
        """Take the drafters, and who chooses among them."""
        self._drafters = {drafter.name: drafter for drafter in drafters}
        self._forecasts = {drafter.name: drafter for drafter in drafters if isinstance(drafter, Forecasts)}
        self._policy = policy
        self._seen: list[tuple[Row, DrafterName, int, int]] = []

    @property
    def names(self) -> Collection[str]:
        """The drafters that the policy chooses among; a hint and what a grammar forces are drafts of nobody's choice."""
        return self._drafters.keys()

    def join(self, row: Row) -> None:
        """Take a row in."""
        for drafter in self._drafters.values():
            drafter.join(row.context)

    def forget(self, tenant: str, subject: str | None) -> None:
        """Have every drafter let go of what it learned of a tenant, or of one subject of it."""
        for drafter in self._drafters.values():
            if isinstance(drafter, Remembers):
                drafter.forget(tenant, subject)

    def leave(self, row: Row) -> None:
        """Let a row go."""
        for drafter in self._drafters.values():
            drafter.leave(row.context)
        self._learn([seen for seen in self._seen if seen[0] is row])
        self._seen = [seen for seen in self._seen if seen[0] is not row]
        self._policy.forget(row.context)

    def draft(self, works: Sequence[RowWork], *, reading: bool) -> None:
        """Give every row that will write in this step a draft, where one is worth it.

        Args:
            works: the rows' parts of the step.
            reading: whether prompts are read in it, too.
        """
        asking: list[tuple[RowWork, int]] = []
        for work in works:
            row = work.row
            room = min(row.limit - row.writer.written - 1, _HINT_TOKENS)
            if work.count < row.unread or room < 1:
                continue
            if row.hint:
                work.drafter, work.draft = "hint", list(row.hint)[:room]
            elif row.guide is not None and (forced := row.guide.forced()[:room]):
                work.drafter, work.draft = "grammar", forced
            elif work.count == 1:
                asking.append((work, room))
        if not asking:
            return
        for name, asked in self._chosen(asking, reading).items():
            begun_s = time.perf_counter()
            drafts = self._drafters[name].draft([(work.row.context, length) for work, length in asked])
            for (work, _), draft in zip(asked, drafts, strict=True):
                work.draft, work.drafter = draft, name
            self._policy.observe_draft(name, len(asked), sum(map(len, drafts)), _since_ms(begun_s))

    def observe(self, row: Row, drafter: str, drafted: int, accepted: int) -> None:
        """Learn how much of a row's draft was right; its context has grown by that, and by one more."""
        row.tally.drafted[drafter] += drafted
        row.tally.accepted[drafter] += accepted
        if drafter == "hint":  # even if a grammar has refused all of it
            row.hint = deque(_rest(row.hint, drafted, accepted, row.context.tokens[-1]))
        elif drafted and drafter in self._drafters:
            name: DrafterName = drafter
            self._drafters[name].observe(row.context, drafted, accepted)
            self._seen.append((row, name, drafted, accepted))

    def observe_step(self, rows: int, drafted: int, ms: float, *, reading: bool) -> None:
        """Learn what a step took: of so many rows that write, with so many drafted tokens, and perhaps of prompts, too."""
        self._policy.observe_step(rows, drafted, ms, reading=reading)
        self._learn(self._seen)
        self._seen.clear()

    def _learn(self, seen: Sequence[tuple[Row, DrafterName, int, int]]) -> None:
        for row, name, drafted, accepted in seen:
            self._policy.observe(row.context, name, drafted, accepted)

    def _chosen(
        self, asking: Sequence[tuple[RowWork, int]], reading: bool
    ) -> dict[DrafterName, list[tuple[RowWork, int]]]:
        """Return by drafter who is to be given how many tokens of it."""
        asks = [(work.row.context, room) for work, room in asking]
        offers: list[dict[DrafterName, Sequence[float] | None]] = [{} for _ in asks]
        looked_at = self._policy.may_pay(len(asks))
        for name in self._drafters if looked_at else ():
            told: Sequence[Sequence[float] | None] = [None] * len(asks)
            if name in self._forecasts:
                begun_s = time.perf_counter()
                told = self._forecasts[name].forecast(asks)
                self._policy.observe_draft(name, 0, 0, _since_ms(begun_s))
            for offer, chances in zip(offers, told, strict=True):
                offer[name] = chances
        states = [
            RowState(key=context, limit=room, offers=offer) for (context, room), offer in zip(asks, offers, strict=True)
        ]
        chosen: dict[DrafterName, list[tuple[RowWork, int]]] = {}
        for (work, room), choice in zip(asking, self._policy.choose(states, reading=reading), strict=True):
            if choice.drafter is not None and choice.length:
                chosen.setdefault(choice.drafter, []).append((work, min(choice.length, room)))
        return chosen


def _rest(hint: Sequence[int], drafted: int, accepted: int, own: int) -> list[int]:
    """Return what is left of a hint: what lies behind the target's own token, if that is the hint's as well."""
    left = list(hint)[accepted:]
    return left[1:] if accepted == drafted and left and left[0] == own else []


def _since_ms(begun_s: float) -> float:
    return (time.perf_counter() - begun_s) * 1000


class FixedPolicy:
    """The same drafter and length for all: for measuring, and for tests."""

    def __init__(self, drafter: DrafterName | None = None, length: int = 0) -> None:
        """Take the drafter and how many tokens it drafts; none by default."""
        self._choice = DraftChoice(drafter=drafter, length=length, expected=0.0, reason="pays")

    def may_pay(self, rows: int) -> bool:
        """See `Chooses`."""
        return True

    def choose(self, rows: Sequence[RowState], *, reading: bool = False) -> list[DraftChoice]:
        """See `Chooses`."""
        return [self._choice for _ in rows]

    def observe_draft(self, name: DrafterName, rows: int, tokens: int, ms: float) -> None:
        """See `Chooses`."""

    def observe_step(self, rows: int, drafted: int, ms: float, *, reading: bool = False) -> None:
        """See `Chooses`."""

    def observe(self, key: Hashable, name: DrafterName, drafted: int, accepted: int) -> None:
        """See `Chooses`."""

    def forget(self, key: Hashable) -> None:
        """See `Chooses`."""
