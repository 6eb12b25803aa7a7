"""A request at work: what it has, how far it has come, and what it is told."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from models.content import Delta
from models.errors import BatonError
from models.language.decoding.cache import RowLease
from models.language.decoding.constrain import Guide
from models.language.decoding.drafters import Context
from models.language.decoding.prefixes import Scope
from models.language.decoding.processors import Processors
from models.language.decoding.sampling import Chooser
from models.language.decoding.scheduler import Rank
from models.language.detokenize import Detokenizer

Tell = Callable[[Sequence[Delta], BatonError | None], None]
"""Is given what a step made of a request, and its error if it failed. Called in the engine's thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model reads before it writes.

    Attributes:
        tokens: all of it; where there are pictures, the tokens that stand for them.
        embeddings: (tokens, hidden size) in place of the tokens' own, for a prompt with pictures; else None.
        positions: rotary positions, (tokens,) or (3, tokens) int64; None is 0, 1, 2...
        offset: what is added to a token's place after the prompt to get its rotary position: pictures take fewer
            positions than tokens, or more.
    """

    tokens: tuple[int, ...]
    embeddings: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    offset: int = 0

    @property
    def plain(self) -> bool:
        """Whether the tokens say all. Else what is read is kept for nobody: every picture's tokens are the same."""
        return self.embeddings is None and self.positions is None


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a request has used.

    Attributes:
        cached: tokens of the prompt that did not have to be read.
        drafted: tokens guessed, by who guessed them.
        accepted: how many of them were right.
    """

    cached: int = 0
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """A request at work. It belongs to the engine's thread.

    Attributes:
        prompt: what is read.
        context: the prompt's tokens and the answer's so far.
        scope: whose it is; what it reads is kept for nobody else.
        rank: its place in every queue.
        chooser: chooses its tokens.
        writer: makes deltas of them.
        limit: the most tokens of the answer.
        tell: is given the deltas.
        adapter: the number of its LoRA adapter; 0 is none.
        guide: says which tokens may come next, if that is constrained.
        processors: bias and penalties, if there are any.
        fork: rows of a scope that have the same are answers to one prompt.
        hint: an answer begun by somebody else, as a draft.
        tolerance_nats: how much less likely than the model's own choice a token of the hint may be and still stay; 0 is exact.
        stalled: whether whoever reads it is behind: it rests then.
        lease: its part of the cache, while it is at work.
        fed: how many tokens of `context` are in the cache.
        begun: whether it was told its prompt's length.
        resumed: how many tokens it had written when it was last let in.
        tally: what it has used.
        ahead: it is only read, for a request that is expected, while nobody else has work.
    """

    prompt: Prompt
    context: Context
    scope: Scope
    rank: Rank
    chooser: Chooser
    writer: Detokenizer
    limit: int
    tell: Tell
    adapter: int = 0
    guide: Guide | None = None
    processors: Processors | None = None
    fork: str | None = None
    hint: deque[int] = field(default_factory=deque)
    tolerance_nats: float = 0.0
    stalled: Callable[[], bool] = lambda: False
    lease: RowLease | None = None
    fed: int = 0
    begun: bool = False
    resumed: int = 0
    tally: Tally = field(default_factory=Tally)
    ahead: bool = False

    @property
    def unread(self) -> int:
        """How many tokens have to be run before the next can be chosen; 1 for a row that is writing."""
        return len(self.context.tokens) - self.fed

    @property
    def has_read(self) -> bool:
        """Whether its prompt is in the cache, all of it."""
        return self.lease is not None and self.fed >= self.context.prompt_length

    @property
    def slice_tokens(self) -> int:
        """How many tokens it has written since it was last let in."""
        return self.writer.written - self.resumed

    @property
    def most(self) -> int:
        """The most tokens that it can come to."""
        return self.context.prompt_length + self.limit

    def positions(self, begin: int, end: int) -> torch.Tensor:
        """Return the rotary positions of its tokens from `begin` to `end`, (count,) or (3, count)."""
        length = self.context.prompt_length
        given = self.prompt.positions
        if given is None:
            return torch.arange(begin, end)
        later = torch.arange(max(begin, length), max(end, length)) + self.prompt.offset
        return torch.cat((given[..., begin:end], later.expand(*given.shape[:-1], -1)), -1)
