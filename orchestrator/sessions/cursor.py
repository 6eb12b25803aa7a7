"""What a reader is sent next: a cursor over a session's rows and its open items.

There is no queue between a session and its readers. A reader holds how far it has come, in the rows and in each item that
is open; whenever it is ready for more it is given what has happened since. A slow reader so gets fewer, longer deltas, costs
nothing while it waits, and holds up nobody. Each character and each part of an item reaches it once. Sound is another matter:
the last of it is there (`sound`), and a reader is told how much it has missed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from models.content import Item, Part, TextPart, parts_of, text_of
from orchestrator.events import AudioChunk, Committed, ItemClosed, ItemDelta, ItemSnapshot, PartAdded, SessionEvent
from orchestrator.sessions.open_turn import LiveTurn, OpenItem
from orchestrator.sessions.sound import SoundPiece, SoundRing
from orchestrator.sessions.state import SessionState


@dataclass(slots=True)
class _Seen:
    """What a reader has been given of an item: characters, parts that are no words, and samples, with those it has missed."""

    characters: int
    parts: int
    samples: int = 0


class Cursor:
    """How far one reader has come."""

    def __init__(self, seq: int) -> None:
        """Begin after row `seq`."""
        self.seq = seq
        self._seen: dict[str, _Seen] = {}

    def advance(self, state: SessionState) -> list[SessionEvent] | None:
        """Return what the reader has not been given, and move on; None if its next row is not in memory any more.

        Rows come first, then what has grown, in the order in which it was begun.
        """
        missing = state.last_seq - self.seq
        if missing > len(state.rows):
            return None
        events = self.take_rows(list(state.rows)[len(state.rows) - missing :], state.sound) if missing else []
        turn = state.turn
        if turn is None:
            return events
        for item in turn.open.values():
            seen = self._seen.get(item.item_id)
            if seen is None:
                events.append(
                    ItemSnapshot(
                        turn_id=turn.turn_id,
                        generation=turn.generation,
                        item=item.item("incomplete"),
                        task_id=item.task.task_id,
                        index=item.index,
                    )
                )
                seen = self._seen[item.item_id] = _Seen(item.length, len(item.parts))
            if item.samples > seen.samples:
                events.extend(_chunks(turn, seen, state.sound.since(item.item_id, seen.samples)))
            if len(item.parts) > seen.parts:
                events.extend(_parts(turn, item, seen))
            if item.length > seen.characters:
                events.append(
                    ItemDelta(
                        turn_id=turn.turn_id,
                        generation=turn.generation,
                        item_id=item.item_id,
                        offset=seen.characters,
                        text=item.since(seen.characters),
                    )
                )
                seen.characters = item.length
        return events

    def take_rows(self, rows: Iterable[Committed], sound: SoundRing | None = None) -> list[SessionEvent]:
        """Return the rows, each that closes an item preceded by what the reader has not been given of it.

        Of its sound that is what is there; how long all of it is, the row says.
        """
        events: list[SessionEvent] = []
        for row in rows:
            self.seq = row.seq
            if isinstance(row.event, ItemClosed):
                events.extend(self._rest(row.event, sound))
            events.append(row)
        return events

    def _rest(self, closed: ItemClosed, sound: SoundRing | None) -> Iterator[SessionEvent]:
        seen = self._seen.pop(closed.item.item_id, None)
        if seen is None:
            yield ItemSnapshot(
                turn_id=closed.turn_id,
                generation=closed.generation,
                item=closed.item,
                task_id=closed.task_id,
                index=closed.index,
            )
        if sound is not None and closed.audio_ms:
            at = _Seen(0, 0) if seen is None else seen
            yield from _chunks(closed, at, sound.since(closed.item.item_id, at.samples))
        if seen is None:
            return
        for offset, number, piece in _pieces(closed.item, seen):
            if isinstance(piece, str):
                yield ItemDelta(
                    turn_id=closed.turn_id,
                    generation=closed.generation,
                    item_id=closed.item.item_id,
                    offset=offset,
                    text=piece,
                )
            else:
                yield PartAdded(
                    turn_id=closed.turn_id,
                    generation=closed.generation,
                    item_id=closed.item.item_id,
                    offset=offset,
                    number=number,
                    part=piece,
                )


def _parts(turn: LiveTurn, item: OpenItem, seen: _Seen) -> Iterator[SessionEvent]:
    """Yield the parts that a reader has not been given, each after the words before it."""
    for offset, part in item.parts[seen.parts :]:
        if offset > seen.characters:
            yield ItemDelta(
                turn_id=turn.turn_id,
                generation=turn.generation,
                item_id=item.item_id,
                offset=seen.characters,
                text=item.since(seen.characters, offset),
            )
            seen.characters = offset
        yield PartAdded(
            turn_id=turn.turn_id,
            generation=turn.generation,
            item_id=item.item_id,
            offset=offset,
            number=seen.parts,
            part=part,
        )
        seen.parts += 1


def _chunks(of: LiveTurn | ItemClosed, seen: _Seen, pieces: Iterable[SoundPiece]) -> Iterator[AudioChunk]:
    """Yield the sound that a reader has not been given, and with each piece how much it has missed before that."""
    for piece in pieces:
        yield AudioChunk(
            turn_id=of.turn_id,
            generation=of.generation,
            item_id=piece.item_id,
            offset=piece.offset,
            missed=piece.offset - seen.samples,
            rate_hz=piece.rate_hz,
            pcm=piece.pcm,
        )
        seen.samples = piece.end


def _pieces(item: Item, seen: _Seen) -> Iterator[tuple[int, int, str | Part]]:
    """Yield what an item has beyond what was seen: each piece with its offset and how many parts are before it."""
    parts = parts_of(item) or (TextPart(text=text_of(item)),)
    offset = number = 0
    for part in parts:
        if isinstance(part, TextPart):
            rest = part.text[max(0, seen.characters - offset) :]
            end = offset + len(part.text)
            if rest:
                yield end - len(rest), number, rest
            offset = end
            continue
        if number >= seen.parts:
            yield offset, number, part
        number += 1
