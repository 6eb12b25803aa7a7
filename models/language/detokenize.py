"""From tokens to deltas: the words of an answer, its statistics, and its end."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from models.content import CallDelta, Delta, FinishDelta, TextDelta
from models.errors import context_overflow
from models.language.logprobs import TokenLog
from models.language.stopping import StopFilter
from models.language.tool_format import CallReader
from models.ports.generate import Sampling, Signal


def answer_limit(prompt_tokens: int, window_tokens: int, sampling: Sampling) -> int:
    """Return the most tokens that an answer may have: as many as were asked for, if the window leaves room for them.

    Raises:
        LimitExceeded: the prompt fills the window.
    """
    room = window_tokens - prompt_tokens
    if room < 1:
        raise context_overflow(window_tokens, prompt_tokens)
    return min(sampling.max_output_tokens, room)


class Detokenizer:
    """Writes one answer, from the tokens of each step.

    Attributes:
        written: how many tokens it has.
        finished: why it ended, or None.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        sampling: Sampling,
        *,
        ends: frozenset[int],
        limit: int,
        signals: frozenset[Signal] = frozenset(),
        calls: CallReader | None = None,
        logprobs: int | None = None,
    ) -> None:
        """Begin an answer.

        Args:
            tokenizer: of the model.
            sampling: whose stop strings end it.
            ends: tokens that end it.
            limit: the most tokens of it.
            signals: the statistics to say of each token.
            calls: parts words from calls, if the answer may call functions.
            logprobs: how many of the likeliest tokens to tell of each place of its words, besides its own; None tells none.
        """
        self.written = 0
        self.finished: Literal["stop", "length", "calls"] | None = None
        self._tokenizer = tokenizer.backend_tokenizer
        self._ends = ends
        self._limit = limit
        self._signals = signals
        self._calls = calls
        self._log = None if logprobs is None else TokenLog(tokenizer, logprobs)
        self._words = DecodeStream(skip_special_tokens=True)
        self._stops = StopFilter(sampling.stop)

    def write(self, tokens: Sequence[int], scores: Callable[[int], torch.Tensor]) -> tuple[int, list[Delta]]:
        """Add tokens, as far as the answer goes; return how many that are, and what can be said now, the end included.

        Args:
            tokens: the next.
            scores: what each was chosen from, by its place among them, (vocabulary,) float32, of the model itself; asked for
                only if signals are.
        """
        deltas: list[Delta] = []
        words = ""
        for place, token in enumerate(tokens):
            if token in self._ends:
                return place + 1, [*deltas, *self.finish("stop", words)]
            self.written += 1
            readable = self._words.step(self._tokenizer, token) or ""
            if self._log is not None:
                self._log.add(token, readable, scores(place))
            more, called = self._parted(readable)
            words += more
            if self._signals:
                deltas.append(self._signalled(words, token, scores, place))
                words = ""
            if called:
                deltas += self._said(words, called)
                words = ""
            if self._stops.stopped:
                return place + 1, [*deltas, *self.finish("stop", words)]
            if self.written >= self._limit:
                return place + 1, [*deltas, *self.finish("length", words)]
        return len(tokens), [*deltas, *self._said(words, ())]

    def finish(self, reason: Literal["stop", "length"], words: str = "") -> list[Delta]:
        """End the answer after `words`; return those, what was held back, and the end."""
        self.finished = reason
        if self._calls is not None and not self._stops.stopped:
            rest, self.finished = self._calls.finish(reason)
            words += self._stops.feed(rest)
            if self._stops.stopped:
                self.finished = "stop"
        words += self._stops.flush()
        if self._log is not None and (tokens := self._log.rest(words)):
            return [TextDelta(text=words, written=self.written, tokens=tokens), FinishDelta(reason=self.finished)]
        return [*self._said(words, ()), FinishDelta(reason=self.finished)]

    def _said(self, words: str, called: Sequence[CallDelta]) -> list[Delta]:
        said: list[Delta] = []
        if words:
            tokens = () if self._log is None else self._log.told(words)
            said.append(TextDelta(text=words, written=self.written, tokens=tokens))
        return said + [replace(call, written=self.written) for call in called]

    def _parted(self, text: str) -> tuple[str, list[CallDelta]]:
        """Return the words in `text` up to a stop string, and what comes of calls after them.

        Stop strings are looked for in what people see, so not in calls nor in their marks. Nothing is seen behind one.
        """
        if self._calls is None:
            return self._stops.feed(text), []
        words, called = self._calls.feed(text)
        words = self._stops.feed(words)
        if self._stops.stopped:
            return words, []
        return words + (self._stops.flush() if self._calls.called else ""), called

    def _signalled(self, text: str, token: int, scores: Callable[[int], torch.Tensor], place: int) -> TextDelta:
        told = () if self._log is None else self._log.told(text)
        if self._signals == {"token_ids"}:
            return TextDelta(text=text, token_ids=(token,), written=self.written, tokens=told)
        logprobs = scores(place).log_softmax(-1)
        chances = logprobs.exp()
        first, second = chances.topk(2).values.tolist()
        return TextDelta(
            text=text,
            token_ids=(token,),
            logprobs=(float(logprobs[token]),) if "logprobs" in self._signals else (),
            entropies=(float(torch.special.entr(chances).sum()),) if "entropies" in self._signals else (),
            margins=(first - second,) if "margins" in self._signals else (),
            written=self.written,
            tokens=told,
        )
