"""Writes a session's rows: events, turns and the effect ledger in one transaction."""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import asdict
from typing import assert_never

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection

from memory import effects, log
from memory.database import Database
from memory.effects import Effect
from memory.items import ItemKind, ItemPlace, find_items, forget_items, last_of_user, note_items
from memory.log import Entry, LogRow
from memory.sessions import SessionRecord, change_session, create_session, find_session, name_session
from memory.trouble import corrupt
from models.clock import Clock
from models.content import (
    ApprovalRequest,
    ApprovalResponse,
    Call,
    CallResult,
    HostedCall,
    Item,
    Message,
    OtherItem,
    Part,
    Reasoning,
    ToolListing,
    is_beside,
)
from models.errors import BatonError
from orchestrator.events import (
    CallEffect,
    Committed,
    ItemClosed,
    ItemsAdded,
    ItemsRemoved,
    LogEvent,
    PlanMade,
    PlanRevised,
    PlaybackHeard,
    SettingsChanged,
    TaskEnded,
    TurnAccepted,
    TurnEnded,
    decode,
    encode,
    items_of,
    title_of,
)
from orchestrator.sessions.conversation import Earlier

_log = logging.getLogger(__name__)

_PARTS: TypeAdapter[tuple[Part, ...]] = TypeAdapter(tuple[Part, ...])


_PAGE_ROWS = 256


class Journal:
    """The log of one session, as the conductor's events."""

    def __init__(self, database: Database, clock: Clock, tenant: str, session_id: str, *, new: bool = False) -> None:
        """Take the log of a session; if it is `new`, its first rows begin it."""
        self._database = database
        self._clock = clock
        self._tenant = tenant
        self._session_id = session_id
        self._new = new
        self._untitled = True  # as far as is known here; the database knows

    async def write(self, events: tuple[LogEvent, ...]) -> tuple[Committed, ...]:
        """Commit `events` and what follows from them; return them with their numbers."""
        at_ms = self._now_ms()
        try:
            rows = await self._database.write(lambda connection: self._write(connection, events, at_ms))
        except BatonError:
            self._untitled = True  # if it was named, that was taken back
            raise
        self._new = False
        return tuple(
            Committed(seq=row.seq, at_ms=row.at_ms, event=event) for row, event in zip(rows, events, strict=True)
        )

    async def read(self, after: int, limit: int) -> tuple[Committed, ...]:
        """Return up to `limit` rows after number `after`.

        Raises:
            NotFound: the tenant has no such session.
        """
        if self._new:
            return ()
        rows = await self._database.read(
            lambda c: log.read(c, self._tenant, self._session_id, after=after, limit=limit)
        )
        return _committed(rows)

    async def holds(self, item_id: str) -> bool:
        """Return whether an item is part of the conversation, however long ago it was said."""
        return bool(await self._find(item_ids=(item_id,)))

    async def find(self, item_id: str) -> Item | None:
        """Return an item of the conversation, however long ago it was said; None if there is none of that id."""
        places = await self._find(item_ids=(item_id,))
        return await self._item(places[-1]) if places else None

    async def earlier(self, items: Sequence[Item]) -> Earlier:
        """Return what the conversation has that is named like these items, however long ago that was said."""
        call_ids = [item.call_id for item in items if isinstance(item, Call | CallResult)]
        places = await self._find(item_ids=[item.item_id for item in items], call_ids=call_ids)
        asked = {item.call_id for item in items if isinstance(item, CallResult)}
        calls = [place for place in places if place.kind == "call" and place.call_id in asked]
        waiting: Counter[str] = Counter()
        for place in places:
            if place.call_id is not None and place.kind != "cut_call":
                waiting[place.call_id] += 1 if place.kind == "call" else -1
        return Earlier(
            item_ids=frozenset(place.item_id for place in places),
            calls=tuple([call for call in [await self._item(place) for place in calls] if isinstance(call, Call)]),
            open_calls=waiting,
        )

    async def last_of_user(self) -> Item | None:
        """Return what the user has said last."""
        if self._new:
            return None
        place = await self._database.read(lambda c: last_of_user(c, self._tenant, self._session_id))
        return None if place is None else await self._item(place)

    async def _find(self, *, item_ids: Sequence[str] = (), call_ids: Sequence[str] = ()) -> tuple[ItemPlace, ...]:
        if self._new:
            return ()
        return await self._database.read(
            lambda c: find_items(c, self._tenant, self._session_id, item_ids=item_ids, call_ids=call_ids)
        )

    async def _item(self, place: ItemPlace) -> Item | None:
        rows = await self.read(place.seq - 1, 1)
        return next((item for row in rows for item in items_of(row.event) if item.item_id == place.item_id), None)

    async def record(self) -> SessionRecord:
        """Return what is kept of the session beside its log.

        Raises:
            NotFound: the tenant has no such session.
        """
        return await self._database.read(lambda c: find_session(c, self._tenant, self._session_id))

    def _write(self, connection: Connection, events: tuple[LogEvent, ...], at_ms: int) -> tuple[LogRow, ...]:
        if self._new:
            create_session(connection, self._tenant, self._session_id, at_ms)
        entries = [Entry(turn_id=_turn_id(event), kind=event.kind, body=encode(event)) for event in events]
        rows = log.append(connection, self._tenant, self._session_id, entries, at_ms)
        for row, event in zip(rows, events, strict=True):
            note_items(connection, self._session_id, [_place(item, row.seq) for item in items_of(event)])
            self._follow(connection, event, row)
        return rows

    def _follow(self, connection: Connection, event: LogEvent, row: LogRow) -> None:
        at_ms = row.at_ms
        match event:
            case TurnAccepted():
                log.accept_turn(connection, self._tenant, self._session_id, event.turn_id, at_ms)
                self._complete(connection, event.input.items, at_ms)
                self._name(connection, event)
            case TurnEnded():
                log.end_turn(connection, event.turn_id, event.state, at_ms)
            case ItemsAdded():
                self._complete(connection, event.items, at_ms)
                self._name(connection, event)
            case SettingsChanged(settings=settings):
                change_session(connection, self._session_id, **asdict(settings))
                self._untitled = settings.title is None
            case ItemClosed(item=Call() as call, effect=CallEffect() as of):
                if of.effect != "pure":
                    effect = Effect(
                        key=of.key,
                        call_id=call.call_id,
                        turn_id=event.turn_id,
                        tool=call.name,
                        effect=of.effect,
                        arguments=call.arguments,
                        result=None,
                    )
                    effects.open_effect(connection, self._tenant, self._session_id, effect, at_ms)
            case ItemClosed(item=CallResult() as result):
                self._complete(connection, (result,), at_ms)
            case ItemsRemoved():
                forget_items(connection, self._session_id, event.item_ids, row.seq)
            case ItemClosed() | PlanMade() | PlanRevised() | TaskEnded() | PlaybackHeard():
                pass
            case _:
                assert_never(event)

    def _name(self, connection: Connection, event: LogEvent) -> None:
        if self._untitled and (title := title_of(event)) is not None:
            name_session(connection, self._session_id, title)
            self._untitled = False

    def _complete(self, connection: Connection, items: Iterable[Item], at_ms: int) -> None:
        for item in items:
            if isinstance(item, CallResult):
                result = _PARTS.dump_json(item.parts).decode()
                # None is open if the client brought the call along as well: nothing was asked of it here.
                effects.complete_call(connection, self._tenant, self._session_id, item.call_id, result, at_ms)

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


async def read_rows(
    database: Database, clock: Clock, tenant: str, session_id: str
) -> AsyncGenerator[tuple[Committed, ...], None]:
    """Yield the rows of a session, from the first on, some at a time.

    Raises:
        NotFound: the tenant has no such session.
    """
    journal, after = Journal(database, clock, tenant, session_id), 0
    await journal.record()
    while rows := await journal.read(after, _PAGE_ROWS):
        yield rows
        after = rows[-1].seq


def _place(item: Item, seq: int) -> ItemPlace:
    if is_beside(item):
        return ItemPlace(item_id=item.item_id, seq=seq, kind="beside", call_id=None)
    match item:
        case Message():
            return ItemPlace(item_id=item.item_id, seq=seq, kind=item.role, call_id=None)
        case Call():
            kind: ItemKind = "call" if item.status == "completed" else "cut_call"
            return ItemPlace(item_id=item.item_id, seq=seq, kind=kind, call_id=item.call_id)
        case CallResult():
            return ItemPlace(item_id=item.item_id, seq=seq, kind="call_result", call_id=item.call_id)
        case Reasoning() | ApprovalRequest() | ApprovalResponse() | ToolListing() | HostedCall() | OtherItem():
            return ItemPlace(item_id=item.item_id, seq=seq, kind="other", call_id=None)
        case _:
            assert_never(item)


def _committed(rows: Iterable[LogRow]) -> tuple[Committed, ...]:
    try:
        return tuple(Committed(seq=row.seq, at_ms=row.at_ms, event=decode(row.body)) for row in rows)
    except ValidationError as exc:
        _log.exception("a row of a session's log is not what was written there")
        raise corrupt() from exc


def _turn_id(event: LogEvent) -> str | None:
    match event:
        case TurnAccepted() | PlanMade() | PlanRevised() | ItemClosed() | TaskEnded() | TurnEnded():
            return event.turn_id
        case ItemsAdded() | ItemsRemoved() | SettingsChanged() | PlaybackHeard():
            return None
        case _:
            assert_never(event)
