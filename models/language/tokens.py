"""How many tokens a text is, for whoever has to know before a model is asked.

The gateway counts with the card's own tokenizer where its weights lie here (`tokenizers`, which brings no torch). For a
remote model it estimates. A byte is never more than one token of a byte-level vocabulary, so most questions ("does all
of this fit?") are answered without counting; see `orchestrator.window`.
"""

from functools import lru_cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

BYTES_PER_TOKEN = 3
"""English has about four bytes a token, code and other scripts about three: the estimate is on the safe side."""

PIECE_CHARACTERS = 4_000
"""How much is counted at a time, in some milliseconds: long texts are counted in pieces."""

_REMEMBERED = 4_096


class TokenCounter(Protocol):
    """Counts tokens, without those that a chat template adds."""

    def count(self, text: str) -> int:
        """Return how many tokens `text` is."""
        ...


class EstimatedTokens:
    """For models whose tokenizer is not here."""

    def count(self, text: str) -> int:
        """Return an estimate that is rather too high."""
        return -(-len(text.encode()) // BYTES_PER_TOKEN)


class CountedTokens:
    """For models whose `tokenizer.json` lies here."""

    def __init__(self, folder: Path) -> None:
        """Read the tokenizer in `folder`."""
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # A conversation is counted again each turn: its older messages, or their pieces, are remembered.
        self._remembered = lru_cache(_REMEMBERED)(self._count)

    def count(self, text: str) -> int:
        """Return how many tokens `text` is."""
        return self._count(text) if len(text) > PIECE_CHARACTERS else self._remembered(text)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def counter(folder: Path | None) -> TokenCounter:
    """Return what counts for a model whose weights lie in `folder`, or elsewhere (None)."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return EstimatedTokens()
    return CountedTokens(folder)
