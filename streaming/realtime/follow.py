"""`GET /v1/sessions/{id}/events` follows a session: the websocket's events, each row's last one under the row's number."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from memory.keys import RequestDefaults
from models.errors import BadInput
from models.shares import Shares
from orchestrator.build import Conductor
from orchestrator.events import Committed
from orchestrator.sessions.handle import Session
from streaming.auth import Authenticator, Caller
from streaming.limits import SurfaceLimits
from streaming.realtime.options import Options
from streaming.realtime.protocol import RealtimeProtocol
from streaming.subjects import whose
from streaming.wire.route import RestRoute
from streaming.wire.sse import EventStream, event

_HEARD_ROWS = 64
"""How far back a reader who returns is taken to have heard of a turn; a turn seldom has a tenth of it."""


async def session_events(session: Session, after: int | None) -> AsyncGenerator[bytes, None]:
    """Yield what happens after row `after`, or from now on, as server-sent events.

    A reader who returns in the middle of a turn has heard its beginning: the rows up to `after` are told to nobody, so
    that the response goes on where it was. One who comes anew is told a turn that runs from its beginning.

    Raises:
        BadInput: the session has no row `after` yet.
    """
    heard = _first(session) if after is None else _reached(session, after)
    at = heard if after is None or _between_turns(session, heard) else max(0, heard - _HEARD_ROWS)
    protocol = RealtimeProtocol(
        session.session_id,
        at,
        options=Options(),
        baton_events=True,
        defaults=RequestDefaults(),
        settings=session.settings,
        order=await session.order(at),
    )
    yield b": here\n\n"
    async with aclosing(session.events(at)) as events:
        async for one in events:
            told = protocol.session_event(one)
            if isinstance(one, Committed):
                at = one.seq
                if at <= heard:
                    continue
            elif at < heard:
                continue
            for n, wire in enumerate(told, start=1):
                is_end_of_row = isinstance(one, Committed) and n == len(told)
                yield event(json.dumps(wire, ensure_ascii=False), kind=wire["type"], seq=at if is_end_of_row else None)


def follow_routes(conductor: Conductor, limits: SurfaceLimits, authenticator: Authenticator) -> APIRouter:
    """Return the route."""
    router = APIRouter(prefix="/v1/sessions", route_class=RestRoute)
    followers = Followers(limits, authenticator)

    @router.get("/{session_id}/events")
    async def follow_session(
        session_id: str,
        request: Request,
        after: Annotated[int | None, Query(ge=0)] = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Send what has happened since a row, and then what happens."""
        caller: Caller = request.state.caller
        session = await conductor.sessions.open(whose(request), session_id)
        events = session_events(session, row_asked_for(after, last_event_id))
        return EventStream(followers.follow(events, caller), conductor.clock)

    return router


class Followers:
    """Counts who follows sessions by server-sent events, and tells each only what it may still hear."""

    def __init__(self, limits: SurfaceLimits, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._shares = Shares(
            limits.streams, limits.tenant_streams, what="sessions are being followed", code="too_many_connections"
        )

    async def follow(self, chunks: AsyncGenerator[bytes, None], caller: Caller) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of one more follower.

        Raises:
            Overloaded: there are too many, or too many of the caller's.
            Unauthorized: the caller's key was revoked meanwhile.
        """
        with self._shares.held(caller.tenant):
            async with aclosing(chunks):
                async for chunk in chunks:
                    await self._authenticator.check(caller)
                    yield chunk


def row_asked_for(after: int | None, last_event_id: str | None) -> int | None:
    """Return the row to begin after. A browser that reconnects sends the last one it was given: it goes first.

    Raises:
        BadInput: what was sent is no number.
    """
    if last_event_id is None:
        return after
    if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 20):
        raise BadInput("'Last-Event-ID' is no number of a row.", code="sequence_gap", field="Last-Event-ID")
    return int(last_event_id)


def _first(session: Session) -> int:
    since = session.running_since
    return session.last_seq if since is None else since - 1


def _between_turns(session: Session, seq: int) -> bool:
    return seq == session.last_seq and session.running_since is None


def _reached(session: Session, seq: int) -> int:
    if seq > session.last_seq:
        raise BadInput(
            f"This session's last row is {session.last_seq}; it cannot go on after {seq}.",
            code="sequence_gap",
            field="after",
        )
    return seq
