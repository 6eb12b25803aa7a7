"""The decoding engine around the tiny model, without its thread: who asks, what they are told, and who guesses.

Everything here writes with one model of random weights in float32, so that what is written can be compared token by token.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.content import Delta, FinishDelta, TextDelta, UsageDelta, WrittenToken
from models.errors import BatonError
from models.language.decoding.adapters import Adapters
from models.language.decoding.cache import BLOCK_TOKENS, Cache
from models.language.decoding.constrain import Constrainer
from models.language.decoding.decoder import Batch, Decoder
from models.language.decoding.drafters import Context, Drafter, DrafterName
from models.language.decoding.loading import decoder_of
from models.language.decoding.loop import Loop, LoopLimits
from models.language.decoding.policy import DraftChoice, RowState
from models.language.decoding.prefixes import Scope
from models.language.decoding.processors import Processors
from models.language.decoding.rows import Prompt, Row
from models.language.decoding.sampling import Chooser
from models.language.decoding.scheduler import Rank
from models.language.decoding.speculation import FixedPolicy, Speculation
from models.language.detokenize import Detokenizer
from models.language.tool_format import LISTED
from models.owner import Owner
from models.ports.generate import Constraint, Priority, Sampling
from support.tiny_llama import make_model, make_tokenizer

END = 2
"""The token that ends a message. The tiny model writes it only where a grammar leaves nothing else."""

NO_ADAPTERS = Adapters((), {}, by_runs=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, in tokens."""

    prompt: tuple[int, ...]
    limit: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    logprobs: int | None = None
    fork: str | None = None
    ends: frozenset[int] = frozenset({END})
    hint: tuple[int, ...] = ()
    adapter: str | None = None
    constraint: Constraint | None = None
    tenant: str = "ada"
    subject: str | None = None
    priority: Priority = "normal"
    came_s: float = 0.0
    deadline_s: float | None = None
    ahead: bool = False

    @property
    def sampling(self) -> Sampling:
        """How its tokens are chosen."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            max_output_tokens=self.limit,
            stop=self.stop,
            logit_bias=self.logit_bias,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            top_k=self.top_k,
            min_p=self.min_p,
        )


@dataclass(slots=True, eq=False)
class Told:
    """What a request has been told so far."""

    deltas: list[Delta] = field(default_factory=list)
    error: BatonError | None = None

    def __call__(self, deltas: Sequence[Delta], error: BatonError | None) -> None:
        """Be told; see `rows.Tell`."""
        assert not self.over, "nothing is told after the end"
        self.deltas += deltas
        self.error = error

    @property
    def over(self) -> bool:
        """Whether it has ended, either way."""
        return self.error is not None or bool(self.deltas and isinstance(self.deltas[-1], FinishDelta))

    @property
    def tokens(self) -> list[int]:
        """The answer, up to its end or its stop string."""
        return [token for delta in self.deltas if isinstance(delta, TextDelta) for token in delta.token_ids]

    @property
    def scored(self) -> list[WrittenToken]:
        """The tokens of the answer's words, with their log-probabilities."""
        return [token for delta in self.deltas if isinstance(delta, TextDelta) for token in delta.tokens]

    @property
    def text(self) -> str:
        """The answer in words."""
        return "".join(delta.text for delta in self.deltas if isinstance(delta, TextDelta))

    @property
    def reason(self) -> str | None:
        """Why it ended; None if it has not, or failed."""
        last = self.deltas[-1] if self.deltas else None
        return last.reason if isinstance(last, FinishDelta) else None

    @property
    def usages(self) -> list[UsageDelta]:
        """What it was told of its use: of the prompt, and at the end of the answer."""
        return [delta for delta in self.deltas if isinstance(delta, UsageDelta)]


class Tiny:
    """One tiny model, and loops that serve it.

    Attributes:
        tokenizer: of the model.
        decoder: runs it.
        constrainer: starts its guides.
        adapters: its adapters.
    """

    def __init__(
        self,
        adapters: Callable[[Decoder], Adapters] = lambda _: NO_ADAPTERS,
        make: Callable[[PreTrainedTokenizerFast], LlamaForCausalLM] = make_model,
    ) -> None:
        torch.set_num_threads(1)  # what is this small takes longer in two, and much longer beside other tests
        self.tokenizer = make_tokenizer()
        self.decoder = decoder_of(make(self.tokenizer))
        # It has no eyes, but may be told positions as if it had: a half of its frequencies follow time.
        self.decoder.shape = replace(self.decoder.shape, sections=(2, 1, 1))
        vocabulary = self.decoder.shape.vocabulary
        self.constrainer = Constrainer(self.tokenizer, vocabulary=vocabulary, ends={END}, calls=LISTED)
        self.adapters = adapters(self.decoder)
        self.decoder.low_rank = self.adapters.apply
        self._alone: dict[Ask, Told] = {}

    def bench(
        self,
        *,
        blocks: int = 64,
        rows: int = 8,
        prefill_tokens: int = 16,
        drafters: Sequence[Drafter] = (),
        policy: FixedPolicy | None = None,
    ) -> "Bench":
        """Return a loop that serves the model, with an empty cache of so many blocks."""
        cache = Cache(self.decoder.arena(blocks * BLOCK_TOKENS))
        speculation = Speculation(drafters, FixedPolicy() if policy is None else policy)
        limits = LoopLimits(rows=rows, prefill_tokens=prefill_tokens)
        return Bench(self, Loop(self.decoder, cache, speculation, self.adapters, limits), cache)

    def alone(self, ask: Ask) -> Told:
        """Return what is written if nobody else is served and nothing is guessed."""
        ask = replace(ask, hint=(), fork=None, tenant="ada", subject=None, priority="normal", came_s=0.0)
        if ask not in self._alone:
            bench = self.bench(rows=1, prefill_tokens=512)
            self._alone[ask] = bench.ask(ask)
            bench.finish()
        return self._alone[ask]

    def words(self, text: str) -> tuple[int, ...]:
        """Return `text` in tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class Bench:
    """A loop, driven step by step.

    Attributes:
        loop: the loop.
        cache: its cache.
        rows: the rows of what was asked, by what they are told.
        steps: how many steps there were.
    """

    def __init__(self, tiny: Tiny, loop: Loop, cache: Cache) -> None:
        self.loop = loop
        self.cache = cache
        self.rows: dict[Told, Row] = {}
        self.steps = 0
        self._tiny = tiny

    def row(self, ask: Ask, told: Told, prompt: Prompt | None = None) -> Row:
        """Return a row that asks."""
        tiny = self._tiny
        return Row(
            prompt=prompt or Prompt(tokens=ask.prompt),
            context=Context(
                owner=Owner(ask.tenant, ask.subject), tokens=list(ask.prompt), prompt_length=len(ask.prompt)
            ),
            scope=Scope(owner=Owner(ask.tenant, ask.subject), adapter=ask.adapter),
            rank=Rank.of(ask.priority, ask.came_s, ask.deadline_s, len(self.rows)),
            chooser=Chooser.of(ask.sampling),
            writer=Detokenizer(
                tiny.tokenizer,
                ask.sampling,
                ends=ask.ends,
                limit=ask.limit,
                signals=frozenset({"token_ids"}),
                logprobs=ask.logprobs,
            ),
            limit=ask.limit,
            tell=told,
            adapter=tiny.adapters.index(ask.adapter),
            guide=None if ask.constraint is None else tiny.constrainer.start(ask.constraint),
            processors=Processors.of(ask.sampling, ask.prompt, tiny.decoder.shape.vocabulary),
            fork=ask.fork,
            hint=deque(ask.hint),
            ahead=ask.ahead,
        )

    def ask(
        self,
        ask: Ask,
        *,
        prompt: Prompt | None = None,
        stalled: Callable[[], bool] = lambda: False,
        told: Told | None = None,
    ) -> Told:
        """Ask, and return what will be told."""
        told = Told() if told is None else told
        self.rows[told] = row = self.row(ask, told, prompt)
        row.stalled = stalled
        self.loop.submit(row)
        return told

    def cancel(self, told: Told) -> None:
        """Have a request go."""
        self.loop.cancel(self.rows[told])

    def foresee_nothing(self) -> None:
        """Have the loop take answers for short ones, so that rows outgrow the room they were given."""
        for _ in range(8):
            self.loop._lengths.observe(0)

    def step(self) -> bool:
        """Step once; return whether there was anything to do."""
        self.steps += 1
        return self.loop.step()

    def has_nothing_left(self) -> None:
        """Fail if a request is left, or a block that is neither kept nor free."""
        cache = self.cache
        assert (self.loop.running, self.loop.waiting, cache.leased_blocks) == (0, 0, 0)
        assert cache._prefixes.blocks + cache._blocks.free_blocks == cache._blocks.total_blocks

    def finish(self, most: int = 5000) -> int:
        """Step until nothing is left to do; return how many steps that took."""
        begun = self.steps
        while self.step():
            assert self.steps - begun < most, "it does not come to an end"
        return self.steps - begun - 1


class Spy:
    """Notes the batches that a decoder runs."""

    def __init__(self, decoder: Decoder, patch: pytest.MonkeyPatch) -> None:
        """Note from now on until the patch is taken back; `fault` is raised instead, if one is set."""
        self.batches: list[Batch] = []
        self.fault: Exception | None = None
        run = decoder.run

        def noted(batch: Batch, *args: object, **kwargs: object) -> torch.Tensor:
            self.batches.append(batch)
            if self.fault is not None:
                raise self.fault
            return run(batch, *args, **kwargs)  # type: ignore[arg-type]

        patch.setattr(decoder, "run", noted)


# Who guesses


class RandomPolicy(FixedPolicy):
    """Chooses a drafter and a length for each row of each step by lot."""

    def __init__(self, seed: int, longest: int = 7) -> None:
        super().__init__()
        self._chance = random.Random(seed)
        self._longest = longest

    def choose(self, rows: Sequence[RowState], *, reading: bool = False) -> list[DraftChoice]:
        """See `speculation.Chooses`."""
        return [self._lot(row) for row in rows]

    def _lot(self, row: RowState) -> DraftChoice:
        name = self._chance.choice([None, *row.offers])
        length = 0 if name is None else self._chance.randint(1, self._longest)
        return DraftChoice(drafter=name, length=length, expected=0.0, reason="pays")


class Guesser:
    """A drafter whose guesses a function makes: of a context, and of how many tokens there may be at most.

    It keeps account of who is there, and fails where the loop asks about somebody who is not.
    """

    def __init__(self, name: DrafterName, guess: Callable[[Context, int], list[int]]) -> None:
        self.name: DrafterName = name
        self.here: set[Context] = set()
        self._guess = guess

    def join(self, context: Context) -> None:
        """See `Drafter`."""
        assert context not in self.here
        self.here.add(context)

    def draft(self, asks: Sequence[tuple[Context, int]]) -> list[list[int]]:
        """See `Drafter`."""
        assert all(context in self.here and length > 0 for context, length in asks)
        return [self._guess(context, length) for context, length in asks]

    def observe(self, context: Context, drafted: int, accepted: int) -> None:
        """See `Drafter`."""
        assert context in self.here
        assert 0 <= accepted <= drafted

    def leave(self, context: Context) -> None:
        """See `Drafter`."""
        self.here.remove(context)


def oracle(right: Callable[[Context], Sequence[int]], *, errs: float, seed: int = 0) -> Guesser:
    """Return a drafter that knows a request's answer, and is wrong about so large a share of tokens."""
    chance = random.Random(seed)

    def guess(context: Context, most: int) -> list[int]:
        written = len(context.tokens) - context.prompt_length
        return [
            chance.randrange(300) if chance.random() < errs else token
            for token in right(context)[written : written + most]
        ]

    return Guesser("pair", guess)


def liar(vocabulary: int, *, seed: int = 0) -> Guesser:
    """Return a drafter that says anything, special tokens among it, and as much as it may."""
    chance = random.Random(seed)
    return Guesser("early_exit", lambda _, most: [chance.randrange(vocabulary) for _ in range(most)])
