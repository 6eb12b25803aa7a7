"""The loop: takes requests in, runs the model once a step for all of them, and lets them go. Without threads or waiting.

A step: whoever there is room for is let in; every row that is writing gives its last token and perhaps a draft of what follows,
rows whose prompt is still being read give a piece of it; one run of the model; each row chooses its tokens and is told.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from models.content import Delta, DraftUsage, FinishDelta, UsageDelta
from models.errors import BatonError, Internal, Overloaded
from models.language.decoding.adapters import Adapters
from models.language.decoding.cache import Cache, RowLease
from models.language.decoding.constrain import masked
from models.language.decoding.decoder import Batch, Decoder, Span
from models.language.decoding.forks import Forks, are_forks
from models.language.decoding.rows import Row
from models.language.decoding.sampling import Chooser, choose
from models.language.decoding.scheduler import ChunkSize, Lengths, Queue, chunks
from models.language.decoding.speculation import Speculation
from models.language.decoding.verify import verified

_log = logging.getLogger(__name__)

_SLICE_TOKENS = 32
"""What a batch job may write, each time it is let in, before it has to make place for somebody who waits to be talked to."""


_AHEAD_TOKENS = 64
"""What is read ahead in a step: who comes meanwhile waits for its end."""

_AHEAD_ROWS = 64
"""How many prompts wait to be read ahead; another is refused."""


@dataclass(slots=True, kw_only=True)
class _Work:
    """What a row does in this step: run so many of its unread tokens, and the draft behind them."""

    row: Row
    count: int
    draft: list[int] = field(default_factory=list)
    drafter: str = ""
    offset: int = 0
    scores: int = -1
    """Where the scores behind its last token are; -1 if tokens are left unread."""
    masks: NDArray[np.int32] | None = None
    """What its guide allows after its last token, and after each of the draft."""

    @property
    def places(self) -> list[tuple[Chooser, int]]:
        """Where in its answer the tokens are that it may write, as `sampling.choose` asks."""
        written = self.row.writer.written
        return [(self.row.chooser, written + after) for after in range(1 + len(self.draft))]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLimits:
    """Bounds of a loop.

    Attributes:
        rows: how many requests are at work at a time; others wait.
        prefill_tokens: the most tokens of prompts that a step reads.
    """

    rows: int
    prefill_tokens: int


class Loop:
    """Serves requests with one model. Used by one thread."""

    def __init__(
        self, decoder: Decoder, cache: Cache, speculation: Speculation, adapters: Adapters, limits: LoopLimits
    ) -> None:
        """Take the model, its cache and its adapters; the caller steps."""
        self._decoder = decoder
        self._lora = adapters
        self._cache = cache
        self._speculation = speculation
        self._limits = limits
        self._waiting: Queue[Row] = Queue()
        self._rows: list[Row] = []
        self._ahead: deque[Row] = deque()
        self._lengths = Lengths()
        self._chunk = ChunkSize(most=limits.prefill_tokens)
        self._forks = Forks()

    @property
    def waiting(self) -> int:
        """How many requests wait for room."""
        return len(self._waiting) + len(self._forks)

    @property
    def running(self) -> int:
        """How many are at work."""
        return len(self._rows)

    def submit(self, row: Row) -> None:
        """Take a request in. It waits until there is room; if it is only read ahead, until nobody has work."""
        if not row.ahead:
            if not self._forks.parks(row):
                self._waiting.put(row.rank, row)
        elif len(self._ahead) < _AHEAD_ROWS:
            self._ahead.append(row)
        else:
            row.tell((), Overloaded(f"{_AHEAD_ROWS} prompts wait to be read ahead, the most there may be."))

    def forget(self, tenant: str, subject: str | None) -> None:
        """Let go of all that is kept of a tenant, or of one subject of it; of what is at work, nothing will be kept."""
        for row in (*self._rows, *self._ahead):
            if row.context.owner.is_of(tenant, subject):
                row.context.forgotten = True
        self._cache.forget(tenant, subject)
        self._speculation.forget(tenant, subject)

    def cancel(self, row: Row) -> None:
        """Let a request go, wherever it is; its cache is free at once. Nothing more is told."""
        if row in self._ahead:
            self._ahead.remove(row)
        elif self._waiting.remove(row):
            self._unpark(row)
        elif row in self._rows:
            self._release(row)
        else:
            self._forks.remove(row)

    @torch.inference_mode()
    def step(self) -> bool:
        """Run the model once; return False if there was nothing to run, and will not be until something changes."""
        self._admit()
        admitted = len(self._rows)
        works: list[_Work] = []
        with self._failing(self._rows):
            works = self._plan()
        if not works:
            # Who was let go or sent back has left room for those who wait.
            return len(self._rows) < admitted or self._read_ahead()
        begun_s = time.perf_counter()
        with self._failing([work.row for work in works]):
            self._run(works)
        self._learn(works, (time.perf_counter() - begun_s) * 1000)
        return True

    # Who runs

    def _admit(self) -> None:
        while (row := self._next()) is not None:
            with self._failing([row]):
                if not self._let_in(row):
                    return

    def _next(self) -> Row | None:
        """Return who is to be let in, if there is a place; for a turn in a conversation a batch job makes one."""
        if len(self._rows) < self._limits.rows:
            return self._waiting.first()
        turn = self._waiting.first("interactive")
        jobs = [row for row in self._rows if row.rank.priority == "batch" and row.slice_tokens >= _SLICE_TOKENS]
        if turn is None or not jobs:
            return None
        self._send_back(max(jobs, key=lambda row: row.rank))
        return turn

    def _let_in(self, row: Row) -> bool:
        """Give a row that waits its part of the cache; return whether there was room."""
        tokens = row.context.tokens
        room = len(tokens) + self._lengths.predict(row.limit - row.writer.written)
        opened = self._opened(row, min(room, self._cache.capacity))
        if opened is None:
            return False
        self._waiting.remove(row)
        row.lease, row.fed = opened
        row.resumed = row.writer.written
        self._rows.append(row)
        if not row.begun:
            row.begun = True
            row.tally.cached = row.fed
            usage = UsageDelta(input_tokens=row.context.prompt_length, output_tokens=0, cached_tokens=row.fed)
            row.tell([usage], None)
        self._speculation.join(row)
        return True

    def _opened(self, row: Row, room: int) -> tuple[RowLease, int] | None:
        """Lease room for a row: with what a row at work has read of the same prompt, or with what is kept."""
        for other in self._rows if row.fork is not None else ():
            if other.lease is not None and are_forks(row, other) and other.has_read:
                shared = row.context.prompt_length - 1
                forked = self._cache.fork(other.lease, shared, room)
                return None if forked is None else (forked, shared)
        return self._cache.open(row.scope, row.context.tokens if row.prompt.plain else (), room)

    def _unpark(self, row: Row) -> None:
        """Let those go on who wait for a row to read their prompt, if it has, or if it does so no more."""
        for follower in self._forks.unpark(row):
            self._waiting.put(follower.rank, follower)

    def _plan(self) -> list[_Work]:
        ready = [row for row in self._rows if not row.stalled()]
        writing = [_Work(row=row, count=1) for row in ready if row.unread == 1]
        reading = [row for row in ready if row.unread > 1]
        budget = self._chunk.size(len(writing))
        shares = chunks([(row.rank, row.unread) for row in reading], budget)
        works = writing + [_Work(row=row, count=share) for row, share in zip(reading, shares, strict=True) if share]
        self._speculation.draft(works, reading=any(shares))
        works.sort(key=lambda work: work.row.adapter)  # adapters are applied run by run
        works = [work for work in works if self._has_room(work) and self._is_guided(work)]
        return [work for work in works if work.row.lease is not None]  # it may have had to make room for a later one

    def _is_guided(self, work: _Work) -> bool:
        """Ask a row's guide what it allows, and cut the draft where it refuses; return False if there is no going on."""
        row = work.row
        if row.guide is None or work.count < row.unread:
            return True
        with self._failing([row]):
            work.masks = row.guide.masks(work.draft)
            work.draft = work.draft[: len(work.masks) - 1]
        return work.masks is not None

    def _has_room(self, work: _Work) -> bool:
        """Make room in the cache for what a row is about to run; if there is none, somebody less urgent has to wait again."""
        row = work.row
        while row in self._rows:
            assert row.lease is not None
            if self._cache.grow(row.lease, row.fed + work.count + len(work.draft)):
                return True
            if work.draft:
                work.draft = []
                continue
            self._send_back(max(self._rows, key=lambda other: other.rank))
        return False

    def _send_back(self, row: Row) -> None:
        """Have a row give its room up and wait. What it has written stands, and is read again when it comes back."""
        self._release(row)
        self._waiting.put(row.rank, row)

    # The run

    def _run(self, works: list[_Work]) -> None:
        hidden = self._forward(works)
        wanted: list[int] = []
        for work in works:
            if work.count == work.row.unread:
                work.scores = len(wanted)
                end = work.offset + work.count
                wanted += range(end - 1, end + len(work.draft))
        if not wanted:
            for work in works:
                work.row.fed += work.count
            return
        scores = self._decoder.logits(hidden if len(wanted) == len(hidden) else hidden[wanted])
        choosing = [work for work in works if work.scores >= 0]
        allowed = self._allowed(choosing, scores)
        chosen = choose(allowed, [place for work in choosing for place in work.places])
        for work in works:
            if work.scores < 0:
                work.row.fed += work.count
                continue
            with self._failing([work.row]):
                self._write(work, scores, allowed, chosen)

    def _forward(self, works: list[_Work]) -> torch.Tensor:
        batch = self._batch(works)
        adapters = batch.adapters
        mask = self._lora.mask(adapters if adapters is None else adapters.to(self._decoder.device))
        return self._decoder.run(batch, self._cache.arena, mask=mask)

    @staticmethod
    def _allowed(works: Sequence[_Work], scores: torch.Tensor) -> torch.Tensor:
        """Return the scores of what may be written, by forms, bias and penalties; statistics are of the model's own."""
        allowed = scores
        if masks := [work.masks for work in works if work.masks is not None]:
            places = [
                work.scores + after for work in works if work.masks is not None for after in range(len(work.masks))
            ]
            where = torch.tensor(places, device=scores.device)
            allowed = scores.index_copy(0, where, masked(scores[where], np.concatenate(masks)))
        for work in works:
            if (processors := work.row.processors) is not None:
                if allowed is scores:
                    allowed = scores.clone()
                own = slice(work.scores, work.scores + 1 + len(work.draft))
                allowed[own] = processors.apply(allowed[own], work.draft)
        return allowed

    def _batch(self, works: Sequence[_Work]) -> Batch:
        tokens: list[int] = []
        slots: list[int] = []
        places: list[int] = []
        spans: list[Span] = []
        for work in works:
            row, lease = work.row, work.row.lease
            assert lease is not None
            work.offset = len(tokens)
            begin, end = row.fed, row.fed + work.count + len(work.draft)
            tokens += row.context.tokens[begin : begin + work.count] + work.draft
            slots += range(lease.start + begin, lease.start + end)
            places += range(begin, end)
            spans.append(Span(offset=work.offset, count=end - begin, start=lease.start, length=end))
        packed = _column(tokens)
        return Batch(
            tokens=packed,
            positions=self._positions(works, _column(places)),
            slots=_column(slots),
            spans=tuple(spans),
            adapters=self._adapters(works),
            embeddings=self._embeddings(works, packed),
        )

    @staticmethod
    def _positions(works: Sequence[_Work], places: torch.Tensor) -> torch.Tensor:
        """Return the rotary positions of tokens at these places of their rows."""
        if all(work.row.prompt.positions is None for work in works):
            return places
        ends = [(work.row.fed, work.row.fed + work.count + len(work.draft)) for work in works]
        positions = [work.row.positions(*each) for work, each in zip(works, ends, strict=True)]
        if any(each.ndim == 2 for each in positions):
            positions = [each.expand(3, -1) for each in positions]
        return torch.cat(positions, -1)

    @staticmethod
    def _adapters(works: Sequence[_Work]) -> torch.Tensor | None:
        if not any(work.row.adapter for work in works):
            return None
        each = [work.row.adapter for work in works for _ in range(work.count + len(work.draft))]
        return _column(each)

    def _embeddings(self, works: Sequence[_Work], tokens: torch.Tensor) -> torch.Tensor | None:
        """Return what stands for the tokens, if a prompt with pictures is among what is read; else None."""
        embeddings: torch.Tensor | None = None
        for work in works:
            given = work.row.prompt.embeddings
            if given is None or work.row.fed >= len(given):
                continue
            if embeddings is None:
                embeddings = self._decoder.embed(tokens.to(self._decoder.device))
            part = given[work.row.fed : work.row.fed + work.count]
            embeddings[work.offset : work.offset + len(part)] = part
        return embeddings

    def _write(self, work: _Work, scores: torch.Tensor, allowed: torch.Tensor, chosen: Sequence[int]) -> None:
        """Verify a row's draft, and tell whoever asked."""
        row, base = work.row, work.scores

        def tolerated(after: int, guess: int) -> bool:
            return float(allowed[base + after].max() - allowed[base + after, guess]) <= row.tolerance_nats

        own = chosen[base : base + 1 + len(work.draft)]
        is_tolerant = work.drafter == "hint" and row.tolerance_nats > 0
        written = verified(work.draft, own, tolerated if is_tolerant else None)
        if row.guide is not None:
            row.guide.accept(written)
        if row.processors is not None:
            row.processors.accept(written)
        row.fed += work.count + len(written) - 1
        if row.fork is not None:
            self._unpark(row)
        row.context.tokens.extend(written)
        self._speculation.observe(work.row, work.drafter, len(work.draft), len(written) - 1)
        said, deltas = row.writer.write(written, lambda after: scores[base + after])
        if said < len(written):  # what was written behind the end was never said
            del row.context.tokens[said - len(written) :]
            row.fed = min(row.fed, len(row.context.tokens))
        if row.writer.finished is None and row.guide is not None and row.guide.stopped:
            deltas += row.writer.finish("stop")
        if row.writer.finished is not None:
            self._lengths.observe(row.writer.written)
            deltas.insert(-1, usage_of(row))
            self._release(row)
        if deltas:
            row.tell(deltas, None)

    def _read_ahead(self) -> bool:
        """Read a piece of a prompt that is expected, and keep it; return whether there was one.

        Between two pieces it holds nothing that somebody who has come meanwhile would have to wait for.
        """
        if not self._ahead:
            return False
        row = self._ahead[0]
        tokens = row.context.tokens
        with self._failing([row]):
            opened = self._cache.open(row.scope, tokens, min(len(tokens), self._cache.capacity))
            if opened is None:
                return False
            row.lease, row.fed = opened
            work = _Work(row=row, count=min(_AHEAD_TOKENS, row.unread))
            self._forward([work])
            row.fed += work.count
            self._cache.close(row.lease, () if row.context.forgotten else tokens[: row.fed])
            row.lease = None
            # A piece at a time: it may be cancelled, and has been read all the same.
            deltas: list[Delta] = [UsageDelta(input_tokens=work.count, output_tokens=0)]
            if not row.unread:
                self._ahead.remove(row)
                deltas.append(FinishDelta(reason="stop"))
            row.tell(deltas, None)
        return True

    # The end

    def _release(self, row: Row) -> None:
        self._rows.remove(row)
        self._speculation.leave(row)
        if row.lease is not None:
            held = row.context.tokens[: row.fed] if row.prompt.plain and not row.context.forgotten else ()
            self._cache.close(row.lease, held)
            row.lease, row.fed = None, 0
        self._unpark(row)

    @contextmanager
    def _failing(self, rows: Sequence[Row]) -> Iterator[None]:
        """Have what goes wrong within fail `rows`; the others, and the loop, go on."""
        try:
            yield
        except BatonError as exc:
            error = exc
        except torch.OutOfMemoryError:
            error = Overloaded("The GPU has no memory left for this request. Try again, or make it shorter.")
        except Exception:  # noqa: BLE001  # a defect of ours
            _log.exception("a step of the model failed")
            error = Internal("The engine failed. Try again; the server's log has the cause.")
        else:
            return
        for row in list(rows):
            waited = self._waiting.remove(row)
            if row in self._ahead:
                self._ahead.remove(row)
                if row.lease is not None:
                    self._cache.close(row.lease, ())
            elif row in self._rows:
                self._release(row)
            elif waited:
                self._unpark(row)
            else:
                continue
            row.tell((), error)

    def _learn(self, works: Sequence[_Work], ms: float) -> None:
        writing = sum(work.count == 1 and work.scores >= 0 for work in works)
        read = sum(work.count for work in works) - writing
        drafted = sum(len(work.draft) for work in works)
        chosen = sum(len(work.draft) for work in works if work.drafter in self._speculation.names)
        self._chunk.observe(writing, read, drafted, ms)
        if writing:
            # Neither prompts nor hints and what grammars force are the policy's choice, nor to its account.
            self._speculation.observe_step(writing, chosen, ms, reading=read > 0 or chosen < drafted)


def _column(numbers: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(numbers, np.int64))  # a tenth of the time of `torch.tensor`


def usage_of(row: Row) -> UsageDelta:
    """Return what a finished request has used, besides its prompt."""
    drafts = tuple(
        DraftUsage(drafter=name, drafted=drafted, accepted=row.tally.accepted[name])
        for name, drafted in row.tally.drafted.items()
        if drafted
    )
    return UsageDelta(input_tokens=0, output_tokens=row.writer.written, drafts=drafts)
