"""What of a session's memory a model may be shown, once older items have left it. Pure; part of `conversation`.

Items leave one by one, but what is shown may not begin with another one each turn: its beginning would be read anew.
So it begins with the item, among the older half of those in memory, whose id has the smallest checksum: the same one until
that leaves, some fifty turns later. It is a function of what is in memory, and so the same for a session that was folded
from its log as for one that lived through it.

What is said now does not leave with the rest: the user's last message is kept, and the calls whose results are kept.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from models.content import Call, CallResult, Item, Message
from orchestrator.sessions.tombstones import redacted
from orchestrator.window import kept_from, paired, places_now


@dataclass(slots=True)
class Left:
    """What has left memory and is needed still: the user's last message, and calls whose results have not left."""

    _question: Item | None = None
    _calls: dict[str, Call] = field(default_factory=dict)

    def let_go(self, item: Item, rest: Sequence[Item]) -> None:
        """Note that an item leaves memory before `rest`."""
        match item:
            case Message(role="user"):
                self._question = item
            case Call() if any(isinstance(other, CallResult) and other.call_id == item.call_id for other in rest):
                self._calls[item.call_id] = item
            case CallResult():
                self._calls.pop(item.call_id, None)
            case _:
                pass

    def recall(self, items: Sequence[Item]) -> None:
        """Take items of the log in that are needed."""
        for item in items:
            if isinstance(item, Call):
                self._calls[item.call_id] = item
            else:
                self._question = item

    def removed(self, item: Item) -> None:
        """Note that an item is removed from the conversation."""
        if isinstance(item, CallResult):
            self._calls.pop(item.call_id, None)

    def removed_ids(self, item_ids: Sequence[str]) -> None:
        """Note that items are removed that have left."""
        gone = set(item_ids)
        if self._question is not None and self._question.item_id in gone:
            self._question = None
        self._calls = {call_id: call for call_id, call in self._calls.items() if call.item_id not in gone}

    def redact(self, item_ids: Collection[str]) -> None:
        """Take the content out of items that have left."""
        if self._question is not None and self._question.item_id in item_ids:
            self._question = redacted(self._question)
        for call_id, call in self._calls.items():
            if call.item_id in item_ids and isinstance(bare := redacted(call), Call):
                self._calls[call_id] = bare

    def needed_by(self, items: Sequence[Item]) -> list[Item]:
        """Return what has left and is needed to understand `items`: calls in the order of their results."""
        question = [] if self._question is None or has_question(items) else [self._question]
        results = [result.call_id for result in without_call(items)]
        return [*question, *(self._calls[call_id] for call_id in results if call_id in self._calls)]


def has_question(items: Sequence[Item]) -> bool:
    """Return whether the user said one of them."""
    return any(isinstance(item, Message) and item.role == "user" for item in items)


def without_call(items: Sequence[Item]) -> tuple[CallResult, ...]:
    """Return the results whose calls are not among `items`."""
    called = {item.call_id for item in items if isinstance(item, Call)}
    return tuple(item for item in items if isinstance(item, CallResult) and item.call_id not in called)


def beginning(items: Sequence[Item], older: int, gone: int = 0) -> int:
    """Return the place that a model is shown `items` from, if `gone` of them have left and the next `older` may be left out."""
    if older <= 0 or gone + older >= len(items):
        return gone
    return min(range(gone, gone + older + 1), key=lambda at: crc32(items[at].item_id.encode()))


def shown_of(left: Sequence[Item], items: Sequence[Item], cut: int) -> Sequence[Item]:
    """Return what a model may be shown of `items` from `cut` on, with what has `left` and is needed."""
    every = [*left, *items]
    if cut <= 0:
        return every
    whole = paired(every)
    return [whole[at] for at in kept_from(whole, len(paired(every[: len(left) + cut])), places_now(whole))]
