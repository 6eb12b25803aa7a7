"""The suffix drafter: what followed the last time that the text ended like this.

It needs no model and adapts as it goes. The end of a request is looked up in the request itself (`automaton`) and in earlier
answers of the same owner (`answers`); the draft copies what followed the better match. Summaries, code that is edited,
retrieved passages and tool calls repeat themselves, and so do small models.

How much of a copy holds depends most on how much already matches: a match of one token is mostly chance, one of twenty
hardly ever is. SuffixDecoding (arXiv:2411.04975) therefore bounds a draft by the length of its match. So does this one, and
it also counts, for each owner, how often the next token was right behind a match of m tokens; since a token that is
accepted makes the match one longer, that gives each token of a draft its own chance. `SuffixDrafter.forecast` tells the policy.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from models.language.decoding.drafters import Context, DrafterName
from models.language.decoding.drafters.answers import LONGEST_MATCH, EarlierAnswer, EarlierAnswers
from models.language.decoding.drafters.automaton import Automaton
from models.owner import Owner

# A draft is at most so many times as long as its match.
_STRETCH = 4

# So much of a prompt's end is stored before its answer, that the same question finds the answer from its first token on.
_PROMPT_TOKENS = 16

# A shorter answer is not worth its place.
_ANSWER_TOKENS = 8

# What a step may spend on prompts that have not been read yet, and on answers to be stored or dropped: a third of a
# millisecond.
_WORK_TOKENS = 128

# A request that is not further behind than this is read at once, whatever is left to spend: it is what was just accepted.
_AT_ONCE_TOKENS = 32

# The chance that the next token is right behind a match of 1, 2 to 3, 4 to 7, 8 to 15, 16 to 31, and more tokens, as long as
# little has been seen: in the request itself, and in earlier answers, where short matches are turns of phrase. (Greedy answers
# of SmolLM2-135M-Instruct to Spec-Bench prompts.)
_OWN_CHANCES = (0.2, 0.55, 0.75, 0.83, 0.92, 0.97)
_STORED_CHANCES = (0.1, 0.2, 0.25, 0.35, 0.8, 0.95)
_BELIEF = 8.0  # as if from so many tokens
_MEMORY = 256.0  # beyond so many tokens, older ones count half
_OWNERS = 1024  # of so many that is remembered


class _Chances:
    """How often a copied token was right, by the length of the match before it."""

    __slots__ = ("_hits", "_trials")

    def __init__(self, first: Sequence[float]) -> None:
        self._hits = [_BELIEF * chance for chance in first]
        self._trials = [_BELIEF] * len(first)

    def of(self, matched: int) -> float:
        bucket = min(matched.bit_length(), len(self._trials)) - 1
        return self._hits[bucket] / self._trials[bucket]

    def learn(self, matched: int, right: bool) -> None:
        bucket = min(matched.bit_length(), len(self._trials)) - 1
        self._hits[bucket] += right
        self._trials[bucket] += 1
        if self._trials[bucket] > _MEMORY:
            self._hits[bucket] /= 2
            self._trials[bucket] /= 2


@dataclass(slots=True, eq=False)
class _Learned:
    own: _Chances = field(default_factory=lambda: _Chances(_OWN_CHANCES))
    stored: _Chances = field(default_factory=lambda: _Chances(_STORED_CHANCES))


@dataclass(slots=True, eq=False)
class _Row:
    learned: _Learned
    automaton: Automaton = field(default_factory=Automaton)
    seen: tuple[int, int] = (0, 0)  # the lengths of text and automaton for which the three below were found
    matched: int = 0
    next: int = 0  # index of what followed: in `answer`, or in the request itself
    answer: EarlierAnswer | None = None


class SuffixDrafter:
    """Copies what followed an earlier occurrence of the text's end. Implements `Drafter`.

    A step spends a bounded time on reading: a prompt of 6,000 tokens is ready after some 47 steps, and serves no drafts until
    then. Memory: about 120 bytes for a token of a running request, and what `EarlierAnswers` says.

    Args:
        answers: the store of earlier answers.
        least_match: with a shorter match nothing is drafted.
    """

    def __init__(self, *, answers: EarlierAnswers | None = None, least_match: int = 1) -> None:
        self._answers = EarlierAnswers() if answers is None else answers
        self._least_match = least_match
        self._rows: dict[Context, _Row] = {}
        self._owners: OrderedDict[Owner, _Learned] = OrderedDict()

    @property
    def name(self) -> DrafterName:
        """`suffix`."""
        return "suffix"

    def join(self, context: Context) -> None:
        """Take in a request; its prompt is read by and by."""
        learned = self._owners.setdefault(context.owner, _Learned())
        self._owners.move_to_end(context.owner)
        if len(self._owners) > _OWNERS:
            self._owners.popitem(last=False)
        self._rows[context] = _Row(learned)

    def work(self, contexts: Sequence[Context], tokens: int = _WORK_TOKENS) -> None:
        """Read on in requests that are behind, the first ones first, then in answers: at most `tokens` tokens.

        `forecast` and `draft` do so themselves. While an accelerator is busy, more of it costs nothing.
        """
        for context in contexts:
            automaton = self._rows[context].automaton
            behind = len(context.tokens) - automaton.size
            if 0 < behind <= _AT_ONCE_TOKENS:
                automaton.feed(context.tokens[-behind:])
            elif behind and tokens > 0:
                automaton.feed(context.tokens[automaton.size : automaton.size + tokens])
                tokens -= min(behind, tokens)
        self._answers.work(tokens)

    def forecast(self, asks: Sequence[tuple[Context, int]]) -> list[list[float]]:
        """Return for each request how good a draft of at most so many tokens would be, as far as there is one.

        The numbers are, token by token, the chance that it is right if those before it are.
        """
        self.work([context for context, _ in asks])
        forecasts = []
        for context, limit in asks:
            row = self._look(context)
            chances = row.learned.own if row.answer is None else row.learned.stored
            forecasts.append([chances.of(row.matched + more) for more in range(self._length(row, limit))])
        return forecasts

    def draft(self, asks: Sequence[tuple[Context, int]]) -> list[list[int]]:
        """Return for each request at most so many tokens that followed the longest match."""
        if any(self._rows[context].automaton.size != len(context.tokens) for context, _ in asks):
            self.work([context for context, _ in asks])
        drafts = []
        for context, limit in asks:
            row = self._look(context)
            length = self._length(row, limit)
            source = context.tokens if row.answer is None else row.answer.tokens
            copied = list(source[row.next : row.next + length])
            # A match that reaches to the end of the text repeats itself: the copy goes on in what it has copied.
            while len(copied) < length:
                copied.append(copied[len(copied) - (len(source) - row.next)])
            drafts.append(copied)
        return drafts

    def observe(self, context: Context, drafted: int, accepted: int) -> None:
        """Learn how far the last draft was right, for its owner."""
        row = self._rows[context]
        chances = row.learned.own if row.answer is None else row.learned.stored
        for at in range(min(drafted, accepted + 1)):
            chances.learn(row.matched + at, at < accepted)
        if accepted and row.answer is not None:
            self._answers.use(row.answer)

    def leave(self, context: Context) -> None:
        """Forget a request, but store its answer for the owner's later ones."""
        del self._rows[context]
        if not context.forgotten and len(context.tokens) >= context.prompt_length + _ANSWER_TOKENS:
            self._answers.add(context.owner, context.tokens[max(0, context.prompt_length - _PROMPT_TOKENS) :])

    def forget(self, tenant: str, subject: str | None) -> None:
        """Let go of all that was learned of a tenant, or of one subject of it; see `Remembers`."""
        self._answers.forget(tenant, subject)
        for owner in [owner for owner in self._owners if owner.is_of(tenant, subject)]:
            del self._owners[owner]

    def _look(self, context: Context) -> _Row:
        """Find the match that promises most for the text as it is now."""
        row, automaton = self._rows[context], self._rows[context].automaton
        now = len(context.tokens), automaton.size
        if row.seen == now:
            return row
        row.seen = now
        row.answer, row.matched, row.next = None, 0, 0
        if automaton.size == len(context.tokens):
            row.matched, row.next = automaton.matched, automaton.place + 1
        if row.matched < LONGEST_MATCH:
            found = self._answers.find(context.owner, context.tokens)
            promised = row.learned.own.of(row.matched) if row.matched else 0.0
            if found is not None and row.learned.stored.of(found.matched) > promised:
                row.answer, row.matched, row.next = found.answer, found.matched, found.next
        return row

    def _length(self, row: _Row, limit: int) -> int:
        if row.matched < self._least_match:
            return 0
        length = min(limit, _STRETCH * row.matched)
        return length if row.answer is None else min(length, len(row.answer.tokens) - row.next)
