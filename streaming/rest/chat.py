"""`POST /v1/chat/completions`. With `store: true` the turn is a session's, and kept; without, nothing of it is."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from memory.keys import RequestDefaults
from models.content import Item
from models.errors import BatonError, NotFound
from models.ids import new_id
from models.owner import Owner
from orchestrator.act.completions import Completion
from orchestrator.build import Conductor
from orchestrator.events import Committed, Decision, TurnAccepted, TurnInput
from orchestrator.sessions.handle import Session
from streaming.auth import Caller
from streaming.rest.answer import Answer, of_completion, of_session
from streaming.rest.chat_reply import Reply, in_chats_words
from streaming.rest.chat_request import ChatRequest
from streaming.rest.choices import Choices, for_choice
from streaming.rest.sampling import wants_usage
from streaming.rest.whole import Whole
from streaming.subjects import whose
from streaming.wire.route import RestRoute
from streaming.wire.sse import EventStream


def chat_routes(conductor: Conductor) -> APIRouter:
    """Return the route."""
    router = APIRouter(route_class=RestRoute)

    @router.post("/v1/chat/completions")
    async def complete(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        caller: Caller = request.state.caller
        defaults = RequestDefaults() if caller.key is None else caller.key.defaults
        history, turn_input = body.turn(defaults)
        owner = whose(request, safety_identifier=body.safety_identifier, user=body.user)
        if body.store:
            return _Stored(conductor, owner, body, turn_input, history)
        return _Stateless(conductor, owner.within(new_id("call")), body, turn_input, history)

    return router


class _Stateless(Response):
    """Answers a turn of no session. The turn is counted in from its decision to the last byte of its answer."""

    def __init__(
        self,
        conductor: Conductor,
        owner: Owner,
        body: ChatRequest,
        turn_input: TurnInput,
        history: tuple[Item, ...],
    ) -> None:
        super().__init__()
        self._conductor = conductor
        self._owner = owner
        self._body = body
        self._turn = (turn_input, history)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        conductor = self._conductor
        if self._body.choices > 1:
            await self._answer_many(scope, receive, send)
            return
        with _in_chats_words():
            async with conductor.completions.begin(self._owner, *self._turn) as completion:
                reply = _reply_of(conductor, completion)
                response = _response(conductor, self._body, reply, of_completion(completion))
                await response(scope, receive, send)

    async def _answer_many(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer several times; each answer is a turn, and takes its place among the tenant's."""
        conductor, body, (turn_input, history) = self._conductor, self._body, self._turn
        fork = new_id("fork")
        async with AsyncExitStack() as begun:
            with _in_chats_words():
                completions = [
                    await begun.enter_async_context(
                        conductor.completions.begin(self._owner, for_choice(turn_input, index), history, fork=fork)
                    )
                    for index in range(body.choices)
                ]
            first = completions[0]
            created_s = _now_s(conductor)
            replies = [
                Reply(first.turn_id, first.decision, created_s, session_id=None, index=index)
                for index in range(body.choices)
            ]
            choices = Choices(replies, [of_completion(completion) for completion in completions])
            answer: Response
            if body.stream:
                answer = EventStream(choices.chunks(include_usage=wants_usage(body.stream_options)), conductor.clock)
            else:
                answer = Whole(choices.whole())
            await answer(scope, receive, send)


class _Stored(Response):
    """Answers a turn of a new session, which outlives its client by the session's grace, and which it follows throughout."""

    def __init__(
        self, conductor: Conductor, owner: Owner, body: ChatRequest, turn_input: TurnInput, history: tuple[Item, ...]
    ) -> None:
        super().__init__()
        self._conductor = conductor
        self._owner = owner
        self._body = body
        self._turn = (turn_input, history)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        conductor = self._conductor
        session = await conductor.sessions.create(self._owner)
        with session.followed():
            decision, turn_id, after = await self._ask(session)
            reply = Reply(turn_id, decision, _now_s(conductor), session_id=session.session_id)
            response = _response(conductor, self._body, reply, of_session(session, turn_id, after))
            await response(scope, receive, send)

    async def _ask(self, session: Session) -> tuple[Decision, str, int]:
        """Put the conversation into the session and ask for the answer; return it with the row before the turn's."""
        turn_input, history = self._turn
        try:
            with _in_chats_words():
                if history:
                    await session.add(history)
                after = session.last_seq
                turn_id = await session.respond(turn_input)
        except BatonError:
            with suppress(NotFound):  # it has no row yet
                await self._conductor.sessions.delete(self._owner, session.session_id)
            raise
        async with aclosing(session.events(after)) as events:
            async for event in events:
                if isinstance(event, Committed) and isinstance(event.event, TurnAccepted):
                    return event.event.decision, turn_id, after
        raise AssertionError("a session's events end only by an error")


def _response(
    conductor: Conductor,
    body: ChatRequest,
    reply: Reply,
    answer: AsyncGenerator[Answer, None],
) -> Response:
    if not body.stream:
        return Whole(reply.whole(answer))
    return EventStream(reply.chunks(answer, include_usage=wants_usage(body.stream_options)), conductor.clock)


def _reply_of(conductor: Conductor, completion: Completion) -> Reply:
    return Reply(completion.turn_id, completion.decision, _now_s(conductor), session_id=None)


@contextmanager
def _in_chats_words() -> Iterator[None]:
    """Name the field of an error as this request has it, not as the conductor calls it."""
    try:
        yield
    except BatonError as exc:
        in_chats_words(exc)
        raise


def _now_s(conductor: Conductor) -> int:
    return int(conductor.clock.wall_s())
