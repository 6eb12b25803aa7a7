"""Writes a session's rows: events, turns and the effect ledger in one transaction."""

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from dataclasses import asdict
from typing import assert_never

from pydantic import TypeAdapter
from sqlalchemy import Connection

from memory import effects, log
from memory.blobs import BlobStore
from memory.branches import family, lineage, make_branch, sharers
from memory.database import Database
from memory.documents import find_documents, keep_documents
from memory.effects import Effect
from memory.items import ItemKind, ItemPlace, find_items, forget_items, last_of_user, note_items
from memory.log import Lease, LogRow
from memory.sessions import SessionRecord, change_session, create_session, find_session, name_session
from memory.uses import note_uses
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
from models.owner import Owner
from orchestrator.events import (
    CallEffect,
    Committed,
    ItemClosed,
    ItemsAdded,
    ItemsRedacted,
    ItemsRemoved,
    LogEvent,
    PlanMade,
    PlanRevised,
    PlaybackHeard,
    SettingsChanged,
    TaskEnded,
    TurnAccepted,
    TurnEnded,
    items_of,
    title_of,
)
from orchestrator.sessions import codec
from orchestrator.sessions.codec import Document
from orchestrator.sessions.conversation import Earlier
from orchestrator.sessions.redaction import redact_items

_DOCUMENTS = 64
"""Documents of a log that are remembered; tools and instructions of one session are few."""

_PARTS: TypeAdapter[tuple[Part, ...]] = TypeAdapter(tuple[Part, ...])


_PAGE_ROWS = 256


class Journal:
    """The log of one session, as the conductor's events."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        owner: Owner,
        session_id: str,
        *,
        new: bool = False,
        blobs: BlobStore | None = None,
        lease: Lease | None = None,
    ) -> None:
        """Take the log of a session.

        Args:
            database: where it is.
            clock: tells when a row is written.
            owner: whose it is.
            session_id: its id.
            new: whether its first rows begin it.
            blobs: where content goes from that nothing uses any more; without it, that is left to the next sweep.
            lease: who writes, and for how long after it may be taken to run a turn.
        """
        self._database = database
        self._clock = clock
        self._owner = Owner.of(owner)
        self._tenant = self._owner.tenant
        self._session_id = session_id
        self._new = new
        self._blobs = blobs
        self._lease = lease
        self._untitled = True  # as far as is known here; the database knows
        self._kept: set[str] = set()  # documents that are known to be in the database
        self._documents: dict[str, Document] = {}

    async def write(self, events: tuple[LogEvent, ...]) -> tuple[Committed, ...]:
        """Commit `events` and what follows from them; return them with their numbers.

        Content that they take out is in no file of the home any more when this returns.
        """
        at_ms = self._now_ms()
        encoded = [codec.encode(event) for event in events]
        documents = {digest: body for _, named in encoded for digest, body in named.items() if digest not in self._kept}
        entries = [entry for entry, _ in encoded]
        loose: list[str] = []
        try:
            rows = await self._database.write(
                lambda connection: self._write(connection, events, entries, documents, loose, at_ms)
            )
        except BatonError:
            self._untitled = True  # if it was named, that was taken back
            raise
        self._new = False
        self._kept.update(documents)
        if len(self._kept) > _DOCUMENTS or any(_takes_out(event) for event in events):
            self._kept.clear()
        if any(_takes_out(event) for event in events):
            if self._blobs is not None:
                await self._blobs.drop(loose)
            await self._database.purge()
        return tuple(
            Committed(seq=row.seq, at_ms=row.at_ms, event=event) for row, event in zip(rows, events, strict=True)
        )

    async def read(self, after: int, limit: int) -> tuple[Committed, ...]:
        """Return up to `limit` rows after number `after`.

        Raises:
            NotFound: the tenant has no such session.
            Internal: a row is not known here, or not what was written.
        """
        if self._new:
            return ()
        rows = await self._database.read(
            lambda c: log.read(c, self._tenant, self._session_id, after=after, limit=limit)
        )
        stored = [codec.parse(row) for row in rows]
        documents = await self._named({digest for one in stored for digest in one.documents.values()})
        return tuple(
            Committed(seq=one.row.seq, at_ms=one.row.at_ms, event=codec.whole(one, documents)) for one in stored
        )

    async def _named(self, digests: set[str]) -> dict[str, Document]:
        """Return documents by their digests, as far as they are there."""
        if missing := digests - self._documents.keys():
            found = await self._database.read(lambda c: self._find_documents(c, missing))
            read = {digest: codec.load(body) for digest, body in found.items()}
            known = {digest: self._documents[digest] for digest in digests - missing}
            if len(self._documents) + len(read) > _DOCUMENTS:
                self._documents.clear()
            self._documents.update(read)
            return known | read
        return {digest: self._documents[digest] for digest in digests}

    def forget_documents(self) -> None:
        """Take nothing for granted of which documents are in the database."""
        self._kept.clear()
        self._documents.clear()

    def _find_documents(self, connection: Connection, digests: Collection[str]) -> dict[str, str]:
        logs = [one.log_id for one in lineage(connection, self._tenant, self._session_id)]
        return find_documents(connection, logs, digests)

    async def branch(self, branch_id: str, seq: int) -> None:
        """Begin a session that shares the rows up to `seq`."""
        at_ms = self._now_ms()
        await self._database.write(lambda c: make_branch(c, self._tenant, self._session_id, branch_id, seq, at_ms))

    async def end_of(self, turn_id: str) -> int | None:
        """Return the number of the row that ends a turn of this session; None if there is none."""
        rows = await self._database.read(
            lambda c: log.mentioning(c, self._tenant, self._session_id, f'"{turn_id}"', kind="turn_ended")
        )
        return next((row.seq for _, row in rows if row.turn_id == turn_id), None)

    async def sharing(self, item_ids: Sequence[str]) -> dict[str, set[str]]:
        """Return the other sessions that may have rows of this one, each with those of the items that it has."""
        if self._new:
            return {}
        return await self._database.read(lambda c: self._sharing(c, item_ids))

    def _sharing(self, connection: Connection, item_ids: Sequence[str]) -> dict[str, set[str]]:
        kin = [session_id for session_id in family(connection, self._session_id) if session_id != self._session_id]
        having: dict[str, set[str]] = {session_id: set() for session_id in kin}
        for place in find_items(connection, self._tenant, self._session_id, item_ids=item_ids) if kin else ():
            log_id = place.log_id or self._session_id
            for other in sharers(connection, self._session_id, log_id, place.item_id, place.seq):
                having[other].add(place.item_id)
        return having

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
            NotFound: the owner has no such session.
        """
        return await self._database.read(lambda c: find_session(c, self._owner, self._session_id))

    def _write(
        self,
        connection: Connection,
        events: tuple[LogEvent, ...],
        entries: Sequence[log.Entry],
        documents: dict[str, str],
        loose: list[str],
        at_ms: int,
    ) -> tuple[LogRow, ...]:
        if self._new:
            create_session(connection, self._owner, self._session_id, at_ms)
        keep_documents(connection, self._session_id, documents)
        rows = log.append(connection, self._tenant, self._session_id, entries, at_ms, self._lease)
        for row, event in zip(rows, events, strict=True):
            if items := items_of(event):
                note_items(connection, self._session_id, [_place(item, row.seq) for item in items])
                if uses := codec.blobs_of(items):
                    note_uses(connection, self._tenant, self._session_id, uses, subject=self._owner.subject)
            self._follow(connection, event, row, loose)
        return rows

    def _follow(self, connection: Connection, event: LogEvent, row: LogRow, loose: list[str]) -> None:
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
                self._open_effect(connection, event.turn_id, call, of, at_ms)
            case ItemClosed(item=CallResult() as result):
                self._complete(connection, (result,), at_ms)
            case ItemsRemoved() | ItemsRedacted():
                loose += self._take_out(connection, event, row.seq)
            case ItemClosed() | PlanMade() | PlanRevised() | TaskEnded() | PlaybackHeard():
                pass
            case _:
                assert_never(event)

    def _name(self, connection: Connection, event: LogEvent) -> None:
        if self._untitled and (title := title_of(event)) is not None:
            name_session(connection, self._session_id, title)
            self._untitled = False

    def _take_out(self, connection: Connection, event: ItemsRemoved | ItemsRedacted, seq: int) -> list[str]:
        """Take items out of the conversation, or their content out of the log; return the blobs that nobody refers to then."""
        redacted = event.redacted if isinstance(event, ItemsRemoved) else event.item_ids
        loose = redact_items(connection, self._tenant, self._session_id, redacted, seq) if redacted else []
        if isinstance(event, ItemsRemoved):
            forget_items(connection, self._session_id, event.item_ids, seq)
        if event.untitled:
            change_session(connection, self._session_id, title=None)
            self._untitled = True
        return loose

    def _open_effect(self, connection: Connection, turn_id: str, call: Call, of: CallEffect, at_ms: int) -> None:
        if of.effect == "pure":
            return
        effect = Effect(
            key=of.key,
            call_id=call.call_id,
            turn_id=turn_id,
            tool=call.name,
            effect=of.effect,
            arguments=call.arguments,
            result=None,
        )
        effects.open_effect(connection, self._tenant, self._session_id, effect, at_ms)

    def _complete(self, connection: Connection, items: Iterable[Item], at_ms: int) -> None:
        for item in items:
            if isinstance(item, CallResult):
                result = _PARTS.dump_json(item.parts).decode()
                # None is open if the client brought the call along as well: nothing was asked of it here.
                effects.complete_call(connection, self._tenant, self._session_id, item.call_id, result, at_ms)

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


async def read_rows(
    database: Database, clock: Clock, owner: Owner, session_id: str
) -> AsyncGenerator[tuple[Committed, ...], None]:
    """Yield the rows of a session, from the first on, some at a time.

    Raises:
        NotFound: the owner has no such session.
    """
    journal, after = Journal(database, clock, owner, session_id), 0
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


def _takes_out(event: LogEvent) -> bool:
    match event:
        case ItemsRemoved():
            return bool(event.redacted)
        case ItemsRedacted():
            return True
        case _:
            return False
