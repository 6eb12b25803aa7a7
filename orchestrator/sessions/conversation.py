"""The items of a session that a model may be shown, and how much of their sound was heard. Pure; part of `state`."""

from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field

from models.content import Call, CallResult, Item, length_of
from models.errors import BadInput, Conflict, NotFound, quoted, too_long
from orchestrator.limits import check_lengths
from orchestrator.sessions.left import Left, beginning, shown_of
from orchestrator.sessions.order import FRONT, Order
from orchestrator.sessions.playback import Playback
from orchestrator.sessions.tombstones import redacted


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What the log has of a conversation that is named like items which are to be added.

    Attributes:
        item_ids: those that are taken.
        calls: those that the items' results answer.
        open_calls: how many calls wait for their result, by the ids of calls that it knows; 0 if all have theirs.
    """

    item_ids: frozenset[str] = frozenset()
    calls: tuple[Call, ...] = ()
    open_calls: Mapping[str, int] = field(default_factory=dict)


NOTHING_EARLIER = Earlier()


class Conversation:
    """Items in their order, within bounds: the oldest leave when there are too many; the log keeps them."""

    def __init__(self, *, items: int, characters: int, item_characters: int) -> None:
        """Keep at most so many items, of so many characters together; refuse an item that is longer than its bound."""
        self.items: list[Item] = []
        self.order = Order()
        self.full = False  # whether older items would have no place here
        self.playback = Playback()
        self._max_items = items
        self._max_characters = characters
        self._max_item_characters = item_characters
        self._characters = 0
        self._left = Left()

    @property
    def context(self) -> Sequence[Item]:
        """What a model may be shown: all items, or if older ones have left, those from one on that seldom changes.

        Of what is played to somebody, that is what they have heard.
        """
        shown = shown_of(self._left.needed_by(self.items), self.items, beginning(self.items, self._older()))
        return self.playback.all_as_heard(shown)

    def next_context(self, most: int) -> tuple[int, Sequence[Item]] | None:
        """Return what a model may be shown of these items once it begins with another one, and how many are added by then.

        None if that is not within `most` items, or if it is how long items are that decides.
        """
        if not self.items or self._characters > self._max_characters // 2:
            return None
        now = beginning(self.items, self._older())
        for coming in range(1, most + 1):
            count = len(self.items) + coming
            if count < self._max_items and not self.full:
                continue
            gone = max(0, count - self._max_items)
            at = beginning(self.items, min(count, self._max_items) - max(self._max_items // 2, 1), gone)
            if at != now:
                return coming, self.playback.all_as_heard(shown_of((), self.items, at))
        return None

    def recall(self, items: Sequence[Item]) -> None:
        """Take what has left memory and is needed by what is in it: calls, or what the user has said last."""
        self._left.recall(items)

    def add(
        self, items: Sequence[Item], after: str | None = None, *, is_open: bool = False, index: int | None = None
    ) -> None:
        """Put items at their place; see `Order.add`. Those whose place is among what has left do not come."""
        at = self.order.add([item.item_id for item in items], after, is_open=is_open, index=index)
        if at is not None:
            self._insert(at, items)

    def take(self, item: Item, index: int | None = None, *, audio_ms: int = 0) -> None:
        """Give an item of the response its place, by its index; `audio_ms` is how long its sound is."""
        self._insert(self.order.take(item.item_id, index), (item,), audio_ms)

    def _insert(self, at: int, items: Sequence[Item], audio_ms: int = 0) -> None:
        self.items[at:at] = items
        for item in items:
            self._characters += length_of(item)
            if audio_ms:
                self.playback.sounds_ms[item.item_id] = audio_ms

    def remove(self, item_ids: Sequence[str]) -> None:
        """Take items out; one that has left already is passed over."""
        gone = set(item_ids)
        kept = []
        for item in self.items:
            if item.item_id in gone:
                self._forget(item)
                self._left.removed(item)
            else:
                kept.append(item)
        self.items = kept
        self.order.remove(item_ids)
        self._left.removed_ids(item_ids)

    def redact(self, item_ids: Collection[str]) -> None:
        """Take the content of items out; their places stay."""
        for at, item in enumerate(self.items):
            if item.item_id in item_ids:
                self.items[at] = bare = redacted(item)
                self._characters += length_of(bare) - length_of(item)
        self._left.redact(item_ids)

    def trim(self) -> int:
        """Let the oldest items go until the rest is within its bounds. Return how many went."""
        excess = 0
        while len(self.items) - excess > self._max_items or (
            self._characters > self._max_characters and len(self.items) - excess > 1
        ):
            self._forget(self.items[excess])
            excess += 1
            self._left.let_go(self.items[excess - 1], self.items[excess:])
        del self.items[:excess]
        self.order.forget(excess)
        self.full = self.full or excess > 0 or len(self.items) == self._max_items
        return excess

    def check_place(
        self, items: Sequence[Item], after: str | None, *, left: bool, open_indexes: Mapping[str, int]
    ) -> None:
        """Check that there is a place for items, and that results come after their calls there.

        Args:
            items: the items.
            after: what they are to come after; see `Order.add`.
            left: whether that is an item which has left.
            open_indexes: the items that are being written, by id: which of the response's each is.

        Raises:
            BadInput: a result would come before its call.
            NotFound: there is no such item.
        """
        if after is None:
            return
        if not left and after not in {FRONT, *open_indexes, *self.order.ids}:
            raise NotFound(
                f"There is no item {quoted(after)} in this session to come after.",
                code="item_not_found",
                field="previous_item_id",
            )
        ids = self.order.ids
        at = ids.index(after) + 1 if after in ids else 0
        if after in open_indexes and not left:
            at = self.order.place(open_indexes[after])
        later = {item.call_id for item in self.items[at:] if isinstance(item, Call)}
        for item in items:
            if isinstance(item, CallResult) and item.call_id in later:
                raise BadInput(
                    f"The result of the call {quoted(item.call_id)} would come before the call. Add it after that.",
                    field="previous_item_id",
                )

    def check_new(self, items: Sequence[Item], earlier: Earlier = NOTHING_EARLIER) -> None:
        """Check that items may be added to those in memory, and to what the log has of `earlier`.

        Raises:
            Conflict: an item's id or a call's is taken, or a call has its result already.
            LimitExceeded: an item is too long.
            NotFound: a result answers no call of this conversation.
        """
        known = earlier.item_ids | {item.item_id for item in self.items}
        waiting = Counter(earlier.open_calls)
        for item in self.items:
            _count(item, waiting, unless=earlier.open_calls)
        check_lengths(items, self._max_item_characters)
        for item in items:
            if item.item_id in known:
                raise Conflict(f"There is an item {quoted(item.item_id)} in this session already.", code="item_exists")
            known |= {item.item_id}
            # An id may serve again once its call has its result: there are servers that number the calls of each turn anew.
            if isinstance(item, Call) and waiting[item.call_id] > 0:
                raise Conflict(f"There is a call {quoted(item.call_id)} in this session already.", code="call_exists")
            if isinstance(item, CallResult):
                if item.call_id not in waiting:
                    raise NotFound(f"There is no call {quoted(item.call_id)} in this session.", field="call_id")
                if waiting[item.call_id] <= 0:
                    raise Conflict(f"The call {quoted(item.call_id)} has its result already.", code="call_answered")
            _count(item, waiting)

    def check_known(self, item_ids: Sequence[str]) -> None:
        """Check that items are part of the conversation.

        Raises:
            NotFound: one is not.
        """
        known = {item.item_id for item in self.items}
        for item_id in item_ids:
            if item_id not in known:
                raise NotFound(
                    f"There is no item {quoted(item_id)} in this session.", code="item_not_found", field="item_id"
                )

    def holds(self, item_id: str) -> bool:
        """Return whether an item is in memory."""
        return any(item.item_id == item_id for item in self.items)

    def find(self, item_id: str) -> Item:
        """Return an item.

        Raises:
            NotFound: there is no such item in memory.
        """
        self.check_known((item_id,))
        return next(item for item in self.items if item.item_id == item_id)

    def _older(self) -> int:
        """Return how many of the items may be left out: what is more than half of what there is place for."""
        if not self.full:
            return 0
        older = max(0, len(self.items) - max(self._max_items // 2, 1))
        if self._characters > self._max_characters // 2:
            left, at = self._characters, 0
            while at < len(self.items) - 1 and left - length_of(self.items[at]) >= self._max_characters // 2:
                left -= length_of(self.items[at])
                at += 1
            older = max(older, at)
        return older

    def _forget(self, item: Item) -> None:
        self._characters -= length_of(item)
        self.playback.forget(item.item_id)


def check_context(items: Sequence[Item], item_characters: int, characters: int) -> None:
    """Check that items can be a conversation.

    Raises:
        Conflict: an id is there twice, or a call has two results.
        LimitExceeded: one is too long, or all of them are.
        NotFound: a result answers no call before it.
    """
    Conversation(items=len(items), characters=characters, item_characters=item_characters).check_new(items)
    if (length := sum(length_of(item) for item in items)) > characters:
        raise too_long("the conversation", length, characters)


def _count(item: Item, waiting: Counter[str], *, unless: Container[str] = ()) -> None:
    """Count a call that waits for its result in, and with its result out, but for those whose ids are counted elsewhere."""
    if not isinstance(item, Call | CallResult) or item.call_id in unless:
        return
    if isinstance(item, CallResult):
        waiting[item.call_id] -= 1
    elif item.status == "completed":
        waiting[item.call_id] += 1
