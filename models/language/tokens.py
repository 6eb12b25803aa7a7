"""How many tokens a text is, for whoever has to know before a model is asked.

The gateway counts with the card's own tokenizer where its weights lie here (`tokenizers`, which brings no torch). For a
remote model it estimates. A byte is never more than one token of a byte-level vocabulary, so most questions ("does all
of this fit?") are answered without counting; see `orchestrator.window`.
"""

from functools import lru_cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from models.content import AudioPart, ImagePart, Part, TextPart, VideoPart

BYTES_PER_TOKEN = 3
"""English has about four bytes a token, code and other scripts about three: the estimate is on the safe side."""

_PICTURE_TOKENS, _SQUARE_TOKENS, _SQUARE_PX = 85, 170, 512
_SOUND_TOKENS_PER_S = 10

PIECE_CHARACTERS = 4_000
"""How much is counted at a time, in some milliseconds: long texts are counted in pieces."""

_REMEMBERED = 4_096


class TokenCounter(Protocol):
    """Counts tokens, without those that a chat template adds."""

    def count(self, text: str) -> int:
        """Return how many tokens `text` is."""
        ...

    def count_part(self, part: Part) -> int:
        """Return how many tokens a part is to a model that reads it."""
        ...


def media_tokens(part: Part) -> int:
    """Return how many tokens a part that is no text probably is, by OpenAI's arithmetic, which is on the safe side of most models'.

    A picture is 85, and 170 for each square of 512 pixels; moving pictures are one a second; sound is 10 a second
    ("Images and vision: calculating costs", "Managing costs" of the Realtime API, as published in 2025).
    """
    match part:
        case ImagePart():
            return _picture_tokens(part.width_px, part.height_px)
        case VideoPart():
            return _picture_tokens(part.width_px, part.height_px) * -(-part.duration_ms // 1000)
        case AudioPart():
            return -(-part.samples * _SOUND_TOKENS_PER_S // part.rate_hz)
        case _:
            return 0


def _picture_tokens(width_px: int, height_px: int) -> int:
    return _PICTURE_TOKENS + _SQUARE_TOKENS * -(-width_px // _SQUARE_PX) * -(-height_px // _SQUARE_PX)


class EstimatedTokens:
    """For models whose tokenizer is not here."""

    def count(self, text: str) -> int:
        """Return an estimate that is rather too high."""
        return -(-len(text.encode()) // BYTES_PER_TOKEN)

    def count_part(self, part: Part) -> int:
        """Return an estimate that is rather too high."""
        return self.count(part.text) if isinstance(part, TextPart) else media_tokens(part)


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

    def count_part(self, part: Part) -> int:
        """Return how many tokens a part is; of what is no text, an estimate."""
        return self.count(part.text) if isinstance(part, TextPart) else media_tokens(part)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def counter(folder: Path | None) -> TokenCounter:
    """Return what counts for a model whose weights lie in `folder`, or elsewhere (None)."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return EstimatedTokens()
    return CountedTokens(folder)
