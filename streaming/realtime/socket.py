"""`/v1/realtime`: one websocket, between the protocol and a session.

`?session=ID` goes on with a session, `&after=SEQ` from a row of its log (0 is the start); without them the connection
gets a new session. A turn that runs is told from its beginning, so that its response is announced as it was. `&baton=events` asks for `baton.*` events from the first row on; asked for by `session.update`, they
begin when that is heard, which may be after rows were sent.

Two loops share the socket: one reads the client and asks the session, in order, without waiting for what it asks to be
decided; one sends the client what the session yields. Neither holds a queue; a client that leaves unread what it is sent is dropped by the transport, and its
session goes on without it (see `detach_grace_s`).
"""

import asyncio
import logging
from contextlib import aclosing, suppress
from typing import assert_never

from pydantic import TypeAdapter
from starlette.websockets import WebSocket, WebSocketDisconnect

from memory.keys import RequestDefaults
from models.clock import Clock
from models.content import Message, status_of
from models.errors import BadInput, BatonError, Conflict, Internal, LimitExceeded, Overloaded, Unauthorized
from models.shares import Shares
from orchestrator.act.completions import Completions
from orchestrator.act.vetting import Vetting
from orchestrator.build import Conductor
from orchestrator.sessions.handle import Session
from orchestrator.sessions.requests import Pending, TurnRequest
from streaming.auth import SUBPROTOCOL, Authenticator, Caller
from streaming.limits import RateLimits, SurfaceLimits
from streaming.metrics import SurfaceMeters
from streaming.realtime.asides import Asides, context_of
from streaming.realtime.events import ServerEvent
from streaming.realtime.options import Bounds, Options
from streaming.realtime.protocol import (
    AddItem,
    Cancel,
    Command,
    RealtimeProtocol,
    Received,
    RemoveItem,
    Respond,
    ShowItem,
    Truncate,
)
from streaming.realtime.updates import SetOptions, check_response, possible
from streaming.subjects import whose
from streaming.wire.errors import error_response, told
from streaming.wire.sse import Disconnected

_log = logging.getLogger(__name__)

_TOLD_S = 1.0
"""How long a client is told what came of what it asked for, once its session is closed."""

_IS_THERE = frozenset({"item_exists", "call_answered"})
"""Why an item is refused that the conversation has already."""

_EVENT: TypeAdapter[ServerEvent] = TypeAdapter(ServerEvent)


class RealtimeEndpoint:
    """Serves `/v1/realtime`; one for all connections."""

    def __init__(
        self,
        conductor: Conductor,
        limits: SurfaceLimits,
        authenticator: Authenticator,
        rates: RateLimits,
        meters: SurfaceMeters,
    ) -> None:
        self._conductor = conductor
        self._authenticator = authenticator
        self._rates = rates
        self._meters = meters
        self._open = Shares(
            limits.sockets, limits.tenant_sockets, what="websockets are open", code="too_many_connections"
        )

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection until either side ends it."""
        caller: Caller = websocket.state.caller
        try:
            self._open.enter(caller.tenant)
        except Overloaded as exc:
            await self._refuse(websocket, caller, exc)
            return
        self._meters.sockets.labels(caller.tenant).inc()
        try:
            await self._serve(websocket, caller)
        finally:
            self._open.leave(caller.tenant)
            self._meters.sockets.labels(caller.tenant).dec()

    async def _serve(self, websocket: WebSocket, caller: Caller) -> None:
        try:
            session, after, protocol = await self._admit(websocket, caller)
        except BatonError as exc:
            await self._refuse(websocket, caller, exc)
            return
        offered = websocket.scope.get("subprotocols", [])
        await websocket.accept(
            subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None,
            headers=[(b"x-baton-session", session.session_id.encode())],
        )
        connection = _Connection(
            websocket,
            session,
            protocol,
            caller,
            self._authenticator,
            self._rates,
            self._meters,
            self._conductor.completions,
            self._conductor.vetting,
            self._conductor.clock,
        )
        await connection.run(after)

    async def _refuse(self, websocket: WebSocket, caller: Caller, error: BatonError) -> None:
        self._meters.errors.labels(caller.tenant, told(error).code).inc()
        await websocket.send_denial_response(error_response(error))

    async def _admit(self, websocket: WebSocket, caller: Caller) -> tuple[Session, int, RealtimeProtocol]:
        query = websocket.query_params
        model = query.get("model")
        if model is not None:
            self._conductor.check_model(model)
        if query.get("baton") not in {None, "events"}:
            raise BadInput("Of Baton's extensions, only 'baton=events' can be asked for.", field="baton")
        bounds = Bounds(
            check_model=self._conductor.check_model,
            characters=self._conductor.settings.max_input_characters,
            tools={tool.spec.name: tool.spec for tool in self._conductor.tools},
        )
        sessions, owner = self._conductor.sessions, whose(websocket)
        if (session_id := query.get("session")) is None:
            session = await sessions.create(owner)
        else:
            session = await sessions.open(owner, session_id)
        after = _after(query.get("after"), session)
        protocol = RealtimeProtocol(
            session.session_id,
            after,
            options=Options(model=model),
            baton_events="baton" in query,
            subject=session.owner.name,
            bounds=bounds,
            defaults=RequestDefaults() if caller.key is None else caller.key.defaults,
            settings=session.settings,
            order=await session.order(after),
        )
        return session, after, protocol


class _Connection:
    """One client, while it is connected."""

    def __init__(
        self,
        websocket: WebSocket,
        session: Session,
        protocol: RealtimeProtocol,
        caller: Caller,
        authenticator: Authenticator,
        rates: RateLimits,
        meters: SurfaceMeters,
        completions: Completions,
        vetting: Vetting,
        clock: Clock,
    ) -> None:
        self._authenticator = authenticator
        self._completions = completions
        self._vetting = vetting
        self._clock = clock
        self._meters = meters
        self._asides: Asides
        self._tasks: asyncio.TaskGroup
        self._websocket = websocket
        self._session = session
        self._protocol = protocol
        self._caller = caller
        self._rates = rates
        self._sending = asyncio.Lock()
        self._obeying = asyncio.Lock()
        self._seeing_to: set[asyncio.Task[None]] = set()
        self._missing: BatonError | None = None  # why the item that was sent last is not in the conversation

    async def run(self, after: int) -> None:
        """Run until the client goes, stops reading, or the session is closed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._send(self._protocol.opening())
                self._asides = Asides(
                    self._completions, self._clock, self._session, self._protocol, tasks, self._send_to_who_may
                )
                tasks.create_task(self._tell(after))
                tasks.create_task(self._hear())
        except* (WebSocketDisconnect, Disconnected):
            pass  # also what sending to a client who has gone raises

    async def _tell(self, after: int) -> None:
        """Send what the session yields."""
        try:
            async with aclosing(self._session.events(after)) as events:
                async for event in events:
                    await self._check(None)
                    await self._send(self._protocol.session_event(event))
        except BatonError as exc:
            async with self._obeying:  # what the client is being answered is answered first
                await self._told_of_all()
                await self._send(self._protocol.failed(exc, None))
                await self._close(*_closure(exc))
            raise Disconnected from exc

    async def _hear(self) -> None:
        """Have the client's wishes done, one after another. What takes its time is seen to elsewhere: the ear stays open."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise Disconnected
            async with self._obeying:
                await self._obey(self._protocol.receive(str(message.get("text") or ""), self._session.settings))

    async def _obey(self, received: Received) -> None:
        if await self._may(received):
            await self._reply(received.replies)
            await self._attempt(received)

    async def _may(self, received: Received) -> bool:
        """Return whether the client may have this done, and count it at its key's rate if it asks work of the session."""
        try:
            await self._check(received.event_id)
        except BatonError as exc:  # it cannot be said
            self._note(received.command, exc)
            await self._reply(self._protocol.failed(exc, received.event_id))
            return False
        if received.refused is not None:
            self._missing = received.refused
        if received.command is None or isinstance(received.command, Cancel | SetOptions):
            return True
        try:
            self._rates.take(self._caller.key)
        except BatonError as exc:
            self._note(received.command, exc)
            await self._reply(self._protocol.failed(exc, received.event_id))
            return False
        return True

    async def _check(self, event_id: str | None) -> None:
        """Let go of a client whose key was revoked."""
        try:
            await self._authenticator.check(self._caller)
        except Unauthorized as exc:
            await self._reply(self._protocol.failed(exc, event_id))
            await self._close(1008, "the key is not good any more")
            raise Disconnected from exc

    async def _attempt(self, received: Received) -> None:
        if received.command is None:
            return
        try:
            self._check_answerable(received.command)
            pending = await self._do(received.command)
            self._note(received.command, None)
            if pending is not None and not pending.is_settled:
                seen_to = self._tasks.create_task(self._see_to(pending, received))
                self._seeing_to.add(seen_to)
                seen_to.add_done_callback(self._seeing_to.discard)
        except BatonError as exc:
            self._note(received.command, exc)
            await self._reply(self._protocol.failed(exc, received.event_id, received.command))
        except Exception:  # noqa: BLE001  # a defect in one event costs neither the connection nor the session
            _log.exception("an event of session %s failed", self._session.session_id)
            error = Internal("This event failed on our side. Try again; the server's log has the cause.")
            self._note(received.command, error)
            await self._reply(self._protocol.failed(error, received.event_id))

    async def _told_of_all(self) -> None:
        """Wait until the client is told of everything that it asked for: a session that is closed settles all of it."""
        with suppress(TimeoutError):
            async with self._clock.timeout_at(self._clock.now_s() + _TOLD_S):
                while self._seeing_to:
                    await asyncio.wait(self._seeing_to)

    async def _see_to(self, pending: Pending, received: Received) -> None:
        """Tell the client if what it asked for does not come about."""
        try:
            await pending.done()
        except BatonError as exc:
            if (
                isinstance(pending, TurnRequest)
                and exc.code == "turn_cancelled"
                and isinstance(received.command, Respond)
            ):
                await self._send(self._protocol.never_begun(pending.turn_id, received.command.turn_input))
                return
            self._note(received.command, exc)
            await self._reply(self._protocol.failed(exc, received.event_id, received.command))

    def _check_answerable(self, command: Command) -> None:
        """Refuse to answer a conversation that lacks what was said last, for the reason that it does; once.

        An answer to what came before it would look like one to it.
        """
        missing = self._missing
        is_to_it = isinstance(command, Respond) and command.context is None and not command.turn_input.items
        if is_to_it and missing is not None:
            self._missing = None
            raise missing

    def _note(self, command: Command | None, refused: BatonError | None) -> None:
        if isinstance(command, AddItem):
            is_there = refused is None or refused.code in _IS_THERE
            self._missing = None if is_there else refused

    async def _do(self, command: Command) -> Pending | None:
        """Do what is asked, or have it done; return what is still to come about."""
        match command:
            case AddItem() if _is_message(command):
                return await self._session.say((command.item,))
            case AddItem():
                await self._session.add((command.item,), command.after)
            case ShowItem():
                item, is_open = await self._session.find(command.item_id)
                status = "in_progress" if is_open else status_of(item)
                await self._reply(self._protocol.retrieved(item, status))
            case RemoveItem():
                await self._session.remove((command.item_id,))
            case Truncate():
                await self._truncate(command)
            case Respond():
                return await self._ask(command)
            case SetOptions():
                await self._set(command)
            case Cancel(turn_id=str() as named) if self._asides.cancel(named):
                pass
            case Cancel():
                await self._cancel(command.turn_id)
            case _:
                assert_never(command)
        return None

    async def _set(self, command: SetOptions) -> None:
        """Confirm what of an update can be; the settings of the session may change meanwhile."""
        settings = self._session.settings
        update = await possible(
            command, lambda tried: self._protocol.trial(tried, settings), self._vetting, self._session.owner
        )
        await self._reply(self._protocol.confirm(update, self._session.settings))

    async def _ask(self, command: Respond) -> Pending:
        if command.own:
            await check_response(command.turn_input, command.own, self._vetting, self._session.owner)
        if command.is_aside:
            return await self._asides.begin(command)
        context = None if command.context is None else await context_of(self._session, command)
        interrupts = self._session.running_turn if command.interrupts else None
        return await self._session.request(command.turn_input, context, interrupts=interrupts)

    async def _cancel(self, turn_id: str | None) -> None:
        """Stop the response that is named; or the one that runs, and the one that was to interrupt it."""
        asked = (self._session.requested_turn, self._session.running_turn) if turn_id is None else (turn_id,)
        turns = [each for each in asked if each is not None]
        if not turns:
            raise Conflict("No response is running.", code="turn_not_active")
        for each in turns[:-1]:
            with suppress(Conflict):  # it has just ended by itself
                await self._session.cancel(each, "client_cancelled")
        await self._session.cancel(turns[-1], "client_cancelled")

    async def _truncate(self, command: Truncate) -> None:
        try:
            await self._session.heard(command.item_id, command.heard_ms, is_over=True)
        except LimitExceeded as exc:
            exc.field = "audio_end_ms"
            raise

    async def _reply(self, events: tuple[ServerEvent, ...]) -> None:
        """Send what came of a client's event, and count it if it is an error."""
        for event in events:
            if event["type"] == "error":
                self._meters.errors.labels(self._caller.tenant, event["error"]["code"]).inc()
        await self._send(events)

    async def _send_to_who_may(self, events: tuple[ServerEvent, ...]) -> None:
        await self._check(None)
        await self._send(events)

    async def _send(self, events: tuple[ServerEvent, ...]) -> None:
        """Send events that belong together, with none of the other loop's between them."""
        async with self._sending:
            for event in events:
                text = _EVENT.dump_json(event).decode()
                try:
                    await self._websocket.send_text(text)
                except RuntimeError as exc:  # what starlette says of a socket that is closed already
                    raise Disconnected from exc

    async def _close(self, code: int, reason: str) -> None:
        async with self._sending:
            with suppress(RuntimeError):  # closed already
                await self._websocket.close(code, reason)


def _closure(error: BatonError) -> tuple[int, str]:
    """Return the close code for a session that ended, and the words for it (RFC 6455, 7.4.1, and IANA's registry).

    1012 has clients connect again at once, which helps where the session only has to be opened anew. While the server cannot
    keep what is said, it would lead them into the same failure: 1013 asks them to come later. What does not pass is 1011.
    """
    if error.code == "session_closed":
        return 1012, "the session was closed; connect again"
    if error.retryable or error.code == "storage_full":
        return 1013, "nothing can be kept now; try again later"
    return 1011, "the server cannot go on with this session"


def _is_message(command: Command | None) -> bool:
    return isinstance(command, AddItem) and isinstance(command.item, Message) and command.after is None


def _after(asked: str | None, session: Session) -> int:
    """Return the row to begin after: where the client says, or now; before a turn that runs, which is told anew."""
    last = session.last_seq
    if asked is not None and not (len(asked) < 20 and asked.isascii() and asked.isdecimal() and int(asked) <= last):
        raise BadInput(
            f"This session's last row is {last}; it cannot go on after {asked[:20]!r}.",
            code="sequence_gap",
            field="after",
        )
    after = last if asked is None else int(asked)
    return after if session.running_since is None else min(after, session.running_since - 1)
