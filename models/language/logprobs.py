"""How likely each token of an answer was, told together with the words that it is part of.

Words may be held back, cut at a stop string, or turn out to be a call: a token is told when its words are, once, and not at all
if none of them ever is. A token that is only part of a character goes with the character.
"""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

import torch
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from models.content import ScoredToken, WrittenToken

_LEAST = -9999.0
"""Stands for no chance at all, as in OpenAI's API; JSON has no infinity."""


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A token, and where in the answer its words begin and end: nowhere yet, if a character is not whole."""

    begin: int
    end: int | None
    scored: WrittenToken


class TokenLog:
    """The tokens of one answer whose words have not been told yet."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, most: int) -> None:
        """Tell the `most` likeliest tokens of each place besides the one that was written."""
        self._spelled = _speller(tokenizer)
        self._most = most
        self._written = 0
        self._told = 0
        self._waiting: deque[_Waiting] = deque()

    def add(self, token: int, text: str, scores: torch.Tensor) -> None:
        """Add a token that was written.

        Args:
            token: its id.
            text: what can be read now that could not be before it.
            scores: of all tokens, (vocabulary,) float32, as the model gave them.
        """
        begin, self._written = self._written, self._written + len(text)
        spelled = self._spelled(token)
        if text:
            for part in takewhile(lambda waiting: waiting.end is None, reversed(self._waiting)):
                part.end = self._written
        if spelled is None:  # a mark, which is no part of the words
            return
        logprobs = scores.log_softmax(-1)
        best = logprobs.topk(min(self._most, len(logprobs)))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        scored = WrittenToken(
            chosen=self._scored(token, float(logprobs[token])),
            top=tuple(self._scored(other, logprob) for other, logprob in top),
        )
        self._waiting.append(_Waiting(begin=begin, end=self._written if text else None, scored=scored))

    def told(self, words: str) -> tuple[WrittenToken, ...]:
        """Return the tokens that are wholly told by these words, which follow on what was told before."""
        self._told += len(words)
        ready: list[WrittenToken] = []
        while self._waiting and (end := self._waiting[0].end) is not None and end <= self._told:
            ready.append(self._waiting.popleft().scored)
        return tuple(ready)

    def rest(self, words: str) -> tuple[WrittenToken, ...]:
        """Return what is left after the last words: tokens that are told in part, or, if nothing was cut off, all."""
        ready = self.told(words)
        whole = self._told == self._written
        left = tuple(waiting.scored for waiting in self._waiting if whole or waiting.begin < self._told)
        self._waiting.clear()
        return ready + left

    def _scored(self, token: int, logprob: float) -> ScoredToken:
        data = self._spelled(token) or b""
        return ScoredToken(text=data.decode(errors="replace"), data=data, logprob=max(logprob, _LEAST))


def _speller(tokenizer: PreTrainedTokenizerFast) -> Callable[[int], bytes | None]:
    """Return what says which bytes a token stands for; None for a mark, such as the end of a message."""
    decoder = tokenizer.backend_tokenizer.decoder
    steps = {} if decoder is None else json.loads(decoder.__getstate__())
    kinds = {step["type"] for step in (steps.get("decoders") or [steps])} if steps else set()
    added = {token: None if each.special else each.content for token, each in tokenizer.added_tokens_decoder.items()}

    @cache
    def spelled(token: int) -> bytes | None:
        if token in added:
            content = added[token]
            return None if content is None else content.encode()
        piece = tokenizer.backend_tokenizer.id_to_token(token)
        if piece is None:  # the model's scores are wider than its vocabulary
            return b""
        if "ByteLevel" in kinds:
            return bytes(_BYTES[character] for character in piece if character in _BYTES)
        if "ByteFallback" in kinds and len(piece) == 6 and piece.startswith("<0x"):
            return bytes.fromhex(piece[3:5])
        return piece.replace("▁", " ").encode()

    return spelled


_BYTES: dict[str, int] = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
