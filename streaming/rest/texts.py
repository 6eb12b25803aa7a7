"""`POST /v1/completions`: a text that goes on, without a chat template. Nothing of it is kept."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from memory.keys import RequestDefaults
from models.errors import BatonError
from models.ids import new_id
from models.owner import Owner
from orchestrator.act.completions import Completion
from orchestrator.build import Conductor
from orchestrator.events import TurnInput
from streaming.auth import Caller
from streaming.rest.answer import of_completion
from streaming.rest.choices import Choices, for_choice
from streaming.rest.sampling import wants_usage
from streaming.rest.text_reply import TextReply, in_texts_words
from streaming.rest.text_request import TextRequest
from streaming.rest.whole import Whole
from streaming.subjects import whose
from streaming.wire.route import RestRoute
from streaming.wire.sse import EventStream


def text_routes(conductor: Conductor) -> APIRouter:
    """Return the route."""
    router = APIRouter(route_class=RestRoute)

    @router.post("/v1/completions")
    async def complete(body: TextRequest, request: Request) -> Response:
        """Go on with texts."""
        caller: Caller = request.state.caller
        defaults = RequestDefaults() if caller.key is None else caller.key.defaults
        prompts = body.prompts()
        owner = whose(request, user=body.user).within(new_id("call"))
        return _Texts(conductor, owner, body, prompts, [body.turn(prompt, defaults) for prompt in prompts])

    return router


class _Texts(Response):
    """Answers prompts, each as often as was asked; every answer is a turn, counted in until the last byte of all."""

    def __init__(
        self,
        conductor: Conductor,
        owner: Owner,
        body: TextRequest,
        prompts: Sequence[str],
        turns: Sequence[TurnInput],
    ) -> None:
        super().__init__()
        self._conductor = conductor
        self._owner = owner
        self._body = body
        self._prompts = prompts
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        conductor, body = self._conductor, self._body
        async with AsyncExitStack() as begun:
            with _in_texts_words():
                completions = [
                    completion for turn_input in self._turns async for completion in self._begin(begun, turn_input)
                ]
            created_s = int(conductor.clock.wall_s())
            replies = [
                TextReply(
                    completions[0].turn_id,
                    completion.decision,
                    created_s,
                    index=index,
                    before=self._prompts[index // body.copies] if body.echo else "",
                )
                for index, completion in enumerate(completions)
            ]
            choices = Choices(replies, [of_completion(each) for each in completions], copies=body.copies)
            answer = (
                EventStream(choices.chunks(include_usage=wants_usage(body.stream_options)), conductor.clock)
                if body.stream
                else Whole(choices.whole())
            )
            await answer(scope, receive, send)

    async def _begin(self, begun: AsyncExitStack, turn_input: TurnInput) -> AsyncIterator[Completion]:
        """Begin the answers to one prompt."""
        fork = new_id("fork") if self._body.copies > 1 else None
        for copy in range(self._body.copies):
            yield await begun.enter_async_context(
                self._conductor.completions.begin(self._owner, for_choice(turn_input, copy), (), fork=fork)
            )


@contextmanager
def _in_texts_words() -> Iterator[None]:
    """Name the field of an error as this request has it, not as the conductor calls it."""
    try:
        yield
    except BatonError as exc:
        in_texts_words(exc)
        raise
