"""From tokens to deltas: the words of an answer, its statistics, and its end."""

from collections.abc import Callable
from typing import Literal

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from models.content import CallDelta, Delta, FinishDelta, TextDelta
from models.decoding.calls import CallReader
from models.engines.stopping import StopFilter
from models.errors import LimitExceeded
from models.ports import Sampling, Signal


def answer_limit(prompt_tokens: int, window_tokens: int, sampling: Sampling) -> int:
    """Return the most tokens that an answer may have: as many as were asked for, if the window leaves room for them.

    Raises:
        LimitExceeded: the prompt fills the window.
    """
    room = window_tokens - prompt_tokens
    if room < 1:
        raise LimitExceeded(
            f"The conversation is {prompt_tokens} tokens long, and this model's window is {window_tokens}, the answer "
            "included. Shorten the conversation or choose a model with a larger window.",
            code="context_length_exceeded",
            field="messages",
        )
    return min(sampling.max_output_tokens, room)


class AnswerWriter:
    """Writes one answer, token by token.

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
    ) -> None:
        """Begin an answer.

        Args:
            tokenizer: of the model.
            sampling: whose stop strings end it.
            ends: tokens that end it.
            limit: the most tokens of it.
            signals: the statistics to say of each token.
            calls: parts words from calls, if the answer may call functions.
        """
        self.written = 0
        self.finished: Literal["stop", "length", "calls"] | None = None
        self._tokenizer = tokenizer
        self._ends = ends
        self._limit = limit
        self._signals = signals
        self._calls = calls
        self._words = DecodeStream(skip_special_tokens=True)
        self._stops = StopFilter(sampling.stop)

    def write(self, token: int, scores: Callable[[], torch.Tensor]) -> list[Delta]:
        """Add a token; return what can be said now, the end included.

        Args:
            token: the next.
            scores: what it was chosen from, (vocabulary,) float32, of the model itself; asked for only if signals are.
        """
        if token in self._ends:
            return self.finish("stop")
        self.written += 1
        text = self._stops.feed(self._words.step(self._tokenizer.backend_tokenizer, token) or "")
        text, called = (text, []) if self._calls is None else self._calls.feed(text)
        deltas: list[Delta] = [self._delta(text, token, scores)] if text or self._signals else []
        deltas += called
        if self._stops.stopped:
            deltas += self.finish("stop")
        elif self.written >= self._limit:
            deltas += self.finish("length")
        return deltas

    def finish(self, reason: Literal["stop", "length"]) -> list[Delta]:
        """End the answer; return what was held back, and the end."""
        rest = self._stops.flush()
        called: list[CallDelta] = []
        self.finished = reason
        if self._calls is not None:
            words, called = self._calls.feed(rest)
            held, self.finished = self._calls.finish(reason)
            rest = words + held
        return [*([TextDelta(text=rest)] if rest else []), *called, FinishDelta(reason=self.finished)]

    def _delta(self, text: str, token: int, scores: Callable[[], torch.Tensor]) -> TextDelta:
        if not self._signals:
            return TextDelta(text=text)
        if self._signals == {"token_ids"}:
            return TextDelta(text=text, token_ids=(token,))
        logprobs = scores().log_softmax(-1)
        chances = logprobs.exp()
        first, second = chances.topk(2).values.tolist()
        return TextDelta(
            text=text,
            token_ids=(token,),
            logprobs=(float(logprobs[token]),) if "logprobs" in self._signals else (),
            entropies=(float(torch.special.entr(chances).sum()),) if "entropies" in self._signals else (),
            margins=(first - second,) if "margins" in self._signals else (),
        )
