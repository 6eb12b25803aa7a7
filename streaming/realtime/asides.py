"""The responses of one connection that stay beside the conversation (`conversation: "none"`).

They run beside the session's turn and beside each other, a few at a time. They are the connection's: when it ends, they are
stopped, and nothing of them is kept.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing

from models.clock import Clock
from models.content import Item
from models.errors import BatonError, Overloaded
from orchestrator.act.completions import Completions
from orchestrator.events import TurnInput
from orchestrator.sessions.asides import Aside
from orchestrator.sessions.handle import Session
from orchestrator.sessions.requests import Pending
from streaming.realtime.events import ServerEvent
from streaming.realtime.protocol import RealtimeProtocol, Respond
from streaming.realtime.server_events import ServerEvents

_MOST = 4
"""At a time, of one connection."""

Send = Callable[[tuple[ServerEvent, ...]], Awaitable[None]]


class Asides:
    """Begins them, tells of them, and cancels them."""

    def __init__(
        self,
        completions: Completions,
        clock: Clock,
        session: Session,
        protocol: RealtimeProtocol,
        tasks: asyncio.TaskGroup,
        send: Send,
    ) -> None:
        """Run them in `tasks`, which end with the connection, and send what is told of them by `send`."""
        self._completions = completions
        self._clock = clock
        self._session = session
        self._protocol = protocol
        self._tasks = tasks
        self._send = send
        self._running: dict[str, asyncio.Task[None]] = {}
        self._begun = 0

    async def begin(self, command: Respond) -> Pending:
        """Have one begun; whoever asked for it is told if it is refused.

        Raises:
            Overloaded: there are as many as there may be.
            BatonError: what it answers cannot be a conversation.
        """
        if self._begun >= _MOST:
            raise Overloaded(
                f"{_MOST} responses run beside the conversation, the most at a time. Wait for one to end.",
                code="too_many_turns",
            )
        history = await context_of(self._session, command)
        self._begun += 1
        pending = Pending()
        self._tasks.create_task(self._run(command.turn_input, history, pending))
        return pending

    def cancel(self, turn_id: str) -> bool:
        """Stop one; return whether there is one of that id."""
        task = self._running.get(turn_id)
        if task is None:
            return False
        task.cancel()
        return True

    async def _run(self, turn_input: TurnInput, history: Sequence[Item], pending: Pending) -> None:
        try:
            async with AsyncExitStack() as stack:
                try:
                    completion = await stack.enter_async_context(
                        self._completions.begin(self._session.owner, turn_input, history)
                    )
                except BatonError as exc:
                    pending.settle(exc)
                    return
                pending.settle(None)
                await self._follow(Aside(completion, turn_input, self._clock), self._protocol.aside(), stack)
        finally:
            self._begun -= 1

    async def _follow(self, aside: Aside, narrator: ServerEvents, stack: AsyncExitStack) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:  # one that is cancelled alone ends without a word
                self._running[aside.turn_id] = tasks.create_task(self._tell(aside, narrator))
        finally:
            self._running.pop(aside.turn_id, None)
        await stack.aclose()
        for event in aside.cancel("client_cancelled"):
            await self._send(self._protocol.aside_event(narrator, event))

    async def _tell(self, aside: Aside, narrator: ServerEvents) -> None:
        async with aclosing(aside.events()) as events:
            async for event in events:
                await self._send(self._protocol.aside_event(narrator, event))


async def context_of(session: Session, command: Respond) -> tuple[Item, ...]:
    """Return what a response answers.

    Raises:
        BatonError: that cannot be a conversation.
    """
    try:
        return await session.context(command.context)
    except BatonError as exc:
        exc.field = "response.input"
        raise
