"""What of a conversation a model is shown: as much of its end as fits the window. Pure.

The instructions and what is said now are always shown; of the history, the newest. Nothing is counted that need not be:
a byte is at most one token, so a conversation of fewer bytes than the window has tokens fits. Of what does not fit no more
is counted than shows it.
"""

from collections.abc import Iterator, Sequence

from models.content import Item, Message, text_of
from models.tokens import PIECE_CHARACTERS, TokenCounter
from orchestrator.events import TurnInput

ITEM_TOKENS = 8
"""What a chat template adds to an item, at most: its role and its marks."""


def said_now(turn_input: TurnInput) -> list[str]:
    """Return what a model is shown of a turn whatever it has to forget: instructions, input, tools, and its answer.

    Of the answer there is nothing yet but its place.
    """
    tools = () if turn_input.tools is None else turn_input.tools.tools
    return [
        turn_input.instructions or "",
        *(text_of(item) for item in turn_input.items),
        *(f"{tool.name}{tool.description}{tool.parameters}" for tool in tools),
        "",
    ]


def most_tokens(texts: Sequence[str]) -> int:
    """Return a bound on the tokens of `texts` as items, whatever the vocabulary."""
    return sum(len(text.encode()) + ITEM_TOKENS for text in texts)


def pieces(text: str) -> Iterator[str]:
    """Yield `text` in pieces that are quickly counted; their tokens are those of the whole, but for a few at the cuts."""
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


def count_tokens(texts: Sequence[str], counter: TokenCounter, *, enough: int | None = None) -> int:
    """Return the tokens of `texts` as items; if they are more than `enough`, perhaps only a part that is more, too."""
    tokens = len(texts) * ITEM_TOKENS
    for text in texts:
        for piece in pieces(text):
            tokens += counter.count(piece)
            if enough is not None and tokens > enough:
                return tokens
    return tokens


def newest_that_fit(history: Sequence[Item], room_tokens: int, counter: TokenCounter) -> Sequence[Item]:
    """Return the end of `history` that fits into `room_tokens`.

    It begins with a message that is not the assistant's, if anything was left out: half an exchange misleads a model.
    """
    texts = [text_of(item) for item in history]
    if most_tokens(texts) <= room_tokens:
        return history
    first = len(history)
    for at in range(len(history) - 1, -1, -1):
        room_tokens -= count_tokens([texts[at]], counter, enough=room_tokens)
        if room_tokens < 0:
            break
        first = at
    while first > 0 and first < len(history) and not _opens(history[first]):
        first += 1
    return history[first:]


def _opens(item: Item) -> bool:
    return isinstance(item, Message) and item.role != "assistant"
