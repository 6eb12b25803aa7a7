"""A conversation with the server: asks, follows the answer, and goes on after a loss of the connection."""

import asyncio
import random
from collections.abc import Callable

from models.errors import BatonError
from streaming.terminal.api import Api, Json, Unreachable
from streaming.terminal.exchange import Exchange
from streaming.terminal.interrupts import Interrupted, Interrupts
from streaming.terminal.link import Bookmark, Link
from streaming.terminal.screen import Screen
from streaming.terminal.transcript import (
    Answered,
    Answering,
    Display,
    Removed,
    Shown,
    ShownAnswer,
    ShownFault,
    ShownSettings,
    ShownWords,
    Waiting,
)

_FIRST_WAIT_S = 0.3
_LONGEST_WAIT_S = 5.0

# Nothing to tell: the answer that was to be stopped has just ended; a session that closes is gone back to.
_SILENT = frozenset({"response_cancel_not_active", "session_closed"})


class NotAnswered(BatonError):
    """A question was not taken; the message is the server's."""

    code = "not_answered"


class Chat:
    """One session at a time, shown on a screen.

    Attributes:
        chosen: settings that a new session is given: `model`, `instructions`.
    """

    def __init__(
        self,
        api: Api,
        screen: Screen,
        interrupts: Interrupts,
        *,
        patience_s: float,
        check: Callable[[], None],
    ) -> None:
        """Prepare; `open` connects.

        Args:
            api: the server.
            screen: where to show things.
            interrupts: whose Ctrl-C stops an answer.
            patience_s: how long a lost connection is tried for.
            check: raises if trying again is of no use.
        """
        self.chosen: dict[str, str | None] = {}
        self._api = api
        self._screen = screen
        self._interrupts = interrupts
        self._patience_s = patience_s
        self._check = check
        self._link = self._new_link(Bookmark())
        self._transcript = Display()
        self._backlog: list[ShownWords | Answered] = []
        self._behind = False
        self._goal = 0
        self._lost = False

    @property
    def session_id(self) -> str:
        """The session, which `open` has made known."""
        assert self._link.cursor.session_id is not None
        return self._link.cursor.session_id

    @property
    def begun(self) -> bool:
        """Whether the session can be gone back to."""
        return self._link.cursor.kept

    @property
    def settings(self) -> ShownSettings:
        """The session's settings, as last heard of."""
        return self._transcript.settings

    async def open(self, session_id: str | None, *, tell: bool = True) -> None:
        """Leave the session there is for another, or for a new one.

        Args:
            session_id: None makes a new one.
            tell: whether to show what was said in it; an answer that runs is followed to its end.
        """
        cursor = Bookmark()
        if session_id is not None:
            record = await self._api.session(session_id)
            cursor = Bookmark(session_id=session_id, seq=0 if tell else record["last_seq"], kept=True)
        await self.aclose()
        self._link, self._transcript, self._backlog = self._new_link(cursor), Display(), []
        await self._connect()
        if tell:
            await self._attend(None)
        self._behind = False

    async def ask(self, text: str) -> ShownAnswer | None:
        """Say `text` and show the answer. Ctrl-C stops the answer; again, or while there is no connection, the waiting.

        Returns:
            The answer; None if the question was taken back before there was one.

        Raises:
            NotAnswered: the server did not take the question.
            Unreachable: the connection stays lost.
        """
        exchange = Exchange(text)
        self._screen.show(Waiting(), ours=True)
        await self._link.send(exchange.pending())
        answer = await self._attend(exchange)
        if exchange.failure is not None:
            raise NotAnswered(exchange.failure)
        return answer

    async def change(self, **changes: str | None) -> None:
        """Change the session's `title`, `model` or `instructions`."""
        self._transcript.settle(await self._api.change(self.session_id, **changes))

    async def aclose(self) -> None:
        """Close the connection; the session stays."""
        await self._link.aclose()

    # Following

    async def _attend(self, exchange: Exchange | None) -> ShownAnswer | None:
        """Show what happens until `exchange` is over, or, without one, until there is nothing to wait for."""
        answer = None
        try:
            with self._interrupts.guarded():
                while True:
                    if self._behind and self._link.cursor.seq >= self._goal:
                        await self._caught_up(exchange)
                    if self._settled(exchange):
                        return answer
                    try:
                        event = await self._interrupts.wait(self._next)
                    except Interrupted:
                        if self._lost or (exchange is not None and exchange.stopping):
                            return answer
                        await self._link.send(self._stop(exchange))
                    else:
                        answer = await self._take(event, exchange) or answer
        finally:
            self._lost = False
            self._screen.rest()

    def _settled(self, exchange: Exchange | None) -> bool:
        if self._behind:
            return False
        return self._transcript.running is None if exchange is None else exchange.over

    def _running(self, exchange: Exchange) -> ShownAnswer | None:
        running = self._transcript.running
        return running if running is not None and running.response_id == exchange.response_id else None

    def _stop(self, exchange: Exchange | None) -> tuple[Json, ...]:
        if exchange is not None:
            return exchange.stop()
        running = self._transcript.running
        return () if running is None else ({"type": "response.cancel", "response_id": running.response_id},)

    async def _take(self, event: Json | None, exchange: Exchange | None) -> ShownAnswer | None:
        """Take an event; return the answer to `exchange` if this was its end."""
        answer = None
        if event is None:
            return None
        if exchange is not None:
            await self._link.send(exchange.take(event))
        for shown in self._transcript.take(event):
            self._show(shown, exchange)
            if isinstance(shown, Answered) and exchange and shown.answer.response_id == exchange.response_id:
                answer = shown.answer
        return answer

    async def _caught_up(self, exchange: Exchange | None) -> None:
        """All of the log is known: show what was said, and send again what did not arrive."""
        self._behind = False
        for told in self._backlog:
            self._show(told, exchange)
        self._backlog.clear()
        if exchange is not None:
            running = self._running(exchange)
            self._screen.show(Waiting() if running is None else Answering(answer=running), ours=True)
            await self._link.send(exchange.pending())

    def _show(self, shown: Shown, exchange: Exchange | None) -> None:
        match shown:
            case ShownWords() if exchange is not None and shown.item_id == exchange.item_id:
                pass  # it was typed here
            case ShownWords() | Answered() if self._behind:
                self._backlog.append(shown)
            case Removed() if self._behind:
                self._backlog = [told for told in self._backlog if not _holds(told, shown.item_id)]
            case Answering() if self._behind:
                pass  # shown once all is known
            case ShownFault() if shown.code in _SILENT or (exchange is not None and exchange.failure == shown.message):
                pass  # the second is raised
            case Answering() | Answered():
                self._screen.show(shown, ours=exchange is not None and shown.answer.response_id == exchange.response_id)
            case _:
                self._screen.show(shown, ours=False)

    # The connection

    def _new_link(self, cursor: Bookmark) -> Link:
        return Link(self._api.address, self._api.headers, cursor)

    async def _connect(self) -> None:
        """Connect, and learn how much there is to be told before all is known."""
        link = self._link
        await link.open()
        self._behind, self._goal = True, 0
        if link.cursor.kept:
            self._goal = (await self._api.session(self.session_id))["last_seq"]
            return
        while link.cursor.session_id is None:
            await link.receive()
        if self.chosen:
            await self.change(**self.chosen)

    async def _next(self) -> Json | None:
        """Return the next event, or None if the connection had to be made anew."""
        try:
            return await self._link.receive()
        except Unreachable:
            await self._regain()
            return None

    async def _regain(self) -> None:
        self._lost = True
        self._screen.note("The connection is lost. Trying again; Ctrl-C stops waiting.")
        waited_s, wait_s = 0.0, _FIRST_WAIT_S
        while True:
            self._check()
            # Not all clients of a restarted server at once.
            pause_s = wait_s * random.uniform(0.75, 1.25)
            await asyncio.sleep(pause_s)
            waited_s, wait_s = waited_s + pause_s, min(_LONGEST_WAIT_S, wait_s * 2)
            try:
                await self._connect()
            except Unreachable:
                if waited_s >= self._patience_s:
                    raise
                continue
            self._lost = False
            return


def _holds(told: ShownWords | Answered, item_id: str) -> bool:
    return told.item_id == item_id if isinstance(told, ShownWords) else item_id in told.answer.texts
