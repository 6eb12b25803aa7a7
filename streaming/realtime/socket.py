"""`/v1/realtime`: one websocket, between the protocol and a session.

`?session=ID` goes on with a session, `&after=SEQ` from a row of its log (0 is the start); without them the connection
gets a new session. `&baton=events` asks for `baton.*` events from the first row on; asked for by `session.update`, they
begin when that is heard, which may be after rows were sent.

Two loops share the socket: one reads the client and asks the session, in order; one sends the client what the session
yields. Neither holds a queue; a client that leaves what it is sent unread for `send_timeout_s` is dropped, and its
session goes on without it (see `detach_grace_s`).
"""

import asyncio
import json
import logging
from collections.abc import Set
from contextlib import aclosing
from typing import assert_never

from starlette.websockets import WebSocket, WebSocketDisconnect

from memory.keys import RequestDefaults
from models.clock import Clock
from models.content import CallResult
from models.errors import BadInput, BatonError, Conflict, NotFound, Overloaded
from orchestrator.build import Conductor
from orchestrator.session import Session
from streaming.auth import SUBPROTOCOL, Caller
from streaming.errors import error_response
from streaming.limits import RateLimits, SurfaceLimits
from streaming.metrics import SurfaceMeters
from streaming.realtime.events import BatonOptions, ServerEvent, SessionOptions
from streaming.realtime.protocol import AddItem, Cancel, Command, RealtimeProtocol, Respond

_log = logging.getLogger(__name__)


class RealtimeEndpoint:
    """Serves `/v1/realtime`; one for all connections."""

    def __init__(self, conductor: Conductor, limits: SurfaceLimits, rates: RateLimits, meters: SurfaceMeters) -> None:
        self._conductor = conductor
        self._limits = limits
        self._rates = rates
        self._meters = meters
        self._sockets = 0

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection until either side ends it."""
        caller: Caller = websocket.state.caller
        try:
            session, after, options = await self._admit(websocket, caller)
        except BatonError as exc:
            await websocket.send_denial_response(error_response(exc))
            return
        offered = websocket.scope.get("subprotocols", [])
        await websocket.accept(
            subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None,
            headers=[(b"x-baton-session", session.session_id.encode())],
        )
        before = await session.last_item_id(after)
        protocol = RealtimeProtocol(session.session_id, after, options=options, last_item_id=before)
        connection = _Connection(websocket, session, protocol, caller, self._conductor.clock, self._limits, self._rates)
        self._sockets += 1
        self._meters.sockets.labels(caller.tenant).inc()
        try:
            await connection.run(after)
        finally:
            self._sockets -= 1
            self._meters.sockets.labels(caller.tenant).dec()

    async def _admit(self, websocket: WebSocket, caller: Caller) -> tuple[Session, int, SessionOptions]:
        if self._sockets >= self._limits.sockets:
            raise Overloaded(
                f"{self._limits.sockets} websockets are open, the most this server takes. Try again later."
            )
        query = websocket.query_params
        options = _options(caller, query.get("model"), {card.name for card in self._conductor.cards})
        if query.get("baton") not in {None, "events"}:
            raise BadInput("Of Baton's extensions, only 'baton=events' can be asked for.", field="baton")
        options = options.model_copy(update={"baton": BatonOptions(events="baton" in query)})
        sessions = self._conductor.sessions
        if (session_id := query.get("session")) is None:
            session = await sessions.create(caller.tenant)
        else:
            session = await sessions.open(caller.tenant, session_id)
        asked = query.get("after")
        if asked is None:
            return session, session.last_seq, options
        if not (asked.isascii() and asked.isdecimal()) or int(asked) > session.last_seq:
            raise BadInput(
                f"This session's last row is {session.last_seq}; it cannot go on after {asked!r}.",
                code="sequence_gap",
                field="after",
            )
        return session, int(asked), options


class _Connection:
    """One client, while it is connected."""

    def __init__(
        self,
        websocket: WebSocket,
        session: Session,
        protocol: RealtimeProtocol,
        caller: Caller,
        clock: Clock,
        limits: SurfaceLimits,
        rates: RateLimits,
    ) -> None:
        self._websocket = websocket
        self._session = session
        self._protocol = protocol
        self._caller = caller
        self._clock = clock
        self._limits = limits
        self._rates = rates
        self._sending = asyncio.Lock()

    async def run(self, after: int) -> None:
        """Run until the client goes, stops reading, or the session is closed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._send(self._protocol.opening())
                tasks.create_task(self._tell(after))
                tasks.create_task(self._hear())
        except* (WebSocketDisconnect, _Gone):
            pass  # also what sending to a client who has gone raises

    async def _tell(self, after: int) -> None:
        """Send what the session yields."""
        try:
            async with aclosing(self._session.events(after)) as events:
                async for event in events:
                    await self._send(self._protocol.session_event(event))
        except BatonError as exc:
            await self._send(self._protocol.failed(exc, None))
            async with self._clock.timeout_at(self._clock.now_s() + self._limits.send_timeout_s):
                await self._websocket.close(1012, "the session was closed; connect again")
            raise _Gone from exc

    async def _hear(self) -> None:
        """Do what the client asks, one thing after another."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise _Gone
            received = self._protocol.receive(message.get("text") or "")
            await self._send(received.replies)
            if received.command is None:
                continue
            try:
                await self._do(received.command)
            except BatonError as exc:
                await self._send(self._protocol.failed(exc, received.event_id))

    async def _do(self, command: Command) -> None:
        match command:
            case AddItem(item=CallResult() as result):
                await self._session.tool_result(result.call_id, result.parts, item_id=result.item_id)
            case AddItem():
                await self._session.add((command.item,))
            case Respond():
                self._rates.take(self._caller.key)
                await self._session.respond(command.turn_input)
            case Cancel():
                turn_id = command.turn_id or self._session.running_turn
                if turn_id is None:
                    raise Conflict("No response is running.", code="turn_not_active")
                await self._session.cancel(turn_id, "client_cancelled")
            case _:
                assert_never(command)

    async def _send(self, events: tuple[ServerEvent, ...]) -> None:
        """Send events that belong together, with none of the other loop's between them."""
        async with self._sending:
            for event in events:
                text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
                try:
                    async with self._clock.timeout_at(self._clock.now_s() + self._limits.send_timeout_s):
                        await self._websocket.send_text(text)
                except TimeoutError as exc:
                    _log.info("a client of session %s left unread what it was sent", self._session.session_id)
                    raise _Gone from exc
                except RuntimeError as exc:  # what starlette says of a socket that is closed already
                    raise _Gone from exc


class _Gone(Exception):
    """The client does not read what it is sent, or is not there any more."""


def _options(caller: Caller, asked: str | None, models: Set[str]) -> SessionOptions:
    defaults = RequestDefaults() if caller.key is None else caller.key.defaults
    model = asked or defaults.model
    if model is not None and model not in models:
        known = ", ".join(sorted(models))
        raise NotFound(f"There is no model {model!r}. Known models: {known}.", code="model_not_found", field="model")
    return SessionOptions(
        type="realtime",
        model=model,
        instructions=defaults.instructions,
        output_modalities=["text"],
        max_output_tokens=defaults.max_output_tokens,
    )
