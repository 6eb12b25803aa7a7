"""Earlier answers of each owner, kept as text in which a new answer may find how it goes on.

The store of "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications" (Oliaro et al., arXiv:2411.04975), in
a form that can also forget: an index of runs of four tokens leads to places, and the text before a place says how long the
match is. Whole answers are dropped, the least recently used first.

No owner's text is ever seen through another's index: neither another tenant's, nor another end user's of the same tenant. How
much is kept is a tenant's bound, however many it speaks for.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from models.owner import Owner

RUN_TOKENS = 4

# A match is told apart from a better one up to this length; further back, all are as good.
LONGEST_MATCH = 32

# Of places that go on alike, few are enough; and looking at each takes a microsecond or two.
_PLACES = 4


@dataclass(slots=True, eq=False, kw_only=True)
class EarlierAnswer:
    """A stored text. It is its own key."""

    owner: Owner
    tokens: tuple[int, ...]


_MOST_JOBS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A place in an answer: the `matched` tokens before index `next` are also the end of the text that was asked about."""

    answer: EarlierAnswer
    next: int
    matched: int


@dataclass(slots=True, eq=False)
class _Text:
    """What is kept of one owner."""

    index: dict[int, list[tuple[EarlierAnswer, int]]] = field(default_factory=dict)
    kept: OrderedDict[tuple[int, ...], EarlierAnswer] = field(default_factory=OrderedDict)
    tokens: int = 0


@dataclass(slots=True, eq=False)
class _Tenant:
    """The owners of one tenant, the one that was here last at the end."""

    owners: OrderedDict[Owner, _Text] = field(default_factory=OrderedDict)
    tokens: int = 0


class EarlierAnswers:
    """The store of all owners.

    What is added is read, and what is dropped is removed, a bounded number of tokens at a time (`work`).

    Args:
        tenant_tokens: how many tokens are kept of one tenant at most: beyond it, the one of its owners who has not been here for
            the longest time loses answers first.
        total_tokens: and of all: beyond it, the tenant who has not been here for the longest time loses answers first.
            A token takes about 300 bytes.
    """

    def __init__(self, *, tenant_tokens: int = 32_768, total_tokens: int = 262_144) -> None:
        self._tenant_tokens = min(tenant_tokens, total_tokens)
        self._total_tokens = total_tokens
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._total = 0
        self._jobs: deque[Iterator[None]] = deque()

    def __len__(self) -> int:
        """How many tokens are kept."""
        return self._total

    def add(self, owner: Owner, tokens: Sequence[int]) -> None:
        """Store an answer of an owner. One too short to be found, or longer than a tenant may keep, is not stored.

        Neither is any while those before it wait to be read, as they do where nothing drafts.
        """
        if not RUN_TOKENS < len(tokens) <= self._tenant_tokens or len(self._jobs) >= _MOST_JOBS:
            return
        tenant = self._tenants.setdefault(owner.tenant, _Tenant())
        self._tenants.move_to_end(owner.tenant)
        text = tenant.owners.setdefault(owner, _Text())
        tenant.owners.move_to_end(owner)
        answer = EarlierAnswer(owner=owner, tokens=tuple(tokens))
        if answer.tokens in text.kept:
            text.kept.move_to_end(answer.tokens)
            return
        text.kept[answer.tokens] = answer
        text.tokens += len(tokens)
        tenant.tokens += len(tokens)
        self._total += len(tokens)
        self._jobs.append(self._enter(text, answer))
        while tenant.tokens > self._tenant_tokens:
            self._drop(tenant)
        while self._total > self._total_tokens:
            self._drop(next(idle for idle in self._tenants.values() if idle.tokens))

    def use(self, answer: EarlierAnswer) -> None:
        """Note that an answer was of use, so that it is dropped later than others."""
        text = self._text(answer.owner)
        if text is not None and answer.tokens in text.kept:
            text.kept.move_to_end(answer.tokens)

    def work(self, tokens: int) -> int:
        """Read or remove at most `tokens` tokens; return how many."""
        done = 0
        while self._jobs and done < tokens:
            steps = sum(1 for _ in islice(self._jobs[0], tokens - done))
            done += steps
            if steps == 0:
                self._jobs.popleft()
        return done

    def find(self, owner: Owner, text: Sequence[int]) -> Found | None:
        """Return the place in the owner's answers that matches the end of `text` longest; of equals the newest."""
        kept = self._text(owner)
        if kept is None or (places := kept.index.get(hash(tuple(text[-RUN_TOKENS:])))) is None:
            return None
        end = text[-LONGEST_MATCH:]
        best: Found | None = None
        for answer, after in reversed(places):
            matched = _agreement(answer.tokens, after, end)
            # Fewer than a run would be two runs with one hash.
            if matched >= RUN_TOKENS and (best is None or matched > best.matched):
                best = Found(answer=answer, next=after, matched=matched)
        return best

    def forget(self, tenant: str, subject: str | None) -> None:
        """Let go of all answers of a tenant, or of one subject of it, at once: what is still to be read of them is read into nothing."""
        if (kept := self._tenants.get(tenant)) is None:
            return
        for owner in [owner for owner in kept.owners if owner.is_of(tenant, subject)]:
            tokens = kept.owners.pop(owner).tokens
            kept.tokens -= tokens
            self._total -= tokens
        if not kept.owners:
            del self._tenants[tenant]

    def _text(self, owner: Owner) -> _Text | None:
        tenant = self._tenants.get(owner.tenant)
        return None if tenant is None else tenant.owners.get(owner)

    def _drop(self, tenant: _Tenant) -> None:
        """Drop the oldest answer of the tenant's owner who was here least recently."""
        text = next(idle for idle in tenant.owners.values() if idle.kept)
        _, answer = text.kept.popitem(last=False)
        text.tokens -= len(answer.tokens)
        tenant.tokens -= len(answer.tokens)
        self._total -= len(answer.tokens)
        self._jobs.append(self._remove(text, answer))

    # Jobs run one after another, so that an answer has been read before it is removed.

    def _enter(self, text: _Text, answer: EarlierAnswer) -> Iterator[None]:
        for after in range(RUN_TOKENS, len(answer.tokens)):
            places = text.index.setdefault(hash(answer.tokens[after - RUN_TOKENS : after]), [])
            places.append((answer, after))
            if len(places) > _PLACES:
                del places[0]
            yield

    def _remove(self, text: _Text, answer: EarlierAnswer) -> Iterator[None]:
        for after in range(RUN_TOKENS, len(answer.tokens)):
            run = hash(answer.tokens[after - RUN_TOKENS : after])
            if run in text.index:
                text.index[run] = [place for place in text.index[run] if place[0] is not answer]
                if not text.index[run]:
                    del text.index[run]
            yield
        if not text.kept and self._text(answer.owner) is text:
            tenant = self._tenants[answer.owner.tenant]
            del tenant.owners[answer.owner]
            if not tenant.owners:
                del self._tenants[answer.owner.tenant]


def _agreement(tokens: Sequence[int], after: int, end: Sequence[int]) -> int:
    """How many tokens before `after` are also the last ones of `end`."""
    agreed = 0
    for back in range(1, min(after, len(end)) + 1):
        if tokens[after - back] != end[-back]:
            break
        agreed = back
    return agreed
