"""What a reader is sent next: a cursor over a session's rows and its open item.

There is no queue between a session and its readers. A reader holds how far it has come; whenever it is ready for more
it is given what has happened since. A slow reader so gets fewer, longer deltas, costs nothing while it waits, and holds
up nobody. Each character of an item reaches it once.
"""

from collections.abc import Iterable

from models.content import text_of
from orchestrator.events import Committed, ItemClosed, ItemDelta, ItemSnapshot, SessionEvent
from orchestrator.sessions.state import SessionState


class Cursor:
    """How far one reader has come."""

    def __init__(self, seq: int) -> None:
        """Begin after row `seq`."""
        self.seq = seq
        self._item_id: str | None = None
        self._offset = 0

    def advance(self, state: SessionState) -> list[SessionEvent] | None:
        """Return what the reader has not been given, and move on; None if its next row is not in memory any more.

        Rows come first: what is open now was opened after them.
        """
        missing = state.last_seq - self.seq
        if missing > len(state.rows):
            return None
        events = self.take_rows(list(state.rows)[len(state.rows) - missing :] if missing else ())
        turn = state.turn
        if turn is None or turn.open is None:
            return events
        item = turn.open
        if item.item_id != self._item_id:
            events.append(ItemSnapshot(turn_id=turn.turn_id, generation=turn.generation, item=item.item("incomplete")))
            self._item_id = item.item_id
        elif item.length > self._offset:
            events.append(
                ItemDelta(
                    turn_id=turn.turn_id,
                    generation=turn.generation,
                    item_id=item.item_id,
                    offset=self._offset,
                    text=item.since(self._offset),
                )
            )
        self._offset = item.length
        return events

    def take_rows(self, rows: Iterable[Committed]) -> list[SessionEvent]:
        """Return the rows, each that closes an item preceded by what the reader has not been given of it."""
        events: list[SessionEvent] = []
        for row in rows:
            self.seq = row.seq
            if isinstance(row.event, ItemClosed):
                events.extend(self._rest(row.event))
            events.append(row)
        return events

    def _rest(self, closed: ItemClosed) -> tuple[SessionEvent, ...]:
        item = closed.item
        if item.item_id != self._item_id:
            return (ItemSnapshot(turn_id=closed.turn_id, generation=closed.generation, item=item),)
        offset = self._offset
        self._item_id = None
        rest = text_of(item)[offset:]
        if not rest:
            return ()
        return (
            ItemDelta(
                turn_id=closed.turn_id,
                generation=closed.generation,
                item_id=item.item_id,
                offset=offset,
                text=rest,
            ),
        )
