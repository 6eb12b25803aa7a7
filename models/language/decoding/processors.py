"""What a request does to the model's scores before a token is chosen: bias and penalties.

Penalties look at what was written before a place. Where a draft is verified, that is the draft as well, so that each of its
places has scores of its own, and they are those that plain decoding would come to: speculation changes nothing.

The order is that of transformers' processors, and the arithmetic, too, in float32: bias first, then the repetition penalty, then
frequency and presence (OpenAI's API reference, "Frequency and presence penalties").
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import BadInput
from models.ports.generate import Sampling


class Processors:
    """Bias and penalties of one answer. Used by one thread at a time.

    What it costs is by the places of a step and the different tokens that are penalised, not by the vocabulary.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        """Begin an answer to `prompt`."""
        self._bias = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        self._repetition = sampling.repetition_penalty
        self._frequency = sampling.frequency_penalty
        self._presence = sampling.presence_penalty
        self._penalises = self._repetition != 1 or self._frequency != 0 or self._presence != 0
        # Tokens that a penalty may be upon, each with a column: whether the prompt has it, and how often the answer does.
        self._columns: dict[int, int] = {}
        self._tokens = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        self._prompted = 0
        if self._repetition != 1:
            self._enter(prompt)
            self._prompted = len(self._columns)

    @classmethod
    def of(cls, sampling: Sampling, prompt: Sequence[int], vocabulary: int) -> "Processors | None":
        """Return what a request asks for; None if that is nothing.

        Raises:
            BadInput: a bias is on a token that the model has not.
        """
        unknown = [token for token, _ in sampling.logit_bias if not 0 <= token < vocabulary]
        if unknown:
            raise BadInput(
                f"This model has no token {unknown[0]}: its vocabulary is {vocabulary} tokens, from 0 on.",
                field="logit_bias",
            )
        made = cls(sampling, prompt)
        return made if sampling.logit_bias or made._penalises else None

    def apply(self, scores: torch.Tensor, draft: Sequence[int]) -> torch.Tensor:
        """Return the scores of the next place, and of the one after each token of a draft.

        Args:
            scores: (1 + len(draft), vocabulary) float32; it stays as it is.
            draft: what may be written next.
        """
        scores = scores.clone()
        if len(self._bias):
            scores[:, _on(self._bias, scores)] += _on(self._biases, scores)
        if not self._penalises:
            return scores
        self._enter(draft)
        size = len(self._columns)
        if not size:
            return scores
        counts = np.repeat(self._counts[None, :size], len(scores), axis=0)
        for place, token in enumerate(draft, start=1):
            counts[place:, self._columns[token]] += 1
        tokens = _on(self._tokens[:size], scores)
        picked = scores[:, tokens]
        if self._repetition != 1:
            seen = counts > 0
            seen[:, : self._prompted] = True
            penalised = torch.where(picked < 0, picked * self._repetition, picked / self._repetition)
            picked = torch.where(_on(seen, scores), penalised, picked)
        if self._frequency or self._presence:
            given = _on(counts, scores)
            picked = picked - given * self._frequency - (given > 0) * self._presence
        scores[:, tokens] = picked
        return scores

    def accept(self, tokens: Sequence[int]) -> None:
        """Go on by tokens that were written."""
        if not self._penalises:
            return
        self._enter(tokens)
        for token in tokens:
            self._counts[self._columns[token]] += 1

    def _enter(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            column = self._columns.setdefault(token, len(self._columns))
            if column == len(self._tokens):
                self._tokens = np.concatenate((self._tokens, np.zeros_like(self._tokens)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._tokens[column] = token


def _on(array: NDArray[np.generic], scores: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(array).to(scores.device)
