"""All sessions: makes, finds, recovers and puts away the `Session` handles of every tenant."""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from memory import log
from memory.blobs import BlobStore
from memory.database import Database
from memory.log import EndState, Lease
from memory.sessions import SessionRecord, list_sessions
from models.clock import Clock
from models.content import Item
from models.errors import Overloaded, Unavailable
from models.ids import new_id
from models.owner import Owner
from models.shares import share_of
from orchestrator.act.execute import Executor
from orchestrator.act.resume import resumed
from orchestrator.act.work import Work
from orchestrator.events import Committed, ItemClosed, LogEvent, SessionSettings, TurnAccepted, TurnEnded
from orchestrator.limits import SessionLimits
from orchestrator.meters import Meters
from orchestrator.sessions.folding import fold
from orchestrator.sessions.handle import Session
from orchestrator.sessions.journal import Journal, read_rows
from orchestrator.sessions.redaction import delete_whole
from orchestrator.sessions.state import SessionState

_log = logging.getLogger(__name__)


_PAGE_ROWS = 512
_BOUNDLESS = SessionLimits(items=sys.maxsize, history_characters=sys.maxsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldTurn:
    """A turn as a transcript tells it.

    Attributes:
        turn_id: its id.
        after: its last item so far; at first, the one it answers.
        state: how it ended, or that it runs, or waits for somebody to allow a call.
        reason: why it ended so: of a failure its code, else as in `TurnEnded`.
    """

    turn_id: str
    after: str
    state: EndState | Literal["running", "waiting"] = "running"
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHistory:
    """A whole conversation: its items, and the turns of which something is left in it."""

    items: tuple[Item, ...]
    turns: tuple[ToldTurn, ...]


class Sessions:
    """Owner of every session in memory, and the door to each.

    Every method takes whose it has to be, and what is another's is not found: what lies behind (journal, log, ledger) is
    of a session that was found here.

    `run` owns their tasks and has to be running while sessions are open. At most `max_open` are in memory, and
    `max_tenant_open` of one tenant; those without reader or turn leave it after their idle time, or sooner if there is
    no room.
    """

    def __init__(
        self,
        database: Database,
        executor: Executor,
        clock: Clock,
        meters: Meters,
        limits: SessionLimits,
        *,
        max_open: int,
        max_tenant_open: int | None = None,
        blobs: BlobStore | None = None,
        lease: Lease | None = None,
    ) -> None:
        """Take what sessions are made of; `blobs` and `lease` are a `Journal`'s."""
        self._database = database
        self._executor = executor
        self._clock = clock
        self._meters = meters
        self._limits = limits
        self._blobs = blobs
        self._lease = lease
        self._max_open = max_open
        self._max_tenant_open = max_tenant_open or share_of(max_open)
        self._open: dict[str, Session] = {}
        self._opening = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        meters.sessions.set_function(lambda: len(self._open))

    async def recover(self) -> int:
        """Report every turn that a restart cut off as interrupted, in its session's log, but for those that wait for somebody.

        Turns that another server may still be running are left alone. Return how many there were.
        """
        recovered = 0
        server, now_ms = None if self._lease is None else self._lease.owner, int(self._clock.wall_s() * 1000)
        for turn in await self._database.read(lambda c: log.open_turns(c, owner=server, now_ms=now_ms)):
            journal = self._journal(turn.owner, turn.session_id)
            try:
                rows = (await self._fold(journal)).plan_recover("server_restarted")
                if rows:
                    await journal.write(rows)
                    recovered += 1
            except Exception:  # noqa: BLE001  # one log that cannot be read must not keep the server from starting
                _log.exception("session %s could not be recovered", turn.session_id)
        return recovered

    async def run(self, started: asyncio.Event) -> None:
        """Own the sessions until `stop`."""
        async with asyncio.TaskGroup() as self._tasks:
            started.set()
            await self._stopping.wait()

    async def stop(self) -> None:
        """Interrupt every running turn, put every session away, and end `run`."""
        self._stopping.set()
        async with self._opening:
            await asyncio.gather(*(session.close("server_stopped") for session in list(self._open.values())))

    async def until_free(self, deadline_s: float) -> None:
        """Wait until no session has a turn that runs, or until `deadline_s`."""
        for session in list(self._open.values()):
            if not await session.until_free(deadline_s):
                return

    async def create(self, owner: Owner) -> Session:
        """Make a new session. It is in the database from its first row on; an empty one leaves nothing behind.

        Raises:
            Overloaded: there are too many in memory, or too many of the tenant's.
        """
        session_id = new_id("sess")
        owner = Owner.of(owner).within(session_id)
        self._make_room(owner.tenant)
        journal = self._journal(owner, session_id, new=True)
        return self._start(owner, session_id, SessionState(self._limits), journal)

    async def open(self, owner: Owner, session_id: str) -> Session:
        """Return the session of that id.

        Raises:
            NotFound: the owner has no such session.
            Overloaded: there are too many in memory, or too many of the tenant's.
        """
        owner = Owner.of(owner).within(session_id)
        async with self._opening:
            session = self._open.get(session_id)
            if session is not None and session.owner == owner and not session.closed:
                session.touch()
                return session
            journal = self._journal(owner, session_id)
            state = await self._fold(journal)
            self._make_room(owner.tenant)
            if left_over := state.plan_recover("storage_failed"):
                # It was closed by a failed transaction: what could not be logged then is logged now.
                state.apply(await journal.write(left_over), self._clock.now_s())
            work = await self._left_waiting(journal, state, owner)
            session = self._start(owner, session_id, state, journal)
            if work is not None:
                session.resume(work)
            return session

    async def _left_waiting(self, journal: Journal, state: SessionState, owner: Owner) -> Work | None:
        """Return what is left to do of a turn that waits for somebody."""
        if state.turn is None or not state.turn.waits:
            return None
        rows: list[Committed] = []
        while len(page := await journal.read(state.turn.accepted_seq - 1 + len(rows), _PAGE_ROWS)):
            rows += page
        deadline_s = self._clock.now_s() + self._executor.limits.turn_timeout_s
        return resumed(rows, tuple(state.context), owner, deadline_s)

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Delete a session and its log. What runs in it is stopped, and its readers are told that it was closed.

        Raises:
            NotFound: the owner has no such session.
        """
        async with self._opening:
            await self.record(owner, session_id)  # one that was never written is nothing to delete, nor to stop
            if (session := self._open.get(session_id)) is not None:
                await session.close("session_deleted")
            at_ms = int(self._clock.wall_s() * 1000)
            loose = await self._database.write(lambda c: delete_whole(c, Owner.of(owner).tenant, session_id, at_ms))
            if self._blobs is not None:
                await self._blobs.drop(loose)
            await self._database.purge()

    async def fork(self, owner: Owner, session_id: str, turn_id: str | None = None) -> str:
        """Begin a session that goes on from the end of one's turn, or from where it is now (None). Return its id.

        The rows up to there are in both: what is redacted in one is in the other. What comes after is each one's own.

        Raises:
            Conflict: that turn is running, or one is while the whole is asked for.
            NotFound: the owner has no such session, or it no such turn.
            Overloaded: there are too many in memory, or too many of the tenant's.
        """
        branch_id = new_id("sess")
        session = await self.open(owner, session_id)
        await session.branch(branch_id, turn_id)
        return branch_id

    async def redact(self, owner: Owner, session_id: str, item_ids: tuple[str, ...]) -> None:
        """Take the content of items out of a session for good, and out of every one that shares them; their places stay.

        Raises:
            Conflict: a turn is running.
            NotFound: the owner has no such session, or it no such item.
            Overloaded: there are too many in memory, or too many of the tenant's.
        """
        session = await self.open(owner, session_id)
        items, sharing = await session.redact(item_ids)
        for other_id, shared in sharing.items():
            if (other := self._open.get(other_id)) is not None and not other.closed:
                await other.forget(items, shared)

    async def records(self, owner: Owner, *, limit: int, before: str | None = None) -> tuple[SessionRecord, ...]:
        """Return the owner's sessions, the last active first; see `memory.sessions.list_sessions`."""
        return await self._database.read(lambda c: list_sessions(c, owner, limit=limit, before=before))

    async def record(self, owner: Owner, session_id: str) -> SessionRecord:
        """Return what is kept of a session beside its log.

        Raises:
            NotFound: the owner has no such session.
        """
        return await self._journal(owner, session_id).record()

    async def transcript(self, owner: Owner, session_id: str) -> SessionHistory:
        """Return the whole conversation of a session, also what is too old for a model to be shown.

        Raises:
            NotFound: the owner has no such session.
        """
        journal = self._journal(owner, session_id)
        await journal.record()  # whose it is
        state = SessionState(_BOUNDLESS)
        turns: dict[str, ToldTurn] = {}
        while rows := await journal.read(state.last_seq, _PAGE_ROWS):
            for row in rows:
                state.apply((row,), 0.0)
                _tell(turns, row.event, state.items)
        if state.turn is not None and state.turn.waits and (waiting := turns.get(state.turn.turn_id)) is not None:
            turns[waiting.turn_id] = replace(waiting, state="waiting")
        kept = {item.item_id for item in state.items}
        return SessionHistory(
            items=tuple(state.items), turns=tuple(turn for turn in turns.values() if turn.after in kept)
        )

    def rows(self, owner: Owner, session_id: str) -> AsyncGenerator[tuple[Committed, ...], None]:
        """Yield the rows of a session; see `journal.read_rows`."""
        return read_rows(self._database, self._clock, Owner.of(owner).within(session_id), session_id)

    def _journal(self, owner: Owner, session_id: str, *, new: bool = False) -> Journal:
        owner = Owner.of(owner).within(session_id)
        return Journal(self._database, self._clock, owner, session_id, new=new, blobs=self._blobs, lease=self._lease)

    async def _fold(self, journal: Journal) -> SessionState:
        """Fold the end of the log, as far back as the items reach that are kept and the turn that was last accepted."""
        record = await journal.record()
        self._check_lease(record)
        state = await fold(journal, self._limits, record.last_seq, self._clock.now_s())
        state.settings = settings_of(record)
        return state

    def _check_lease(self, record: SessionRecord) -> None:
        """Check that no other server may be running the session.

        Raises:
            Unavailable: one may.
        """
        if self._lease is None or record.owner in (None, self._lease.owner) or record.lease_until_ms is None:
            return
        left_s = record.lease_until_ms / 1000 - self._clock.wall_s()
        if left_s > 0:
            raise Unavailable(
                f"The session {record.session_id!r} is run by another server. Ask that one, or try again later.",
                code="session_elsewhere",
                retry_after_s=left_s,
            )

    def _make_room(self, tenant: str) -> None:
        """Put away the session that was opened first and is not used, if there are too many; first the tenant's own."""
        if self._stopping.is_set():
            raise Overloaded("The server is stopping. Try again in a moment.", code="server_stopping")
        if len(self._open) >= self._max_tenant_open:
            own = {key: session for key, session in self._open.items() if session.tenant == tenant}
            if len(own) >= self._max_tenant_open and not self._put_one_away(own):
                raise Overloaded(
                    f"{self._max_tenant_open} sessions of yours are in use, the most you may have at a time. Close some.",
                    code="too_many_sessions",
                )
        if len(self._open) < self._max_open or self._put_one_away(self._open):
            return
        raise Overloaded(f"{self._max_open} sessions are in use, the most this server takes. Try again later.")

    def _put_one_away(self, sessions: Mapping[str, Session]) -> bool:
        for session_id, session in sessions.items():
            if session.put_away():
                del self._open[session_id]
                return True
        return False

    def _start(self, owner: Owner, session_id: str, state: SessionState, journal: Journal) -> Session:
        session = Session(owner, session_id, state, journal, self._executor, self._clock, self._meters)
        self._open[session_id] = session
        self._tasks.create_task(self._run(session))
        return session

    async def _run(self, session: Session) -> None:
        try:
            await session.run()
        except Exception:  # noqa: BLE001  # a defect in one session must not end the others
            _log.exception("session %s failed", session.session_id)
        finally:
            if self._open.get(session.session_id) is session:
                del self._open[session.session_id]


def settings_of(record: SessionRecord) -> SessionSettings:
    """Return the settings of a session from what is kept of it."""
    return SessionSettings(title=record.title, instructions=record.instructions, model=record.model)


def _tell(turns: dict[str, ToldTurn], event: LogEvent, items: Sequence[Item]) -> None:
    """Take an event, which `items` are the conversation after, into `turns`."""
    match event:
        case TurnAccepted(turn_id=turn_id) if items:
            turns[turn_id] = ToldTurn(turn_id=turn_id, after=items[-1].item_id)
        case ItemClosed(turn_id=turn_id) if turn_id in turns:
            turns[turn_id] = replace(turns[turn_id], after=event.item.item_id)
        case TurnEnded(turn_id=turn_id) if turn_id in turns:
            reason = event.reason if event.fault is None else event.fault.code
            turns[turn_id] = replace(turns[turn_id], state=event.state, reason=reason)
        case _:
            pass
